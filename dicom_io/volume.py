"""The slices of a sound stack as pixels, one at a time or all together.

Owns the streaming of decoded slices in modality units. It must not know how a model wants them:
that is ``tensors``'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dicom_io.decoding import StoredImage, iter_frames, open_image
from dicom_io.errors import UnsuitableSeries
from dicom_io.grayscale import (
    GreyFrame,
    GreyTransform,
    Rescale,
    grey_frame,
    grey_transform,
    states_modality,
)
from dicom_io.intensity import Values
from dicom_io.series import SliceStack, order_slices, slices_of
from dicom_io.timing import Timings, timed


@dataclass(frozen=True, slots=True)
class OpenSeries:
    """The instances of a series, headers read and checked, nothing decoded yet."""

    stack: SliceStack
    images: dict[Path, StoredImage]
    transforms: tuple[GreyTransform, ...]
    """Of each slice, in stack order."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A stack of slices in modality units."""

    values: Values
    """(slices, rows, columns) float32, ascending along the normal."""
    spacing_mm: tuple[float, float, float]
    """Between slices, rows and columns."""
    sop_instance_uids: tuple[str, ...]


def open_series(paths: Sequence[Path], timings: Timings | None = None) -> OpenSeries:
    """Read the headers of a series, sort its slices and check its geometry.

    Parameters
    ----------
    paths : sequence of Path
        The instances in any order; one enhanced multi-frame instance is a series too.

    Raises
    ------
    UnreadableInstance, CannotDecode
        A file cannot be parsed, or holds no pixel data that can be decoded.
    UnsuitableSeries
        The slices make no even stack, hold colour, mix MONOCHROME1 with MONOCHROME2, or are not
        all in the same unit.
    InstanceUnavailable
        A file cannot be read now.
    """
    with timed(timings, "header"):
        images = {path: open_image(path) for path in paths}
    with timed(timings, "geometry"):
        planes = [
            plane for path, image in images.items() for plane in slices_of(path, image.header)
        ]
        stack = order_slices(planes)
        transforms = tuple(
            grey_transform(images[plane.path], plane.frame) for plane in stack.slices
        )
    for plane in stack.slices:
        _check_grey(images[plane.path], plane.label)
    _check_one_interpretation(stack, images)
    _check_one_unit(stack, images, transforms)
    return OpenSeries(stack, images, transforms)


def _check_grey(image: StoredImage, label: str) -> None:
    if image.pixel.photometric_interpretation not in {"MONOCHROME1", "MONOCHROME2"}:
        raise UnsuitableSeries(
            f"slice {label} is {image.pixel.photometric_interpretation}: "
            "only MONOCHROME1 and MONOCHROME2 slices make a volume"
        )


def _check_one_interpretation(stack: SliceStack, images: dict[Path, StoredImage]) -> None:
    """Refuse a stack of which some slices are shown the other way round.

    A range over the whole volume is inverted as a whole: such slices would become negatives.
    """
    labels: dict[str, str] = {}
    for plane in stack.slices:
        labels.setdefault(images[plane.path].pixel.photometric_interpretation, plane.label)
    if len(labels) > 1:
        found = ", ".join(f"{each} in {label}" for each, label in sorted(labels.items()))
        raise UnsuitableSeries(
            f"the series mixes PhotometricInterpretation (0028,0004): {found}; the slices of one "
            "volume must be shown the same way round: correct the sender"
        )


def _check_one_unit(
    stack: SliceStack, images: dict[Path, StoredImage], transforms: Sequence[GreyTransform]
) -> None:
    """Refuse a stack of which only some slices state the modality transform that changes others.

    Slopes may differ by slice, but stored values beside Hounsfield units are another tissue.
    """
    planes = stack.slices
    silent = [each for each in planes if not states_modality(images[each.path], each.frame)]
    changed = [
        plane
        for plane, transform in zip(planes, transforms, strict=True)
        if transform.modality != Rescale()
    ]
    if silent and changed:
        raise UnsuitableSeries(
            f"slice {changed[0].label} states a rescale or a modality table and {silent[0].label} "
            "none: their values have different units, correct the sender"
        )


def iter_slices(
    series: OpenSeries, timings: Timings | None = None
) -> Iterator[tuple[int, GreyFrame]]:
    """Decode the slices in the order they are stored, each with its place in the stack.

    Storage order, because frames of one file are cheap to decode only one after the other.

    Yields
    ------
    int
        Index into ``series.stack.slices``.
    GreyFrame
        (rows, columns) in modality units.
    """
    wanted: dict[Path, dict[int, int]] = {}
    for index, plane in enumerate(series.stack.slices):
        wanted.setdefault(plane.path, {})[plane.frame] = index
    for path, frames in wanted.items():
        numbered = iter_frames(series.images[path], _indices(series.images[path], frames))
        for frame in sorted(frames):
            with timed(timings, "decode"):
                stored = next(numbered)
            index = frames[frame]
            with timed(timings, "modality"):
                grey = grey_frame(stored, series.transforms[index])
            yield index, grey


def _indices(image: StoredImage, frames: dict[int, int]) -> list[int] | None:
    """Return None for all frames: streaming them is cheaper than looking each one up."""
    return None if len(frames) == image.pixel.frames else sorted(frames)


def assemble_volume(paths: Sequence[Path]) -> Volume:
    """Return a whole series in modality units, slice by slice into one array.

    Parameters
    ----------
    paths : sequence of Path
        As for ``open_series``.

    Returns
    -------
    Volume
        float32 (slices, rows, columns); MONOCHROME1 is not inverted, padding is left as it is.
    """
    series = open_series(paths)
    first = series.stack.slices[0]
    values = np.empty((len(series.stack.slices), first.rows, first.columns), dtype=np.float32)
    for index, grey in iter_slices(series):
        values[index] = grey.values
    return Volume(
        values,
        series.stack.spacing_mm,
        tuple(plane.sop_instance_uid for plane in series.stack.slices),
    )
