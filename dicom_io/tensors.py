"""Tensors: what a model reads, from stored instances or from training films alike.

Owns the order of the steps; each step is a function of another module. Training and the daemon
call the same functions, so that a model meets what it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from dicom_io.attention import source_region
from dicom_io.attributes import numbers
from dicom_io.decoding import StoredImage, instance_uid, iter_frames, open_image
from dicom_io.errors import OutsideContract
from dicom_io.films import read_film
from dicom_io.grayscale import GreyFrame, GreyTransform, Rescale, grey_frame, grey_transform
from dicom_io.intensity import (
    VOI_FALLBACK,
    FullRange,
    IntensityRange,
    Limits,
    Mask,
    PercentileRange,
    Scaling,
    Values,
    VoiFunctionValues,
    VoiRange,
    Window,
    WindowRange,
    checked_limits,
    checked_unit,
    percentile_limits,
    scaled,
)
from dicom_io.reading import machine_faults, quiet_pydicom
from dicom_io.recipe import TensorRecipe
from dicom_io.resampling import Placement, padded, placed, resampled_slices, stretched
from dicom_io.timing import Timings, timed
from dicom_io.vocabulary import ImageTensor
from dicom_io.volume import OpenSeries, iter_slices, open_series

__all__ = [
    "FullRange",
    "IntensityRange",
    "PercentileRange",
    "TensorRecipe",
    "VoiRange",
    "WindowRange",
    "build_image_tensor",
    "build_tensor",
    "build_volume_tensor",
    "image_values_to_tensor",
    "read_film",
]

FILM_RANGE = Limits(0.0, 255.0)
"""What FullRange means for values that come without a header: 8 bit films."""

_FILM_TRANSFORM = GreyTransform(
    Rescale(), None, is_inverted=False, padding=None, full_range=FILM_RANGE
)
_SPACING_KEYWORDS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


def build_tensor(
    paths: Sequence[Path], recipe: TensorRecipe, timings: Timings | None = None
) -> ImageTensor:
    """Build what a recipe describes: one projection image, or the volume of a series.

    Parameters
    ----------
    paths : sequence of Path
        One instance for kind ``image``; all instances of the series, in any order, for ``volume``.
    recipe : TensorRecipe
        From the model's manifest.
    timings : dict of str to float, optional
        Receives seconds by step.

    Raises
    ------
    UnreadableInstance
        A file cannot be parsed.
    Refusal
        ``CannotDecode``, ``UnsuitableSeries``, ``OutsideContract``, or a blank image.
    InstanceUnavailable
        A file cannot be read now, or the memory does not suffice; later it may.
    """
    if recipe.kind == "volume":
        return build_volume_tensor(paths, recipe, timings)
    if len(paths) != 1:
        raise OutsideContract(f"the model reads one image: received {len(paths)} instances")
    return build_image_tensor(paths[0], recipe, timings)


def build_image_tensor(
    path: Path, recipe: TensorRecipe, timings: Timings | None = None
) -> ImageTensor:
    """Build the tensor of one single-frame image.

    Returns
    -------
    ImageTensor
        (rows, columns, channels) float32 in [0, 1].

    Raises
    ------
    UnreadableInstance, Refusal, InstanceUnavailable
        As for ``build_tensor``.
    """
    with machine_faults(path):
        return _image_tensor(path, recipe, timings)


def _image_tensor(path: Path, recipe: TensorRecipe, timings: Timings | None) -> ImageTensor:
    with timed(timings, "header"):
        image = open_image(path)
        if image.pixel.frames != 1:
            raise OutsideContract(
                f"NumberOfFrames (0028,0008) is {image.pixel.frames}: the model reads single images"
            )
        transform = grey_transform(image)
        spacing = _image_spacing(image.header)
    with timed(timings, "decode"):
        (stored,) = iter_frames(image, [0])
    with timed(timings, "modality"):
        frame = grey_frame(stored, transform)
    source = frame.values.shape
    placement = _placement(recipe, (source[0], source[1]), spacing)
    values, facts = _plane_tensor(frame, transform, recipe, spacing, timings)
    return ImageTensor(
        values=values,
        axes=("rows", "columns", "channels"),
        spacing_mm=_spacing_after(spacing, placement, source),
        sop_instance_uids=(instance_uid(image),),
        preprocessing_digest=recipe.digest,
        notes={
            **_notes(image, transform),
            "source_shape": source,
            "source_region": source_region(placement, recipe.rows, recipe.columns),
            **facts,
        },
    )


def image_values_to_tensor(
    pixels: npt.NDArray[np.float32], recipe: TensorRecipe
) -> npt.NDArray[np.float32]:
    """Turn grey values without a header into a model's input, as ``build_image_tensor`` does.

    Parameters
    ----------
    pixels : numpy.ndarray
        (rows, columns) float32, larger is whiter; from ``read_film``, for example. ``FullRange``
        takes 0 to 255; ``VoiRange`` falls back to percentiles.
    recipe : TensorRecipe
        Of kind ``image``.

    Returns
    -------
    numpy.ndarray
        (rows, columns, channels) float32 in [0, 1], C-contiguous.

    Raises
    ------
    Refusal
        The image is blank.
    """
    if recipe.kind != "image" or pixels.ndim != 2:
        raise OutsideContract(
            f"an array of {pixels.ndim} axes cannot become the input of a recipe for {recipe.kind}"
        )
    frame = GreyFrame(np.array(pixels, dtype=np.float32), None)
    return _plane_tensor(frame, _FILM_TRANSFORM, recipe, None, None)[0]


def _plane_tensor(
    frame: GreyFrame,
    transform: GreyTransform,
    recipe: TensorRecipe,
    spacing: tuple[float, float] | None,
    timings: Timings | None,
) -> tuple[Values, dict[str, object]]:
    with timed(timings, "range"):
        scaling = _scaling(recipe.intensity, transform, frame.values, frame.padding)
        unit = checked_unit(_unit_values(frame.values, scaling, transform, frame.padding))
    with timed(timings, "resample"):
        shape = (unit.shape[0], unit.shape[1])
        plane = placed(unit, _placement(recipe, shape, spacing), recipe.rows, recipe.columns, 0.0)
    with timed(timings, "channels"):
        return _with_channels(plane, recipe.channels), {"scaling": _described(scaling)}


def build_volume_tensor(
    paths: Sequence[Path], recipe: TensorRecipe, timings: Timings | None = None
) -> ImageTensor:
    """Build the tensor of a CT or MR series, or of one enhanced multi-frame instance.

    Slices are decoded and shrunk one at a time. Fixed ranges (window, VOI of the first slice, full)
    are applied to source pixels before they are resampled; percentiles are taken of the resampled
    volume, so that no whole series has to be held at its own resolution.

    Returns
    -------
    ImageTensor
        (slices, rows, columns, channels) float32 in [0, 1], slices ascending along the normal.

    Raises
    ------
    UnreadableInstance, Refusal, InstanceUnavailable
        As for ``build_tensor``.
    """
    with machine_faults(paths[0].parent if paths else Path()):
        return _volume_tensor(paths, recipe, timings)


def _volume_tensor(
    paths: Sequence[Path], recipe: TensorRecipe, timings: Timings | None
) -> ImageTensor:
    series = open_series(paths, timings)
    transform = series.transforms[0]
    fixed = _fixed_scaling(recipe.intensity, _volume_transform(series))
    stack, padding = _resampled_stack(series, recipe, fixed, timings)
    with timed(timings, "range"):
        scaling = fixed or _scaling(_percentiles(recipe.intensity), transform, stack, padding)
        if fixed is None:
            stack = _unit_values(stack, scaling, transform, padding)
        checked_unit(stack)
    with timed(timings, "channels"):
        values = _with_channels(_framed(stack, recipe, series), recipe.channels)
    return _volume_record(series, recipe, values, scaling)


def _volume_record(
    series: OpenSeries, recipe: TensorRecipe, values: Values, scaling: Scaling
) -> ImageTensor:
    slices = series.stack.slices
    first = series.images[slices[0].path]
    slice_mm, row_mm, column_mm = series.stack.spacing_mm
    source = (slices[0].rows, slices[0].columns)
    placement = _placement(recipe, source, (row_mm, column_mm))
    plane_mm = _spacing_after((row_mm, column_mm), placement, source) or (row_mm, column_mm)
    return ImageTensor(
        values=values,
        axes=("slices", "rows", "columns", "channels"),
        spacing_mm=(slice_mm * len(slices) / values.shape[0], *plane_mm),
        sop_instance_uids=tuple(dict.fromkeys(plane.sop_instance_uid for plane in slices)),
        preprocessing_digest=recipe.digest,
        notes={
            **_notes(first, series.transforms[0]),
            **series.stack.notes,
            "source_shape": (len(slices), *source),
            "source_region": source_region(placement, recipe.rows, recipe.columns),
            "source_spacing_mm": series.stack.spacing_mm,
            "scaling": _described(scaling),
        },
    )


def _resampled_stack(
    series: OpenSeries, recipe: TensorRecipe, fixed: Scaling | None, timings: Timings | None
) -> tuple[Values, Mask | None]:
    """Return the fitted slices, not yet framed by padding, and where they are padding pixels."""
    placement = _volume_placement(series, recipe)
    shape = (len(series.stack.slices), placement.rows, placement.columns)
    stack = np.empty(shape, dtype=np.float32)
    masks: Values | None = None
    for index, grey in iter_slices(series, timings):
        with timed(timings, "range"):
            plane = _stackable(grey, fixed, series.transforms[index])
        with timed(timings, "resample"):
            stack[index] = _fitted(plane, placement)
            if grey.padding is not None and fixed is None:
                masks = np.zeros(shape, dtype=np.float32) if masks is None else masks
                masks[index] = _fitted(grey.padding.astype(np.float32), placement)
    with timed(timings, "resample"):
        slices = recipe.slices or shape[0]
        # A voxel is padding when at least half of what it covers is.
        padding = None if masks is None else resampled_slices(masks, slices) >= 0.5
        return resampled_slices(stack, slices), padding


def _fitted(plane: Values, placement: Placement) -> Values:
    return placed(
        plane,
        Placement(placement.rows, placement.columns, 0, 0),
        placement.rows,
        placement.columns,
        0,
    )


def _stackable(grey: GreyFrame, fixed: Scaling | None, transform: GreyTransform) -> Values:
    """Return a slice that may be mixed with its neighbours: padding no longer stands out."""
    if fixed is not None:
        return _unit_values(grey.values, fixed, transform, grey.padding)
    if grey.padding is None or grey.padding.all():
        return grey.values
    inside = grey.values[~grey.padding]
    dark = inside.max() if transform.is_inverted else inside.min()
    return np.where(grey.padding, dark, grey.values)


def _framed(stack: Values, recipe: TensorRecipe, series: OpenSeries) -> Values:
    placement = _volume_placement(series, recipe)
    if stack.shape[1:] == (recipe.rows, recipe.columns):
        return stack
    framed = np.zeros((stack.shape[0], recipe.rows, recipe.columns), dtype=np.float32)
    bottom, right = placement.top + placement.rows, placement.left + placement.columns
    framed[:, placement.top : bottom, placement.left : right] = stack
    return framed


def _volume_placement(series: OpenSeries, recipe: TensorRecipe) -> Placement:
    first = series.stack.slices[0]
    _, row_mm, column_mm = series.stack.spacing_mm
    return _placement(recipe, (first.rows, first.columns), (row_mm, column_mm))


def _volume_transform(series: OpenSeries) -> GreyTransform:
    """Return the first slice's transform with the full range of all: PET slopes differ by slice."""
    first = series.transforms[0]
    ranges = [transform.full_range for transform in series.transforms]
    union = Limits(min(part.low for part in ranges), max(part.high for part in ranges))
    return GreyTransform(first.modality, first.voi, first.is_inverted, first.padding, union)


