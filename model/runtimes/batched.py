"""What every runtime does around its library: check, cut into batches, pad, judge range.

Owns the loop, and the smaller batches when a device runs out of memory. Imports no runtime; each
has a class of its own below this one.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

from model.errors import CannotLocate, DeviceOutOfMemory, RuntimeFault
from model.findings import probabilities
from model.package import ModelPackage
from model.runtimes.port import (
    DEVICE_CHOICES,
    FloatArray,
    PredictorDescription,
    planned_batches,
)
from model.runtimes.sharing import LARGEST_IMAGE_PART, LARGEST_VOLUME_PART
from model.runtimes.signature import fits, probe_shape

_logger = logging.getLogger(__name__)

IMAGE_BATCH_SIZES = (1, 8, 32)
VOLUME_BATCH_SIZES = (1, 4)


class BatchedPredictor(ABC):
    """A ``Predictor`` whose library computes one batch at a time.

    Parameters
    ----------
    package : ModelPackage
    batch_sizes : sequence of int, optional
        The sizes a batch is cut into; by default 1, 8, 32 for images and 1, 4 for volumes.
    """

    def __init__(self, package: ModelPackage, batch_sizes: Sequence[int] | None = None) -> None:
        of_volumes = package.recipe.kind == "volume"
        default = VOLUME_BATCH_SIZES if of_volumes else IMAGE_BATCH_SIZES
        self._package = package
        self._largest_part = LARGEST_VOLUME_PART if of_volumes else LARGEST_IMAGE_PART
        """How many inputs one core takes at once, where a batch is shared out."""
        self._sizes = tuple(sorted(batch_sizes or default))
        self._takes_any_size = False
        """True where a batch needs no padding: the largest size is only a limit then."""
        self._out_of_memory: type[Exception] = DeviceOutOfMemory
        """What ``_run`` raises when a smaller batch may do."""
        self._description: PredictorDescription | None = None

    @property
    def device(self) -> str:
        """The device in use; empty before ``load``."""
        return self._description.device if self._description else ""

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The sizes a batch is cut into, smaller ones only after the device ran out of memory."""
        return self._sizes

    @property
    def description(self) -> PredictorDescription:
        """What computes.

        Raises
        ------
        RuntimeFault
            Before ``load``.
        """
        if self._description is None:
            raise RuntimeFault(f"{self._package.at_version}: is not loaded yet")
        return self._description

    @abstractmethod
    def load(self) -> None:
        """Load the weights and check them against the manifest; see ``Predictor.load``."""

    @abstractmethod
    def _run(self, chunk: FloatArray) -> FloatArray:
        """Compute one batch, channels last; return (batch, outputs)."""

    def _settle(self, one: FloatArray) -> Sequence[int]:
        """Choose between ways of computing, given one input; return the sizes to warm up then."""
        del one  # there is one way
        return self._sizes

    def _run_map(self, chunk: FloatArray) -> FloatArray:
        """Compute the map of one batch, channels last; ``CannotLocate`` where there is none."""
        del chunk
        raise CannotLocate("the runtime that serves this model gives no map")

    def warm_up(self) -> float:
        """Compute what has to be prepared once, so that no study waits; return the seconds."""
        started = time.perf_counter()
        shape = probe_shape(self._package.recipe)
        for size in self._settle(np.zeros((1, *shape), np.float32)):
            self.predict(np.zeros((size, *shape), np.float32))
        return time.perf_counter() - started

    def predict(self, batch: FloatArray) -> FloatArray:
        """Return probabilities, (batch, labels); see ``Predictor.predict``."""
        self._check(batch)
        outputs = np.empty((0, self._package.output.size), np.float32)
        if len(batch):
            outputs = self._in_batches(batch, self._checked_run)
        return probabilities(outputs, self._package.output, self._package.labels)

    def locate(self, batch: FloatArray) -> FloatArray:
        """Return the map of logits, one input at least; see ``Detector.locate``."""
        self._check(batch)
        return self._in_batches(batch, self._checked_map)

    def _in_batches(self, batch: FloatArray, run: Callable[[FloatArray], FloatArray]) -> FloatArray:
        """Compute a batch in the sizes of this predictor, smaller ones when memory runs out."""
        parts: list[FloatArray] = []
        done = 0
        while done < len(batch):
            size, used = self._next_batch(len(batch) - done)
            try:
                parts.append(run(padded(batch[done : done + used], size))[:used])
            except self._out_of_memory as error:
                self._shrink(size, error)
                continue
            done += used
        return np.concatenate(parts)

    def _checked_run(self, chunk: FloatArray) -> FloatArray:
        given = self._run(chunk)
        self._check_output(given, len(chunk))
        return given

    def _checked_map(self, chunk: FloatArray) -> FloatArray:
        given = self._run_map(chunk)
        outputs = self._package.output.size
        ends = (given.shape[0], given.shape[-1]) if given.ndim == chunk.ndim else ()
        if ends != (len(chunk), outputs):
            raise CannotLocate(
                f"the map must be of shape (batch, [slices,] rows, columns, {outputs}); it is "
                f"{given.shape}"
            )
        return given.astype(np.float32, copy=False)

    def _next_batch(self, count: int) -> tuple[int, int]:
        if self._takes_any_size:
            size = min(count, self._sizes[-1])
            return size, size
        return planned_batches(count, self._sizes)[0]

    def _check(self, batch: FloatArray) -> None:
        shape = self._package.recipe.shape
        if not fits(shape, batch.shape[1:]) or batch.dtype != np.float32:
            raise RuntimeFault(
                f"{self._package.at_version}: batch must be float32 with inputs of shape "
                f"{shape}, received {batch.dtype} {batch.shape}"
            )
        if self._description is None:
            raise RuntimeFault(f"{self._package.at_version}: is not loaded yet")

    def _shrink(self, size: int, error: Exception) -> None:
        """Give up the sizes that do not fit; the next smaller one is tried."""
        smaller = tuple(known for known in self._sizes if known < size)
        if not smaller:
            if isinstance(error, DeviceOutOfMemory):
                raise error
            raise DeviceOutOfMemory(
                f"{self._package.at_version}: {self.device} has no memory for a batch of "
                f"{size}; free the device or run the worker on the CPU"
            ) from error
        _logger.warning(
            "%s: %s has no memory for a batch of %d; using at most %d from now on",
            self._package.at_version, self.device, size, smaller[-1],
            extra={"action": "batch_shrunk", "batch_size": smaller[-1]},
        )  # fmt: skip
        self._sizes = smaller

    def _check_output(self, given: FloatArray, size: int) -> None:
        wanted = (size, self._package.output.size)
        if given.shape != wanted:
            raise RuntimeFault(
                f"{self._package.at_version}: the network must answer {size} inputs with numbers "
                f"of shape {wanted}, received {given.shape}; the manifest or the network is wrong"
            )


def checked_device(device: str) -> str:
    """Return a device choice; ``RuntimeFault`` unless it is one."""
    if device not in DEVICE_CHOICES:
        raise RuntimeFault(f"device: must be one of {', '.join(DEVICE_CHOICES)}; got {device}")
    return device


def padded(chunk: FloatArray, size: int) -> FloatArray:
    """Return a chunk filled up with zeros to `size` inputs."""
    if len(chunk) == size:
        return chunk
    padding = np.zeros((size - len(chunk), *chunk.shape[1:]), np.float32)
    return np.concatenate([chunk, padding])
