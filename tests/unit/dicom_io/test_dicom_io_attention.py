"""A map laid back onto the image: what was bright in the source lights up at the same place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import WriteImage

from dicom_io.attention import (
    WHOLE,
    Region,
    aligned_map,
    slice_of,
    source_region,
    strongest_slice,
)
from dicom_io.display import display_image
from dicom_io.resampling import Placement
from dicom_io.tensors import FullRange, TensorRecipe, build_tensor

MakeSlice = Callable[..., Path]
ROWS, COLUMNS = 120, 90
SQUARE = (slice(72, 90), slice(12, 30))
"""Low and left: a mapping that turns, mirrors or shifts the image puts it elsewhere."""
INNER = (slice(60, 76), slice(30, 46))
"""Low and left in what a crop leaves, also of pixels that are twice as tall or as wide."""


def squared(rows: int = ROWS, columns: int = COLUMNS, square: Any = SQUARE) -> np.ndarray:
    film = np.full((rows, columns), 20, np.uint8)
    film[square] = 250
    return film


def region_of(tensor: Any) -> Region:
    top, left, bottom, right = tensor.notes["source_region"]
    return top, left, bottom, right


def cells_of(plane: np.ndarray, cells: int) -> np.ndarray:
    """Return the mean of each of `cells` x `cells` equal parts: what a coarse layer sees."""
    side = plane.shape[0] // cells
    return plane.reshape(cells, side, cells, side).mean(axis=(1, 3)).astype(np.float32)


def centre_of(values: np.ndarray) -> tuple[float, float]:
    """Return the centre of what is brighter than half of the maximum."""
    rows, columns = np.nonzero(values > values.min() + (values.max() - values.min()) / 2)
    return float(rows.mean()), float(columns.mean())


WRAPPINGS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]] = {
    "MONOCHROME2": (lambda film: film, {}),
    "MONOCHROME1": (lambda film: 255 - film, {"PhotometricInterpretation": "MONOCHROME1"}),
    "12 bits": (lambda film: film.astype(np.uint16) * 16, {"BitsStored": 12, "HighBit": 11}),
    "12 bits inverted": (
        lambda film: 4095 - film.astype(np.uint16) * 16,
        {"BitsStored": 12, "HighBit": 11, "PhotometricInterpretation": "MONOCHROME1"},
    ),
    "signed, rescaled": (
        lambda film: film.astype(np.int16) - 100,
        {"RescaleSlope": 2, "RescaleIntercept": -30},
    ),
    "RGB": (lambda film: np.repeat(film[..., None], 3, axis=2), {}),
    "tall pixels": (lambda film: film, {"PixelSpacing": [0.8, 0.4]}),
    "wide pixels": (lambda film: film, {"ImagerPixelSpacing": [0.15, 0.3]}),
}


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_bright_square_lights_up_at_its_place(
    write_image: WriteImage, wrapping: str, fit: Any
) -> None:
    wrap, attributes = WRAPPINGS[wrapping]
    film = squared(square=INNER if fit == "crop" else SQUARE)
    path = write_image(wrap(film), **attributes)

    tensor = build_tensor([path], TensorRecipe("image", 64, 64, fit=fit))
    aligned = aligned_map(tensor.values[..., 0], region_of(tensor), ROWS, COLUMNS)

    assert aligned.shape == (ROWS, COLUMNS)
    assert aligned.dtype == np.float32
    assert centre_of(aligned) == pytest.approx(centre_of(film), abs=0.8)


@pytest.mark.parametrize("fit", ["stretch", "pad"])
@pytest.mark.parametrize("shape", [(120, 90), (90, 120), (64, 64), (30, 200), (7, 5)])
def test_every_shape_of_image_finds_its_way_back(
    write_image: WriteImage, shape: tuple[int, int], fit: Any
) -> None:
    rows, columns = shape
    square = (slice(rows // 2, rows // 2 + max(rows // 5, 1)), slice(0, max(columns // 4, 1)))
    film = squared(rows, columns, square)

    recipe = TensorRecipe("image", 96, 64, fit=fit, intensity=FullRange())
    tensor = build_tensor([write_image(film)], recipe)
    aligned = aligned_map(tensor.values[..., 0], region_of(tensor), rows, columns)

    assert centre_of(aligned) == pytest.approx(centre_of(film), abs=0.035 * max(shape))


@pytest.mark.parametrize("shape", [(120, 90), (90, 120), (30, 200), (200, 31), (7, 5)])
def test_every_shape_of_image_finds_its_way_back_from_its_centre(
    write_image: WriteImage, shape: tuple[int, int]
) -> None:
    rows, columns = shape
    side = min(shape) // 3
    square = (slice(rows // 2, rows // 2 + side), slice(columns // 2 - side, columns // 2))
    film = squared(rows, columns, square)

    recipe = TensorRecipe("image", 64, 64, fit="crop", intensity=FullRange())
    tensor = build_tensor([write_image(film)], recipe)
    aligned = aligned_map(tensor.values[..., 0], region_of(tensor), rows, columns)

    assert centre_of(aligned) == pytest.approx(centre_of(film), abs=0.04 * min(shape))
    # Beyond the square in the middle, and a pixel around it, the model was shown nothing.
    cut = np.ones(shape, dtype=bool)
    left_over = [max((edge - min(shape)) // 2 - 1, 0) for edge in shape]
    cut[left_over[0] : rows - left_over[0], left_over[1] : columns - left_over[1]] = False
    assert not aligned[cut].any()


def test_a_coarse_map_is_right_to_a_fraction_of_a_cell(write_image: WriteImage) -> None:
    recipe = TensorRecipe("image", 64, 64, fit="pad", intensity=FullRange())
    tensor = build_tensor([write_image(squared())], recipe)

    aligned = aligned_map(cells_of(tensor.values[..., 0], 8), region_of(tensor), ROWS, COLUMNS)

    strongest = np.unravel_index(np.argmax(aligned), aligned.shape)
    cell = ROWS / 8
    assert np.abs(np.subtract(strongest, centre_of(squared()))).max() < 0.75 * cell


def test_the_map_fits_the_picture_on_the_card(write_image: WriteImage) -> None:
    path = write_image(squared(), PixelSpacing=[0.8, 0.4])
    tensor = build_tensor([path], TensorRecipe("image", 64, 64, fit="pad"))

    picture = display_image(path, longest_edge=60)
    aligned = aligned_map(tensor.values[..., 0], region_of(tensor), *picture.shape)

    assert picture.shape == (60, 45)
    assert centre_of(aligned) == pytest.approx(centre_of(picture), abs=0.6)


def test_what_the_model_was_not_shown_has_no_attention() -> None:
    # The middle half of the image, in each direction, fills the model's plane.
    region = (-0.5, -0.5, 1.5, 1.5)

    aligned = aligned_map(np.ones((4, 4), np.float32), region, 40, 80)

    assert np.all(aligned[10:30, 20:60] == 1)
    aligned[10:30, 20:60] = 0
    assert not aligned.any()


def test_padding_of_the_plane_is_left_out() -> None:
    # Rows 16 to 48 of 64 hold the image; the attention lies in the padding above it.
    region = source_region(Placement(rows=32, columns=64, top=16, left=0), 64, 64)
    cells = np.zeros((8, 8), np.float32)
    cells[0] = 1

    assert region == (0.25, 0.0, 0.75, 1.0)
    assert not aligned_map(cells, region, 30, 60).any()


def test_a_map_of_the_size_of_the_image_is_itself() -> None:
    cells = np.random.default_rng(3).random((9, 7)).astype(np.float32)

    assert np.allclose(aligned_map(cells, WHOLE, 9, 7), cells, atol=1e-7)


def test_one_cell_covers_everything_evenly() -> None:
    assert np.all(aligned_map(np.full((1, 1), 0.5, np.float32), WHOLE, 3, 4) == 0.5)


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99)
)
def test_no_value_is_made_up(rows: int, columns: int, high: int, wide: int, seed: int) -> None:
    cells = np.random.default_rng(seed).random((rows, columns)).astype(np.float32)

    aligned = aligned_map(cells, WHOLE, high, wide)

    assert aligned.min() >= cells.min() - 1e-6
    assert aligned.max() <= cells.max() + 1e-6


@pytest.mark.parametrize("attributes", [{}, {"PhotometricInterpretation": "MONOCHROME1"}])
def test_the_strongest_slice_of_a_series_is_found(
    make_slice: MakeSlice, attributes: dict[str, Any]
) -> None:
    # Twelve slices sent against the order of the stack; the seventh from below holds a square.
    base = np.full((24, 30), 100, np.int16)
    bright = base.copy()
    bright[15:21, 3:9] = 1000
    sign = -1 if attributes else 1
    paths = [
        make_slice(100 - number, z=2.5 * number, pixels=sign * (bright if number == 6 else base),
                   **attributes)
        for number in range(12)
    ]  # fmt: skip

    recipe = TensorRecipe("volume", 24, 24, slices=24, fit="pad")
    tensor = build_tensor(paths, recipe)
    cells = tensor.values[..., 0]
    strongest = strongest_slice(cells, 12)
    aligned = aligned_map(slice_of(cells, strongest, 12), region_of(tensor), 24, 30)

    assert strongest == 6
    assert tensor.sop_instance_uids[strongest].endswith(".94")
    assert centre_of(aligned) == pytest.approx(centre_of(bright), abs=1.0)


def test_the_middle_of_equally_strong_slices_is_chosen() -> None:
    cells = np.ones((1, 2, 2), np.float32)

    assert strongest_slice(cells, 9) == 4
