"""Where the time of building a tensor goes, for benchmarks.

Owns one accumulator; code that is not measured passes None and pays nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

Timings = dict[str, float]
"""Seconds by step name, added up over slices."""


@contextmanager
def timed(timings: Timings | None, step: str) -> Iterator[None]:
    """Add the time spent inside to ``timings[step]``."""
    if timings is None:
        yield
        return
    started = time.perf_counter()
    try:
        yield
    finally:
        timings[step] = timings.get(step, 0.0) + time.perf_counter() - started
