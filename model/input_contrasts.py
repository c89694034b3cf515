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
        (n, numbers): good inputs, as ``joined`` describes them.
    thumbs : ndarray
        (m, [slices,] rows, columns): thumbnails of good inputs, which are made faulty here.
    rng : Generator
        Decides where they are cut.
    """
    mean = features.mean(axis=0)
    good = features - mean
    spread = np.cov(good, rowvar=False, bias=True)
    ridge = RIDGE * max(float(np.trace(spread)) / len(spread), 1e-9) * np.eye(len(spread))
    directions = []
    for faulty in _faulty(thumbs, rng):
        bad = joined(descriptors(faulty)) - mean
        pooled = (spread + np.cov(bad, rowvar=False, bias=True)) / 2 + ridge
        direction = np.linalg.solve(pooled, bad.mean(axis=0)).astype(np.float32)
        outskirts = max(float(np.quantile(good @ direction, OUTSKIRTS)), 1e-6)
        if np.median(bad @ direction) >= LEAST_GAP * outskirts:
            directions.append(direction / np.float32(outskirts))
    found = np.stack(directions) if directions else np.zeros((0, len(mean)), np.float32)
    return Contrasts(mean, found)


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
