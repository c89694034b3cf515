"""How values become numbers between 0 and 1: percentiles, windows, full range.

Owns pure functions from array to array. It must not know where the values came from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from dicom_io.errors import Refusal, RefusalReason

Values = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

LUMINANCE_WEIGHTS = (0.299, 0.587, 0.114)
"""Red, green and blue in ITU-R BT.601 luma; their sum is 1, so grey stays the grey it is."""


MAX_COUNTED_RANGE = 65536
"""Whole values up to this far apart are counted, not sorted, to find percentiles."""


class VoiFunctionValues(StrEnum):
    """VOI LUT Function (0028,1056), PS3.3 C.11.2.1.3."""

    LINEAR = "LINEAR"
    LINEAR_EXACT = "LINEAR_EXACT"
    SIGMOID = "SIGMOID"


@dataclass(frozen=True, slots=True)
class PercentileRange:
    """The values between two percentiles of the image fill 0..1; the rest is clipped."""

    low: float = 0.5
    high: float = 99.5


@dataclass(frozen=True, slots=True)
class WindowRange:
    """The window centre ± width / 2, in modality units (HU for CT), fills 0..1."""

    centre: float
    width: float


@dataclass(frozen=True, slots=True)
class VoiRange:
    """The first VOI window or table of the header; ``VOI_FALLBACK`` where there is none."""


@dataclass(frozen=True, slots=True)
class FullRange:
    """All that Bits Stored can hold, after the modality transform, fills 0..1."""


IntensityRange = PercentileRange | WindowRange | VoiRange | FullRange
VOI_FALLBACK = PercentileRange()


@dataclass(frozen=True, slots=True)
class Limits:
    """Values from `low` to `high` become 0..1 linearly."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Window:
    """A VOI window with its function (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""

    centre: float
    width: float
    function: VoiFunctionValues = VoiFunctionValues.LINEAR


@dataclass(frozen=True, slots=True)
class LookupTable:
    """A modality or VOI table: entry ``i`` is for the input value ``first + i`` (PS3.3 C.11.1)."""

    first: int
    entries: npt.NDArray[np.uint16]
    bits: int
    """Of each entry; the output range is 0 .. 2^bits - 1."""


Scaling = Limits | Window | LookupTable
"""What remains of an IntensityRange once the header and the values are known."""


def luminance(samples: npt.NDArray[np.integer]) -> Values:
    """Return the BT.601 luma of RGB samples.

    Parameters
    ----------
    samples : numpy.ndarray
        (rows, columns, 3), red first.

    Returns
    -------
    numpy.ndarray
        (rows, columns) float32 in the unit of the samples. Computed in float64, so that three
        equal samples give exactly their value.
    """
    weighted = samples.astype(np.float64) @ np.array(LUMINANCE_WEIGHTS)
    return np.asarray(weighted, dtype=np.float32)


def rescaled(stored: npt.NDArray[np.generic], slope: float, intercept: float) -> Values:
    """Return ``stored * slope + intercept`` as float32 (PS3.3 C.11.1.1.2)."""
    if stored.dtype.itemsize > 2:
        return (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    values = stored.astype(np.float32)
    if slope != 1.0:
        values *= np.float32(slope)
    if intercept != 0.0:
        values += np.float32(intercept)
    return values


def looked_up(values: npt.NDArray[np.generic], table: LookupTable) -> Values:
    """Return the table's entry for each value; values outside take the first or last entry."""
    index = np.rint(values).astype(np.int64) - table.first
    entries = table.entries[np.clip(index, 0, len(table.entries) - 1)]
    return np.asarray(entries, dtype=np.float32)


