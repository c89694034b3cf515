"""Counts the steps of a receiver that decide what is on disk, and ends it before a chosen one.

Owns what counts as a step: the calls by which an instance is written, named, answered and indexed,
and those by which a start settles what its predecessor left. Changes nothing about them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import daemon.indexing
import daemon.settling
import storage.reception
import storage.reindexing
import storage.spool
from dicom_io.receiving.peer_stream import PeerStream
from storage.arrivals import Arrival

_P_DATA_TF = 4
_transaction = threading.local()


class Watch(TypedDict, total=False):
    """What to do at the steps; both may be left out."""

    log: str
    """A file that gets one line a step: its name and which of that name it is."""
    die: tuple[str, int]
    """Before which step the process kills itself."""


def watch_steps(watch: Watch | None) -> None:
    """Watch the steps of this process from now on."""
    if watch is None:
        return
    steps = _Steps(watch)
    for place, attribute, name, counts in _STEPS:
        setattr(place, attribute, steps.counted(name, getattr(place, attribute), counts))


class _Steps:
    def __init__(self, watch: Watch) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._write = os.write
        log = watch.get("log")
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log else None
        name, number = watch.get("die", ("", 0))
        self._last = (name, number)

    def counted(
        self, name: str, call: Callable[..., Any], counts: Callable[..., bool]
    ) -> Callable[..., Any]:
        """Return `call`, counted where `counts` says of its arguments that it is a step."""

        def step(*arguments: Any, **named: Any) -> Any:
            if counts(*arguments):
                self._begin(name)
            return call(*arguments, **named)

        return step

    def _begin(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1
            number = self._counts[name]
            if self._log is not None:
                self._write(self._log, f"{name},{number}\n".encode())
        if (name, number) == self._last:
            os.kill(os.getpid(), signal.SIGKILL)


def _is_part(target: object, *_: object) -> bool:
    path = Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else target
    return str(path).endswith(".part")


def _is_below_studies(path: object, *_: object) -> bool:
    return "/studies" in str(path)


def _is_answer(_: object, data: bytes) -> bool:
    return data[0] == _P_DATA_TF


def _has_instances(_: object, reports: list[object], *__: object) -> bool:
    return any(isinstance(each, Arrival) for each in reports)


def _records_instances(_: object, arrivals: list[object], *__: object) -> bool:
    _transaction.has_instances = bool(arrivals)
    return bool(arrivals)


def _follows_instances(*_: object) -> bool:
    return getattr(_transaction, "has_instances", False)


def _always(*_: object) -> bool:
    return True


_STEPS: tuple[tuple[Any, str, str, Callable[..., bool]], ...] = (
    (os, "open", "open", _is_part),
    (os, "write", "write", _is_part),
    (os, "fdatasync", "sync data", _is_part),
    (os, "unlink", "unlink", _is_part),
    (os, "mkdir", "make folder", _is_below_studies),
    (storage.spool, "move_without_replacing", "move", _always),
    (storage.spool, "sync_folder", "sync folder", _is_below_studies),
    (PeerStream, "send", "answer", _is_answer),
    (daemon.indexing, "record_reports", "index", _has_instances),
    (storage.reception, "record_within", "insert rows", _records_instances),
    (storage.reception, "close_within", "commit rows", _follows_instances),
    (daemon.settling, "close_associations_of", "close associations", _always),
    (storage.reindexing, "record_instances", "index again", _always),
)
"""Where each step is called from, its name, and which calls count."""
