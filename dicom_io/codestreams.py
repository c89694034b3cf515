"""Compressed pixel data looked at from outside: fragments, codestream size, end markers.

Owns the checks that must come before a codec allocates anything or pads what is missing. It must
not decode.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from pydicom.uid import (
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
)

from dicom_io.errors import CannotDecode
from dicom_io.image_pixel import ImagePixel
from dicom_io.reading import EncodedDataSet, PixelElement, syntax_name

_ITEM_TAG = (0xFFFE, 0xE000)
_DELIMITER_TAG = (0xFFFE, 0xE0DD)
_END_OF_CODESTREAM = b"\xff\xd9"
_MARKED_SYNTAXES = frozenset(
    str(uid)
    for family in (JPEGTransferSyntaxes, JPEGLSTransferSyntaxes, JPEG2000TransferSyntaxes)
    for uid in family
)
_HEAD_BYTES = 64 * 1024
_TAIL_BYTES = 64
_JPEG_START = b"\xff\xd8"
_J2K_START = b"\xff\x4f\xff\x51"
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_STANDALONE_MARKERS = frozenset(range(0xD0, 0xDA)) | {0x01}


@dataclass(frozen=True, slots=True)
class Fragment:
    """One item of encapsulated pixel data."""

    offset: int
    length: int


def check_fragments(
    encoded: EncodedDataSet,
    element: PixelElement,
    pixel: ImagePixel,
    transfer_syntax_uid: str,
    extended_offsets: bytes = b"",
) -> None:
    """Refuse encapsulated pixel data that is cut short or disagrees with its header.

    Parameters
    ----------
    encoded, element, pixel, transfer_syntax_uid
        Of one image.
    extended_offsets : bytes
        Extended Offset Table (7FE0,0001) of its header; empty where there is none.

    Raises
    ------
    CannotDecode
        A fragment ends behind the file, frames are missing, an offset table points elsewhere than
        to the frames, a codestream has other dimensions than Rows and Columns, or lacks its end
        marker.

    References
    ----------
    PS3.5 Annex A.4
    """
    name = syntax_name(transfer_syntax_uid)
    items = _fragments(encoded, element, name)
    fragments = _without_empty_end(items[1:])
    if len(fragments) < pixel.frames:
        raise CannotDecode(
            f"PixelData (7FE0,0010) in {name} holds {len(fragments)} fragments for "
            f"{pixel.frames} frames: truncated, send the object again"
        )
    if pixel.frames > 1:
        basic_offsets = _read(encoded, items[0].offset, items[0].length)
        _check_offsets(basic_offsets, "<u4", fragments, pixel.frames, name)
        _check_offsets(extended_offsets, "<u8", fragments, pixel.frames, name)
    for first, last in _frame_ends(fragments, pixel.frames):
        _check_head(_read(encoded, first.offset, min(first.length, _HEAD_BYTES)), pixel, name)
        tail_length = min(last.length, _TAIL_BYTES)
        tail = _read(encoded, last.offset + last.length - tail_length, tail_length)
        _check_tail(tail, transfer_syntax_uid, name)


def _fragments(encoded: EncodedDataSet, element: PixelElement, name: str) -> list[Fragment]:
    """Walk the items; the first is the Basic Offset Table, which may be empty."""
    found: list[Fragment] = []
    offset = element.offset
    while offset + 8 <= encoded.size:
        group, number, length = struct.unpack("<HHL", _read(encoded, offset, 8))
        if (group, number) == _DELIMITER_TAG:
            break
        if (group, number) != _ITEM_TAG or length > encoded.size - offset - 8:
            raise CannotDecode(
                f"PixelData (7FE0,0010) in {name}: fragment {len(found)} is damaged or ends behind "
                "the file: truncated, send the object again"
            )
        found.append(Fragment(offset + 8, length))
        offset += 8 + length
    return found


def _without_empty_end(fragments: list[Fragment]) -> list[Fragment]:
    """Leave out fragments of no length behind the last frame: they hold no part of it."""
    last = next((n for n in range(len(fragments), 0, -1) if fragments[n - 1].length), 0)
    return fragments[:last]


def _check_offsets(
    table: bytes, kind: str, fragments: list[Fragment], frames: int, name: str
) -> None:
    """Refuse a table by which another frame than the one asked for would be decoded."""
    if not table:
        return
    width = np.dtype(kind).itemsize
    offsets = np.frombuffer(table[: len(table) // width * width], kind).tolist()
    starts = {fragment.offset - fragments[0].offset for fragment in fragments}
    is_rising = all(first < second for first, second in pairwise(offsets))
    if len(offsets) != frames or offsets[0] != 0 or not is_rising or not starts.issuperset(offsets):
        raise CannotDecode(
            f"the offset table of PixelData (7FE0,0010) in {name} does not point to its {frames} "
            "frames one after the other: it is not known which is which, send the object again"
        )


def _frame_ends(fragments: list[Fragment], frames: int) -> list[tuple[Fragment, Fragment]]:
    """Pair the first and last fragment of each frame, as far as their numbers tell."""
    if len(fragments) == frames:
        return [(fragment, fragment) for fragment in fragments]
    return [(fragments[0], fragments[-1])]


def _read(encoded: EncodedDataSet, offset: int, length: int) -> bytes:
    encoded.stream.seek(offset)
    return encoded.stream.read(length)


def _check_head(head: bytes, pixel: ImagePixel, name: str) -> None:
    size = codestream_size(head)
    if size is not None and size != (pixel.rows, pixel.columns):
        raise CannotDecode(
            f"the {name} codestream holds {size[0]} x {size[1]} pixels, Rows x Columns say "
            f"{pixel.rows} x {pixel.columns}: the object contradicts itself, correct the sender"
        )


def codestream_size(head: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) as a JPEG, JPEG-LS or JPEG 2000 codestream says, else None."""
    try:
        if head.startswith(_J2K_START):
            width, height, left, top = struct.unpack_from(">LLLL", head, 8)
            return height - top, width - left
        if head.startswith(_JPEG_START):
            return _jpeg_size(head)
    except struct.error:
        return None
    return None


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    """Walk the marker segments up to the frame header (ISO 10918-1 B.2.2)."""
    offset = 2
    while offset + 4 <= len(head) and head[offset] == 0xFF:
        marker = head[offset + 1]
        if marker == 0xFF:
            offset += 1
        elif marker in _FRAME_MARKERS:
            rows, columns = struct.unpack_from(">HH", head, offset + 5)
            # Zero rows are legal: a DNL marker behind the first scan says how many there are.
            return (rows, columns) if rows else None
        elif marker in _STANDALONE_MARKERS:
            offset += 2
        else:
            offset += 2 + struct.unpack_from(">H", head, offset + 2)[0]
    return None


def _check_tail(tail: bytes, transfer_syntax_uid: str, name: str) -> None:
    """Codecs fill what a cut codestream lacks with grey; its missing end marker tells."""
    if transfer_syntax_uid in _MARKED_SYNTAXES and _END_OF_CODESTREAM not in tail:
        raise CannotDecode(
            f"a {name} codestream ends without its end marker FFD9: truncated, "
            "send the object again"
        )
