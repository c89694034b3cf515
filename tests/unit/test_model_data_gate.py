"""The gate in front of training and evaluation: each fault is found, named and can be allowed."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from model.errors import DataGateFault, TrainingDataFault
from model.training.gate import check_data
from model.training.gate_report import ADVICE, CheckValues, GateLimits, checks_named
from model.training.sources import open_dataset
from tests.labelled_images import EDGE, grey, put_dicom, put_film


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two patients of each class in each split, nothing wrong."""
    seed = 0
    for split in ("train", "validation"):
        for _ in range(2):
            seed += 1
            put_film(tmp_path / split / "SICK" / f"person{seed}_virus_1.png", 0.8, seed)
            seed += 1
            put_film(tmp_path / split / "WELL" / f"IM-{seed}-0001.jpeg", 0.2, seed)
    return tmp_path


def gate(data: Path, *allowed: CheckValues, **limits: float):
    with open_dataset(data) as dataset:
        return check_data(dataset, allowed=allowed, limits=GateLimits(**limits))  # type: ignore[arg-type]


def checks(report) -> list[str]:
    return [str(finding.check) for finding in report.findings]


def test_sound_data_pass_with_their_counts(data):
    report = gate(data)

    report.require()
    assert report.findings == ()
    assert report.counts["train"] == {"images": 4, "SICK": 2, "WELL": 2}


def test_split_is_said_to_be_by_patient_only_where_every_patient_is_known(data):
    assert gate(data).split_in_words.startswith("by patient; no patient and no identical image")

    put_film(data / "train" / "WELL" / "film.png", 0.2, 90)
    report = gate(data)

    assert report.passed
    assert report.as_mapping()["without_patient"] == 1
    assert report.split_in_words.endswith("1 of 9 images have no known patient")


def test_patient_in_two_splits_is_found_with_the_files(data):
    put_film(data / "validation" / "SICK" / "person1_virus_2.png", 0.8, 50)

    (finding,) = gate(data).findings

    assert finding.check is CheckValues.PATIENTS
    assert finding.files == (
        "train/SICK/person1_virus_1.png", "validation/SICK/person1_virus_2.png",
    )  # fmt: skip
    assert "patient person1 is in train and validation" in finding.sentence


def test_patient_of_a_dicom_header_is_found_in_two_splits(data):
    put_dicom(data / "train" / "SICK" / "a.dcm", grey(0.8, 60), PatientID="X")
    put_dicom(data / "validation" / "SICK" / "b.dcm", grey(0.8, 61), PatientID="X")

    assert checks(gate(data)) == ["patients"]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_identical_file_is_found_within_and_across_splits(data, split):
    source = data / "train" / "SICK" / "person1_virus_1.png"
    shutil.copy(source, data / split / "SICK" / "copy.png")

    (finding,) = gate(data).findings

    assert finding.check is CheckValues.DUPLICATES
    assert len(finding.files) == 2


def test_same_picture_in_another_file_format_is_found(data):
    pixels = cv2.imread(str(data / "train" / "SICK" / "person1_virus_1.png"), cv2.IMREAD_GRAYSCALE)
    # As MONOCHROME1, twelve times as bright, in sixteen bits: still the same picture.
    inverted = ((255 - pixels).astype(np.uint16)) * 12
    put_dicom(
        data / "train" / "SICK" / "other.dcm", inverted, PhotometricInterpretation="MONOCHROME1"
    )

    assert checks(gate(data)) == ["same-pixels"]


@pytest.fixture
def series(data) -> Path:
    """The same, with a series of four slices of each class in train and in validation."""
    for number, name in enumerate(
        ("train/SICK", "train/WELL", "validation/SICK", "validation/WELL")
    ):
        for slice_number in range(4):
            pixels = grey(0.5, 200 + 4 * number + slice_number)
            put_dicom(data / name / "series" / f"{slice_number}.dcm", pixels, PatientID="")
    assert checks(gate(data)) == []
    return data


