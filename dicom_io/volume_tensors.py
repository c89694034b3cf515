"""The tensor of a series: its slices, shrunk one at a time and stacked along the normal.

Owns the order of the steps over many slices, so that no whole series is held at its own resolution;
the steps are those of one image. Must not know how slices are found and ordered.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dicom_io.attention import source_region
from dicom_io.grayscale import GreyFrame, GreyTransform
from dicom_io.intensity import (
    Limits,
    Mask,
    Scaling,
    Values,
    checked_unit,
)
from dicom_io.reading import machine_faults
from dicom_io.recipe import TensorRecipe
from dicom_io.resampling import Placement, fitted, framed, resampled_slices
from dicom_io.tensor_steps import (
    described,
    fixed_scaling,
    image_notes,
    percentiles_of,
    placement_of,
    scaling_of,
    spacing_after,
    unit_values,
    with_channels,
)
from dicom_io.timing import Timings, timed
from dicom_io.vocabulary import ImageTensor
from dicom_io.volume import OpenSeries, iter_slices, open_series


def build_volume_tensor(
    paths: Sequence[Path], recipe: TensorRecipe, timings: Timings | None = None
) -> ImageTensor:
    """Build the tensor of a CT or MR series, or of one enhanced multi-frame instance.

    Slices are decoded and shrunk one at a time. Fixed ranges (window, VOI of the first slice, full)
    are applied to source pixels before they are resampled; percentiles are taken of the resampled
    volume, so that no whole series has to be held at its own resolution. What ``crop`` cuts off is
    no part of it.

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
    fixed = fixed_scaling(recipe.intensity, _volume_transform(series))
    stack, padding = _resampled_stack(series, recipe, fixed, timings)
    with timed(timings, "range"):
        scaling = fixed or scaling_of(percentiles_of(recipe.intensity), transform, stack, padding)
        if fixed is None:
            stack = unit_values(stack, scaling, transform, padding)
        checked_unit(stack)
    with timed(timings, "channels"):
        placement = _volume_placement(series, recipe)
        planes = framed(stack, placement, recipe.rows, recipe.columns)
        values = with_channels(planes, recipe.channels)
    return _volume_record(series, recipe, values, scaling)


def _volume_record(
    series: OpenSeries, recipe: TensorRecipe, values: Values, scaling: Scaling
) -> ImageTensor:
    slices = series.stack.slices
    first = series.images[slices[0].path]
    slice_mm, row_mm, column_mm = series.stack.spacing_mm
    source = (slices[0].rows, slices[0].columns)
    placement = placement_of(recipe, source, (row_mm, column_mm))
    plane_mm = spacing_after((row_mm, column_mm), placement, source) or (row_mm, column_mm)
    return ImageTensor(
        values=values,
        axes=("slices", "rows", "columns", "channels"),
        spacing_mm=(slice_mm * len(slices) / values.shape[0], *plane_mm),
        sop_instance_uids=tuple(dict.fromkeys(plane.sop_instance_uid for plane in slices)),
        preprocessing_digest=recipe.digest,
        notes={
            **image_notes(first, series.transforms[0]),
            **series.stack.notes,
            "source_shape": (len(slices), *source),
            "source_region": source_region(placement, recipe.rows, recipe.columns),
            "source_spacing_mm": series.stack.spacing_mm,
            **_planes_note(series),
            "scaling": described(scaling),
        },
    )


def _planes_note(series: OpenSeries) -> dict[str, object]:
    """Note which frame of which instance each slice is, where instances hold several."""
    slices = series.stack.slices
    uids = list(dict.fromkeys(plane.sop_instance_uid for plane in slices))
    if len(uids) == len(slices):
        return {}
    places = {uid: place for place, uid in enumerate(uids)}
    frames = [(places[each.sop_instance_uid], each.frame + 1) for each in slices]
    return {"source_planes": frames}


def _resampled_stack(
    series: OpenSeries, recipe: TensorRecipe, fixed: Scaling | None, timings: Timings | None
) -> tuple[Values, Mask | None]:
    """Return the fitted slices, not yet framed by padding, and where they are padding pixels."""
    placement = _volume_placement(series, recipe)
    plane_shape = min(placement.rows, recipe.rows), min(placement.columns, recipe.columns)
    shape = (len(series.stack.slices), *plane_shape)
    stack = np.empty(shape, dtype=np.float32)
    masks: Values | None = None
    empty = np.zeros(len(stack), dtype=bool)
    for index, grey in iter_slices(series, timings):
        with timed(timings, "range"):
            plane = _stackable(grey, fixed, series.transforms[index])
        with timed(timings, "resample"):
            stack[index] = fitted(plane, placement, recipe.rows, recipe.columns)
            if grey.padding is not None and fixed is None:
                empty[index] = bool(grey.padding.all())
                masks = np.zeros(shape, dtype=np.float32) if masks is None else masks
                mask = grey.padding.astype(np.float32)
                masks[index] = fitted(mask, placement, recipe.rows, recipe.columns)
    with timed(timings, "resample"):
        _darken(stack, empty, series.transforms[0])
        slices = recipe.slices or shape[0]
        # A voxel is padding when at least half of what it covers is.
        padding = None if masks is None else resampled_slices(masks, slices) >= 0.5
        return resampled_slices(stack, slices), padding


def _darken(stack: Values, empty: Mask, transform: GreyTransform) -> None:
    """Give slices of nothing but padding what is darkest in the others, in place.

    Padding lies far below all else, and resampling would mix it into their neighbours.
    """
    if empty.any() and not empty.all():
        inside = stack[~empty]
        stack[empty] = inside.max() if transform.is_inverted else inside.min()


def _stackable(grey: GreyFrame, fixed: Scaling | None, transform: GreyTransform) -> Values:
    """Return a slice that may be mixed with its neighbours: padding no longer stands out.

    A slice of nothing but padding has nothing to take its place: see ``_darken``.
    """
    if fixed is not None:
        return unit_values(grey.values, fixed, transform, grey.padding)
    if grey.padding is None or grey.padding.all():
        return grey.values
    inside = grey.values[~grey.padding]
    dark = inside.max() if transform.is_inverted else inside.min()
    return np.where(grey.padding, dark, grey.values)


def _volume_placement(series: OpenSeries, recipe: TensorRecipe) -> Placement:
    first = series.stack.slices[0]
    _, row_mm, column_mm = series.stack.spacing_mm
    return placement_of(recipe, (first.rows, first.columns), (row_mm, column_mm))


def _volume_transform(series: OpenSeries) -> GreyTransform:
    """Return the first slice's transform with the full range of all: PET slopes differ by slice."""
    first = series.transforms[0]
    ranges = [transform.full_range for transform in series.transforms]
    union = Limits(min(part.low for part in ranges), max(part.high for part in ranges))
    return GreyTransform(first.modality, first.voi, first.is_inverted, first.padding, union)