def percentile_limits(values: Values, low: float, high: float, excluded: Mask | None) -> Limits:
    """Return two percentiles of the values outside `excluded`, interpolated linearly.

    Raises
    ------
    Refusal
        Nothing is left, values are not finite, or both percentiles are the same value.
    """
    counted = values if excluded is None else values[~excluded]
    if counted.size == 0:
        raise Refusal("the image holds nothing but padding", RefusalReason.QUALITY)
    if not np.isfinite(extremes := np.array([counted.min(), counted.max()])).all():
        raise Refusal("pixel values are not finite numbers", RefusalReason.QUALITY)
    counts = _counts(counted, float(extremes[0]), float(extremes[1]))
    if counts is None:
        bottom, top = (float(value) for value in np.percentile(counted, (low, high)))
    else:
        bottom, top = (float(extremes[0]) + _counted(counts, part) for part in (low, high))
    return checked_limits(bottom, top)


def _counts(values: Values, low: float, high: float) -> npt.NDArray[np.intp] | None:
    """Count each whole value from `low` on, None when values are not whole or too far apart.

    Nearly all stored values are whole, and counting is several times faster than sorting.
    """
    if high - low >= MAX_COUNTED_RANGE or low != int(low):
        return None
    offsets = (values - np.float32(low)).ravel()
    index = offsets.astype(np.int32)
    return np.bincount(index) if np.array_equal(index, offsets) else None


def _counted(counts: npt.NDArray[np.intp], percentile: float) -> float:
    """Return a percentile of counted values as ``numpy.percentile`` interpolates it."""
    upto = np.cumsum(counts)
    rank = (int(upto[-1]) - 1) * percentile / 100
    below = int(np.searchsorted(upto, math.floor(rank), side="right"))
    above = int(np.searchsorted(upto, math.ceil(rank), side="right"))
    return below + (above - below) * (rank - math.floor(rank))


def checked_limits(low: float, high: float) -> Limits:
    """Return limits that have an extent, or refuse the image as blank."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise Refusal("pixel values are not finite numbers", RefusalReason.QUALITY)
    if high <= low:
        raise Refusal(
            f"the image is blank: its intensity range is {low:g} to {high:g}",
            RefusalReason.QUALITY,
        )
    return Limits(low, high)


def scaled(values: Values, scaling: Scaling) -> Values:
    """Return values in [0, 1], float32, same shape.

    References
    ----------
    PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.2 (LINEAR_EXACT), C.11.2.1.3.1 (SIGMOID)
    """
    if isinstance(scaling, LookupTable):
        return looked_up(values, scaling) / np.float32(2**scaling.bits - 1)
    if isinstance(scaling, Limits):
        return _clipped((values - np.float32(scaling.low)) / np.float32(scaling.high - scaling.low))
    if scaling.function is VoiFunctionValues.SIGMOID:
        # Beyond ±80 the exponential is 0 or 1 in float32; the clip keeps it from overflowing.
        steepness = np.clip(-4 * (values - scaling.centre) / scaling.width, -80, 80)
        sigmoid: Values = (1 / (1 + np.exp(steepness))).astype(np.float32)
        return sigmoid
    return _windowed(values, scaling)


def _windowed(values: Values, window: Window) -> Values:
    centre, width = window.centre, window.width
    if window.function is VoiFunctionValues.LINEAR:
        # The standard's window spans whole numbers: centre and width each lose a part.
        centre, width = centre - 0.5, width - 1
    low = np.float32(centre - width / 2)
    if width <= 0:
        return (values > low).astype(np.float32)
    return _clipped((values - low) / np.float32(width))


def _clipped(values: Values) -> Values:
    return np.clip(values, 0.0, 1.0, out=values)


def checked_unit(values: Values) -> Values:
    """Return values that may be shown to a model: finite and not all the same.

    Raises
    ------
    Refusal
        Reason QUALITY: a blank image says nothing, whatever a model would answer.
    """
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise Refusal("pixel values are not finite numbers", RefusalReason.QUALITY)
    if low == high:
        raise Refusal(
            f"the image is blank inside its intensity range: every value becomes {low:g}",
            RefusalReason.QUALITY,
        )
    return values
