"""What kind of image a file is by its contents, whether it is whole, and what it shows.

Owns the look at files nobody has vouched for: DICOM, PNG and JPEG beside anything else. Knows
nothing of labels, splits or models.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicom_io.decoding import iter_frames, open_image
from dicom_io.films import read_film
from dicom_io.grayscale import grey_frame, grey_transform
from dicom_io.intensity import Values
from dicom_io.reading import machine_faults

_DICOM_PREFIX_AT = 128
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_JPEG_MAGIC = b"\xff\xd8\xff"
_JPEG_START_OF_SCAN = 0xDA
_JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG_END = b"\xff\xd9"
_GREY_STEPS = 65535
"""Pictures are compared in 16 bit steps of their own range."""


class FileKindValues(StrEnum):
    """What a file is, by its first bytes and never by its name."""

    DICOM = "DICOM"
    PNG = "PNG"
    JPEG = "JPEG"
    OTHER = "something else"


@dataclass(frozen=True, slots=True)
class Picture:
    """What a file shows, without its grey values."""

    rows: int
    columns: int
    digest: str
    """SHA-256 of the grey values stretched to their own range: equal for the same picture in
    another file format, with another rescale slope, or as MONOCHROME1."""
    is_blank: bool
    """True when every pixel has the same value."""


def file_kind(path: Path) -> FileKindValues:
    """Return what a file is by its contents.

    Raises
    ------
    InstanceUnavailable
        The file cannot be read now.
    """
    with machine_faults(path), path.open("rb") as file:
        start = file.read(_DICOM_PREFIX_AT + 4)
    if start[_DICOM_PREFIX_AT:] == b"DICM":
        return FileKindValues.DICOM
    if start.startswith(_PNG_MAGIC):
        return FileKindValues.PNG
    return FileKindValues.JPEG if start.startswith(_JPEG_MAGIC) else FileKindValues.OTHER


def truncation(encoded: bytes, kind: FileKindValues) -> str:
    """Return how a PNG or JPEG is cut short or damaged; empty when it is whole.

    Decoders fill what is missing with grey and say nothing, so that a cut film would be learned
    from. DICOM has its own checks in ``decoding``.
    """
    if kind is FileKindValues.PNG:
        return _png_fault(encoded)
    return _jpeg_fault(encoded) if kind is FileKindValues.JPEG else ""


def _png_fault(encoded: bytes) -> str:
    offset = len(_PNG_MAGIC)
    while offset + 12 <= len(encoded):
        length, name = struct.unpack_from(">L4s", encoded, offset)
        end = offset + 12 + length
        if end > len(encoded):
            break
        (stated,) = struct.unpack_from(">L", encoded, end - 4)
        if zlib.crc32(encoded[offset + 4 : end - 4]) != stated:
            return f"the checksum of the PNG chunk at byte {offset} is wrong"
        if name == b"IEND":
            return ""
        offset = end
    return f"ends after {len(encoded)} bytes, before the end of the PNG"


def _jpeg_fault(encoded: bytes) -> str:
    """Walk the segments to the scan: a thumbnail's end marker before it does not count."""
    offset = 2
    while offset + 4 <= len(encoded) and encoded[offset] == 0xFF:
        marker = encoded[offset + 1]
        if marker == _JPEG_START_OF_SCAN:
            # Within a scan 0xFF is followed by zero or a restart marker, never by the end marker.
            if encoded.find(_JPEG_END, offset) >= 0:
                return ""
            break
        has_length = marker not in _JPEG_WITHOUT_LENGTH and marker != 0xFF
        fill = 1 if marker == 0xFF else 2
        offset += 2 + struct.unpack_from(">H", encoded, offset + 2)[0] if has_length else fill
    return f"ends after {len(encoded)} bytes, before the end of the JPEG"


def picture_of(path: Path, kind: FileKindValues) -> Picture:
    """Decode a file completely and describe what it shows.

    Raises
    ------
    UnreadableInstance, Refusal
        The file cannot be parsed or decoded.
    InstanceUnavailable
        The file cannot be read now.
    """
    digest = hashlib.sha256()
    rows, columns, is_blank = 0, 0, True
    with machine_faults(path):
        for grey in _dicom_frames(path) if kind is FileKindValues.DICOM else [read_film(path)]:
            rows, columns = grey.shape
            low, high = float(grey.min()), float(grey.max())
            is_blank &= low == high
            digest.update(struct.pack("<LL", rows, columns))
            digest.update(_stretched(grey, low, high).tobytes())
    return Picture(rows, columns, digest.hexdigest(), is_blank)


def _dicom_frames(path: Path) -> Iterator[Values]:
    image = open_image(path)
    for number, stored in enumerate(iter_frames(image)):
        transform = grey_transform(image, number)
        values = grey_frame(stored, transform).values
        yield -values if transform.is_inverted else values


def _stretched(grey: Values, low: float, high: float) -> npt.NDArray[np.uint16]:
    if low == high:
        return np.zeros(grey.shape, dtype=np.uint16)
    unit = (grey.astype(np.float64) - low) / (high - low)
    return np.rint(unit * _GREY_STEPS).astype("<u2")
