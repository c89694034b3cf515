"""Palettes: which colour each stored value of a PALETTE COLOR image stands for.

Owns reading the Palette Color Lookup Table module and applying it. Must not know how the stored
values were decoded: that is ``decoding``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from dicom_io.attributes import integer, numbers, raw_value
from dicom_io.errors import CannotDecode
from dicom_io.reading import PARSER_FAULTS

Entries = npt.NDArray[np.unsignedinteger[Any]]
"""8 or 16 bits each."""

_COLOURS = ("Red", "Green", "Blue")
_DESCRIPTOR = "RedPaletteColorLookupTableDescriptor"
_BYTE_VALUES = 256


@dataclass(frozen=True, slots=True)
class Palette:
    """Row ``i`` is the colour of stored value ``first + i``; the ends hold beyond them."""

    first: int
    colours: Entries
    """(entries, 3), red first."""
    bits: int
    """8 or 16: what an entry can hold, 0 .. 2^bits - 1."""


def read_palette(ds: Dataset) -> Palette:
    """Read the palette of a header.

    Raises
    ------
    CannotDecode
        The descriptor or a table is absent, illegal or shorter than the descriptor says.

    References
    ----------
    PS3.3 C.7.6.3.1.5 (descriptor), C.7.6.3.1.6 (data), C.7.9.2 (segmented)
    """
    descriptor = numbers(ds, _DESCRIPTOR)
    if len(descriptor) != 3 or descriptor[2] not in (8, 16):
        raise CannotDecode(
            f"{_DESCRIPTOR} (0028,1101) must hold the number of entries, the first value and "
            "8 or 16 bits (PS3.3 C.7.6.3.1.5): correct the sender"
        )
    count, first, bits = (int(part) for part in descriptor)
    count = count % 2**16 or 2**16
    first %= 2**16
    if integer(ds, "PixelRepresentation") == 1 and first >= 2**15:
        first -= 2**16
    tables = [raw_value(ds, f"{colour}PaletteColorLookupTableData") for colour in _COLOURS]
    if all(table is None for table in tables):
        return Palette(first, _segmented(ds, count, first, bits), bits)
    colours = np.stack([_entries(ds, table, count) for table in tables], axis=-1)
    is_narrow = colours.dtype == np.uint8 or (bits == 8 and int(colours.max()) < _BYTE_VALUES)
    return Palette(first, colours, 8 if is_narrow else 16)


def _entries(ds: Dataset, data: object, count: int) -> Entries:
    """Return a table's entries: words, or bytes two to a word (PS3.3 C.7.6.3.1.6)."""
    if not isinstance(data, bytes) or len(data) < count:
        raise CannotDecode(
            f"PaletteColorLookupTableData (0028,1201..1203): a table is absent or holds less than "
            f"the {count} entries its descriptor says: correct the sender"
        )
    padded = data + b"\0" * (len(data) % 2)
    words = np.frombuffer(padded, "<u2" if _is_little_endian(ds) else ">u2")
    if len(words) >= count:
        return words[:count].astype(np.uint16)
    # The first entry of two lies in the low byte of its word, however words are written.
    return words.astype("<u2").view(np.uint8)[:count]


def _is_little_endian(ds: Dataset) -> bool:
    return ds.original_encoding[1] is not False


def _segmented(ds: Dataset, count: int, first: int, bits: int) -> Entries:
    """Return the colours of a palette that is written as segments."""
    if bits == 8 and count > _BYTE_VALUES:
        # pydicom counts entries in the type that they have themselves.
        raise CannotDecode(
            f"a segmented palette of 8 bits has {count} entries; at most {_BYTE_VALUES} are read: "
            "send the object as RGB"
        )
    try:
        colours = apply_color_lut(np.arange(first, first + count, dtype=np.int32), ds)
    except PARSER_FAULTS as error:
        raise CannotDecode(
            "the segmented palette (0028,1221..1223) is absent or damaged "
            f"({type(error).__name__}): send the object as RGB"
        ) from error
    return np.asarray(colours[..., :3])


def coloured(values: npt.NDArray[np.integer], palette: Palette) -> Entries:
    """Return the colour of each value.

    Parameters
    ----------
    values : numpy.ndarray
        (rows, columns) stored values.
    palette : Palette
        From the same image's header.

    Returns
    -------
    numpy.ndarray
        (rows, columns, 3), of the palette's type.
    """
    index = np.clip(values.astype(np.int64) - palette.first, 0, len(palette.colours) - 1)
    return palette.colours[index]
