"""Inputs re-exposed, softened, made noisy and partly hidden, all slices of a volume alike.

Owns the changes of grey values; positions stay.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from model.training.augmentation_ranges import (
    SMALLEST_ERASED,
    SMALLEST_SIGMA,
    AugmentationRanges,
)

FloatArray = npt.NDArray[np.float32]


def exposed(values: FloatArray, ranges: AugmentationRanges, rng: np.random.Generator) -> FloatArray:
    """Bend the grey scale, change contrast about middle grey and add brightness.

    Parameters
    ----------
    values : ndarray
        (slices, rows, columns, channels), float32; not modified.

    Returns
    -------
    ndarray
        The same shape; values may leave [0, 1] until ``softened`` clips them.
    """
    gamma = np.exp(rng.uniform(-ranges.gamma, ranges.gamma))
    contrast = 1 + rng.uniform(-ranges.contrast, ranges.contrast)
    brightness = rng.uniform(-ranges.brightness, ranges.brightness)
    curved = np.power(np.clip(values, 0.0, 1.0), gamma)
    return np.asarray((curved - 0.5) * contrast + 0.5 + brightness, dtype=np.float32)


def softened(
    values: FloatArray, ranges: AugmentationRanges, rng: np.random.Generator
) -> FloatArray:
    """Blur within the plane, add noise, and clip to [0, 1]."""
    if rng.random() < ranges.blur_probability:
        sigma = rng.uniform(SMALLEST_SIGMA, ranges.blur_sigma_pixels)
        blurred = [cv2.GaussianBlur(plane, (0, 0), sigma) for plane in values]
        values = np.stack(blurred).reshape(values.shape).astype(np.float32, copy=False)
    level = rng.uniform(0, ranges.noise)
    noise = rng.standard_normal((*values.shape[:-1], 1), dtype=np.float32)
    return np.clip(values + level * noise, 0.0, 1.0).astype(np.float32, copy=False)


def hidden(values: FloatArray, ranges: AugmentationRanges, rng: np.random.Generator) -> FloatArray:
    """Fill a rectangle with one grey value, in a volume a box; `values` is modified."""
    if rng.random() >= ranges.erase_probability:
        return values
    slices, rows, columns, _ = values.shape
    height = int(rows * rng.uniform(SMALLEST_ERASED, ranges.erase_fraction))
    width = int(columns * rng.uniform(SMALLEST_ERASED, ranges.erase_fraction))
    top, left = rng.integers(0, rows - height), rng.integers(0, columns - width)
    grey = rng.random()
    first, depth = 0, 1
    if slices > 1:
        depth = max(1, int(slices * rng.uniform(SMALLEST_ERASED, ranges.erase_fraction)))
        first = int(rng.integers(0, slices - depth + 1))
    values[first : first + depth, top : top + height, left : left + width] = grey
    return values
