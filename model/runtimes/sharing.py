"""A batch on a CPU: shared out among the cores, every part computed by one of them.

Cores that compute one operation together wait for each other at each of a network's hundreds of
operations. Cores with inputs of their own wait once, and a small part stays in their caches. Owns
the cutting and the threads, and from how many inputs on sharing pays, which ``settle`` measures.
Knows no runtime.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Generic, TypeAlias, TypeVar

import numpy as np

from model.runtimes.port import FloatArray

LARGEST_IMAGE_PART = 4
LARGEST_VOLUME_PART = 1
_TRIALS = 5
_TRIAL_SECONDS = 2.0
"""Of both ways together."""
_SLOW_SECONDS = 10.0
"""A network whose first computations take longer is not asked again: what they prepare plays no
part then."""

Engine = TypeVar("Engine")
"""What a runtime computes with: a session, a function, a compiled network."""

Compute: TypeAlias = Callable[[Engine, FloatArray], FloatArray]


class Undivided(Generic[Engine]):
    """A batch is computed as it is, by the one way there is."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def settle(self, one: FloatArray, compute: Compute[Engine]) -> None:
        """Do nothing: there is no choice."""

    def sizes_to_warm(self, sizes: Sequence[int]) -> Sequence[int]:
        """Return which batches to compute once before service: each is prepared by itself."""
        return sizes

    def compute(self, batch: FloatArray, compute: Compute[Engine]) -> FloatArray:
        """Return what ``compute`` makes of a batch."""
        return compute(self._engine, batch)


class Shared(Generic[Engine]):
    """Two ways of computing one network on a CPU, and which batch goes which way.

    Parameters
    ----------
    alone : Engine
        Computes on one core; asked by several threads at once.
    whole : Engine
        Computes one batch on all cores, for what is too few to be shared out.
    cores : int
        How many parts are computed at once.
    largest_part : int
        How many inputs one core takes at once.

    Notes
    -----
    Own code, because each runtime shares out operations only, or keeps a batch on one core.
    """

    def __init__(self, alone: Engine, whole: Engine, cores: int, largest_part: int) -> None:
        self._alone = alone
        self._whole: Engine | None = whole
        self._cores = cores
        self._largest_part = largest_part
        self._threads = ThreadPoolExecutor(cores, thread_name_prefix="share")
        self._fewest_shared = cores

    @property
    def fewest_shared(self) -> int:
        """From how many inputs on a batch is shared out; as many as there are cores at first."""
        return self._fewest_shared

    def settle(self, one: FloatArray, compute: Compute[Engine]) -> None:
        """Measure one input both ways, and give up the way that no batch will go.

        Until then sharing is taken to pay for as many inputs as there are cores, where it always
        does. Scores differ by rounding only.
        """
        if self._whole is None:
            return
        alone, whole = _quickest([self._alone, self._whole], one, compute)
        # So many inputs take no longer side by side than one after the other.
        self._fewest_shared = max(1, min(self._cores, math.ceil(alone / whole)))
        if self._fewest_shared == 1:
            self._whole = None

    def sizes_to_warm(self, sizes: Sequence[int]) -> Sequence[int]:
        """Return one input, and as many as all cores take at once: no batch is more at a time."""
        return sorted({1, min(max(sizes), self._cores * self._largest_part)})

    def compute(self, batch: FloatArray, compute: Compute[Engine]) -> FloatArray:
        """Return what ``compute`` makes of a batch, one input at least, in its order.

        Raises
        ------
        Exception
            Whatever ``compute`` raises for the first part that fails, once all have ended.
        """
        if self._whole is not None and len(batch) < self._fewest_shared:
            return compute(self._whole, batch)
        parts = np.array_split(batch, self._number_of_parts(len(batch)))
        if len(parts) == 1:
            return compute(self._alone, batch)
        computed = [self._threads.submit(compute, self._alone, part) for part in parts]
        try:
            wait(computed)
        finally:
            for each in computed:
                each.cancel()  # who was interrupted waits for no more than what is begun
        return np.concatenate([each.result() for each in computed])

    def _number_of_parts(self, inputs: int) -> int:
        return max(min(inputs, self._cores), math.ceil(inputs / self._largest_part))


Division: TypeAlias = Undivided[Engine] | Shared[Engine]
"""How the inputs of a batch come to what computes them."""


def usable_cores(wanted: int | None) -> int:
    """Return on how many cores to compute: those wanted, else all this process may use."""
    return wanted or len(os.sched_getaffinity(0))


def _quickest(
    engines: list[Engine],
    one: FloatArray,
    compute: Compute[Engine],
) -> list[float]:
    """Return the seconds of each in its best trial; the first counts for slow networks only."""
    first = [_seconds(each, one, compute) for each in engines]
    if sum(first) > _SLOW_SECONDS:
        return first
    trials: list[list[float]] = []
    while len(trials) < _TRIALS and sum(map(sum, trials)) <= _TRIAL_SECONDS:
        trials.append([_seconds(each, one, compute) for each in engines])
    return [min(each) for each in zip(*trials, strict=True)]


def _seconds(engine: Engine, one: FloatArray, compute: Compute[Engine]) -> float:
    started = time.perf_counter()
    compute(engine, one)
    return time.perf_counter() - started
