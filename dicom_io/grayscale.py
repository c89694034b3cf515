"""What a header says about turning stored values into grey: modality, VOI, inversion, padding.

Owns reading those attributes, from the top level or from functional groups, and applying them to
one frame. It must not know of models or of tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from dicom_io.attributes import integer, items, number, numbers, raw_value, text
from dicom_io.decoding import StoredImage, StoredValues
from dicom_io.errors import CannotDecode
from dicom_io.image_pixel import PALETTE, ImagePixel
from dicom_io.intensity import (
    Limits,
    LookupTable,
    Mask,
    Values,
    VoiFunctionValues,
    Window,
    looked_up,
    luminance,
    rescaled,
)
from dicom_io.palettes import read_palette
from dicom_io.reading import quiet_pydicom

FUNCTIONAL_GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
_SHAPES = MappingProxyType({"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"})
_MODALITY_MACRO = "PixelValueTransformationSequence"
_VOI_MACRO = "FrameVOILUTSequence"


@dataclass(frozen=True, slots=True)
class Rescale:
    """Modality values are ``stored * slope + intercept``."""

    slope: float = 1.0
    intercept: float = 0.0


@dataclass(frozen=True, slots=True)
class GreyTransform:
    """All a header says about one frame's values; nothing in it depends on the pixels."""

    modality: Rescale | LookupTable
    voi: Window | LookupTable | None
    is_inverted: bool
    """True when the smallest value is shown white."""
    padding: tuple[int, int] | None
    """First and last stored value that mark pixels outside the image, ends included."""
    full_range: Limits
    """What stored values can become after the modality transform."""


@dataclass(frozen=True, slots=True)
class GreyFrame:
    """One frame as grey values in modality units, and where it is padding."""

    values: Values
    padding: Mask | None


def grey_transform(image: StoredImage, frame: int = 0) -> GreyTransform:
    """Read how stored values of a frame become grey.

    Absent attributes mean: no rescale, no VOI, no padding, not inverted.

    Raises
    ------
    CannotDecode
        A rescale slope, intercept or lookup table that is present is illegal, a sequence that may
        hold one is damaged, or the header contradicts itself on whether low values are black.

    References
    ----------
    PS3.3 C.11.1 (modality), C.11.2 (VOI), C.7.5.1.1.2 (padding), C.7.6.16.2.9 and C.7.6.16.2.10
    (functional groups)
    """
    ds, pixel = image.header, image.pixel
    with quiet_pydicom():
        _check_readable(ds)
        is_colour = pixel.photometric_interpretation not in {"MONOCHROME1", "MONOCHROME2"}
        modality = Rescale() if is_colour else _modality(macro_item(ds, frame, _MODALITY_MACRO), ds)
        return GreyTransform(
            modality=modality,
            voi=None if is_colour else _voi(macro_item(ds, frame, _VOI_MACRO), ds, modality, pixel),
            is_inverted=_is_inverted(ds, pixel),
            padding=None if is_colour else _padding(ds, pixel),
            full_range=_colour_range(ds, pixel) if is_colour else _full_range(modality, pixel),
        )


def _check_readable(ds: Dataset) -> None:
    """Refuse a sequence that decides what values mean and is there but damaged.

    It would read as absent, and the values as if nothing had been said of them.
    """
    for keyword in (*FUNCTIONAL_GROUPS, "ModalityLUTSequence"):
        if keyword in ds and len(ds.get_item(keyword).value or b"") and not items(ds, keyword):
            raise CannotDecode(
                f"{keyword} is damaged: it is not known what the pixel values mean, send the "
                "object again"
            )


def grey_frame(stored: StoredValues, transform: GreyTransform) -> GreyFrame:
    """Apply luminance (colour) or the modality transform (grey) to one decoded frame.

    Parameters
    ----------
    stored : numpy.ndarray
        (rows, columns), or (rows, columns, 3) RGB.
    transform : GreyTransform
        From the header of the same frame.

    Returns
    -------
    GreyFrame
        float32 (rows, columns) in modality units, not yet inverted.
    """
    if stored.ndim == 3:
        return GreyFrame(luminance(stored), None)
    padding = None
    if transform.padding is not None:
        first, last = transform.padding
        padding = (stored >= first) & (stored <= last)
        padding = padding if padding.any() else None
    if isinstance(transform.modality, LookupTable):
        return GreyFrame(looked_up(stored, transform.modality), padding)
    rescale = transform.modality
    return GreyFrame(rescaled(stored, rescale.slope, rescale.intercept), padding)


