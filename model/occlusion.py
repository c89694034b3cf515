"""A map of any model of single images, from outside: cover a part, and see what the score loses.

Owns the covering. Needs predictions only, so it serves the runtimes that cannot look into a
network; it costs one prediction for each cell.

References
----------
Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

import numpy as np
from scipy.ndimage import gaussian_filter

from model.runtimes.port import FloatArray, Predictor

CELLS = 8
"""Rows and columns of the map: 64 predictions for a finding."""

_WINDOW_CELLS = 2
"""A side of what is covered at once; smaller parts are made up for by their surroundings."""
_MOST_AT_ONCE = 16
_SURE = 1e-6
"""Probabilities are kept this far from 0 and 1, where the score would be infinite."""


def occlusion_map(predictor: Predictor, values: FloatArray, label: int) -> FloatArray:
    """Return what the score of one label loses when each part of an image is covered.

    Parts are covered by the blurred image: brightness stays, and no edge is added.

    Parameters
    ----------
    predictor : Predictor
    values : ndarray
        One input, (rows, columns, channels) float32 in [0, 1].
    label : int
        Place of the label in the manifest's list, as predictions come.

    Returns
    -------
    ndarray
        (rows, columns) of cells, float32, 0 or more, in logits.
    """
    inputs = chain([values], _covered(values))
    # A few at a time: all of them would take 65 times the memory of the image.
    batches = iter(lambda: list(islice(inputs, _MOST_AT_ONCE)), [])
    scores = np.concatenate([predictor.predict(np.stack(each))[:, label] for each in batches])
    logits = _logits(scores)
    lost: FloatArray = np.maximum(logits[0] - logits[1:], 0).astype(np.float32)
    return lost.reshape(CELLS, CELLS)


def _covered(values: FloatArray) -> Iterator[FloatArray]:
    """Yield the image with a window around each cell covered, row by row."""
    sigma = max(values.shape[:2]) / CELLS
    blurred = gaussian_filter(values, (sigma, sigma, 0), mode="nearest")
    for row in _windows(values.shape[0]):
        for column in _windows(values.shape[1]):
            image = values.copy()
            image[row, column] = blurred[row, column]
            yield image


def _windows(edge: int) -> list[slice]:
    half = _WINDOW_CELLS * edge / CELLS / 2
    middles = (np.arange(CELLS) + 0.5) * edge / CELLS
    return [slice(max(0, round(m - half)), min(edge, max(1, round(m + half)))) for m in middles]


def _logits(probabilities: FloatArray) -> FloatArray:
    kept = np.clip(probabilities.astype(np.float64), _SURE, 1 - _SURE)
    logits: FloatArray = np.log(kept / (1 - kept)).astype(np.float32)
    return logits
