"""A disk that fails in the middle of an instance: A700, nothing half, and then all goes on."""

from __future__ import annotations

import errno
import gc
import logging
import os
import sqlite3
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

import storage.incoming
import storage.spool
from dicom_io.statuses import StoreStatusValues
from storage.database import migrate
from tests.reception_here import ReceptionHere
from tests.senders import (
    SUCCESS,
    Ledger,
    Modality,
    Outgoing,
    instance,
    temporary_files,
    visible_files,
)
from tests.upper_layer import elements_of, message, p_data, status_of, store_request

OUT_OF_RESOURCES = int(StoreStatusValues.OUT_OF_RESOURCES)
STUDY = "1.2.826.0.1.3680043.10.9"
SERIES = f"{STUDY}.1"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
LEAKS = 300
LEAKED_BYTES = 400_000
"""Far below what `LEAKS` instances hold, far above what caches take."""


def outgoing(number: int, size: int = 200_000) -> Outgoing:
    return instance(STUDY, SERIES, number, bytes([number % 256]) * size)


@pytest.fixture
def reception(tmp_path: Path, free_port: int) -> Iterator[ReceptionHere]:
    migrate(tmp_path / "medimgd.db")
    reception = ReceptionHere(tmp_path, free_port)
    yield reception
    reception.end()


@pytest.fixture
def modality(reception: ReceptionHere, free_port: int) -> Iterator[Modality]:
    with Modality(free_port) as modality:
        yield modality


class Fault:
    """Makes one call fail at its n-th time and ever after."""

    def __init__(self, place: Any, attribute: str, number: int, first: int = 1) -> None:
        self._place, self._attribute = place, attribute
        self._number, self._first = number, first

    @contextmanager
    def in_force(self) -> Iterator[None]:
        real, counted = getattr(self._place, self._attribute), iter(range(1, 10**9))

        def fail(target: Any, *arguments: Any) -> Any:
            if _is_ours(target) and next(counted) >= self._first:
                raise OSError(self._number, os.strerror(self._number))
            return real(target, *arguments)

        setattr(self._place, self._attribute, fail)
        try:
            yield
        finally:
            setattr(self._place, self._attribute, real)


def _is_ours(target: Any) -> bool:
    path = Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else target
    return str(path).endswith(".part") or "/studies" in str(path)


FAULTS = [
    *(pytest.param(os, "open", number, 1) for number in (*FULL, errno.EMFILE)),
    *(pytest.param(os, "write", number, first) for number in FULL for first in (1, 2, 7, 14)),
    *(pytest.param(os, "fdatasync", number, 1) for number in FULL),
    *(pytest.param(storage.spool, "move_without_replacing", number, 1) for number in FULL),
    *(pytest.param(storage.spool, "sync_folder", number, 1) for number in FULL),
]


@pytest.mark.parametrize(("place", "attribute", "number", "first"), FAULTS)
def test_the_sender_is_told_to_come_back_and_the_association_goes_on(
    reception: ReceptionHere, modality: Modality, place: Any, attribute: str, number: int,
    first: int, tmp_path: Path,
) -> None:  # fmt: skip
    ledger = Ledger()
    assert _send(modality, ledger, outgoing(1)) == SUCCESS

    with Fault(place, attribute, number, first).in_force():
        during = [_send(modality, ledger, outgoing(each)) for each in (2, 3)]
    left = temporary_files(reception.spool.folder)
    ledger.judge(reception.spool.folder)
    afterwards = [_send(modality, ledger, outgoing(each)) for each in (2, 4)]

    assert during == [OUT_OF_RESOURCES, OUT_OF_RESOURCES]
    assert left == []
    assert afterwards == [SUCCESS, SUCCESS]
    modality.release()
    reception.end()
    ledger.judge(reception.spool.folder, again=True)
    assert _indexed(tmp_path) >= {outgoing(each).sop_instance_uid for each in (1, 2, 4)}
    assert _refused(tmp_path) == 2


