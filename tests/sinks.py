"""Sinks for tests that look at whole instances: fragments gathered, one method to override."""

from __future__ import annotations

from dicom_io.receiving.instances import StoreAnswer, StoreRequest


class GatheringSink:
    """Gathers each data set in memory and gives it to `store`, which subclasses define."""

    def begin(self, request: StoreRequest) -> GatheredInstance:
        return GatheredInstance(self, request)

    def store(self, request: StoreRequest, data_set: bytes) -> StoreAnswer:
        raise NotImplementedError


class GatheredInstance:
    """One data set being gathered."""

    def __init__(self, sink: GatheringSink, request: StoreRequest) -> None:
        self._sink = sink
        self._request = request
        self._data_set = bytearray()

    def write(self, fragment: memoryview) -> None:
        self._data_set += fragment

    def finish(self) -> StoreAnswer:
        return self._sink.store(self._request, bytes(self._data_set))

    def discard(self) -> None:
        self._data_set.clear()
