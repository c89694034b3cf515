"""Copies with other pixels: what stays, what changes, and that equal names mean equal pixels."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from image_files import STUDY_UID, WriteImage
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, JPEGLSLossless

from dicom_io.decoding import open_image
from dicom_io.derived import Derivation, write_derived
from dicom_io.errors import CannotDecode
from dicom_io.grayscale import grey_transform
from dicom_io.intensity import LookupTable

PIXELS = np.arange(24, dtype=np.int16).reshape(4, 6)
WHY = Derivation("one", "SYNTHETIC", "Everything was made brighter by a program.")


@pytest.fixture
def source(write_image: WriteImage) -> Path:
    return write_image(
        PIXELS, RescaleSlope=2, RescaleIntercept=-1024, SeriesDescription="lung",
        ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], SmallestImagePixelValue=0,
        PatientID="12", LossyImageCompression="01",
    )  # fmt: skip


def values_of(path: Path) -> np.ndarray:
    ds = pydicom.dcmread(path)
    return ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)


def test_the_copy_holds_the_new_values_in_the_units_of_the_source(source: Path, tmp_path) -> None:
    wanted = values_of(source).astype(np.float32) + 100

    write_derived(source, tmp_path / "copy.dcm", wanted, WHY)

    np.testing.assert_array_equal(values_of(tmp_path / "copy.dcm"), wanted)


def test_values_beyond_the_stored_bits_are_clipped(source: Path, tmp_path: Path) -> None:
    beyond = np.full(PIXELS.shape, 1e6, np.float32)
    beyond[0] = -1e6

    write_derived(source, tmp_path / "copy.dcm", beyond, WHY)

    stored = pydicom.dcmread(tmp_path / "copy.dcm").pixel_array
    assert stored[0, 0] == -(2**15)
    assert stored[1, 0] == 2**15 - 1


def test_the_copy_says_that_it_is_one_and_keeps_the_rest(source: Path, tmp_path: Path) -> None:
    uid = write_derived(source, tmp_path / "copy.dcm", values_of(source).astype(np.float32), WHY)

    copy, before = pydicom.dcmread(tmp_path / "copy.dcm"), pydicom.dcmread(source)
    assert list(copy.ImageType) == ["DERIVED", "PRIMARY", "AXIAL"]
    assert copy.SeriesDescription == "SYNTHETIC lung"
    assert copy.DerivationDescription == WHY.how
    assert copy.PatientID == "12"
    assert copy.LossyImageCompression == "01"
    assert "SmallestImagePixelValue" not in copy
    assert copy.SOPInstanceUID == copy.file_meta.MediaStorageSOPInstanceUID == uid
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        assert copy[keyword].value != before[keyword].value


def test_equal_uids_mean_equal_pixels(source: Path, tmp_path: Path) -> None:
    values = values_of(source).astype(np.float32)
    other_name = Derivation("two", "SYNTHETIC", WHY.how)

    first = write_derived(source, tmp_path / "copy-1.dcm", values, WHY)
    again = write_derived(source, tmp_path / "copy-2.dcm", values, WHY)
    brighter = write_derived(source, tmp_path / "copy-3.dcm", values + 2, WHY)
    elsewhere = write_derived(source, tmp_path / "copy-4.dcm", values, other_name)

    assert (tmp_path / "copy-1.dcm").read_bytes() == (tmp_path / "copy-2.dcm").read_bytes()
    assert first == again
    assert len({first, brighter, elsewhere}) == 3
    series = {pydicom.dcmread(tmp_path / f"copy-{n}.dcm").SeriesInstanceUID for n in (1, 3)}
    assert len(series) == 1
    assert pydicom.dcmread(tmp_path / "copy-4.dcm").StudyInstanceUID not in {
        STUDY_UID,
        pydicom.dcmread(tmp_path / "copy-1.dcm").StudyInstanceUID,
    }


def test_words_of_a_big_endian_source_keep_their_values(write_image: WriteImage, tmp_path) -> None:
    table = Dataset()
    table.LUTDescriptor = [4, 0, 16]
    table.add_new("LUTData", "OW", struct.pack(">4H", 0, 1, 500, 65535))
    source = write_image(
        PIXELS.byteswap(), transfer_syntax_uid=ExplicitVRBigEndian, VOILUTSequence=[table]
    )
    before = grey_transform(open_image(source)).voi

    write_derived(source, tmp_path / "copy.dcm", np.full(PIXELS.shape, 3, np.float32), WHY)

    copy = pydicom.dcmread(tmp_path / "copy.dcm")
    assert copy.VOILUTSequence[0].LUTData == struct.pack("<4H", 0, 1, 500, 65535)
    after = grey_transform(open_image(tmp_path / "copy.dcm")).voi
    assert isinstance(before, LookupTable)
    assert isinstance(after, LookupTable)
    assert after.entries.tolist() == before.entries.tolist()
    assert (copy.pixel_array == 3).all()


def test_tables_of_compressed_pixels_are_left_out(write_image: WriteImage, tmp_path: Path) -> None:
    source = write_image(PIXELS)
    ds = pydicom.dcmread(source)
    ds.compress(JPEGLSLossless, encapsulate_ext=True, generate_instance_uid=False)
    ds.save_as(source)

    write_derived(source, tmp_path / "copy.dcm", np.full(PIXELS.shape, 3, np.float32), WHY)

    assert "ExtendedOffsetTable" in ds
    copy = pydicom.dcmread(tmp_path / "copy.dcm")
    assert "ExtendedOffsetTable" not in copy
    assert "ExtendedOffsetTableLengths" not in copy


def test_unsigned_bytes_of_an_odd_number_stay_readable(write_image: WriteImage, tmp_path) -> None:
    source = write_image(np.arange(9, dtype=np.uint8).reshape(3, 3))

    write_derived(source, tmp_path / "copy.dcm", np.full((3, 3), 300, np.float32), WHY)

    copy = pydicom.dcmread(tmp_path / "copy.dcm")
    assert copy.pixel_array.max() == copy.pixel_array.min() == 255
    assert len(copy.PixelData) == 10


@pytest.mark.parametrize(
    ("pixels", "values", "rule"),
    [
        (np.zeros((2, 4, 6), np.int16), np.zeros((4, 6)), "must have one frame"),
        (np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6)), "must be grey"),
        (PIXELS, np.zeros((6, 4)), "must be 4 x 6 again"),
    ],
)
def test_what_cannot_get_other_pixels_is_refused(
    write_image: WriteImage, tmp_path: Path, pixels, values, rule
) -> None:
    source = write_image(pixels)

    with pytest.raises(CannotDecode, match=rule):
        write_derived(source, tmp_path / "copy.dcm", values.astype(np.float32), WHY)

    assert not (tmp_path / "copy.dcm").exists()
