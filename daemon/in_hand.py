"""The jobs a worker holds: claimed and waiting for the device, computing, or being recorded.

Owns the note, beside the slot's lock, of which of them no computation can have harmed: whoever
takes over from a worker that died blames the others only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from daemon.logs import ACTION, REASON
from storage.jobs import ClaimedJob

_logger = logging.getLogger(__name__)


def note_path(data_folder: Path, slot: str) -> Path:
    """Return where the worker of a slot keeps its note."""
    return data_folder / "locks" / f"{slot.replace('/', '-')}.not-computing"


def read_note(path: Path) -> frozenset[int]:
    """Return the jobs that the last worker of a slot held and did not compute when it ended."""
    try:
        first_line = path.read_text(encoding="ascii").partition("\n")[0]
        return frozenset(int(word) for word in first_line.split())
    except (OSError, ValueError):
        return frozenset()


class InHand:
    """What a worker holds, by phase; safe to share between its threads.

    Without ``open_note`` nothing is written: a death is then counted for all. So it is where the
    note cannot be written; no job is kept from the device for that.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._jobs: dict[int, ClaimedJob] = {}
        self._computing: set[int] = set()
        self._note: int | None = None
        self._is_unwritten = False
        """The last attempt to write the note failed."""

    def open_note(self, path: Path) -> None:
        """Begin to keep the note, empty at first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._note = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)

    def close_note(self) -> None:
        """End the note; what is in hand stays."""
        with self._guard:
            if self._note is not None:
                os.close(self._note)
            self._note = None

    def add(self, jobs: Iterable[ClaimedJob]) -> None:
        """Hold jobs just claimed, which wait for the device."""
        with self._guard:
            self._jobs.update((job.id, job) for job in jobs)
            self._write_note()

    def begin(self, jobs: Iterable[ClaimedJob]) -> None:
        """Say that jobs are about to compute: from here on a death is theirs."""
        with self._guard:
            for job in jobs:
                self._jobs[job.id] = job
                self._computing.add(job.id)
            self._write_note()

    def computed(self, jobs: Iterable[ClaimedJob]) -> None:
        """Say that jobs have been computed and only need to be recorded."""
        with self._guard:
            self._computing.difference_update(job.id for job in jobs)
            self._write_note()

    def drop(self, jobs: Iterable[ClaimedJob]) -> None:
        """Hold jobs no more: they were recorded, given back, or lost."""
        with self._guard:
            for job in jobs:
                self._jobs.pop(job.id, None)
                self._computing.discard(job.id)
            self._write_note()

    def all(self) -> tuple[ClaimedJob, ...]:
        """Return every job held; their leases are to be renewed."""
        with self._guard:
            return tuple(self._jobs.values())

    def computing(self) -> tuple[ClaimedJob, ...]:
        """Return the jobs the device works on."""
        with self._guard:
            return tuple(self._jobs[number] for number in sorted(self._computing))

    def _write_note(self) -> None:
        if self._note is None:
            return
        spared = sorted(self._jobs.keys() - self._computing)
        line = (" ".join(map(str, spared)) + "\n").encode("ascii")
        try:
            # One call into the page cache: it survives this process, which is all that it is for.
            # What an earlier, longer note leaves behind the line's end is never read.
            is_whole = os.pwrite(self._note, line, 0) == len(line)
            why = "" if is_whole else "only a part was written"
        except OSError as error:
            why = error.strerror or type(error).__name__
        if why:
            # What stands there may excuse a job that computes now: an empty one excuses nobody.
            with contextlib.suppress(OSError):
                os.ftruncate(self._note, 0)
        self._say_once(why)

    def _say_once(self, why: str) -> None:
        if why and not self._is_unwritten:
            _logger.warning(
                "the note of the analyses read ahead cannot be written (%s): if this worker dies, "
                "an attempt is counted for them too", why,
                extra={ACTION: "note_unwritten", REASON: why},
            )  # fmt: skip
        if self._is_unwritten and not why:
            _logger.info(
                "the note of the analyses read ahead is written again",
                extra={ACTION: "note_written"},
            )
        self._is_unwritten = bool(why)
