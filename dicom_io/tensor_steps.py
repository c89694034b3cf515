"""The steps that one image and a series share between grey values and a tensor.

Owns which range a recipe means in an image, where the image is placed, and what is noted of both.
Opens no file; the order of the steps is ``tensors``' and ``volume_tensors``'.
"""

from __future__ import annotations

import numpy as np

from dicom_io.decoding import StoredImage
from dicom_io.errors import OutsideContract
from dicom_io.grayscale import GreyTransform, Rescale
from dicom_io.intensity import (
    VOI_FALLBACK,
    FullRange,
    IntensityRange,
    Mask,
    PercentileRange,
    Scaling,
    Values,
    VoiFunctionValues,
    VoiRange,
    Window,
    WindowRange,
    checked_limits,
    percentile_limits,
    scaled,
)
from dicom_io.recipe import TensorRecipe
from dicom_io.resampling import Placement, cropped, padded, stretched

MOST_PARTS = 16
"""A crop shows at least so large a part of an image: no film is that narrow, and a strip would be
resampled to a multiple of the plane's size for nothing."""


def placement_of(
    recipe: TensorRecipe, source: tuple[int, int], spacing: tuple[float, float] | None
) -> Placement:
    """Return where a source of (rows, columns) pixels lies in the recipe's plane.

    Parameters
    ----------
    recipe : TensorRecipe
        Its ``fit`` says whether the source is stretched, or keeps its proportions and is padded
        or cut.
    source : tuple of int
        Rows and columns.
    spacing : tuple of float or None
        Of rows and columns, in mm or in proportion to each other; None, and pixels count as square,
        when the header has none.

    Raises
    ------
    OutsideContract
        Next to nothing of the source would be left by ``crop``.
    """
    if recipe.fit == "pad":
        return padded(source, recipe.rows, recipe.columns, spacing)
    if recipe.fit == "crop":
        return _cropped(recipe, source, spacing)
    return stretched(recipe.rows, recipe.columns)


def _cropped(
    recipe: TensorRecipe, source: tuple[int, int], spacing: tuple[float, float] | None
) -> Placement:
    placement = cropped(source, recipe.rows, recipe.columns, spacing)
    parts = placement.rows * placement.columns / (recipe.rows * recipe.columns)
    if parts > MOST_PARTS:
        raise OutsideContract(
            f"an image of {source[0]} rows and {source[1]} columns is too narrow: fit crop would "
            f"show a {parts:.0f}th part of it, the {MOST_PARTS}th is the least"
        )
    return placement


def fixed_scaling(intensity: IntensityRange, transform: GreyTransform) -> Scaling | None:
    """Return a scaling that the header alone decides, None where the values must."""
    if isinstance(intensity, WindowRange):
        return Window(intensity.centre, intensity.width, VoiFunctionValues.LINEAR_EXACT)
    if isinstance(intensity, FullRange):
        return checked_limits(transform.full_range.low, transform.full_range.high)
    return transform.voi if isinstance(intensity, VoiRange) else None


def percentiles_of(intensity: IntensityRange) -> PercentileRange:
    """Return the percentiles to take where the recipe names no other range that the image has."""
    return intensity if isinstance(intensity, PercentileRange) else VOI_FALLBACK


def scaling_of(
    intensity: IntensityRange, transform: GreyTransform, values: Values, padding: Mask | None
) -> Scaling:
    """Return what becomes [0, 1]: a range of the header if the recipe says so, else of `values`.

    Padding, where `padding` is True, counts for no percentile.

    Raises
    ------
    Refusal
        The image is blank.
    """
    fixed = fixed_scaling(intensity, transform)
    if fixed is not None:
        return fixed
    wanted = percentiles_of(intensity)
    low, high = wanted.low, wanted.high
    # The percentiles belong to the image as it is shown: inverting it mirrors them.
    if transform.is_inverted:
        low, high = 100 - high, 100 - low
    return percentile_limits(values, low, high, padding)


def unit_values(
    values: Values, scaling: Scaling, transform: GreyTransform, padding: Mask | None
) -> Values:
    """Return values in [0, 1], 1 shown white, padding 0."""
    unit = scaled(values, scaling)
    if transform.is_inverted:
        unit = np.subtract(1.0, unit, out=unit)
    if padding is not None:
        unit[padding] = 0.0
    return unit


def with_channels(plane: Values, channels: int) -> Values:
    """Return a plane or volume with a last axis of equal channels, C-contiguous."""
    return np.ascontiguousarray(np.repeat(plane[..., np.newaxis], channels, axis=-1))


def spacing_after(
    spacing: tuple[float, float] | None, placement: Placement, source: tuple[int, ...]
) -> tuple[float, float] | None:
    """Return the spacing in mm after `placement`; None where it was unknown before."""
    if spacing is None:
        return None
    return spacing[0] * source[0] / placement.rows, spacing[1] * source[1] / placement.columns


def image_notes(image: StoredImage, transform: GreyTransform) -> dict[str, object]:
    """Return what ``explain`` says of the header an image was decoded by."""
    return {
        "photometric_interpretation": image.pixel.photometric_interpretation,
        "transfer_syntax_uid": image.transfer_syntax_uid,
        "bits_stored": image.pixel.bits_stored,
        "inverted": transform.is_inverted,
        "modality": described(transform.modality),
    }


def described(step: Scaling | Rescale) -> dict[str, object]:
    """Return a step's numbers for ``explain``; a table is described, not listed."""
    names: tuple[str, ...] = tuple(step.__slots__)
    described: dict[str, object] = {"kind": type(step).__name__.lower()}
    for name in names:
        value = getattr(step, name)
        described[name] = len(value) if isinstance(value, np.ndarray) else value
    return described
