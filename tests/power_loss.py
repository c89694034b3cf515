"""What a disk holds after a power failure, by the rules and not by luck.

The model is the strictest that POSIX allows: of a file only what was there when it was last synced
survives, and of a folder only the names that were there when it was last synced. Real file systems
keep more, and more only adds names: that every name shows a whole file is judged where names are
given. Owns this model and the calls it listens to; changes nothing about them.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import storage.spool
from dicom_io.receiving.peer_stream import PeerStream

_P_DATA_TF = 4


class Disk:
    """Listens to the syncs of this process.

    Parameters
    ----------
    monkeypatch : pytest.MonkeyPatch
        Takes the ears away again.
    root : Path
        The folder that survives; what is in it does only when it is synced.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._names: dict[int, dict[str, int]] = {}
        self._contents: dict[int, bytes] = {}
        self.unsynced_names: list[str] = []
        """Files that got a name below ``studies`` before their bytes were synced."""
        self.at_answers: list[dict[str, bytes]] = []
        """What would have survived, at the moment of each response to a C-STORE."""
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._listening(getattr(os, name)))
        move, send = storage.spool.move_without_replacing, PeerStream.send
        monkeypatch.setattr(storage.spool, "move_without_replacing", self._judging(move))
        monkeypatch.setattr(PeerStream, "send", self._remembering(send))

    def survivors(self) -> dict[str, bytes]:
        """Return path and content of every file that a power failure now would leave."""
        with self._lock:
            return dict(self._below(self._root.stat().st_ino, ""))

    def _below(self, folder: int, path: str) -> list[tuple[str, bytes]]:
        found = []
        for name, number in self._names.get(folder, {}).items():
            if number in self._names:
                found += self._below(number, f"{path}{name}/")
            elif number in self._contents:
                found.append((f"{path}{name}", self._contents[number]))
        return found

    def _listening(self, sync: Callable[[int], None]) -> Callable[[int], None]:
        def listened(descriptor: int) -> None:
            # What comes while a sync is under way may or may not be covered: it is not counted.
            covered = _look_at(descriptor)
            sync(descriptor)
            number = os.fstat(descriptor).st_ino
            with self._lock:
                if isinstance(covered, bytes):
                    self._contents[number] = covered
                else:
                    self._names[number] = covered

        return listened

    def _judging(self, move: Callable[..., None]) -> Callable[..., None]:
        def judged(source: str, target: str) -> None:
            number, content = Path(source).stat().st_ino, Path(source).read_bytes()
            with self._lock:
                if self._contents.get(number) != content:
                    self.unsynced_names.append(target)
            move(source, target)

        return judged

    def _remembering(self, send: Callable[..., None]) -> Callable[..., None]:
        def remembered(stream: Any, data: bytes) -> None:
            if data[0] == _P_DATA_TF:
                self.at_answers.append(self.survivors())
            send(stream, data)

        return remembered


def _look_at(descriptor: int) -> bytes | dict[str, int]:
    """Return what a file holds, or the names in a folder with their inodes."""
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        return Path(f"/proc/self/fd/{descriptor}").read_bytes()
    with os.scandir(descriptor) as entries:
        return {entry.name: entry.inode() for entry in entries}
