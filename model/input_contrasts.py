"""What inputs become when something is wrong with them, and how that is told from the inputs.

Owns the list of such faults and the fitting of the directions that tell them. A film that lies on
its side or whose greys are inverted has the same parts as a real one: only the contrast tells.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from model.input_descriptors import FloatArray, descriptors, joined, shrunk
from model.input_subspace import Contrasts

RIDGE = 0.15
"""Share of the mean variance added to every variance: few inputs measure them badly."""
LEAST_GAP = 1.3
"""The median of the faulty inputs has to be so many times as far as the outskirts of the good
ones; else the direction tells nothing, as a turn does for what has no upper end, and is left out.
"""
OUTSKIRTS = 0.995


def fit_contrasts(features: FloatArray, thumbs: FloatArray, rng: np.random.Generator) -> Contrasts:
    """Fit a direction for every fault that can be told (Fisher's linear discriminant).

    Parameters
    ----------
    features : ndarray
        (k * n, numbers): good inputs, as ``joined`` describes them, k variants of each.
    thumbs : ndarray
        (n, [slices,] rows, columns): thumbnails of the same, which are made faulty here.
    rng : Generator
        Decides where they are cut.
    """
    mean = features.mean(axis=0)
    good = features - mean
    # Of a few hundred inputs any two halves can be told apart where both were fitted.
    tried = np.arange(len(good)) % len(thumbs) % 2 == 0
    directions = []
    for faulty in _faulty(thumbs, rng):
        bad = joined(descriptors(faulty)) - mean
        trial = _direction(good[tried], bad[::2])
        if np.median(bad[1::2] @ trial) >= LEAST_GAP * _outskirts(good[~tried] @ trial):
            directions.append(_direction(good, bad))
    found = np.stack(directions) if directions else np.zeros((0, len(mean)), np.float32)
    return Contrasts(mean, found)


def _direction(good: FloatArray, bad: FloatArray) -> FloatArray:
    """Return the discriminant between good, whose mean is nought, and bad descriptions."""
    pooled = (np.cov(good, rowvar=False, bias=True) + np.cov(bad, rowvar=False, bias=True)) / 2
    ridge = RIDGE * max(float(np.trace(pooled)) / len(pooled), 1e-9) * np.eye(len(pooled))
    direction = np.linalg.solve(pooled + ridge, bad.mean(axis=0))
    direction /= _outskirts(good @ direction)
    return direction.astype(np.float32)


def _outskirts(along: FloatArray) -> float:
    return max(float(np.quantile(along, OUTSKIRTS)), 1e-6)


def _faulty(thumbs: FloatArray, rng: np.random.Generator) -> Iterator[FloatArray]:
    """Yield the thumbnails with one fault after the other."""
    plane = (thumbs.ndim - 2, thumbs.ndim - 1)
    for quarters in (1, 2, 3):
        yield np.rot90(thumbs, quarters, plane)
    yield 1 - thumbs
    yield _cut(thumbs, rng)


def _cut(thumbs: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return a quarter of every plane, from anywhere, as large as the whole."""
    rows, columns = (edge // 2 for edge in thumbs.shape[-2:])
    tops = rng.integers(0, thumbs.shape[-2] - rows + 1, len(thumbs))
    lefts = rng.integers(0, thumbs.shape[-1] - columns + 1, len(thumbs))
    cut = [
        thumb[..., top : top + rows, left : left + columns]
        for thumb, top, left in zip(thumbs, tops, lefts, strict=True)
    ]
    return shrunk(np.stack(cut), thumbs.shape[1:])
