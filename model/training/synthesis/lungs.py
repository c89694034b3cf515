"""Where the lungs are in a CT, and how grainy it is.

Owns pure functions from Hounsfield units to masks and numbers. Good for placing things inside
lungs; no segmentation to be shown to anybody.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Hounsfield = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

BODY_HU = -400.0
"""Denser voxels are body, or table."""

AERATED_HU = -500.0
"""Lung is below, with what it holds of air; vessels are above."""

AIRWAY_HU = -900.0
"""The mean of a part that is air and nothing else: trachea and main bronchi."""

SMALLEST_LUNG_MM2 = 1500.0
"""A smaller part of a slice is an airway, bowel or noise."""

CLOSED_MM = 6.0
"""Vessels up to twice as wide are taken into the lung they run through."""

TISSUE_HU = (0.0, 90.0)


def lung_mask(volume: Hounsfield, spacing_mm: tuple[float, float, float]) -> Mask:
    """Return where aerated lung and the vessels inside it are, slice by slice.

    Parameters
    ----------
    volume : numpy.ndarray
        (slices, rows, columns) in Hounsfield units; padding outside the field of view may lie
        far below air.
    spacing_mm : tuple of float
        Between slices, rows and columns.

    Returns
    -------
    numpy.ndarray
        The same shape; False throughout where there is no lung.
    """
    return np.stack([_slice_mask(plane, spacing_mm[1:]) for plane in volume])


def _slice_mask(plane: Hounsfield, spacing_mm: tuple[float, float]) -> Mask:
    aerated = _inside_the_body(plane) & (plane < AERATED_HU)
    labels, count = ndimage.label(aerated)
    kept = np.zeros(plane.shape, dtype=np.bool_)
    if not count:
        return kept
    numbers = np.arange(1, count + 1)
    areas = ndimage.sum_labels(aerated, labels, numbers) * spacing_mm[0] * spacing_mm[1]
    means = ndimage.mean(plane, labels, numbers)
    lungs = numbers[(areas >= SMALLEST_LUNG_MM2) & (means >= AIRWAY_HU)]
    # Each lung by itself: closing both together would bridge the mediastinum between them.
    for number in lungs:
        kept |= _closed(labels == number, spacing_mm)
    return kept


def _inside_the_body(plane: Hounsfield) -> Mask:
    """Return the largest dense part of a slice with everything it encloses."""
    labels, count = ndimage.label(ndimage.binary_opening(plane > BODY_HU, iterations=2))
    if not count:
        return np.zeros(plane.shape, dtype=np.bool_)
    sizes = np.bincount(labels.ravel())[1:]
    body: Mask = ndimage.binary_fill_holes(labels == int(sizes.argmax()) + 1)
    return body


def _closed(mask: Mask, spacing_mm: tuple[float, float]) -> Mask:
    near = ndimage.distance_transform_edt(~mask, sampling=spacing_mm) <= CLOSED_MM
    closed: Mask = ndimage.distance_transform_edt(near, sampling=spacing_mm) > CLOSED_MM
    return closed | mask


def depth_mm(mask: Mask, spacing_mm: tuple[float, float, float]) -> npt.NDArray[np.float32]:
    """Return for each voxel of a lung its distance to the lung's edge within its slice."""
    planes = [ndimage.distance_transform_edt(plane, sampling=spacing_mm[1:]) for plane in mask]
    return np.stack(planes).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Grain:
    """The noise of a scan, as far as something put into it needs it."""

    deviation_hu: float
    """Standard deviation in soft tissue."""
    correlation_pixels: float
    """Width of the Gaussian that white noise would have to be blurred with to look alike."""


def grain_of(volume: Hounsfield) -> Grain:
    """Measure the noise where soft tissue is even; none where a volume has no such place.

    Parameters
    ----------
    volume : numpy.ndarray
        (slices, rows, columns) in Hounsfield units.
    """
    low, high = TISSUE_HU
    smooth = ndimage.uniform_filter(volume, (1, 9, 9))
    spread = ndimage.uniform_filter(np.abs(volume - smooth), (1, 9, 9))
    even = (smooth > low) & (smooth < high)
    if np.count_nonzero(even) < 100:
        return Grain(0.0, 0.0)
    # The most even tenth is muscle and blood, without the edges between them and fat.
    even &= spread <= np.quantile(spread[even], 0.1)
    residual = volume - smooth
    deviation = float(residual[even].std())
    beside = float(np.mean((residual * np.roll(residual, 1, axis=2))[even]))
    share = np.clip(beside / max(deviation**2, 1e-6), 0.0, 0.95)
    # White noise blurred by sigma correlates by exp(-1 / (4 sigma^2)) from pixel to pixel.
    width = 0.0 if share <= 0.02 else float(1 / (2 * np.sqrt(-np.log(share))))
    return Grain(deviation, width)