def _placement(
    recipe: TensorRecipe, source: tuple[int, int], spacing: tuple[float, float] | None
) -> Placement:
    if recipe.fit == "pad":
        return padded(source, recipe.rows, recipe.columns, spacing)
    return stretched(recipe.rows, recipe.columns)


def _fixed_scaling(intensity: IntensityRange, transform: GreyTransform) -> Scaling | None:
    """Return a scaling that the header alone decides, None where the values must."""
    if isinstance(intensity, WindowRange):
        return Window(intensity.centre, intensity.width, VoiFunctionValues.LINEAR_EXACT)
    if isinstance(intensity, FullRange):
        return checked_limits(transform.full_range.low, transform.full_range.high)
    return transform.voi if isinstance(intensity, VoiRange) else None


def _percentiles(intensity: IntensityRange) -> PercentileRange:
    return intensity if isinstance(intensity, PercentileRange) else VOI_FALLBACK


def _scaling(
    intensity: IntensityRange, transform: GreyTransform, values: Values, padding: Mask | None
) -> Scaling:
    fixed = _fixed_scaling(intensity, transform)
    if fixed is not None:
        return fixed
    wanted = _percentiles(intensity)
    low, high = wanted.low, wanted.high
    # The percentiles belong to the image as it is shown: inverting it mirrors them.
    if transform.is_inverted:
        low, high = 100 - high, 100 - low
    return percentile_limits(values, low, high, padding)