def test_slices_that_two_series_share_are_found_though_the_series_differ(series):
    # Given a series of another split and class that holds three of four slices of another one,
    for number in range(3):
        name = f"series/{number}.dcm"
        shutil.copy(series / "train" / "SICK" / name, series / "validation" / "WELL" / name)

    twins, conflict = gate(series).findings

    assert (twins.check, conflict.check) == (CheckValues.DUPLICATES, CheckValues.LABEL_CONFLICTS)
    assert twins.files == conflict.files == ("train/SICK/series", "validation/WELL/series")
    assert "3 identical files in each of 2 series in train and validation" in twins.sentence


@pytest.mark.parametrize(
    ("same", "found"), [("pixels", "same-pixels"), ("SOPInstanceUID", "label-conflicts")]
)
def test_one_slice_in_two_series_is_found_by_what_it_shows_and_by_its_uid(series, same, found):
    source = pydicom.dcmread(series / "train" / "SICK" / "series" / "0.dcm")
    target = series / "validation" / ("SICK" if same == "pixels" else "WELL") / "series" / "9.dcm"
    pixels = source.pixel_array if same == "pixels" else grey(0.5, 300)
    uid = {} if same == "pixels" else {"SOPInstanceUID": source.SOPInstanceUID}
    put_dicom(target, pixels, PatientID="", **uid)

    assert checks(gate(series)) == [found]


def test_series_of_one_split_may_show_some_of_the_same_slices_but_not_all(series):
    # Given a healthy series and a copy, under UIDs of its own, that is ill in one slice,
    healthy, ill = (series / "train" / name / "series" for name in ("WELL", "SICK"))
    for path in sorted(healthy.iterdir())[:3]:
        put_dicom(ill / path.name, pydicom.dcmread(path).pixel_array, PatientID="")
    assert checks(gate(series)) == []

    # when it is as healthy as the other one, then one of the labels is wrong.
    put_dicom(ill / "3.dcm", pydicom.dcmread(healthy / "3.dcm").pixel_array, PatientID="")
    assert checks(gate(series)) == ["same-pixels", "label-conflicts"]


def test_blank_slices_make_no_twins_of_series(series):
    for name in ("train/SICK", "validation/WELL"):
        blank = np.zeros((EDGE, EDGE), np.uint8)
        put_dicom(series / name / "series" / "9.dcm", blank, PatientID="")

    assert checks(gate(series)) == []


def test_identical_file_with_another_label_is_a_conflict_too(data):
    source = data / "train" / "SICK" / "person1_virus_1.png"
    shutil.copy(source, data / "train" / "WELL" / "copy.png")

    report = gate(data)

    assert checks(report) == ["duplicates", "label-conflicts"]
    assert "SICK and also WELL" in report.findings[1].sentence


def test_same_film_of_a_patient_under_two_labels_is_a_conflict(data):
    put_film(data / "train" / "WELL" / "person1_virus_1.png", 0.8, 70)

    assert checks(gate(data)) == ["label-conflicts"]


def test_one_instance_under_two_labels_is_a_conflict(data):
    uid = "1.2.826.0.1.3680043.8.498.1"
    put_dicom(data / "train" / "SICK" / "a.dcm", grey(0.8, 71), SOPInstanceUID=uid)
    put_dicom(data / "train" / "WELL" / "b.dcm", grey(0.8, 72), SOPInstanceUID=uid)

    assert checks(gate(data)) == ["label-conflicts"]


def test_class_that_a_split_lacks_is_found(data):
    shutil.rmtree(data / "validation" / "WELL")

    (finding,) = gate(data).findings

    assert (finding.check, finding.sentence) == (CheckValues.BALANCE, "validation holds no WELL")


def test_class_below_the_stated_share_is_found(data):
    put_film(data / "train" / "SICK" / "person90_virus_1.png", 0.8, 80)

    report = gate(data, smallest_class_share=0.41)

    assert checks(report) == ["balance"]
    assert "2 of 5 images are WELL, a share of 0.400" in report.findings[0].sentence


