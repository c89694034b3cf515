"""Arrays brought to the shape a model reads, by area mean or linear interpolation.

Owns the one resampling rule: along an axis that shrinks each new value is the mean of the area it
covers, along one that grows values are interpolated linearly between pixel centres.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from dicom_io.intensity import Values


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the resampled image lies in the model's plane."""

    rows: int
    columns: int
    top: int
    """Negative where so many rows of the image are cut off before the plane begins."""
    left: int
    """The same of columns."""


def stretched(rows: int, columns: int) -> Placement:
    """Fill the whole plane; the aspect ratio is given up."""
    return Placement(rows, columns, 0, 0)


def padded(
    source: tuple[int, int], rows: int, columns: int, spacing_mm: tuple[float, float] | None
) -> Placement:
    """Keep the aspect ratio, as large as fits, centred.

    Parameters
    ----------
    source : tuple of int
        Rows and columns of the image.
    rows, columns : int
        The plane.
    spacing_mm : tuple of float, optional
        Distance between rows and between columns; pixels are square when absent.
    """
    height, width = _extent(source, spacing_mm)
    scale = min(rows / height, columns / width)
    fitted_rows = min(max(round(height * scale), 1), rows)
    fitted_columns = min(max(round(width * scale), 1), columns)
    return Placement(
        fitted_rows, fitted_columns, (rows - fitted_rows) // 2, (columns - fitted_columns) // 2
    )


def cropped(
    source: tuple[int, int], rows: int, columns: int, spacing_mm: tuple[float, float] | None
) -> Placement:
    """Keep the aspect ratio, as small as fills the plane; what is longer is cut evenly.

    Parameters
    ----------
    source, rows, columns, spacing_mm
        As for ``padded``.
    """
    height, width = _extent(source, spacing_mm)
    scale = max(rows / height, columns / width)
    fitted_rows = max(round(height * scale), rows)
    fitted_columns = max(round(width * scale), columns)
    return Placement(
        fitted_rows,
        fitted_columns,
        -((fitted_rows - rows) // 2),
        -((fitted_columns - columns) // 2),
    )


def _extent(source: tuple[int, int], spacing_mm: tuple[float, float] | None) -> tuple[float, float]:
    row_mm, column_mm = spacing_mm or (1.0, 1.0)
    return source[0] * row_mm, source[1] * column_mm


def resized(values: Values, rows: int, columns: int) -> Values:
    """Return (rows, columns) float32, each axis by the rule of this module."""
    if values.shape == (rows, columns):
        return values
    shrinks = (rows <= values.shape[0], columns <= values.shape[1])
    if shrinks[0] == shrinks[1]:
        return _resized(values, rows, columns, shrinks=shrinks[0])
    halfway = _resized(values, rows, values.shape[1], shrinks=shrinks[0])
    return _resized(halfway, rows, columns, shrinks=shrinks[1])


def _resized(values: Values, rows: int, columns: int, *, shrinks: bool) -> Values:
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(values, (columns, rows), interpolation=interpolation).astype(
        np.float32, copy=False
    )


def fitted(values: Values, placement: Placement, rows: int, columns: int) -> Values:
    """Return the resized image without what lies outside a plane of (rows, columns)."""
    image = resized(values, placement.rows, placement.columns)
    top, left = max(-placement.top, 0), max(-placement.left, 0)
    return image[top : top + rows, left : left + columns]


def framed(stack: Values, placement: Placement, rows: int, columns: int) -> Values:
    """Return planes of (rows, columns) with fitted images in their place and zeros around them.

    Parameters
    ----------
    stack : ndarray
        (slices, rows, columns) float32, of ``fitted`` images.
    placement : Placement
    rows, columns : int
        The plane.
    """
    if stack.shape[1:] == (rows, columns):
        return stack
    planes = np.zeros((stack.shape[0], rows, columns), dtype=np.float32)
    top, left = max(placement.top, 0), max(placement.left, 0)
    planes[:, top : top + stack.shape[1], left : left + stack.shape[2]] = stack
    return planes


def resampled_slices(stack: Values, slices: int) -> Values:
    """Resample (slices, rows, columns) along its first axis by the rule of this module."""
    count = stack.shape[0]
    if count == slices:
        return stack
    weights = area_weights(count, slices) if slices < count else linear_weights(count, slices)
    mixed = weights @ stack.reshape(count, -1)
    return mixed.reshape(slices, *stack.shape[1:])


def area_weights(count: int, slices: int) -> npt.NDArray[np.float32]:
    """Return (slices, count): the share of each source slice in a target slice; rows sum to 1."""
    edges = np.linspace(0, count, slices + 1)
    source = np.arange(count)
    overlap = np.minimum(edges[1:, None], source + 1) - np.maximum(edges[:-1, None], source)
    covered = np.clip(overlap, 0, None)
    weights: npt.NDArray[np.float32] = covered / covered.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)


def linear_weights(count: int, slices: int) -> npt.NDArray[np.float32]:
    """Return (slices, count): linear interpolation between slice centres, the ends held."""
    position = np.clip((np.arange(slices) + 0.5) * count / slices - 0.5, 0, count - 1)
    distance = np.abs(position[:, None] - np.arange(count))
    weights: npt.NDArray[np.float32] = np.clip(1 - distance, 0, None).astype(np.float32)
    return weights
