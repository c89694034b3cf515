"""The batches of an epoch: drawn, augmented, read ahead, and the same whenever they are asked for.

Owns the order of images and the threads. Every batch has a generator of its own, seeded by run,
epoch and number: what a batch holds depends neither on threads nor on what was trained before, so
that a training taken up again goes on as if it had never stopped.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from model.training.augmentation import AugmentationRanges, augment_batch
from model.training.plan_fit import DrawingValues, FitPlan
from model.training.targets import FloatArray, IntArray, groups_of

Batch = tuple[FloatArray, FloatArray]
"""(batch, [slices,] rows, columns, channels) and (batch, outputs)."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the images: those a network learns from, or those it is judged by."""

    values: FloatArray
    """Of all images, as a mapped file; (image, [slices,] rows, columns, channels)."""
    rows: IntArray
    """Which of them belong to the part."""
    targets: FloatArray
    """Of the part; (row, outputs)."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: npt.NDArray[np.integer]) -> Batch:
        """Return values and targets of some images of the part, as arrays of their own."""
        return np.asarray(self.values[self.rows[chosen]]), self.targets[chosen]

    def chunks(self, size: int) -> Iterator[FloatArray]:
        """Yield the values of the whole part in order."""
        for start in range(0, len(self), size):
            yield np.asarray(self.values[self.rows[start : start + size]])


def steps_per_epoch(part: Part, fit: FitPlan) -> int:
    """Return how many batches an epoch has; images that do not fill one wait for the next."""
    return max(_drawn_per_epoch(part.targets, fit) // fit.batch_size, 1)


def epoch_batches(
    part: Part, fit: FitPlan, ranges: AugmentationRanges, epoch: int
) -> Iterator[Batch]:
    """Yield the augmented batches of one epoch."""
    order = _order(part.targets, fit, np.random.default_rng([fit.seed, epoch]))
    size = min(fit.batch_size, len(order))

    def maker(number: int) -> Callable[[], Batch]:
        def make() -> Batch:
            # From 1: a seed that ends in 0 draws the same as the seed without it.
            rng = np.random.default_rng([fit.seed, epoch, number + 1])
            values, targets = part.take(order[number * size : (number + 1) * size])
            return augment_batch(values, targets, ranges, rng)

        return make

    return _read_ahead(map(maker, range(steps_per_epoch(part, fit))), fit.readers)


def _read_ahead(makers: Iterator[Callable[[], Batch]], readers: int) -> Iterator[Batch]:
    """Yield what the makers make, in their order, while others are being made."""
    pool = ThreadPoolExecutor(readers, thread_name_prefix="batches")
    try:
        pending: deque[Future[Batch]] = deque(
            pool.submit(make) for make in islice(makers, readers + 1)
        )
        while pending:
            batch = pending.popleft().result()
            pending.extend(pool.submit(make) for make in islice(makers, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def _order(targets: FloatArray, fit: FitPlan, rng: np.random.Generator) -> IntArray:
    """Return the indices of an epoch's images in random order."""
    if fit.drawing is DrawingValues.AS_IS:
        return rng.permutation(len(targets)).astype(np.int64)
    groups = groups_of(targets)
    names = np.unique(groups)
    share = _drawn_per_epoch(targets, fit) // len(names)
    order = np.concatenate([_repeated(np.flatnonzero(groups == g), share, rng) for g in names])
    rng.shuffle(order)
    return order


def _drawn_per_epoch(targets: FloatArray, fit: FitPlan) -> int:
    """Return how many images are drawn: as many as there are, or as each class's share allows."""
    if fit.drawing is DrawingValues.AS_IS:
        return len(targets)
    classes = len(np.unique(groups_of(targets)))
    return max(len(targets) // classes, 1) * classes


def _repeated(indices: IntArray, count: int, rng: np.random.Generator) -> IntArray:
    """Draw `count` indices so that none is used twice before all were used once."""
    rounds = math.ceil(count / len(indices))
    return np.concatenate([rng.permutation(indices) for _ in range(rounds)])[:count]
