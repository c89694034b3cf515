"""A model's attention map laid back onto the pixels it came from: the way of the tensors, reversed.

Owns the geometry from the cells of a map to the rows, columns and slices of the source image.
Knows no model and no colours; a map is an array of cells that divide the model's input evenly.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dicom_io.intensity import Values
from dicom_io.resampling import Placement

Region = tuple[float, float, float, float]
WHOLE: Region = (0.0, 0.0, 1.0, 1.0)
"""The source image fills the model's plane."""


def source_region(placement: Placement, rows: int, columns: int) -> Region:
    """Return where the source image lies in the model's plane, as parts of the plane.

    Parameters
    ----------
    placement : Placement
        Of the resampled image, in pixels of the plane.
    rows, columns : int
        The plane.

    Returns
    -------
    tuple of float
        Top, left, bottom, right. Outside 0 to 1 lies what the model was not shown.
    """
    return (
        placement.top / rows,
        placement.left / columns,
        (placement.top + placement.rows) / rows,
        (placement.left + placement.columns) / columns,
    )


def aligned_map(cells: Values, region: Region, rows: int, columns: int) -> Values:
    """Return a map on the pixels of the source image.

    Between the centres of cells values are interpolated smoothly and never exceed those of the
    cells; beyond the outermost centres they are held. Intensity plays no part: the map of an
    inverted image is the same.

    Parameters
    ----------
    cells : numpy.ndarray
        (rows, columns) of the map, float32.
    region : tuple of float
        Where the source image lies in the model's plane; see ``source_region``.
    rows, columns : int
        Of the source image, or of a picture that shows all of it at another size.

    Returns
    -------
    numpy.ndarray
        (rows, columns) float32; 0 where the model was not shown the image.
    """
    top, left, bottom, right = region
    down = _weights(_positions(top, bottom, rows), cells.shape[0])
    across = _weights(_positions(left, right, columns), cells.shape[1])
    # Cubic interpolation swings below the smallest value beside a steep rise.
    smallest = min(float(cells.min()), 0.0) if _sees_beyond(region) else float(cells.min())
    aligned: Values = np.clip(down @ cells @ across.T, smallest, cells.max()).astype(np.float32)
    return aligned


def strongest_slice(cells: Values, source_slices: int) -> int:
    """Return the slice of the source series on which the map reaches its highest value.

    Parameters
    ----------
    cells : numpy.ndarray
        (slices, rows, columns) of the map, slices in the order of the stack.
    source_slices : int
        How many slices the stack has.

    Returns
    -------
    int
        Index into the stack; where slices tie, the middle one of the first run of them.
    """
    highest = np.array(
        [slice_of(cells, number, source_slices).max() for number in range(source_slices)]
    )
    at_top = np.flatnonzero(highest >= highest.max() * (1 - 1e-6))
    run = at_top[: int(np.argmax(np.diff(at_top, append=at_top[-1] + 2) > 1)) + 1]
    return int(run[len(run) // 2])


def slice_of(cells: Values, number: int, source_slices: int) -> Values:
    """Return the cells of the map at one slice of the source series, (rows, columns) float32."""
    weights = _weights(_positions(0.0, 1.0, source_slices)[number : number + 1], cells.shape[0])
    plane: Values = np.tensordot(weights[0], cells, axes=1).astype(np.float32)
    return np.clip(plane, cells.min(), cells.max())


def _sees_beyond(region: Region) -> bool:
    """True when part of the source image lies outside the model's plane."""
    return min(region) < 0 or max(region) > 1


def _positions(start: float, end: float, count: int) -> npt.NDArray[np.float64]:
    """Return the centres of `count` pixels that fill the stretch from `start` to `end`."""
    return start + (np.arange(count) + 0.5) / count * (end - start)


def _weights(positions: npt.NDArray[np.float64], cells: int) -> npt.NDArray[np.float64]:
    """Return (positions, cells): each cell's share in the value at a position.

    Cubic convolution (Keys, 1981): smooth, and at the centre of a cell exactly its value.
    """
    centred = np.clip(positions * cells - 0.5, 0, cells - 1)
    first = np.floor(centred).astype(int) - 1
    weights = np.zeros((len(positions), cells))
    inside = ((positions >= 0) & (positions <= 1)).astype(float)
    for number in range(4):
        place = first + number
        share = _keys(np.abs(centred - place)) * inside
        np.add.at(weights, (np.arange(len(positions)), np.clip(place, 0, cells - 1)), share)
    return weights


def _keys(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    kernel: npt.NDArray[np.float64] = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    return kernel
