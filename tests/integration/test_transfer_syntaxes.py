"""One real CT slice in thirteen encodings, and DCMTK as the judge of the requantised ones."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames

from dicom_io.decoding import iter_frames, open_image
from dicom_io.errors import CannotDecode
from dicom_io.tensors import (
    PercentileRange,
    TensorRecipe,
    VoiRange,
    WindowRange,
    build_image_tensor,
)

LOSSLESS = [
    "implicit_le",
    "explicit_le",
    "explicit_be",
    "deflated",
    "rle",
    "jpeg_lossless_57",
    "jpeg_lossless_70",
    "jpegls_80",
    "j2k_lossless_90",
]
REQUANTISED = ["jpeg_baseline_50", "jpeg_extended_51"]
RECIPES = [
    TensorRecipe("image", 128, 128, intensity=WindowRange(40, 400)),
    TensorRecipe("image", 224, 200, intensity=PercentileRange()),
    TensorRecipe("image", 512, 512, intensity=VoiRange()),
]
STORED_UNITS_OFF = {"j2k_91": 5, "jpegls_near_81": 1}


@pytest.fixture(scope="module")
def encodings(testdata: Path) -> Path:
    return testdata / "transfer-syntaxes"


def _stored(path: Path) -> np.ndarray:
    (frame,) = iter_frames(open_image(path))
    return frame.astype(np.int64)


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_encodings_give_bit_identical_tensors(encodings: Path, name: str) -> None:
    for recipe in RECIPES:
        reference = build_image_tensor(encodings / "ct_explicit_le.dcm", recipe)

        tensor = build_image_tensor(encodings / f"ct_{name}.dcm", recipe)

        assert np.array_equal(tensor.values, reference.values)
        assert tensor.preprocessing_digest == reference.preprocessing_digest


def test_stored_values_are_the_scanners(encodings: Path) -> None:
    stored = _stored(encodings / "ct_explicit_le.dcm")

    assert stored.shape == (512, 512)
    assert (stored.min(), stored.max()) == (-2000, 2402)


@pytest.mark.parametrize("name", sorted(STORED_UNITS_OFF))
def test_lossy_encodings_stay_within_their_error(encodings: Path, name: str) -> None:
    off = STORED_UNITS_OFF[name]
    reference = encodings / "ct_explicit_le.dcm"
    path = encodings / f"ct_{name}.dcm"

    assert np.abs(_stored(path) - _stored(reference)).max() == off
    # A window of 400 HU: one stored unit (slope 1) is 1/400.
    difference = (
        build_image_tensor(path, RECIPES[0]).values
        - build_image_tensor(reference, RECIPES[0]).values
    )
    assert np.abs(difference).max() <= off / 400 + 1e-6


@pytest.mark.parametrize(
    "name",
    ["jpeg_baseline_50", "jpeg_extended_51", "jpeg_lossless_57", "jpeg_lossless_70", "jpegls_80",
     "jpegls_near_81", "j2k_91", "j2k_lossless_90"],
)  # fmt: skip
def test_cut_codestream_is_refused_before_a_codec_fills_it_with_grey(
    encodings: Path, tmp_path: Path, name: str
) -> None:
    ds = pydicom.dcmread(encodings / f"ct_{name}.dcm")
    whole = next(generate_frames(ds.PixelData, number_of_frames=1))
    ds.PixelData = encapsulate([whole[: len(whole) // 2]])
    path = tmp_path / "cut.dcm"
    ds.save_as(path)

    with pytest.raises(CannotDecode, match="ends without its end marker FFD9"):
        open_image(path)


@pytest.mark.parametrize("name", REQUANTISED)
def test_requantised_encodings_decode_as_dcmtk_decodes_them(
    encodings: Path, tmp_path: Path, name: str
) -> None:
    dcmdjpeg = shutil.which("dcmdjpeg")
    assert dcmdjpeg, "DCMTK is not installed: apt-get install dcmtk"
    path, judged = encodings / f"ct_{name}.dcm", tmp_path / "judged.dcm"
    subprocess.run([dcmdjpeg, str(path), str(judged)], check=True, timeout=60)

    ours, theirs = _stored(path), _stored(judged)

    # Two decoders of the same DCT codestream may round differently by one.
    assert np.abs(ours - theirs).max() <= 1
    assert np.mean(ours != theirs) < 0.05


@pytest.mark.parametrize("name", REQUANTISED)
def test_requantised_encodings_show_the_same_picture(encodings: Path, name: str) -> None:
    recipe = TensorRecipe("image", 128, 128, intensity=PercentileRange(2, 98))
    reference = build_image_tensor(encodings / "ct_explicit_le.dcm", recipe).values.ravel()

    tensor = build_image_tensor(encodings / f"ct_{name}.dcm", recipe).values.ravel()

    assert np.corrcoef(reference, tensor)[0, 1] > 0.98


def test_every_encoding_of_the_material_is_covered(encodings: Path) -> None:
    covered = {*LOSSLESS, *REQUANTISED, *STORED_UNITS_OFF}

    assert {path.stem.removeprefix("ct_") for path in encodings.glob("*.dcm")} == covered
