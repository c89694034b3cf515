"""Inputs moved, turned, zoomed and mirrored, all slices of a volume alike.

Owns the one resampling in the plane and the exact turns and mirrors behind it.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from model.training.augmentation_ranges import AugmentationRanges

FloatArray = npt.NDArray[np.float32]
_Matrix = npt.NDArray[np.float64]


def moved(values: FloatArray, ranges: AugmentationRanges, rng: np.random.Generator) -> FloatArray:
    """Crop or add a border, rotate, shift, zoom, stretch and flip.

    Parameters
    ----------
    values : ndarray
        (slices, rows, columns, channels), float32; not modified.

    Returns
    -------
    ndarray
        The same shape; what comes from outside is 0.
    """
    size = np.array([values.shape[2], values.shape[1]], dtype=np.float64)
    matrix, offset = _placement(size, ranges, rng)
    return _mirrored(_resampled(values, matrix, offset), ranges, rng)


def _placement(
    size: npt.NDArray[np.float64], ranges: AugmentationRanges, rng: np.random.Generator
) -> tuple[_Matrix, _Matrix]:
    """Return the way from target to source pixels (column, row): a matrix and an offset.

    The order of the draws decides what a seed gives; new changes are drawn behind these.
    """
    top, bottom, left, right = rng.uniform(
        -ranges.border_add_fraction, ranges.border_crop_fraction, 4
    )
    across, down = 1 - left - right, 1 - top - bottom
    zoom = 1 + rng.uniform(-ranges.zoom, ranges.zoom)
    stretch = 1 + rng.uniform(-ranges.aspect, ranges.aspect)
    angle = np.deg2rad(rng.uniform(-ranges.rotation_degrees, ranges.rotation_degrees))
    flip = -1.0 if rng.random() < ranges.flip_probability else 1.0
    # From target to source, both with the origin in the middle and sides of length one.
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    scale = np.diag([flip * across * zoom * stretch, down * zoom / stretch])
    middle = np.array([0.5 + (left - right) / 2, 0.5 + (top - bottom) / 2])
    middle += rng.uniform(-ranges.shift_fraction, ranges.shift_fraction, 2)
    matrix = np.diag(size) @ turn @ scale @ np.diag(1 / size)
    return matrix, middle * size - matrix @ (size / 2)


def _resampled(values: FloatArray, matrix: _Matrix, offset: _Matrix) -> FloatArray:
    if np.array_equal(matrix, np.eye(2)) and not offset.any():
        return values
    _, rows, columns, channels = values.shape
    placement = np.hstack([matrix, offset[:, None]]).astype(np.float32)
    result = np.empty_like(values)
    for number, plane in enumerate(values):
        # OpenCV gives an image of one channel back without its last axis.
        result[number] = cv2.warpAffine(
            plane,
            placement,
            (columns, rows),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=0.0,
        ).reshape(rows, columns, channels)
    return result


def _mirrored(
    values: FloatArray, ranges: AugmentationRanges, rng: np.random.Generator
) -> FloatArray:
    """Flip and turn without resampling; draws nothing for what the ranges leave out."""
    if _happens(ranges.vertical_flip_probability, rng):
        values = values[:, ::-1]
    if _happens(ranges.slice_flip_probability, rng):
        values = values[::-1]
    if _happens(ranges.quarter_turn_probability, rng):
        turns = int(rng.integers(1, 4)) if values.shape[1] == values.shape[2] else 2
        values = np.rot90(values, turns, axes=(1, 2))
    return np.ascontiguousarray(values)


def _happens(probability: float, rng: np.random.Generator) -> bool:
    return probability > 0 and rng.random() < probability