def macro_item(ds: Dataset, frame: int, macro: str) -> Dataset:
    """Return the functional group item that holds a frame's attributes, else the data set itself.

    Per-frame groups come before shared ones (PS3.3 C.7.6.16).
    """
    for sequence in FUNCTIONAL_GROUPS:
        groups = items(ds, sequence)
        position = frame if sequence.startswith("PerFrame") else 0
        if position < len(groups):
            found = items(groups[position], macro)
            if found:
                return found[0]
    return ds


def states_modality(image: StoredImage, frame: int = 0) -> bool:
    """Return True when a header states what the unit of a frame's values is made of."""
    ds = image.header
    with quiet_pydicom():
        item = macro_item(ds, frame, _MODALITY_MACRO)
        stated = ("RescaleSlope", "RescaleIntercept")
        is_rescaled = any(number(item, keyword) is not None for keyword in stated)
        return is_rescaled or bool(items(ds, "ModalityLUTSequence"))


def _modality(item: Dataset, ds: Dataset) -> Rescale | LookupTable:
    # Modality LUT and rescale exclude each other; a table that is there was meant to be used.
    tables = items(ds, "ModalityLUTSequence")
    if tables:
        return _table(tables[0], ds, "Modality LUT", can_be_negative=_is_signed(ds))
    slope = _stated(item, "RescaleSlope", 1.0)
    if slope == 0:
        raise CannotDecode("RescaleSlope (0028,1053) must not be 0: every pixel would be the same")
    return Rescale(slope, _stated(item, "RescaleIntercept", 0.0))


def _stated(item: Dataset, keyword: str, default: float) -> float:
    """Return a number, its default when absent; refuse when it is there and illegal."""
    value = number(item, keyword)
    if value is not None:
        return value
    if keyword in item and item.get_item(keyword).value not in (None, b"", ""):
        raise CannotDecode(f"{keyword} is not a number: correct it at the sender")
    return default


def _voi(
    item: Dataset, ds: Dataset, modality: Rescale | LookupTable, pixel: ImagePixel
) -> Window | LookupTable | None:
    centres, widths = numbers(item, "WindowCenter"), numbers(item, "WindowWidth")
    if centres and widths and widths[0] > 0:
        named = text(item, "VOILUTFunction").upper()
        known = named in VoiFunctionValues.__members__.values()
        function = VoiFunctionValues(named) if known else VoiFunctionValues.LINEAR
        # A LINEAR window narrower than 1 is illegal, but exact windows are often mislabelled.
        if function is VoiFunctionValues.LINEAR and widths[0] < 1:
            function = VoiFunctionValues.LINEAR_EXACT
        return Window(centres[0], widths[0], function)
    tables = items(item, "VOILUTSequence")
    if not tables:
        return None
    can_be_negative = _full_range(modality, pixel).low < 0
    try:
        return _table(tables[0], ds, "VOI LUT", can_be_negative=can_be_negative)
    except CannotDecode:
        # How to show an image is advice: a broken table reads as absent, unlike a modality table.
        return None


