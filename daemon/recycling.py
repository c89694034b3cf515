"""When a worker starts anew: after so many batches, or when its memory keeps growing.

Owns the rule and the measure of a process's memory.
"""

from __future__ import annotations

import ctypes
import gc
import os
from contextlib import suppress
from pathlib import Path

from daemon.settings import MEBIBYTE
from dicom_io.wording import number_of

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Return how much of this process lies in memory; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def return_memory() -> None:
    """Collect what nobody refers to any more and hand the freed memory to the system."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


class Recycling:
    """Says when it is time.

    Parameters
    ----------
    most_batches : int
        After so many; 0 sets no limit.
    most_growth_megabytes : int
        When memory has grown by so much; 0 sets no limit.
    """

    def __init__(self, most_batches: int, most_growth_megabytes: int) -> None:
        self._most_batches = most_batches
        self._most_growth = most_growth_megabytes * MEBIBYTE
        self._batches = 0
        self._base: int | None = None

    def models_changed(self) -> None:
        """Measure growth from the end of the next batch on: loading a model is no growth."""
        self._base = None

    def reason(self, resident: int) -> str:
        """Count a batch; return why the worker should start anew, or nothing."""
        self._batches += 1
        if self._base is None:
            self._base = resident
        if self._most_batches and self._batches >= self._most_batches:
            return number_of(self._batches, "batch was computed", "batches were computed")
        growth = resident - self._base
        if self._most_growth and growth > self._most_growth:
            return f"its memory grew by {growth // MEBIBYTE} MiB since its models were loaded"
        return ""
