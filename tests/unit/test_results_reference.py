"""Real-life headers become small legal ones, and nothing in them stops a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from pydicom.dataset import Dataset

from dicom_io.errors import CannotCompose
from dicom_io.reading import quiet_pydicom
from dicom_io.results.capture import compose_capture
from dicom_io.results.reference import normalise_reference, read_evidence
from dicom_io.results.refusal_report import compose_refusal_report
from dicom_io.results.study_report import compose_study_report
from tests.results_material import (
    IDENTITY,
    REFUSAL,
    damage,
    damaged_film,
    make_film_header,
    make_request,
    write_film,
)


def normalised(**values: Any) -> Dataset:
    with quiet_pydicom():
        film = make_film_header(**values)
    return normalise_reference(film)


@pytest.mark.parametrize(
    ("keyword", "value", "written"),
    [
        ("PatientSex", "U", ""),
        ("PatientSex", "M", "M"),
        ("StudyTime", "10:15:00", "101500"),
        ("StudyTime", "101500.1234567", "101500.123456"),
        ("StudyTime", "10:15", "1015"),
        ("StudyTime", "quarter past", ""),
        ("StudyTime", "256000", ""),
        ("StudyDate", "2024.05.06", "20240506"),
        ("StudyDate", "2024-05-06", "20240506"),
        ("StudyDate", "20240231", ""),
        ("PatientBirthDate", "unknown", ""),
        ("AccessionNumber", "A" * 17, ""),
        ("PatientID", "P" * 65, ""),
        ("PatientID", "HOSPITAL\\4711", ""),
        ("PatientID", "47\n11", ""),
        ("PatientID", " 4711\0", "4711"),
        ("PatientID", "4711\\", "4711"),
        ("AccessionNumber", "A1\\A2", ""),
        ("StudyID", "1\\2", ""),
        ("PatientName", "A^B^C^D^E^F", "A^B^C^D^E F"),
        ("PatientName", "N" * 80, "N" * 64),
        ("PatientName", "", ""),
        ("StudyID", "", ""),
        ("Modality", "cr film", ""),
    ],
)
def test_a_mandatory_attribute_is_repaired_or_emptied(
    keyword: str, value: str, written: str
) -> None:
    assert str(normalised(**{keyword: value})[keyword].value or "") == written


@pytest.mark.parametrize(
    ("keyword", "value", "written"),
    [
        ("PatientAge", "42", None),
        ("PatientAge", "42Y", "042Y"),
        ("PatientAge", "004Y", "004Y"),
        ("StudyDescription", "d" * 70, "d" * 64),
        ("BodyPartExamined", "Chest PA", None),
        ("PatientWeight", "12345678901234567", None),
        ("TimezoneOffsetFromUTC", "-0500", "-0500"),
        ("TimezoneOffsetFromUTC", "-0000", "+0000"),
        ("TimezoneOffsetFromUTC", "EST", None),
    ],
)
def test_an_optional_attribute_is_repaired_or_left_out(
    keyword: str, value: str, written: str | None
) -> None:
    header = normalised(**{keyword: value})

    assert (str(header[keyword].value) if keyword in header else None) == written


@pytest.mark.parametrize(
    "keyword",
    ["PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyTime"],
)
def test_a_missing_mandatory_attribute_becomes_empty(keyword: str) -> None:
    header = normalised(**{keyword: None})

    assert keyword in header
    assert not header[keyword].value


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Äneas^Rüdiger"),
        ("ISO_IR 144", "Люкceмбypг"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小東"),
    ],
)
def test_names_survive_from_any_character_set(
    tmp_path: Path, character_set: str | list[str], name: str
) -> None:
    film = write_film(tmp_path, SpecificCharacterSet=character_set, PatientName=name)

    evidence = read_evidence(make_request(film))

    assert str(evidence.header.PatientName) == name


@pytest.mark.parametrize("keyword", IDENTITY)
def test_an_instance_without_its_place_cannot_be_referenced(keyword: str) -> None:
    with pytest.raises(CannotCompose, match=keyword):
        normalised(**{keyword: ""})


def test_an_order_is_carried_over_attribute_by_attribute() -> None:
    (item,) = normalised().RequestAttributesSequence

    assert item.AccessionNumber == "ACC-1"
    assert item.PlacerOrderNumberImagingServiceRequest == "PLACER-1"
    assert item.FillerOrderNumberImagingServiceRequest == "FILLER-1"
    assert item.RequestedProcedureDescription == "Chest in one plane"


def test_a_code_without_meaning_is_left_out() -> None:
    halved = Dataset()
    halved.CodeValue = "12345"

    assert "ProcedureCodeSequence" not in normalised(ProcedureCodeSequence=[halved])


def test_evidence_of_two_studies_is_refused(tmp_path: Path) -> None:
    ours = write_film(tmp_path)
    theirs = write_film(tmp_path, SOPInstanceUID="2.25.2003", StudyInstanceUID="2.25.2001")

    with pytest.raises(CannotCompose, match=r"one study.*2\.25\.1001 and 2\.25\.2001"):
        read_evidence(make_request(ours, theirs))


def test_the_same_instance_in_two_files_is_referenced_once(tmp_path: Path) -> None:
    first = write_film(tmp_path)
    (tmp_path / "again").mkdir()
    second = write_film(tmp_path / "again")

    evidence = read_evidence(make_request(first, second))

    assert [one.sop_instance_uid for one in evidence.instances] == ["2.25.1003"]


@pytest.mark.parametrize("content", [b"", b"not DICOM at all", b"\0" * 128 + b"DICM\x02"])
def test_an_unreadable_file_cannot_be_evidence(tmp_path: Path, content: bytes) -> None:
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(content)

    with pytest.raises(CannotCompose, match="cannot be read"):
        read_evidence(make_request(broken))


@pytest.mark.parametrize("keyword", IDENTITY)
def test_no_message_holds_the_patient(tmp_path: Path, keyword: str) -> None:
    film = write_film(
        tmp_path, PatientName="SECRETNAME", PatientID="SECRET\\ID", **{keyword: "1.x"}
    )

    with pytest.raises(CannotCompose) as caught:
        read_evidence(make_request(film))

    assert keyword in str(caught.value)
    assert "SECRET" not in str(caught.value)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(damage)
def test_a_damaged_header_always_composes(
    tmp_path: Path, damage: tuple[set[str], set[str], dict[str, str]]
) -> None:
    film = damaged_film(tmp_path, *damage)

    for document in (
        compose_study_report(make_request(film)),
        compose_refusal_report(make_request(film, refusal=REFUSAL)),
        compose_capture(make_request(film), None),
    ):
        assert document.study_instance_uid == "2.25.1001"
