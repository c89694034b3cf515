"""The places for open associations that the receiver processes of one host share.

Owns one small file: each process has a region there that says which associations it holds, and a
lock that the kernel drops when the process ends, however it ends. Knows no limit and no peer.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from dicom_io.errors import ReceiverNotStarted

MOST_PROCESSES = 32
"""Receivers that may share one file; more on one host would be more than its cores."""
MOST_PLACES = 1000
"""Associations that one process may hold."""

_KEY_BYTES = 16
_COUNT = struct.Struct("<I")
_WORK = struct.Struct("<IIId")
"""Process, port, connections, and when it said so on the clock that nobody sets."""
_KEYS_AT = _WORK.size + _COUNT.size
_REGION_BYTES = 32768
"""What it does, a count, and two keys for each of `MOST_PLACES`; in whole pages."""
_HEADER_BYTES = 4096
_MUTEX_AT = 0
_LIFE_AT = 1
"""The first of `MOST_PROCESSES` bytes: each is locked as long as its process lives, and is 1 when
a process has taken that region."""

_CLOSED = -1


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a place."""

    address: str
    rule: str = ""
    """Names the rule that admitted it; empty when that rule sets no limit of its own."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How many places are held."""

    in_all: int = 0
    from_address: int = 0
    by_rule: int = 0


@dataclass(frozen=True, slots=True)
class AtWork:
    """What a process said of its work."""

    pid: int
    connections: int


class SharedPlaces:
    """One process's part in a file of places.

    Open-file-description locks are used: unlike POSIX record locks they are not lost when some
    other descriptor of the file is closed, and two objects in one process count as two processes.

    Parameters
    ----------
    path : Path
        The file, on a disk of this host; made when absent. Processes that name the same file
        share their places.

    Raises
    ------
    ReceiverNotStarted
        The file cannot be used, or `MOST_PROCESSES` processes use it already.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            self._number = self._claim_region(path)
        except OSError as error:
            os.close(self._file)
            raise _unusable(path, error) from error
        except ReceiverNotStarted:
            os.close(self._file)
            raise

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Keep the other processes from taking and giving back places while the block runs."""
        if self._file == _CLOSED:
            yield
            return
        _lock(self._file, _MUTEX_AT, fcntl.F_WRLCK, wait=True)
        try:
            yield
        finally:
            if self._file != _CLOSED:  # Closing it has given the lock back.
                _lock(self._file, _MUTEX_AT, fcntl.F_UNLCK, wait=False)

    def tally_of_others(self, holder: Holder) -> Tally:
        """Count what the other living processes hold; call it within `exclusively`."""
        in_all = from_address = by_rule = 0
        address, rule = _key("address", holder.address), _key("rule", holder.rule)
        for number in self._others(forgets=True):
            keys = self._keys_of(number)
            in_all += len(keys) // (2 * _KEY_BYTES)
            # Keys are digests: one that appears across the border of two others does not occur.
            from_address += keys.count(address)
            by_rule += keys.count(rule)
        return Tally(in_all, from_address, by_rule)

    def publish(self, holders: Iterable[Holder]) -> None:
        """Tell the others what this process holds now; call it within `exclusively`."""
        if self._file == _CLOSED:
            return
        some = islice(holders, MOST_PLACES)
        keys = b"".join(_key("address", each.address) + _key("rule", each.rule) for each in some)
        count = len(keys) // (2 * _KEY_BYTES)
        _write_all(self._file, _COUNT.pack(count) + keys, _region_at(self._number) + _WORK.size)

    def announce(self, port: int, connections: int) -> None:
        """Tell the others how many connections this process serves on a port."""
        if self._file == _CLOSED:
            return
        said = _WORK.pack(os.getpid(), port, connections, time.monotonic())
        _write_all(self._file, said, _region_at(self._number))

    def others_at_work(self, port: int, within_seconds: float) -> list[AtWork]:
        """Return the living processes that announced work on a port not long ago."""
        found = []
        oldest = time.monotonic() - within_seconds
        for number in self._others(forgets=False):
            said = os.pread(self._file, _WORK.size, _region_at(number))
            pid, their_port, connections, at = _WORK.unpack(said)
            if their_port == port and at >= oldest:
                found.append(AtWork(pid, connections))
        return found

    def close(self) -> None:
        """Give back every place of this process, which is alone from now on."""
        descriptor, self._file = self._file, _CLOSED
        if descriptor != _CLOSED:
            os.close(descriptor)

    def _claim_region(self, path: Path) -> int:
        with self.exclusively():
            for number in range(MOST_PROCESSES):
                if _lock(self._file, _LIFE_AT + number, fcntl.F_WRLCK, wait=False):
                    # Allocated now: a disk that fills up later must not stop the counting.
                    os.posix_fallocate(self._file, 0, _HEADER_BYTES)
                    os.posix_fallocate(self._file, _region_at(number), _REGION_BYTES)
                    _write_all(self._file, bytes(_KEYS_AT), _region_at(number))
                    _write_all(self._file, b"\1", _LIFE_AT + number)
                    return number
        raise ReceiverNotStarted(
            f"{MOST_PROCESSES} receivers share {path} already, the most there may be: "
            "run fewer, or give this one another data folder"
        )

    def _others(self, *, forgets: bool) -> Iterator[int]:
        """Yield the regions of the others that live.

        `forgets` the dead, which only they may who keep others from taking a region meanwhile.
        """
        if self._file == _CLOSED:
            return
        taken = os.pread(self._file, MOST_PROCESSES, _LIFE_AT)
        for number, is_taken in enumerate(taken):
            if not is_taken or number == self._number:
                continue
            if _is_locked(self._file, _LIFE_AT + number):
                yield number
            elif forgets:
                _write_all(self._file, b"\0", _LIFE_AT + number)

    def _keys_of(self, number: int) -> bytes:
        at = _region_at(number) + _WORK.size
        (count,) = _COUNT.unpack(os.pread(self._file, _COUNT.size, at))
        return os.pread(self._file, min(count, MOST_PLACES) * 2 * _KEY_BYTES, at + _COUNT.size)


def _unusable(path: Path, error: OSError) -> ReceiverNotStarted:
    return ReceiverNotStarted(
        f"cannot use {path}, in which receivers share their places for associations: "
        f"{error.strerror or error}"
    )


def _region_at(number: int) -> int:
    return _HEADER_BYTES + number * _REGION_BYTES


@lru_cache(maxsize=4 * MOST_PLACES)
def _key(kind: str, value: str) -> bytes:
    text = f"{kind}\0{value}".encode(errors="surrogateescape")
    return hashlib.blake2b(text, digest_size=_KEY_BYTES).digest()


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


_FLOCK = struct.Struct("hhqqi0q")
"""``struct flock`` of Linux: type, whence, start, length, process (0 for these locks)."""


def _lock(descriptor: int, at: int, kind: int, *, wait: bool) -> bool:
    """Lock or unlock one byte; False when another holds it and we do not wait."""
    command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    try:
        fcntl.fcntl(descriptor, command, _FLOCK.pack(kind, os.SEEK_SET, at, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_locked(descriptor: int, at: int) -> bool:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