def test_file_that_cannot_be_decoded_is_found(data):
    broken = data / "train" / "SICK" / "broken.dcm"
    put_dicom(broken, grey(0.8, 81), BitsAllocated=7)

    assert checks(gate(data)) == ["unreadable"]


@pytest.mark.parametrize("name", ["cut.png", "cut.jpeg", "cut.dcm"])
def test_file_cut_short_is_found(data, name):
    path = data / "train" / "SICK" / name
    if name.endswith("dcm"):
        put_dicom(path, grey(0.8, 82))
    else:
        put_film(path, 0.8, 82)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])

    assert checks(gate(data)) == ["truncated"]


@pytest.mark.parametrize("missing", [1, 2])
def test_jpeg_that_lacks_no_more_than_its_end_is_found(data, missing):
    path = put_film(data / "train" / "SICK" / "cut.jpeg", 0.8, 83)
    path.write_bytes(path.read_bytes()[:-missing])

    assert checks(gate(data)) == ["truncated"]


def test_end_of_a_thumbnail_is_not_the_end_of_a_jpeg(data):
    path = put_film(data / "train" / "SICK" / "cut.jpeg", 0.8, 84)
    whole = path.read_bytes()
    thumbnail = b"\xff\xe1\x00\x0aExif\xff\xd8\xff\xd9"
    path.write_bytes(whole[:2] + thumbnail + whole[2 : len(whole) // 2])

    assert checks(gate(data)) == ["truncated"]


def test_png_with_a_changed_byte_is_found(data):
    path = put_film(data / "train" / "SICK" / "changed.png", 0.8, 85)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)

    report = gate(data)

    assert checks(report) == ["truncated"]
    assert "checksum of the PNG chunk" in report.findings[0].sentence


def test_file_that_is_no_image_is_found(data):
    (data / "train" / "SICK" / "thumbs.db").write_bytes(b"\0" * 400)

    assert checks(gate(data)) == ["not-images"]


def test_tiny_image_is_found(data):
    put_film(data / "train" / "SICK" / "small.png", 0.8, 86, edge=EDGE)

    assert checks(gate(data, smallest_edge_pixels=EDGE)) == []
    assert set(checks(gate(data, smallest_edge_pixels=EDGE + 1))) == {"tiny"}


def test_blank_images_are_found_and_are_neither_twins_nor_conflicts(data):
    for value, label in ((10, "SICK"), (20, "WELL")):
        path = data / "train" / label / f"blank{value}.png"
        cv2.imwrite(str(path), np.full((EDGE, EDGE), value, np.uint8))

    assert checks(gate(data)) == ["blank", "blank"]


def test_check_is_passed_over_by_its_name_only_and_stays_listed(data):
    shutil.copy(data / "train" / "SICK" / "person1_virus_1.png", data / "train" / "SICK" / "c.png")
    (data / "train" / "SICK" / "x.db").write_bytes(b"x")

    report = gate(data, CheckValues.DUPLICATES)

    assert [str(f.check) for f in report.failing] == ["not-images"]
    with pytest.raises(DataGateFault, match="1 fault: not-images") as caught:
        report.require()
    assert ADVICE[CheckValues.NOT_IMAGES] in str(caught.value)
    gate(data, *checks_named(["duplicates", "not-images"])).require()


def test_unknown_name_of_a_check_is_refused_with_those_there_are():
    with pytest.raises(TrainingDataFault, match=r"no check named dupes.*duplicates"):
        checks_named(["dupes"])


def test_many_findings_of_a_check_make_a_short_message_and_a_full_record(data):
    for number in range(9):
        (data / "train" / "SICK" / f"{number}.db").write_bytes(bytes([number]))

    report = gate(data)

    with pytest.raises(DataGateFault, match=r"not-images \(9\).*and 4 more"):
        report.require()
    assert len(report.as_mapping()["findings"]) == 9
