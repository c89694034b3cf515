"""Receivers that break a promise on purpose, so that the tests can show that they would see it.

Each saboteur changes one thing in the process it runs in, which is forked for it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import daemon.settling
import storage.spool
from daemon.receiver import SpooledInstance
from dicom_io.receiving.instances import STORED, StoreAnswer
from storage.arrivals import Stored
from storage.incoming import IncomingFile
from storage.spool import Spool

_PIECE_BYTES = 4096
_LATER_SECONDS = 0.5


def sabotage(name: str | None) -> None:
    """Break one promise, or none."""
    if name is not None:
        _SABOTEURS[name]()


class _NamedFirst(IncomingFile):
    """Gets its final name while it is empty, and its bytes afterwards."""

    def _append(self, fragment: memoryview) -> None:
        self.__dict__.setdefault("held", bytearray()).extend(fragment)

    def finish(self, validate: Callable[..., None] | None = None) -> Stored:
        descriptor = os.dup(self._descriptor)
        stored = super().finish(validate)
        held = memoryview(self.__dict__["held"])
        for at in range(0, len(held), _PIECE_BYTES):
            os.write(descriptor, held[at : at + _PIECE_BYTES])
        os.close(descriptor)
        return stored


def _name_before_the_data() -> None:
    storage.spool.IncomingFile = _NamedFirst  # type: ignore[misc]


def _acknowledge_before_the_move() -> None:
    """Answer at once and store in a thread, when the answer has certainly gone."""
    finish = SpooledInstance.finish

    def store_later(self: Any) -> StoreAnswer:
        threading.Timer(_LATER_SECONDS, finish, args=(self,)).start()
        return STORED

    SpooledInstance.finish = store_later  # type: ignore[method-assign]
    SpooledInstance.discard = lambda self: None  # type: ignore[method-assign]


def _write_in_the_open() -> None:
    """Write below ``studies`` from the first byte on."""
    begin = Spool.begin

    def begin_in_the_open(self: Any, *arguments: Any) -> IncomingFile:
        self._part_stem = f"{self._studies}/receiver"
        return begin(self, *arguments)

    Spool.begin = begin_in_the_open  # type: ignore[method-assign]


def _sweep_nothing() -> None:
    Spool.sweep_incoming = lambda self: 0  # type: ignore[method-assign]


def _index_nothing_again() -> None:
    daemon.settling.SpoolIndexing._run = lambda self: None  # type: ignore[method-assign]


def _forget_the_file() -> None:
    """Remove the file of every seventh instance after it was acknowledged."""
    file, counted = Spool.file, iter(range(1, 10**9))

    def file_and_forget(self: Any, *arguments: Any) -> Stored:
        stored = file(self, *arguments)
        if next(counted) % 7 == 0:
            Path(stored.path).unlink()
        return stored

    Spool.file = file_and_forget  # type: ignore[method-assign]


_SABOTEURS: dict[str, Callable[[], None]] = {
    "name before the data": _name_before_the_data,
    "acknowledge before the move": _acknowledge_before_the_move,
    "write in the open": _write_in_the_open,
    "sweep nothing": _sweep_nothing,
    "index nothing again": _index_nothing_again,
    "forget the file": _forget_the_file,
}
