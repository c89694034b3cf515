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
from dicom_io.attributes import spacing_mm
from dicom_io.decoding import instance_uid, iter_frames, open_image
from dicom_io.errors import OutsideContract
from dicom_io.films import read_film
from dicom_io.grayscale import GreyFrame, GreyTransform, Rescale, grey_frame, grey_transform
from dicom_io.intensity import (
    FullRange,
    IntensityRange,
    Limits,
    PercentileRange,
    Values,
    VoiRange,
    WindowRange,
    checked_unit,
)
from dicom_io.reading import machine_faults, quiet_pydicom
from dicom_io.recipe import TensorRecipe
from dicom_io.resampling import fitted, framed
from dicom_io.tensor_steps import (
    described,
    image_notes,
    placement_of,
    scaling_of,
    spacing_after,
    unit_values,
    with_channels,
)
from dicom_io.timing import Timings, timed
from dicom_io.vocabulary import ImageTensor
from dicom_io.volume_tensors import build_volume_tensor

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
        proportions = spacing or _aspect_ratio(image.header)
    with timed(timings, "decode"):
        (stored,) = iter_frames(image, [0])
    with timed(timings, "modality"):
        frame = grey_frame(stored, transform)
    source = frame.values.shape
    placement = placement_of(recipe, (source[0], source[1]), proportions)
    values, facts = _plane_tensor(frame, transform, recipe, proportions, timings)
    return ImageTensor(
        values=values,
        axes=("rows", "columns", "channels"),
        spacing_mm=spacing_after(spacing, placement, source),
        sop_instance_uids=(instance_uid(image),),
        preprocessing_digest=recipe.digest,
        notes={
            **image_notes(image, transform),
            "source_shape": source,
            "source_region": source_region(placement, recipe.rows, recipe.columns),
            "source_pixel_spacing_mm": patient_spacing(image.header),
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
    proportions: tuple[float, float] | None,
    timings: Timings | None,
) -> tuple[Values, dict[str, object]]:
    with timed(timings, "range"):
        scaling = scaling_of(recipe.intensity, transform, frame.values, frame.padding)
        unit = checked_unit(unit_values(frame.values, scaling, transform, frame.padding))
    with timed(timings, "resample"):
        shape = (unit.shape[0], unit.shape[1])
        placement = placement_of(recipe, shape, proportions)
        part = fitted(unit, placement, recipe.rows, recipe.columns)
        if recipe.fit == "crop":
            # What made it no blank image may have been cut off.
            checked_unit(part)
        (plane,) = framed(part[np.newaxis], placement, recipe.rows, recipe.columns)
    with timed(timings, "channels"):
        return with_channels(plane, recipe.channels), {"scaling": described(scaling)}


def patient_spacing(ds: Dataset) -> tuple[float, float] | None:
    """Return Pixel Spacing where it measures the patient; None where only the detector is known.

    A projection's Pixel Spacing that repeats Imager Pixel Spacing, without a calibration type, is
    the detector's: magnification is not taken out of it (PS3.3 10.7.1.3).
    """
    with quiet_pydicom():
        spacing = spacing_mm(ds, "PixelSpacing")
        is_calibrated = bool(str(ds.get("PixelSpacingCalibrationType", "") or ""))
        at_detector = spacing == spacing_mm(ds, "ImagerPixelSpacing") and not is_calibrated
    return None if at_detector else spacing


def _image_spacing(ds: Dataset) -> tuple[float, float] | None:
    with quiet_pydicom():
        known = (spacing_mm(ds, keyword) for keyword in _SPACING_KEYWORDS)
        return next((spacing for spacing in known if spacing is not None), None)


def _aspect_ratio(ds: Dataset) -> tuple[float, float] | None:
    """Return a pixel's height and width where no distance is known (PS3.3 C.7.6.3.1.7)."""
    with quiet_pydicom():
        return spacing_mm(ds, "PixelAspectRatio")
