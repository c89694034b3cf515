"""Copies of stored images with other pixels, under names of their own.

Owns what has to change in a header when pixels do: UIDs, what the image is derived from and how.
Knows nothing of why somebody wants other pixels.
"""

from __future__ import annotations

import hashlib
import uuid
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_io.attributes import text, texts
from dicom_io.decoding import StoredImage, open_image
from dicom_io.errors import CannotDecode
from dicom_io.grayscale import Rescale, grey_transform
from dicom_io.image_pixel import ImagePixel
from dicom_io.intensity import Values
from dicom_io.reading import quiet_pydicom
from dicom_io.results.identity import derived_uid
from dicom_io.vocabulary import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

SYNTHETIC_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:medimgd:synthetic-images")
"""The same everywhere: the same source, name and pixels give the same file."""

_LONGEST_DESCRIPTION = 64
"""Characters of LO (PS3.5 6.2)."""

_OF_THE_OLD_PIXELS = (
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "IconImageSequence",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)
"""What was lossy stays so: those attributes are kept."""

_WORD_BYTES = MappingProxyType({"OW": 2, "OL": 4, "OF": 4, "OD": 8, "OV": 8})
"""Of value representations whose bytes pydicom keeps in the order of the source (PS3.5 7.3)."""

_GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})


@dataclass(frozen=True, slots=True)
class Derivation:
    """What is said of a copy."""

    name: str
    """Tells this series of copies from every other one of the same source."""
    series_description: str
    """Put before the description of the source series."""
    how: str
    """Derivation Description: what was done to the pixels, at most 1024 characters."""


def write_derived(source: Path, target: Path, values: Values, derivation: Derivation) -> str:
    """Write a copy of a single-frame grey image with other pixels.

    The copy keeps patient, geometry and acquisition, gets study, series and instance UIDs of its
    own, is marked DERIVED and says how (PS3.3 C.7.6.1.1.2 and C.7.6.1.1.3). Equal UIDs mean equal
    pixels. It is written without compression.

    Parameters
    ----------
    source : Path
        The image the copy is made of.
    target : Path
        Where the copy appears; its folder must be there.
    values : numpy.ndarray
        (rows, columns) float32 in the source's modality units (HU for CT), same matrix. What the
        stored bits cannot hold is clipped.
    derivation : Derivation
        What is said of the copy.

    Returns
    -------
    str
        The copy's SOP Instance UID.

    Raises
    ------
    UnreadableInstance, CannotDecode, InstanceUnavailable
        The source cannot be read; is coloured, has several frames or a modality table; or the
        matrix is another.
    """
    image = open_image(source)
    stored = _as_stored(image, values)
    with quiet_pydicom():
        ds = deepcopy(image.header)
        if image.header.original_encoding[1] is False:
            ds.walk(_put_in_little_endian)
        _describe(ds, derivation)
        _rename(ds, derivation, stored.tobytes())
        _put_pixels(ds, image.pixel, stored)
        FileDataset(
            target, ds, preamble=b"\0" * 128, file_meta=_file_meta(ds), is_implicit_VR=False
        ).save_as(target, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return str(ds.SOPInstanceUID)


def _as_stored(image: StoredImage, values: Values) -> npt.NDArray[np.integer]:
    """Return the stored values that become `values` by the header's rescale."""
    modality = grey_transform(image).modality
    pixel = image.pixel
    faults = {
        "must have one frame": pixel.frames != 1,
        "must be grey": pixel.photometric_interpretation not in _GREY,
        "must have a rescale slope, not a table": not isinstance(modality, Rescale),
        f"must be {pixel.rows} x {pixel.columns} again": values.shape
        != (pixel.rows, pixel.columns),
        "must hold 8 or 16 bits": pixel.bits_allocated not in (8, 16),
    }
    broken = [rule for rule, holds in faults.items() if holds]
    if broken or not isinstance(modality, Rescale):
        raise CannotDecode(f"{image.path.name} cannot get other pixels: it {'; it '.join(broken)}")
    low = -(1 << (pixel.bits_stored - 1)) if pixel.is_signed else 0
    high = low + (1 << pixel.bits_stored) - 1
    wanted = np.rint((values.astype(np.float64) - modality.intercept) / modality.slope)
    sign = "i" if pixel.is_signed else "u"
    return np.clip(wanted, low, high).astype(f"<{sign}{pixel.bits_allocated // 8}")


def _put_in_little_endian(_: Dataset, element: DataElement) -> None:
    width = _WORD_BYTES.get(element.VR)
    if width is not None and isinstance(element.value, bytes) and len(element.value) % width == 0:
        element.value = np.frombuffer(element.value, f"u{width}").byteswap().tobytes()


def _describe(ds: Dataset, derivation: Derivation) -> None:
    words = f"{derivation.series_description} {text(ds, 'SeriesDescription')}".strip()
    ds.SeriesDescription = words[:_LONGEST_DESCRIPTION]
    ds.DerivationDescription = derivation.how
    ds.ImageType = ["DERIVED", *(texts(ds, "ImageType")[1:] or ("SECONDARY",))]
    for keyword in _OF_THE_OLD_PIXELS:
        if keyword in ds:
            delattr(ds, keyword)


def _rename(ds: Dataset, derivation: Derivation, pixels: bytes) -> None:
    """Give UIDs over the source's, the copy's name and the pixels."""
    name = derivation.name
    study, series = text(ds, "StudyInstanceUID"), text(ds, "SeriesInstanceUID")
    source = text(ds, "SOPInstanceUID")
    digest = hashlib.sha256(pixels).hexdigest()
    ds.StudyInstanceUID = derived_uid(SYNTHETIC_NAMESPACE, "study", study, name)
    ds.SeriesInstanceUID = derived_uid(SYNTHETIC_NAMESPACE, "series", series, name)
    ds.SOPInstanceUID = derived_uid(SYNTHETIC_NAMESPACE, "instance", source, name, digest)


def _put_pixels(ds: Dataset, pixel: ImagePixel, stored: npt.NDArray[np.integer]) -> None:
    ds.HighBit = pixel.bits_stored - 1
    encoded = stored.tobytes()
    ds.PixelData = encoded + b"\0" * (len(encoded) % 2)
    ds["PixelData"].VR = "OW" if pixel.bits_allocated > 8 else "OB"


def _file_meta(ds: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta
