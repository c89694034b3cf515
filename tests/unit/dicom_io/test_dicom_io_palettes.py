"""Palettes: every stored value gets the colour its table says, however the table is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_files import WriteImage
from pydicom.uid import ExplicitVRBigEndian

from dicom_io.decoding import iter_frames, open_image
from dicom_io.errors import CannotDecode
from dicom_io.intensity import FullRange
from dicom_io.recipe import TensorRecipe
from dicom_io.tensors import build_image_tensor

COLOURS = ("Red", "Green", "Blue")


def _palette(
    descriptor: list[int], table: bytes | None, name: str = "PaletteColorLookupTableData"
) -> dict[str, object]:
    written: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in COLOURS:
        written[f"{colour}PaletteColorLookupTableDescriptor"] = descriptor
        if table is not None:
            prefix, _, rest = name.rpartition("Palette")
            written[f"{prefix}{colour}Palette{rest}"] = table
    return written


def _red(path: Path) -> list[int]:
    (frame,) = iter_frames(open_image(path))
    return frame[..., 0].ravel().tolist()


def test_values_beyond_a_table_of_bytes_take_its_last_entry(write_image: WriteImage) -> None:
    pixels = np.array([[0, 255, 256, 700]], dtype=np.uint16)
    table = bytes(range(256))

    assert _red(write_image(pixels, **_palette([256, 0, 8], table))) == [0, 255, 255, 255]


def test_table_of_more_bytes_than_a_byte_counts_is_read(write_image: WriteImage) -> None:
    pixels = np.array([[0, 255, 256, 1023]], dtype=np.uint16)
    table = bytes(entry // 4 for entry in range(1024))

    assert _red(write_image(pixels, **_palette([1024, 0, 8], table))) == [0, 63, 64, 255]


def test_odd_number_of_bytes_is_read_without_its_padding(write_image: WriteImage) -> None:
    pixels = np.array([[0, 1, 2, 3]], dtype=np.uint8)

    assert _red(write_image(pixels, **_palette([3, 0, 8], bytes([7, 8, 9, 0])))) == [7, 8, 9, 9]


def test_table_of_signed_pixels_starts_below_zero(write_image: WriteImage) -> None:
    pixels = np.array([[-3, -2, -1, 0]], dtype=np.int16)
    table = np.array([100, 200, 300], "<u2").tobytes()

    assert _red(write_image(pixels, **_palette([3, -2, 16], table))) == [100, 100, 200, 300]


@pytest.mark.parametrize("is_packed", [False, True])
def test_words_of_a_big_endian_file_are_turned(write_image: WriteImage, is_packed: bool) -> None:
    # Packed, the first entry of two lies in the low byte of a word.
    table = bytes([20, 10, 0, 30]) if is_packed else np.array([1, 2, 256], ">u2").tobytes()
    pixels = np.array([[0, 1], [2, 2]], dtype=">u2")
    path = write_image(
        pixels,
        transfer_syntax_uid=ExplicitVRBigEndian,
        PixelData=pixels.tobytes(),
        **_palette([3, 0, 8 if is_packed else 16], table),
    )

    assert _red(path) == ([10, 20, 30, 30] if is_packed else [1, 2, 256, 256])


def test_segmented_palette_is_read(write_image: WriteImage) -> None:
    # A discrete segment of one entry, 0, then a linear one of three to 6.
    table = bytes([0, 1, 0, 1, 3, 6])
    written = _palette([4, 0, 8], table, "SegmentedPaletteColorLookupTableData")
    pixels = np.array([[0, 1, 2, 3]], dtype=np.uint8)

    assert _red(write_image(pixels, **written)) == [0, 2, 4, 6]


def test_full_range_is_what_the_entries_can_hold(write_image: WriteImage) -> None:
    # Eight bits index a table of sixteen.
    pixels = np.arange(4, dtype=np.uint8).reshape(2, 2)
    table = np.array([0, 13107, 26214, 65535], "<u2").tobytes()
    recipe = TensorRecipe("image", rows=2, columns=2, intensity=FullRange())

    tensor = build_image_tensor(write_image(pixels, **_palette([4, 0, 16], table)), recipe)

    assert tensor.values.ravel().tolist() == pytest.approx([0, 0.2, 0.4, 1])


@pytest.mark.parametrize(
    ("descriptor", "table", "message"),
    [
        ([4, 0, 12], bytes(8), "8 or 16 bits"),
        ([4, 0], bytes(8), "8 or 16 bits"),
        ([4, 0, 8], bytes(2), "less than the 4 entries"),
        ([4, 0, 8], None, "segmented palette .* is absent or damaged"),
    ],
)
def test_palettes_that_cannot_be_read_are_refused_by_name(
    write_image: WriteImage, descriptor: list[int], table: bytes | None, message: str
) -> None:
    path = write_image(np.zeros((2, 2), np.uint8), **_palette(descriptor, table))

    with pytest.raises(CannotDecode, match=message):
        _red(path)


def test_long_segmented_palette_of_bytes_is_refused(write_image: WriteImage) -> None:
    written = _palette(
        [1024, 0, 8], bytes([0, 1, 0, 1, 255, 6]), "SegmentedPaletteColorLookupTableData"
    )

    with pytest.raises(CannotDecode, match="1024 entries; at most 256"):
        _red(write_image(np.zeros((2, 2), np.uint16), **written))