def _table(item: Dataset, ds: Dataset, name: str, *, can_be_negative: bool) -> LookupTable:
    """Read a lookup table item (PS3.3 C.11.1.1.1)."""
    descriptor = numbers(item, "LUTDescriptor")
    if len(descriptor) != 3:
        raise CannotDecode(f"LUTDescriptor (0028,3002) of the {name} must hold three numbers")
    count, first, bits = (int(part) for part in descriptor)
    count = count % 2**16 or 2**16
    first %= 2**16
    if can_be_negative and first >= 2**15:
        first -= 2**16
    entries = _entries(raw_value(item, "LUTData"), count, is_little_endian=_is_little_endian(ds))
    if len(entries) < count or not 1 <= bits <= 16:
        raise CannotDecode(
            f"LUTData (0028,3006) of the {name} holds {len(entries)} entries of {bits} bits; "
            f"LUTDescriptor says {count}, of 8 to 16 bits"
        )
    entries = entries[:count]
    if int(entries.max()) >= 1 << bits:
        raise CannotDecode(
            f"LUTData (0028,3006) of the {name} holds {int(entries.max())}, more than the {bits} "
            "bits that LUTDescriptor says: the object contradicts itself, correct the sender"
        )
    return LookupTable(first, entries, bits)


def _entries(data: object, count: int, *, is_little_endian: bool) -> npt.NDArray[np.uint16]:
    """Return table entries, from numbers (US) or from bytes (OW, one or two per entry)."""
    if isinstance(data, bytes):
        is_packed = len(data) < 2 * count
        kind = "u1" if is_packed else ("<u2" if is_little_endian else ">u2")
        return np.frombuffer(data[: len(data) // 2 * 2], dtype=kind).astype(np.uint16)
    try:
        return np.atleast_1d(np.asarray(data, dtype=np.int64)).astype(np.uint16)
    except (TypeError, ValueError):
        return np.empty(0, dtype=np.uint16)


def _is_little_endian(ds: Dataset) -> bool:
    return ds.original_encoding[1] is not False


def _is_signed(ds: Dataset) -> bool:
    return integer(ds, "PixelRepresentation") == 1


def _is_inverted(ds: Dataset, pixel: ImagePixel) -> bool:
    """Return True for MONOCHROME1; a Presentation LUT Shape that says otherwise is refused.

    The shape repeats the photometric interpretation (PS3.3 C.7.6.1). Where they differ, one of
    them is wrong, and a film taken the wrong way round looks like another film.
    """
    shape = text(ds, "PresentationLUTShape").upper()
    expected = _SHAPES.get(pixel.photometric_interpretation)
    if expected is not None and shape in _SHAPES.values() and shape != expected:
        raise CannotDecode(
            f"PresentationLUTShape (2050,0020) {shape} contradicts PhotometricInterpretation "
            f"(0028,0004) {pixel.photometric_interpretation}, which requires {expected} "
            "(PS3.3 C.7.6.1): it is not known whether black is low; correct the sender"
        )
    return pixel.photometric_interpretation == "MONOCHROME1"


def _padding(ds: Dataset, pixel: ImagePixel) -> tuple[int, int] | None:
    value = integer(ds, "PixelPaddingValue")
    if value is None:
        return None
    limit = integer(ds, "PixelPaddingRangeLimit")
    first = _as_stored(value, pixel)
    last = first if limit is None else _as_stored(limit, pixel)
    return min(first, last), max(first, last)


def _as_stored(value: int, pixel: ImagePixel) -> int:
    """Return a padding value with the pixels' sign: its VR often has the wrong one."""
    wrapped = value % (1 << pixel.bits_allocated)
    if pixel.is_signed and wrapped >= 1 << (pixel.bits_allocated - 1):
        wrapped -= 1 << pixel.bits_allocated
    return wrapped


def _colour_range(ds: Dataset, pixel: ImagePixel) -> Limits:
    is_palette = pixel.photometric_interpretation == PALETTE
    return Limits(0.0, 2.0 ** (read_palette(ds).bits if is_palette else pixel.bits_stored) - 1)


def _full_range(modality: Rescale | LookupTable, pixel: ImagePixel) -> Limits:
    if isinstance(modality, LookupTable):
        return Limits(0.0, 2.0**modality.bits - 1)
    low = -(2.0 ** (pixel.bits_stored - 1)) if pixel.is_signed else 0.0
    high = low + 2.0**pixel.bits_stored - 1
    ends = sorted(
        (low * modality.slope + modality.intercept, high * modality.slope + modality.intercept)
    )
    if not all(math.isfinite(end) for end in ends):
        raise CannotDecode("RescaleSlope and RescaleIntercept give values that are not finite")
    return Limits(*ends)
