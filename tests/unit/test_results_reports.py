"""What a report says, item by item, and what it must never say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_io.errors import CannotCompose, RefusalReason
from dicom_io.header import read_header
from dicom_io.results.capture import compose_capture
from dicom_io.results.reference import read_evidence
from dicom_io.results.refusal_report import compose_refusal_report
from dicom_io.results.request import (
    SR_CLASS_PREFERENCE,
    EncodedDocument,
    LanguageValues,
    PredecessorReference,
    RefusalDetail,
    ReportRequest,
    SRTitleValues,
)
from dicom_io.results.study_report import compose_study_report
from dicom_io.vocabulary import Code, PresenceValues
from tests.results_material import (
    MODEL,
    NEGATIVE,
    POSITIVE,
    REFUSAL,
    UNCLEAR,
    make_finding,
    make_request,
    write_film,
)

SOURCES = Path(__file__).resolve().parents[2] / "dicom_io" / "results"


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_film(tmp_path)


def opened(document: EncodedDocument) -> Dataset:
    return pydicom.dcmread(BytesIO(document.data))


def items(parent: Dataset) -> Iterator[Dataset]:
    yield parent
    for child in parent.get("ContentSequence", ()):
        yield from items(child)


def named(parent: Dataset, name: str) -> list[Dataset]:
    return [item for item in items(parent) if item.ConceptNameCodeSequence[0].CodeValue == name]


def groups(ds: Dataset) -> list[Dataset]:
    return named(ds, "125007")


def value(item: Dataset) -> str:
    return str(item.ConceptCodeSequence[0].CodeMeaning)


def names(item: Dataset) -> list[str]:
    return [child.ConceptNameCodeSequence[0].CodeMeaning for child in item.ContentSequence]


def study_report(film: Path, **changes: Any) -> Dataset:
    return opened(compose_study_report(make_request(film, **changes)))


def refusal_report(film: Path, **changes: Any) -> Dataset:
    return opened(compose_refusal_report(make_request(film, **{"refusal": REFUSAL, **changes})))


BOTH = pytest.mark.parametrize("report", [study_report, refusal_report])


def test_a_group_holds_the_items_of_its_template_in_order(film: Path) -> None:
    present, absent, unclear = groups(study_report(film))

    algorithm = [
        "Algorithm Name",
        "Algorithm Version",
        "Algorithm Parameters",
        "Algorithm Family",
    ]
    tracking = ["Tracking Identifier", "Tracking Unique Identifier"]
    assert names(present) == [
        *tracking,
        "Finding",
        "Finding Site",
        *algorithm,
        "Certainty of Finding",
        "Pneumonia",
        "Source of Measurement",
    ]
    assert names(absent) == [
        *tracking,
        "Finding Site",
        *algorithm,
        "Certainty of Finding",
        "Pneumothorax",
        "Source of Measurement",
    ]
    assert "Finding" not in names(unclear)


def test_presence_is_said_in_the_words_of_the_standard(film: Path) -> None:
    ds = study_report(film)

    assert [value(item) for item in named(ds, "233604007")] == ["Present"]
    assert [value(item) for item in named(ds, "36118008")] == ["Absent"]
    assert [value(item) for item in named(ds, "60046008")] == ["Undetermined"]
    # A viewer that prints only the finding must not turn a negative into a positive.
    assert [value(item) for item in named(ds, "121071")] == ["Pneumonia"]


def test_the_score_is_a_certainty_in_percent_with_its_threshold(film: Path) -> None:
    ds = study_report(film)

    measured = [item.MeasuredValueSequence[0] for item in named(ds, "111012")]
    assert [str(one.NumericValue) for one in measured] == ["83.0", "4.1", "50.0"]
    assert all(one.MeasurementUnitsCodeSequence[0].CodeValue == "%" for one in measured)
    assert named(ds, "111002")[0].TextValue == (
        "operating threshold 50 %, undetermined from 40 % to below 60 %"
    )
    assert "probability" not in str(ds).lower()


@pytest.mark.parametrize("probability", [0.0, 1 / 3, 1e-9, 2 / 3, 1.0])
def test_a_score_fits_a_decimal_string(film: Path, probability: float) -> None:
    finding = make_finding("Pneumonia", PresenceValues.ABSENT, probability)

    ds = study_report(film, findings=(finding,))

    assert len(str(named(ds, "111012")[0].MeasuredValueSequence[0].NumericValue)) <= 16


@BOTH
def test_every_group_is_tracked(film: Path, report: Callable[..., Dataset]) -> None:
    for group in groups(report(film)):
        assert len(named(group, "112039")) == 1
        assert named(group, "112040")[0].UID.startswith("2.25.")


@BOTH
def test_every_container_is_separate(film: Path, report: Callable[..., Dataset]) -> None:
    containers = [item for item in items(report(film)) if item.ValueType == "CONTAINER"]

    assert len(containers) >= 5
    assert {item.ContinuityOfContent for item in containers} == {"SEPARATE"}


@BOTH
def test_groups_of_another_kind_never_join(film: Path, report: Callable[..., Dataset]) -> None:
    ds = report(film)

    templates = {group.ContentTemplateSequence[0].TemplateIdentifier for group in groups(ds)}
    assert templates == {"1501"}
    assert not [item for item in items(ds) if item.ValueType in {"SCOORD", "SCOORD3D"}]


@BOTH
def test_a_report_is_preliminary_and_unverified(film: Path, report: Callable[..., Dataset]) -> None:
    ds = report(film)

    assert (ds.CompletionFlag, ds.PreliminaryFlag, ds.VerificationFlag) == (
        "COMPLETE",
        "PRELIMINARY",
        "UNVERIFIED",
    )
    assert "VerifyingObserverSequence" not in ds


def test_no_code_can_write_verified_or_final() -> None:
    for path in SOURCES.glob("*.py"):
        source = path.read_text()
        assert '"VERIFIED"' not in source
        assert '"FINAL"' not in source
        assert source.count("VerificationFlag =") == (1 if path.name == "content.py" else 0)
        assert source.count("PreliminaryFlag =") == (1 if path.name == "content.py" else 0)


def test_a_refusal_says_nothing_that_reads_as_a_negative(film: Path) -> None:
    ds = refusal_report(film)

    assert names(groups(ds)[0]) == [
        "Tracking Identifier",
        "Tracking Unique Identifier",
        "Summary of Analyses",
        "Reason",
        "Comment",
        "Source of Measurement",
    ]
    assert value(named(ds, "111065")[0]) == "Not Attempted"
    assert value(named(ds, "410666004")[0]) == "Cannot decode"
    assert named(ds, "121106")[0].TextValue.endswith("No statement about any finding is made.")
    assert not [item for item in items(ds) if item.ValueType == "NUM"]
    assert "Absent" not in str(ds)
    assert ds.SeriesDescription.startswith("AI NOT ANALYSED - NOT VERIFIED")


def test_bad_quality_and_failure_have_their_own_codes(film: Path) -> None:
    quality = refusal_report(film, refusal=RefusalDetail(RefusalReason.QUALITY, "Too dark."))
    failure = RefusalDetail(RefusalReason.SOFTWARE_FAILURE, "Out of memory.", failed=True)
    failed = refusal_report(film, refusal=failure)

    assert value(named(quality, "111101")[0]).startswith("Unusable")
    assert value(named(failed, "111065")[0]) == "Failed"
    assert value(named(failed, "410666004")[0]) == "Software failure"


def test_a_refusal_and_a_result_are_not_interchangeable(film: Path) -> None:
    with pytest.raises(CannotCompose, match="compose_refusal_report"):
        compose_study_report(make_request(film, refusal=REFUSAL))
    with pytest.raises(CannotCompose, match="compose_study_report"):
        compose_refusal_report(make_request(film))


def test_the_library_holds_the_cited_images_and_the_evidence_holds_all(tmp_path: Path) -> None:
    films = [write_film(tmp_path, SOPInstanceUID=f"2.25.300{number}") for number in range(5)]
    request = make_request(*films, cited=(films[2],))
    capture = compose_capture(request, None)

    ds = opened(compose_study_report(request, capture=capture))

    cited = [item.ReferencedSOPSequence[0] for item in named(ds, "260753009")]
    assert [item.ReferencedSOPInstanceUID for item in cited] == ["2.25.3002"]
    (study,) = ds.CurrentRequestedProcedureEvidenceSequence
    listed = {
        series.SeriesInstanceUID: [
            one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence
        ]
        for series in study.ReferencedSeriesSequence
    }
    assert listed == {
        "2.25.1002": [f"2.25.300{number}" for number in range(5)],
        capture.series_instance_uid: [capture.sop_instance_uid],
    }


def test_a_long_series_stays_a_small_report(tmp_path: Path) -> None:
    films = [write_film(tmp_path, SOPInstanceUID=f"2.25.4{number:03}") for number in range(300)]

    document = compose_study_report(make_request(*films))

    assert len(document.data) < 60_000


def test_the_patient_and_the_study_are_those_of_the_source(film: Path) -> None:
    ds = study_report(film)

    for keyword, expected in {
        "PatientName": "Muster^Mara",
        "PatientID": "P-1",
        "IssuerOfPatientID": "HOSPITAL",
        "PatientBirthDate": "20200102",
        "PatientSex": "F",
        "PatientAge": "004Y",
        "StudyInstanceUID": "2.25.1001",
        "StudyDate": "20240506",
        "StudyTime": "101500",
        "StudyID": "S-1",
        "AccessionNumber": "ACC-1",
        "ReferringPhysicianName": "Doctor^Dora",
        "StudyDescription": "Chest frontal",
        "SpecificCharacterSet": "ISO_IR 192",
    }.items():
        assert str(ds[keyword].value) == expected, keyword
    (order,) = ds.ReferencedRequestSequence
    assert order.PlacerOrderNumberImagingServiceRequest == "PLACER-1"
    assert order.StudyInstanceUID == "2.25.1001"


def test_the_maker_of_a_result_is_known_again(tmp_path: Path, film: Path) -> None:
    request = make_request(film)
    for document in (compose_study_report(request), compose_capture(request, None)):
        ds = opened(document)
        path = tmp_path / "own.dcm"
        path.write_bytes(document.data)

        ours = ds.ContributingEquipmentSequence[-1]
        assert read_header(path).is_own
        assert not read_header(film).is_own
        assert ours.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert (ours.ManufacturerModelName, ours.SoftwareVersions) == (MODEL.name, MODEL.version)
        assert ours.DeviceUID.startswith("2.25.")
        assert ds.ContributingEquipmentSequence[0].Manufacturer == "Film Maker"
        assert (ds.Manufacturer, ds.DeviceSerialNumber) == ("medimgd", "node-1")


def test_a_newer_version_names_the_older_one(film: Path) -> None:
    first = compose_study_report(make_request(film))
    older = PredecessorReference(
        first.study_instance_uid,
        first.series_instance_uid,
        first.sop_class_uid,
        first.sop_instance_uid,
    )

    second = compose_study_report(make_request(film, version_number=2, predecessor=older))

    ds = opened(second)
    (series,) = ds.PredecessorDocumentsSequence[0].ReferencedSeriesSequence
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first.sop_instance_uid
    assert ds.InstanceNumber == 2
    assert second.series_instance_uid == first.series_instance_uid
    assert second.sop_instance_uid != first.sop_instance_uid


@BOTH
def test_composing_twice_gives_the_same_bytes(film: Path, report: Callable[..., Dataset]) -> None:
    compose = compose_study_report if report is study_report else compose_refusal_report
    request = make_request(film, **({} if report is study_report else {"refusal": REFUSAL}))

    assert compose(request) == compose(request)
    assert compose(request, evidence=read_evidence(request)) == compose(request)


CHANGES: dict[str, Callable[[ReportRequest], dict[str, Any]]] = {
    "a finding": lambda _: {"findings": (POSITIVE, UNCLEAR)},
    "a score": lambda _: {"findings": (replace(POSITIVE, probability=0.831), NEGATIVE, UNCLEAR)},
    "a threshold": lambda _: {"findings": (replace(POSITIVE, threshold=0.6), NEGATIVE, UNCLEAR)},
    "the weights": lambda _: {"model": replace(MODEL, weights_sha256="ee" * 32)},
    "the version": lambda _: {"version_number": 2},
    "the software": lambda _: {"software_version": "0.2.0"},
    "the node": lambda _: {"node_id": "node-2"},
    "the title": lambda _: {"sr_title": SRTitleValues.AI_ANALYSIS_RESULTS},
    "the language": lambda _: {"language": LanguageValues.ENGLISH_UNITED_KINGDOM},
    "the time": lambda one: {"analysis_started": one.analysis_started + timedelta(seconds=1)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_the_bytes_changes_the_uid(film: Path, change: str) -> None:
    request = make_request(film)

    changed = make_request(film, **CHANGES[change](request))

    before, after = compose_study_report(request), compose_study_report(changed)
    assert before.data != after.data
    assert before.sop_instance_uid != after.sop_instance_uid


def test_a_renamed_patient_changes_the_uid(tmp_path: Path) -> None:
    before = compose_study_report(make_request(write_film(tmp_path)))
    after = compose_study_report(make_request(write_film(tmp_path, PatientName="Muster^Maria")))

    assert before.sop_instance_uid != after.sop_instance_uid
    assert before.series_instance_uid == after.series_instance_uid


def test_every_class_holds_the_same_tree_under_its_own_uid(film: Path) -> None:
    documents = [compose_study_report(make_request(film), one) for one in SR_CLASS_PREFERENCE]

    assert len({document.sop_instance_uid for document in documents}) == 3
    assert [document.sop_class_uid for document in documents] == list(SR_CLASS_PREFERENCE)
    trees = [opened(document).ContentSequence for document in documents]
    assert trees[0] == trees[1] == trees[2]


def test_the_private_title_identifies_its_scheme(film: Path) -> None:
    ds = study_report(film, sr_title=SRTitleValues.AI_ANALYSIS_RESULTS)

    assert ds.ConceptNameCodeSequence[0].CodeMeaning == "AI Analysis Results (not verified)"
    assert [one.CodingSchemeDesignator for one in ds.CodingSchemeIdentificationSequence] == [
        "99MEDIMGD"
    ]
    assert "CodingSchemeIdentificationSequence" not in study_report(film)


def test_the_imaging_procedure_is_reported_not_the_analysis(tmp_path: Path) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "CX1", "99HIS", "Chest frontal"

    own = study_report(write_film(tmp_path, ProcedureCodeSequence=[code]))
    plain = study_report(write_film(tmp_path))

    assert value(named(own, "121058")[0]) == "Chest frontal"
    assert value(named(plain, "121058")[0]) == "Imaging procedure"


def test_times_follow_the_offset_of_the_study(tmp_path: Path) -> None:
    stated = study_report(write_film(tmp_path, TimezoneOffsetFromUTC="-0500"))
    unstated = study_report(
        write_film(tmp_path),
        analysis_started=datetime(2026, 1, 2, 4, 4, 5, tzinfo=timezone(timedelta(hours=1))),
    )

    assert (stated.ContentDate, stated.ContentTime) == ("20260101", "220405.678000")
    assert stated.TimezoneOffsetFromUTC == "-0500"
    assert (unstated.ContentDate, unstated.ContentTime) == ("20260102", "040405.000000")
    moment = unstated.ContributingEquipmentSequence[-1].ContributionDateTime
    assert moment == "20260102040405.000000+0100"


def test_a_code_that_cannot_be_written_is_refused_without_the_patient(film: Path) -> None:
    for code in (Code("1", "SCT", "m" * 65), Code("1", "s" * 17, "m"), Code("", "", "m" * 65)):
        with pytest.raises(CannotCompose, match="could not be composed") as caught:
            compose_study_report(make_request(film, findings=(replace(POSITIVE, code=code),)))
        assert "Muster" not in str(caught.value)
