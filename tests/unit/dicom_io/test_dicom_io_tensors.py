"""Tensors: the same picture gives the same numbers, however it was wrapped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import WriteImage

from dicom_io.errors import (
    CannotDecode,
    InstanceUnavailable,
    OutsideContract,
    Refusal,
    RefusalReason,
)
from dicom_io.resampling import (
    area_weights,
    cropped,
    linear_weights,
    padded,
    resampled_slices,
    resized,
)
from dicom_io.tensors import (
    FullRange,
    PercentileRange,
    TensorRecipe,
    VoiRange,
    WindowRange,
    build_image_tensor,
    build_tensor,
    build_volume_tensor,
    image_values_to_tensor,
    read_film,
)

MakeSlice = Callable[..., Path]
RECIPE = TensorRecipe("image", 32, 32)


@pytest.fixture(scope="module")
def film() -> np.ndarray:
    """A chest-like 8 bit film: smooth shadows, a bright marker, noise; 90 rows, 70 columns."""
    rows, columns = np.mgrid[0:90, 0:70]
    shadow = 140 - 90 * np.exp(-(((rows - 45) / 25) ** 2) - ((np.abs(columns - 35) - 16) / 9) ** 2)
    noise = np.random.default_rng(7).normal(0, 6, shadow.shape)
    picture = np.clip(shadow + noise, 0, 255)
    picture[2:8, 2:12] = 255
    return picture.astype(np.uint8)


def _wrapped(write_image: WriteImage, film: np.ndarray, wrapping: str) -> Path:
    twelve_bits = np.rint(film * (4095 / 255)).astype(np.uint16)
    wrappings: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "MONOCHROME2": (film, {}),
        "MONOCHROME1": (255 - film, {"PhotometricInterpretation": "MONOCHROME1"}),
        "INVERSE": (
            255 - film,
            {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
        ),
        "IDENTITY": (film, {"PresentationLUTShape": "IDENTITY"}),
        "12 bits": (twelve_bits, {"BitsStored": 12, "HighBit": 11}),
        "12 bits MONOCHROME1": (
            (4095 - twelve_bits).astype(np.uint16),
            {"BitsStored": 12, "HighBit": 11, "PhotometricInterpretation": "MONOCHROME1"},
        ),
        "12 bits on top": (
            (twelve_bits << 4).astype(np.uint16),
            {"BitsStored": 12, "HighBit": 15},
        ),
        "rescaled": (film, {"RescaleSlope": "0.25", "RescaleIntercept": "-17"}),
        "falling slope": (255 - film, {"RescaleSlope": "-1", "RescaleIntercept": "255"}),
        "RGB": (np.repeat(film[..., None], 3, axis=-1), {}),
    }
    pixels, attributes = wrappings[wrapping]
    return write_image(np.ascontiguousarray(pixels), **attributes)


@pytest.mark.parametrize(
    "wrapping",
    [
        "MONOCHROME2",
        "MONOCHROME1",
        "INVERSE",
        "IDENTITY",
        "12 bits",
        "12 bits MONOCHROME1",
        "12 bits on top",
        "rescaled",
        "falling slope",
        "RGB",
    ],
)
@pytest.mark.parametrize("intensity", [PercentileRange(), PercentileRange(1, 97)])
def test_one_film_gives_one_tensor_however_it_is_wrapped(
    write_image: WriteImage, film: np.ndarray, wrapping: str, intensity: PercentileRange
) -> None:
    recipe = TensorRecipe("image", 32, 32, intensity=intensity)
    expected = image_values_to_tensor(film.astype(np.float32), recipe)

    tensor = build_image_tensor(_wrapped(write_image, film, wrapping), recipe)

    assert np.abs(tensor.values - expected).max() < 1e-3


def test_padding_changes_nothing_but_its_own_pixels(
    write_image: WriteImage, film: np.ndarray
) -> None:
    recipe = TensorRecipe("image", 90, 70)
    framed = film.astype(np.int16)
    framed[:, :20] = -2000

    tensor = build_image_tensor(write_image(framed, PixelPaddingValue=-2000), recipe).values
    cropped = build_image_tensor(
        write_image(np.ascontiguousarray(framed[:, 20:])), TensorRecipe("image", 90, 50)
    ).values

    assert np.all(tensor[:, :20] == 0)
    assert np.array_equal(tensor[:, 20:], cropped)


def test_padding_of_an_inverted_film_is_dark_too(write_image: WriteImage, film: np.ndarray) -> None:
    framed = (255 - film).astype(np.int16)
    framed[:5] = -1

    path = write_image(framed, PixelPaddingValue=-1, PhotometricInterpretation="MONOCHROME1")

    assert np.all(build_image_tensor(path, TensorRecipe("image", 90, 70)).values[:5] == 0)


def test_png_film_and_its_dicom_wrapping_give_identical_tensors(
    tmp_path: Path, write_image: WriteImage, film: np.ndarray
) -> None:
    colour = tmp_path / "film.png"
    cv2.imwrite(str(colour), np.repeat(film[..., None], 3, axis=-1))

    from_film = image_values_to_tensor(read_film(colour), RECIPE)
    from_dicom = build_image_tensor(write_image(film), RECIPE)

    assert np.array_equal(from_film, from_dicom.values)


def test_jpeg_film_and_its_decoded_samples_give_identical_tensors(
    tmp_path: Path, write_image: WriteImage, film: np.ndarray
) -> None:
    path = tmp_path / "film.jpeg"
    cv2.imwrite(str(path), np.repeat(film[..., None], 3, axis=-1))
    samples = cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]

    from_dicom = build_image_tensor(write_image(np.ascontiguousarray(samples)), RECIPE)

    assert np.array_equal(image_values_to_tensor(read_film(path), RECIPE), from_dicom.values)


def test_films_are_read_as_luminance(tmp_path: Path) -> None:
    blue_green_red = np.array([[[0, 0, 255], [255, 0, 0]]], dtype=np.uint8)
    with_alpha = np.array([[[10, 10, 10, 0], [20, 20, 20, 255]]], dtype=np.uint8)
    sixteen = np.array([[0, 40_000]], dtype=np.uint16)
    for name, samples in (("c", blue_green_red), ("a", with_alpha), ("s", sixteen)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), samples)

    assert read_film(tmp_path / "c.png")[0] == pytest.approx([76.245, 29.07])
    assert read_film(tmp_path / "a.png").tolist() == [[10, 20]]
    assert read_film(tmp_path / "s.png").tolist() == [[0, 40_000]]


def test_damaged_and_missing_films_are_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.png").write_bytes(b"not an image")
    (tmp_path / "empty.png").write_bytes(b"")

    with pytest.raises(CannotDecode, match=r"noise\.png"):
        read_film(tmp_path / "noise.png")
    with pytest.raises(CannotDecode, match=r"empty\.png"):
        read_film(tmp_path / "empty.png")
    with pytest.raises(InstanceUnavailable, match=r"gone\.png cannot be read"):
        read_film(tmp_path / "gone.png")


def test_tensor_says_what_it_is(write_image: WriteImage, film: np.ndarray) -> None:
    recipe = TensorRecipe("image", 45, 35, channels=3)

    tensor = build_tensor([write_image(film, ImagerPixelSpacing=[0.2, 0.4])], recipe)

    assert tensor.axes == ("rows", "columns", "channels")
    assert tensor.values.shape == (45, 35, 3)
    assert tensor.values.dtype == np.float32
    assert tensor.values.flags.c_contiguous
    assert 0 <= tensor.values.min() < 0.1 < 0.9 < tensor.values.max() <= 1
    assert np.array_equal(tensor.values[..., 0], tensor.values[..., 2])
    assert tensor.spacing_mm == pytest.approx((0.4, 0.8))
    assert tensor.sop_instance_uids == ("1.2.3.1.1.1",)
    assert tensor.preprocessing_digest == recipe.digest
    assert tensor.notes["source_shape"] == (90, 70)
    assert tensor.notes["inverted"] is False


def test_input_array_is_left_as_it_was(film: np.ndarray) -> None:
    values = film.astype(np.float32)
    recipe = TensorRecipe("image", 90, 70, intensity=FullRange())

    tensor = image_values_to_tensor(values, recipe)

    assert np.array_equal(values, film)
    assert tensor[..., 0] == pytest.approx(film / 255, abs=1e-6)


def test_ranges_of_the_header_are_used(write_image: WriteImage) -> None:
    pixels = np.array([[0, 100, 200, 400]], dtype=np.uint16)
    attributes = {"RescaleSlope": 1, "RescaleIntercept": -100, "BitsStored": 9, "HighBit": 8}
    attributes |= {"WindowCenter": 100, "WindowWidth": 200, "VOILUTFunction": "LINEAR_EXACT"}
    path = write_image(pixels, **attributes)

    def tensor(intensity: Any) -> list[float]:
        recipe = TensorRecipe("image", 1, 4, intensity=intensity)
        values: list[float] = build_image_tensor(path, recipe).values.ravel().tolist()
        return values

    # Modality values are -100, 0, 100, 300; nine bits hold -100..411.
    assert tensor(WindowRange(100, 400)) == pytest.approx([0, 0.25, 0.5, 1])
    assert tensor(VoiRange()) == pytest.approx([0, 0, 0.5, 1])
    assert tensor(FullRange()) == pytest.approx([0, 100 / 511, 200 / 511, 400 / 511])


def test_window_is_applied_before_inversion(write_image: WriteImage) -> None:
    pixels = np.array([[0, 100, 200, 400]], dtype=np.uint16)
    path = write_image(pixels, PhotometricInterpretation="MONOCHROME1")
    recipe = TensorRecipe("image", 1, 4, intensity=WindowRange(200, 400))

    assert build_image_tensor(path, recipe).values.ravel() == pytest.approx([1, 0.75, 0.5, 0])


def test_voi_without_window_falls_back_to_percentiles(
    write_image: WriteImage, film: np.ndarray
) -> None:
    path = write_image(film)

    voi = build_image_tensor(path, TensorRecipe("image", 32, 32, intensity=VoiRange()))

    assert np.array_equal(voi.values, build_image_tensor(path, RECIPE).values)


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("intensity", [PercentileRange(), WindowRange(-500, 10), FullRange()])
def test_blank_image_is_refused_for_quality(
    write_image: WriteImage, fit: Any, intensity: Any
) -> None:
    path = write_image(np.full((40, 20), 77, dtype=np.uint8))

    with pytest.raises(Refusal, match="blank") as caught:
        build_image_tensor(path, TensorRecipe("image", 32, 32, fit=fit, intensity=intensity))
    assert caught.value.reason is RefusalReason.QUALITY


def test_image_of_which_a_crop_leaves_nothing_but_a_blank_is_refused(
    write_image: WriteImage,
) -> None:
    pixels = np.full((40, 10), 77, dtype=np.uint8)
    pixels[:10] = np.arange(10)

    with pytest.raises(Refusal, match="blank") as caught:
        build_image_tensor(write_image(pixels), TensorRecipe("image", 8, 8, fit="crop"))
    assert caught.value.reason is RefusalReason.QUALITY


def test_multi_frame_instance_is_no_single_image(write_image: WriteImage) -> None:
    path = write_image(np.zeros((3, 4, 4), dtype=np.uint8))

    with pytest.raises(OutsideContract, match=r"NumberOfFrames \(0028,0008\) is 3"):
        build_image_tensor(path, RECIPE)


def test_two_instances_are_no_single_image(write_image: WriteImage, film: np.ndarray) -> None:
    path = write_image(film)

    with pytest.raises(OutsideContract, match="received 2 instances"):
        build_tensor([path, path], RECIPE)


def test_damaged_instance_uid_neither_warns_nor_stops_a_tensor(
    write_image: WriteImage, film: np.ndarray
) -> None:
    path = write_image(film)
    path.write_bytes(
        path.read_bytes().replace(b"UI\x0c\x001.2.3.1.1.1\0", b"UI\x0c\x001.2.3?1.1.1\0")
    )

    tensor = build_image_tensor(path, RECIPE)

    assert tensor.sop_instance_uids == ("1.2.3?1.1.1",)


def test_array_of_a_volume_is_refused_as_image(film: np.ndarray) -> None:
    with pytest.raises(OutsideContract):
        image_values_to_tensor(film.astype(np.float32), TensorRecipe("volume", 8, 8))


def test_pad_keeps_the_aspect_ratio_and_centres(write_image: WriteImage) -> None:
    pixels = np.array([[100, 200], [300, 400], [500, 600], [700, 800]], dtype=np.uint16)
    recipe = TensorRecipe("image", 4, 4, intensity=WindowRange(400, 800), fit="pad")

    plane = build_image_tensor(write_image(pixels), recipe).values[..., 0]

    assert np.array_equal(plane[:, [0, 3]], np.zeros((4, 2)))
    assert plane[:, 1:3] == pytest.approx(pixels / 800)


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("spacing", ["1e308", "1e-320", "0", "-1"])
def test_spacing_that_is_no_distance_is_no_spacing(
    write_image: WriteImage, film: np.ndarray, spacing: str, fit: Literal["pad", "crop"]
) -> None:
    path = write_image(film, PixelSpacing=[spacing, spacing])

    tensor = build_image_tensor(path, TensorRecipe("image", rows=8, columns=8, fit=fit))

    assert tensor.spacing_mm is None
    assert tensor.notes["source_pixel_spacing_mm"] is None


def test_pad_keeps_the_aspect_ratio_of_pixels_without_a_spacing(write_image: WriteImage) -> None:
    # Pixels half as high as wide: four by four of them fill half of a square.
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    recipe = TensorRecipe("image", rows=4, columns=4, fit="pad")

    tensor = build_image_tensor(write_image(pixels, PixelAspectRatio=[1, 2]), recipe)
    measured = build_image_tensor(
        write_image(pixels, PixelAspectRatio=[1, 2], PixelSpacing=[1, 1]), recipe
    )

    assert tensor.notes["source_region"] == (0.25, 0, 0.75, 1)
    assert tensor.values[[0, 3]].max() == 0
    assert tensor.spacing_mm is None
    assert measured.notes["source_region"] == (0, 0, 1, 1)


def test_pad_takes_pixels_that_are_not_square_into_account() -> None:
    # 100 x 100 pixels, rows twice as far apart as columns: twice as tall as wide.
    placement = padded((100, 100), 64, 64, (1.0, 0.5))

    assert (placement.rows, placement.columns, placement.top, placement.left) == (64, 32, 0, 16)


@pytest.mark.parametrize("count", [4, 5])
def test_crop_fills_the_plane_and_cuts_the_centre_out_of_the_longer_side(
    write_image: WriteImage, count: int
) -> None:
    # Of rows that are left over in odd number, the last is cut too.
    pixels = np.arange(100, 100 + 200 * count, 100, dtype=np.uint16).reshape(count, 2)
    recipe = TensorRecipe("image", 2, 2, intensity=WindowRange(600, 1200), fit="crop")

    tall = build_image_tensor(write_image(pixels), recipe)
    wide = build_image_tensor(write_image(pixels.T.copy()), recipe)

    assert tall.values[..., 0] == pytest.approx(pixels[1:3] / 1200)
    assert wide.values[..., 0] == pytest.approx(pixels[1:3].T / 1200)
    film = image_values_to_tensor(
        pixels.astype(np.float32),
        TensorRecipe("image", 2, 2, intensity=PercentileRange(0, 100), fit="crop"),
    )
    # What is cut off counts in the range of an image all the same, as the steps have it.
    assert film[..., 0] == pytest.approx((pixels[1:3] - 100) / (200 * count - 100), abs=1e-6)


def test_crop_takes_pixels_that_are_not_square_into_account() -> None:
    # 100 x 100 pixels, rows twice as far apart as columns: the middle half of the rows is seen.
    placement = cropped((100, 100), 64, 64, (1.0, 0.5))

    assert (placement.rows, placement.columns, placement.top, placement.left) == (128, 64, -32, 0)


@given(
    st.tuples(st.integers(1, 900), st.integers(1, 900)),
    st.tuples(st.integers(1, 64), st.integers(1, 64)),
    st.floats(0.1, 10),
)
def test_crop_leaves_no_part_of_the_plane_empty_and_is_centred(
    source: tuple[int, int], plane: tuple[int, int], row_mm: float
) -> None:
    placement = cropped(source, *plane, (row_mm, 1.0))

    for start, extent, edge in (
        (placement.top, placement.rows, plane[0]),
        (placement.left, placement.columns, plane[1]),
    ):
        cut_before, cut_after = -start, start + extent - edge
        assert 0 <= cut_before <= cut_after <= cut_before + 1


def test_image_of_which_a_crop_would_show_next_to_nothing_is_refused(
    write_image: WriteImage,
) -> None:
    path = write_image(np.arange(600, dtype=np.uint16).reshape(200, 3))

    with pytest.raises(OutsideContract, match=r"fit crop would show a 67th part of it"):
        build_image_tensor(path, TensorRecipe("image", 8, 8, fit="crop"))


def test_shrinking_takes_the_mean_of_the_area() -> None:
    values = np.array([[0, 2, 10, 30], [4, 6, 50, 70]], dtype=np.float32)

    assert resized(values, 1, 2).tolist() == [[3, 40]]


def test_growing_interpolates_between_pixel_centres() -> None:
    values = np.array([[0, 4]], dtype=np.float32)

    assert resized(values, 1, 4).tolist() == [[0, 1, 3, 4]]


def test_one_axis_may_shrink_while_the_other_grows() -> None:
    values = np.array([[0, 4], [2, 6]], dtype=np.float32)

    assert resized(values, 1, 4).tolist() == [[1, 2, 4, 5]]


def test_slices_follow_the_same_rule_as_rows() -> None:
    stack = np.arange(6, dtype=np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32)

    assert resampled_slices(stack, 3)[:, 0, 0].tolist() == [0.5, 2.5, 4.5]
    assert resampled_slices(stack[:2], 4)[:, 0, 0].tolist() == [0, 0.25, 0.75, 1]
    # 6 into 4: each target slice covers one and a half sources.
    assert resampled_slices(stack, 4)[:, 0, 0] == pytest.approx([1 / 3, 5 / 3, 10 / 3, 14 / 3])


@given(st.integers(1, 40), st.integers(1, 40))
def test_slice_weights_sum_to_one_and_agree_with_planes(count: int, slices: int) -> None:
    weights = (area_weights if slices < count else linear_weights)(count, slices)
    ramp = np.random.default_rng(count).random((count, 1)).astype(np.float32)

    assert weights.sum(axis=1) == pytest.approx(np.ones(slices), abs=1e-5)
    assert weights @ ramp == pytest.approx(resized(ramp, slices, 1), abs=1e-4)


def test_volume_is_windowed_shrunk_and_ascending(make_slice: MakeSlice) -> None:
    paths = [
        make_slice(number, z=10 - number, RescaleSlope=100, RescaleIntercept=-500)
        for number in range(1, 9)
    ]
    recipe = TensorRecipe("volume", 2, 3, 4, intensity=WindowRange(0, 1000))

    tensor = build_tensor(paths, recipe)

    # Slice values by z: 300, 200, ... -400; pairs are averaged, then (v + 500) / 1000.
    assert tensor.axes == ("slices", "rows", "columns", "channels")
    assert tensor.values.shape == (4, 2, 3, 1)
    assert tensor.values[:, 0, 0, 0] == pytest.approx([0.75, 0.55, 0.35, 0.15])
    assert tensor.spacing_mm == pytest.approx((2, 1, 1.5))
    assert tensor.sop_instance_uids == tuple(f"1.2.3.1.1.{n}" for n in range(8, 0, -1))
    assert tensor.notes["source_shape"] == (8, 4, 6)


def test_volume_keeps_its_slices_when_the_recipe_names_none(make_slice: MakeSlice) -> None:
    paths = [make_slice(number, z=number) for number in range(1, 6)]

    tensor = build_volume_tensor(paths, TensorRecipe("volume", 4, 6, intensity=FullRange()))

    assert tensor.values.shape == (5, 4, 6, 1)
    assert tensor.values[:, 0, 0, 0] == pytest.approx((np.arange(1, 6) + 32768) / 65535)


def test_volume_percentiles_are_of_the_whole_stack(make_slice: MakeSlice) -> None:
    paths = [make_slice(number, z=number) for number in range(1, 6)]
    recipe = TensorRecipe("volume", 4, 6, intensity=PercentileRange(0, 100))

    tensor = build_volume_tensor(paths, recipe)

    assert tensor.values[:, 0, 0, 0].tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_volume_padding_neither_counts_nor_bleeds(make_slice: MakeSlice) -> None:
    paths = []
    for number in (1, 2, 3):
        pixels = np.full((4, 6), number * 10, dtype=np.int16)
        pixels[:, :2] = -2000
        paths.append(make_slice(number, z=number, pixels=pixels, PixelPaddingValue=-2000))
    recipe = TensorRecipe("volume", 4, 3, intensity=PercentileRange(0, 100))

    values = build_volume_tensor(paths, recipe).values[:, 0, :, 0]

    assert values.tolist() == [[0, 0, 0], [0, 0.5, 0.5], [0, 1, 1]]


def test_padding_of_an_inverted_volume_bleeds_no_white(make_slice: MakeSlice) -> None:
    # Shrinking 6 columns to 4 mixes the padding of the second into two voxels, a third of each.
    paths = []
    for number in (1, 2, 3):
        pixels = np.tile(np.array([10, -5, 20, 20, 20, 30], dtype=np.int16), (4, 1))
        attributes = {"PixelPaddingValue": -5, "PhotometricInterpretation": "MONOCHROME1"}
        paths.append(make_slice(number, z=number, pixels=pixels, **attributes))
    recipe = TensorRecipe("volume", 4, 4, intensity=PercentileRange(0, 100))

    values = build_volume_tensor(paths, recipe).values[0, 0, :, 0]

    # Padding counts as the darkest value shown, 30. With weights (1, .5) and (.5, 1) the voxels
    # are 50/3, 70/3, 60/3 and 80/3, shown from white to black.
    assert values.tolist() == pytest.approx([1, 1 / 3, 2 / 3, 0], abs=1e-5)


@pytest.mark.parametrize(
    ("photometric", "expected"),
    [("MONOCHROME2", [0, 0, 0, 0.25, 0.75, 1]), ("MONOCHROME1", [0, 0, 1, 1, 1 / 3, 0])],
)
def test_slice_of_nothing_but_padding_bleeds_into_no_other(
    make_slice: MakeSlice, photometric: str, expected: list[float]
) -> None:
    # Six slices of three: the third is a quarter padding, which counts as 100, or shown the other
    # way round as 300; the next two are 150 and 250.
    planes = [np.full((4, 6), value, np.int16) for value in (-2000, 100, 300)]
    paths = [
        make_slice(
            number, z=number, pixels=plane, PixelPaddingValue=-2000,
            PhotometricInterpretation=photometric,
        )
        for number, plane in enumerate(planes)
    ]  # fmt: skip
    recipe = TensorRecipe("volume", rows=4, columns=6, slices=6, intensity=PercentileRange(0, 100))

    values = build_tensor(paths, recipe).values[:, 0, 0, 0]

    assert values.tolist() == pytest.approx(expected)


def test_inverted_volume_is_inverted_once(make_slice: MakeSlice) -> None:
    paths = [
        make_slice(number, z=number, PhotometricInterpretation="MONOCHROME1")
        for number in range(1, 6)
    ]
    by_percentile = TensorRecipe("volume", 4, 6, intensity=PercentileRange(0, 100))
    by_window = TensorRecipe("volume", 4, 6, intensity=WindowRange(3, 4))

    for recipe in (by_percentile, by_window):
        values = build_volume_tensor(paths, recipe).values
        assert values[:, 0, 0, 0].tolist() == [1, 0.75, 0.5, 0.25, 0]


def test_padded_volume_keeps_its_proportions(make_slice: MakeSlice) -> None:
    # 4 rows of 0.5 mm and 6 columns of 0.75 mm: 2 mm by 4.5 mm.
    paths = [make_slice(number, z=number) for number in range(1, 4)]
    recipe = TensorRecipe("volume", 9, 9, fit="pad", intensity=WindowRange(0, 8))

    tensor = build_volume_tensor(paths, recipe)

    assert np.all(tensor.values[:, 2:6] > 0)
    assert np.all(tensor.values[:, [0, 1, 6, 7, 8]] == 0)
    assert tensor.spacing_mm == pytest.approx((1, 0.5, 0.5))


def test_cropped_volume_shows_its_middle_and_takes_its_range_from_there(
    make_slice: MakeSlice,
) -> None:
    # 4 rows of 0.5 mm and 6 columns of 0.5 mm: the middle four columns are seen; the first is
    # the brightest, the last is the darkest, and the second is padding.
    paths = []
    for number in (1, 2, 3):
        pixels = np.tile(np.array([900, -2000, 10, 20, 30, -500], np.int16), (4, 1)) + number
        pixels[:, 1] = -2000
        attributes = {"PixelSpacing": [0.5, 0.5], "PixelPaddingValue": -2000}
        paths.append(make_slice(number, z=number, pixels=pixels, **attributes))
    by_percentile = TensorRecipe("volume", 4, 4, intensity=PercentileRange(0, 100), fit="crop")
    by_window = TensorRecipe("volume", 4, 4, intensity=WindowRange(25, 50), fit="crop")

    tensor = build_volume_tensor(paths, by_percentile)
    assert tensor.spacing_mm == pytest.approx((1, 0.5, 0.5))
    assert tensor.values[1, :, :, 0] == pytest.approx(
        np.tile([0, 1 / 22, 11 / 22, 21 / 22], (4, 1))
    )
    values = build_volume_tensor(paths, by_window).values[0, :, :, 0]
    assert values == pytest.approx(np.tile([0, 11 / 50, 21 / 50, 31 / 50], (4, 1)))


def test_blank_volume_is_refused_for_quality(make_slice: MakeSlice) -> None:
    paths = [
        make_slice(number, z=number, pixels=np.full((4, 6), 5, np.int16)) for number in (1, 2, 3)
    ]

    for intensity in (PercentileRange(), WindowRange(0, 1)):
        recipe = TensorRecipe("volume", 9, 9, fit="pad", intensity=intensity)
        with pytest.raises(Refusal, match="blank") as caught:
            build_volume_tensor(paths, recipe)
        assert caught.value.reason is RefusalReason.QUALITY


def test_timings_are_split_by_step(write_image: WriteImage, film: np.ndarray) -> None:
    timings: dict[str, float] = {}

    build_tensor([write_image(film)], RECIPE, timings)

    steps = {"header", "decode", "modality", "range", "resample", "channels"}
    assert set(timings) == steps
    assert all(seconds > 0 for seconds in timings.values())
