"""Real CT, MR and radiographs from file to tensor."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from dicom_io.decoding import iter_frames, open_image
from dicom_io.errors import CannotDecode, RefusalReason, UnsuitableSeries
from dicom_io.header import read_attributes
from dicom_io.series import order_slices, read_slices
from dicom_io.tensors import (
    PercentileRange,
    TensorRecipe,
    WindowRange,
    build_image_tensor,
    build_tensor,
    build_volume_tensor,
    image_values_to_tensor,
    read_film,
)
from dicom_io.volume import assemble_volume

LUNG = TensorRecipe("volume", 128, 128, 32, intensity=WindowRange(-600, 1500))


@pytest.fixture(scope="module")
def ct(unpacked: Callable[[str], Path]) -> list[Path]:
    paths = sorted(unpacked("ct-chest-60").rglob("*.dcm"))
    assert len(paths) == 60
    return paths


@pytest.fixture(scope="module")
def mr(unpacked: Callable[[str], Path]) -> list[Path]:
    paths = sorted(unpacked("mr-head-t1-60").rglob("*.dcm"))
    assert len(paths) == 60
    return paths


def test_ct_is_sorted_against_its_file_numbers(ct: list[Path]) -> None:
    stack = order_slices(plane for path in ct for plane in read_slices(path))

    heights = [plane.position_mm[2] for plane in stack.slices if plane.position_mm]
    assert heights == sorted(heights)
    assert [plane.path for plane in stack.slices] == ct[::-1]
    assert stack.spacing_mm == pytest.approx((2.5, 0.898438, 0.898438))


def test_ct_comes_in_hounsfield_units(ct: list[Path]) -> None:
    volume = assemble_volume(ct)

    # Stored value + -1024, checked against one slice decoded by itself.
    (stored,) = iter_frames(open_image(ct[-1]))
    assert np.array_equal(volume.values[0], stored.astype(np.float32) - 1024)
    # Outside the field of view the scanner padded with -2000; inside, air lies near -1000 and
    # soft tissue around 0..100.
    assert np.all(volume.values[:, 0, 0] == -3024)
    inside = volume.values[volume.values > -3024]
    assert np.mean(np.abs(inside + 1000) < 60) > 0.05
    assert np.mean((inside > -50) & (inside < 150)) > 0.1


def test_shuffled_ct_gives_the_identical_tensor(ct: list[Path]) -> None:
    shuffled = ct.copy()
    random.Random(5).shuffle(shuffled)

    first, second = build_tensor(ct, LUNG), build_tensor(shuffled, LUNG)

    assert np.array_equal(first.values, second.values)
    assert first.sop_instance_uids == second.sop_instance_uids


def test_ct_tensor_is_the_windowed_volume_averaged(ct: list[Path]) -> None:
    tensor = build_volume_tensor(
        ct, TensorRecipe("volume", 128, 128, 30, intensity=WindowRange(-600, 1500))
    )

    # 60 -> 30 slices and 512 -> 128 pixels: each voxel is the mean of 2 x 4 x 4.
    windowed = np.clip((assemble_volume(ct).values + 1350) / 1500, 0, 1)
    blocks = windowed.reshape(30, 2, 128, 4, 128, 4).mean(axis=(1, 3, 5))
    assert np.abs(tensor.values[..., 0] - blocks).max() < 1e-5
    assert tensor.spacing_mm == pytest.approx((5, 3.593752, 3.593752))
    assert len(tensor.sop_instance_uids) == 60


def test_ct_without_one_slice_is_incomplete(ct: list[Path]) -> None:
    with pytest.raises(UnsuitableSeries, match="about 1 slice is missing") as caught:
        build_tensor(ct[:20] + ct[21:], LUNG)
    assert caught.value.reason is RefusalReason.INCOMPLETE_SERIES


def test_ct_and_mr_do_not_make_one_volume(ct: list[Path], mr: list[Path]) -> None:
    with pytest.raises(UnsuitableSeries, match="mixes matrices"):
        build_tensor([*ct[:3], *mr[:3]], LUNG)


def test_mr_keeps_its_proportions_when_padded(mr: list[Path]) -> None:
    recipe = TensorRecipe("volume", 96, 96, 60, intensity=PercentileRange(), fit="pad")

    tensor = build_tensor(mr, recipe)

    # 384 x 0.6667 mm by 274 x 0.7 mm: 96 rows by 72 columns, 12 empty on either side.
    assert tensor.values.shape == (60, 96, 96, 1)
    assert np.all(tensor.values[:, :, :12] == 0)
    assert np.all(tensor.values[:, :, 84:] == 0)
    assert tensor.values[:, :, 12:84].max() == 1
    assert tensor.spacing_mm == pytest.approx((0.6667, 2.667, 2.664), abs=1e-3)


def test_monochrome1_radiograph_shows_bone_white(testdata: Path) -> None:
    path = testdata / "single" / "dx_image.dcm"
    (stored,) = iter_frames(open_image(path))

    tensor = build_image_tensor(path, TensorRecipe("image", 169, 211))

    order = np.corrcoef(stored.ravel(), tensor.values.ravel())[0, 1]
    assert order < -0.99
    assert tensor.notes["inverted"] is True
    assert read_attributes(path, ["PhotometricInterpretation"]) == {
        "PhotometricInterpretation": "MONOCHROME1"
    }


def test_report_without_pixels_is_refused(testdata: Path) -> None:
    with pytest.raises(CannotDecode, match=r"PixelData \(7FE0,0010\) is missing"):
        build_tensor([testdata / "single" / "sr_document.dcm"], TensorRecipe("image", 8, 8))


def test_training_films_are_their_own_luminance(unpacked: Callable[[str], Path]) -> None:
    films = sorted(unpacked("chest-xray-224").glob("val/NORMAL/*"))[:5]

    for path in films:
        colour = cv2.imread(str(path), cv2.IMREAD_COLOR)
        grey = read_film(path)
        tensor = image_values_to_tensor(grey, TensorRecipe("image", 224, 224))

        assert np.array_equal(grey, colour[..., 0])
        low, high = np.percentile(colour[..., 0], (0.5, 99.5))
        expected = np.clip((grey - low) / (high - low), 0, 1)
        assert tensor[..., 0] == pytest.approx(expected, abs=1e-5)