def _unit_values(
    values: Values, scaling: Scaling, transform: GreyTransform, padding: Mask | None
) -> Values:
    """Return values in [0, 1], 1 shown white, padding 0."""
    unit = scaled(values, scaling)
    if transform.is_inverted:
        unit = np.subtract(1.0, unit, out=unit)
    if padding is not None:
        unit[padding] = 0.0
    return unit


def _with_channels(plane: Values, channels: int) -> Values:
    return np.ascontiguousarray(np.repeat(plane[..., np.newaxis], channels, axis=-1))


def _image_spacing(ds: Dataset) -> tuple[float, float] | None:
    with quiet_pydicom():
        for keyword in _SPACING_KEYWORDS:
            spacing = numbers(ds, keyword)
            if len(spacing) == 2 and min(spacing) > 0:
                return spacing[0], spacing[1]
    return None


def _spacing_after(
    spacing: tuple[float, float] | None, placement: Placement, source: tuple[int, ...]
) -> tuple[float, float] | None:
    if spacing is None:
        return None
    return spacing[0] * source[0] / placement.rows, spacing[1] * source[1] / placement.columns


def _notes(image: StoredImage, transform: GreyTransform) -> dict[str, object]:
    return {
        "photometric_interpretation": image.pixel.photometric_interpretation,
        "transfer_syntax_uid": image.transfer_syntax_uid,
        "bits_stored": image.pixel.bits_stored,
        "inverted": transform.is_inverted,
        "modality": _described(transform.modality),
    }


def _described(step: Scaling | Rescale) -> dict[str, object]:
    """Return a step's numbers for ``explain``; a table is described, not listed."""
    names: tuple[str, ...] = tuple(step.__slots__)
    described: dict[str, object] = {"kind": type(step).__name__.lower()}
    for name in names:
        value = getattr(step, name)
        described[name] = len(value) if isinstance(value, np.ndarray) else value
    return described
