"""Processor time and memory of processes and their children, read from /proc.

Owns what a process tree is; knows nothing of what the processes do.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE_SECONDS = 0.02
# Of /proc/PID/stat, counted after the command name, which may hold spaces.
_PARENT, _OWN_TIMES, _TIMES_WITH_ENDED_CHILDREN = 1, slice(11, 13), slice(11, 15)


def own_processor_seconds(pid: int) -> float:
    """Return user and system time of one process, without its children's."""
    return sum(map(int, _stat(pid)[_OWN_TIMES])) / _TICKS


def processor_seconds(roots: Iterable[int]) -> float:
    """Return user and system time of processes and all their children, ended ones included.

    A child that ended but was not waited for still has its own entry; once its parent has waited,
    its time is the parent's.
    """
    ticks = 0
    for pid in _tree(roots):
        with suppress(FileNotFoundError, ProcessLookupError):
            ticks += sum(map(int, _stat(pid)[_TIMES_WITH_ENDED_CHILDREN]))
    return ticks / _TICKS


def own_resident_kib(pid: int) -> int:
    """Return the resident memory of one process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise ProcessLookupError(f"process {pid} has no resident memory: it ended")


def resident_mib(roots: Iterable[int]) -> dict[int, float]:
    """Return the resident memory of each process that lives, children included."""
    sizes = {}
    for pid in _tree(roots):
        with suppress(FileNotFoundError, ProcessLookupError):
            sizes[pid] = own_resident_kib(pid) / 1024
    return sizes


@dataclass
class MemoryWatch:
    """The largest resident memory of any one process, seen so far."""

    mib: float = 0.0
    _ended: threading.Event = field(default_factory=threading.Event)

    def run(self, roots: tuple[int, ...]) -> None:
        """Look again and again until the end."""
        while not self._ended.is_set():
            self.mib = max([self.mib, *resident_mib(roots).values()])
            time.sleep(_SAMPLE_SECONDS)

    def end(self) -> None:
        """Look no more."""
        self._ended.set()


@contextmanager
def watched_memory(roots: tuple[int, ...]) -> Iterator[MemoryWatch]:
    """Watch processes during the block."""
    watch = MemoryWatch()
    thread = threading.Thread(target=watch.run, args=(roots,), name="memory-watch")
    thread.start()
    try:
        yield watch
    finally:
        watch.end()
        thread.join()


def _tree(roots: Iterable[int]) -> set[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                parents[int(entry.name)] = int(_stat(int(entry.name))[_PARENT])
    found, newest = set(roots), set(roots)
    while newest:
        newest = {pid for pid, parent in parents.items() if parent in newest} - found
        found |= newest
    return found


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