def _send(modality: Modality, ledger: Ledger, each: Outgoing) -> int:
    ledger.note_sending(each)
    status = modality.send_instance(each)
    if status == SUCCESS:
        ledger.note_acknowledged(each)
    return status


def _indexed(folder: Path) -> set[str]:
    return {uid for (uid,) in _ask(folder, "SELECT sop_instance_uid FROM instance")}


def _refused(folder: Path) -> int:
    return int(_ask(folder, "SELECT count(*) FROM refused_instance WHERE status = 42752")[0][0])


def _ask(folder: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(folder / "medimgd.db")) as connection:
        return connection.execute(query).fetchall()


def test_a_device_that_is_full_says_so_itself(
    reception: ReceptionHere, modality: Modality, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def open_full(path: str, *arguments: Any) -> int:
        descriptor = real(path, *arguments)
        if str(path).endswith(".part"):
            full = real("/dev/full", os.O_WRONLY)
            os.dup2(full, descriptor)
            os.close(full)
        return descriptor

    with monkeypatch.context() as context:
        context.setattr(os, "open", open_full)
        assert modality.send_instance(outgoing(1)) == OUT_OF_RESOURCES
    assert temporary_files(reception.spool.folder) == []
    assert visible_files(reception.spool.folder) == []
    assert modality.send_instance(outgoing(1)) == SUCCESS


def test_the_watermark_stops_a_large_instance_on_its_way(
    reception: ReceptionHere, modality: Modality, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.incoming, "SYNC_EVERY_BYTES", 256 * 1024)
    sent = outgoing(1, 2_000_000)
    values = message(1, store_request(sent.sop_instance_uid), sent.data_set)
    half = len(values) // 2

    _send_values(modality, values[:half])
    _await(lambda: any(part.stat().st_size for part in temporary_files(reception.spool.folder)))
    reception.spool.min_free_bytes = 1 << 60
    _send_values(modality, values[half:])
    answer = modality.read_pdu()[12:]
    left = temporary_files(reception.spool.folder)
    next_one = modality.send_instance(outgoing(2))
    reception.spool.min_free_bytes = 0

    assert status_of(answer) == OUT_OF_RESOURCES
    assert b"are free on the disk" in elements_of(answer)[0x0902]
    assert left == []
    assert next_one == OUT_OF_RESOURCES
    assert [modality.send_instance(each) for each in (sent, outgoing(2))] == [SUCCESS, SUCCESS]


def _send_values(modality: Modality, values: list[bytes]) -> None:
    for value in values:
        modality.send(p_data(value))


def _await(condition: Callable[[], bool]) -> None:
    turn = threading.Event()
    for _ in range(2000):
        if condition():
            return
        turn.wait(0.01)
    raise AssertionError("waited in vain")


@pytest.mark.parametrize(
    ("place", "attribute", "first"),
    [(os, "write", 3), (os, "fdatasync", 1), (storage.spool, "move_without_replacing", 1)],
)
def test_hundreds_of_failures_leak_neither_memory_nor_descriptors(
    reception: ReceptionHere, modality: Modality, monkeypatch: pytest.MonkeyPatch, place: Any,
    attribute: str, first: int,
) -> None:  # fmt: skip
    # pytest keeps every line that is logged.
    monkeypatch.setattr(logging.getLogger("daemon.receiver"), "disabled", True)
    sent = outgoing(1, 60_000)
    with Fault(place, attribute, errno.ENOSPC, first).in_force():
        for _ in range(20):
            assert modality.send_instance(sent) == OUT_OF_RESOURCES
        before = _holds()
        tracemalloc.start()
        try:
            for _ in range(LEAKS):
                assert modality.send_instance(sent) == OUT_OF_RESOURCES
            gc.collect()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert _holds() == before
    print(f"{kept} bytes kept after {LEAKS} failures")
    assert kept < LEAKED_BYTES
    assert temporary_files(reception.spool.folder) == []
    assert modality.send_instance(sent) == SUCCESS


def _holds() -> tuple[int, int]:
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
