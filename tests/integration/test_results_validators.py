"""Independent judges read every result we write: dicom3tools and DCMTK, over real headers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from dicom_io.errors import RefusalReason
from dicom_io.reading import quiet_pydicom
from dicom_io.results.capture import compose_capture
from dicom_io.results.refusal_report import compose_refusal_report
from dicom_io.results.region_report import compose_region_report
from dicom_io.results.request import (
    SR_CLASS_PREFERENCE,
    EncodedDocument,
    PredecessorReference,
    RefusalDetail,
    ReportRequest,
    SRClassValues,
    SRTitleValues,
)
from dicom_io.results.study_report import compose_study_report
from dicom_io.vocabulary import Detection, Finding
from tests.regions_material import make_outline, make_region
from tests.results_judges import (
    ALLOWED,
    BETWEEN_OBJECTS,
    FROM_THE_SOURCE,
    complaints,
    tool,
    unexpected,
)
from tests.results_material import (
    NEGATIVE,
    POSITIVE,
    REFUSAL,
    UNCLEAR,
    damage,
    damaged_film,
    make_picture,
    make_request,
    write_film,
)

FINDINGS = {
    "positive": (POSITIVE,),
    "negative": (NEGATIVE,),
    "undetermined": (UNCLEAR,),
    "mixed": (POSITIVE, NEGATIVE, UNCLEAR),
}
SOURCES = ("ct", "mr", "dx", "cr")


def judge(document: EncodedDocument, folder: Path) -> list[str]:
    path = folder / f"{document.sop_instance_uid}.dcm"
    path.write_bytes(document.data)
    return unexpected(complaints(tool("dciodvfy"), path), *ALLOWED, *FROM_THE_SOURCE)


def dump(document: EncodedDocument, folder: Path) -> str:
    path = folder / f"{document.sop_instance_uid}.dcm"
    path.write_bytes(document.data)
    done = subprocess.run(
        [tool("dsrdump"), "+Pl", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if line.startswith("E:")]
    return done.stdout


@pytest.fixture(scope="session")
def sources(
    testdata: Path, unpacked: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, ...]]:
    """Real CT, MR and DX instances, and a synthetic CR film."""
    folder = tmp_path_factory.mktemp("films")
    return {
        "ct": tuple(sorted(unpacked("ct-chest-60").rglob("*.dcm"))),
        "mr": tuple(sorted(unpacked("mr-head-t1-60").rglob("*.dcm"))),
        "dx": (even_length(testdata / "single" / "dx_image.dcm", folder),),
        "cr": (write_film(folder),),
    }


def even_length(film: Path, folder: Path) -> Path:
    """A copy whose pixel data has the even length that dcentvfy insists on."""
    with quiet_pydicom():
        ds = pydicom.dcmread(film)
        ds.PixelData = ds.PixelData + b"\0" * (len(ds.PixelData) % 2)
        path = folder / film.name
        ds.save_as(path)
        return path


def request_over(paths: tuple[Path, ...], **changes: Any) -> ReportRequest:
    return make_request(*paths, cited=(paths[len(paths) // 2],), **changes)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("findings", FINDINGS)
@pytest.mark.parametrize("sop_class", list(SRClassValues), ids=lambda one: one.name.lower())
def test_a_study_report_is_accepted_in_every_class(
    sources: dict[str, tuple[Path, ...]],
    tmp_path: Path,
    source: str,
    findings: str,
    sop_class: SRClassValues,
) -> None:
    request = request_over(sources[source], findings=FINDINGS[findings])

    report = compose_study_report(request, sop_class)

    assert judge(report, tmp_path) == []
    text = dump(report, tmp_path)
    for finding in request.findings:
        assert f'"{finding.code.meaning}")=(' in text
        assert f',SCT,"{finding.presence}")>' in text
    assert text.count('"Certainty of Finding"') == len(request.findings)
    assert text.count('CODE:(,,"Finding")') == sum(
        finding.presence == "Present" for finding in request.findings
    )
    assert "UNVERIFIED" in text
    assert "PRELIMINARY" in text


@pytest.mark.parametrize("source", ["ct", "dx"])
@pytest.mark.parametrize("finding", [POSITIVE, replace(UNCLEAR, label="Pneumonia")])
@pytest.mark.parametrize("sop_class", list(SRClassValues), ids=lambda one: one.name.lower())
def test_a_region_report_is_accepted_in_every_class(
    sources: dict[str, tuple[Path, ...]],
    tmp_path: Path,
    source: str,
    finding: Finding,
    sop_class: SRClassValues,
) -> None:
    request = request_with_regions(sources[source], finding)
    groups = sum(len(region.outlines) for region in request.regions)

    report = compose_region_report(request, sop_class)

    assert judge(report, tmp_path) == []
    text = dump(report, tmp_path)
    assert text.count('SCOORD:(,,"Image Region")=(POLYLINE') == groups
    assert text.count('"Long axis")="12.5"') == groups
    assert text.count('"Certainty of Finding"') == groups
    assert text.count('CODE:(,,"Finding")') == groups * (finding is POSITIVE)
    assert "UNVERIFIED" in text
    assert "PRELIMINARY" in text


def request_with_regions(paths: tuple[Path, ...], finding: Finding) -> ReportRequest:
    """A region on up to three slices and another on one, in pixels of the images."""
    uids = [pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in paths[20:23]]
    uids = uids or [pydicom.dcmread(paths[0], stop_before_pixels=True).SOPInstanceUID]
    outlines = tuple(make_outline(uid, long_axis_mm=12.5) for uid in uids)
    regions = (make_region((), outlines=outlines), make_region((), 2, outlines=outlines[:1]))
    return request_over(paths, findings=(finding, NEGATIVE), detection=Detection(regions))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("reason", list(RefusalReason), ids=lambda one: one.name.lower())
def test_a_refusal_is_accepted_in_every_class(
    sources: dict[str, tuple[Path, ...]], tmp_path: Path, source: str, reason: RefusalReason
) -> None:
    failed = reason is RefusalReason.SOFTWARE_FAILURE
    refusal = RefusalDetail(reason, "A sentence that says why.", failed=failed)

    for sop_class in SR_CLASS_PREFERENCE:
        report = compose_refusal_report(request_over(sources[source], refusal=refusal), sop_class)

        assert judge(report, tmp_path) == []
        text = dump(report, tmp_path)
        assert '"Failed")>' in text if failed else '"Not Attempted")>' in text
        assert "No statement about any finding is made." in text
        assert "NUM:" not in text
        assert "Absent" not in text


@pytest.mark.parametrize("name", ["sr_document.dcm", "seg_image_ct_binary.dcm"])
def test_a_refusal_about_what_is_no_image_is_accepted(
    testdata: Path, tmp_path: Path, name: str
) -> None:
    request = make_request(testdata / "single" / name, refusal=REFUSAL)
    no_weight = r"Value is zero for value 1 of attribute <Patient's Weight>"

    for sop_class in SR_CLASS_PREFERENCE:
        report = compose_refusal_report(request, sop_class)

        assert unexpected(judge(report, tmp_path), no_weight) == []
        assert "COMPOSITE" in dump(report, tmp_path)
    assert unexpected(judge(compose_capture(request, None), tmp_path), no_weight) == []


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("picture", [make_picture(512, 512), make_picture(30, 90), None])
def test_a_result_card_is_accepted(
    sources: dict[str, tuple[Path, ...]],
    tmp_path: Path,
    source: str,
    picture: np.ndarray[Any, Any] | None,
) -> None:
    for changes in ({}, {"refusal": REFUSAL}):
        capture = compose_capture(request_over(sources[source], **changes), picture)

        assert judge(capture, tmp_path) == []


def test_a_private_title_and_a_predecessor_are_accepted(
    sources: dict[str, tuple[Path, ...]], tmp_path: Path
) -> None:
    first = compose_study_report(request_over(sources["cr"]))
    earlier = PredecessorReference(
        first.study_instance_uid,
        first.series_instance_uid,
        first.sop_class_uid,
        first.sop_instance_uid,
    )
    titled = request_over(
        sources["cr"],
        sr_title=SRTitleValues.AI_ANALYSIS_RESULTS,
        predecessor=earlier,
        version_number=2,
    )

    second = compose_study_report(titled)

    assert judge(second, tmp_path) == []
    assert "AI Analysis Results (not verified)" in dump(second, tmp_path)


@pytest.mark.parametrize("source", SOURCES)
def test_all_objects_of_a_study_agree_with_its_images(
    sources: dict[str, tuple[Path, ...]], tmp_path: Path, source: str
) -> None:
    written = {document.sop_instance_uid: document for document in study_objects(sources[source])}
    for uid, document in written.items():
        (tmp_path / f"{uid}.dcm").write_bytes(document.data)
    ours = sorted(tmp_path.glob("*.dcm"))
    assert len(ours) == len(written) == 10

    alone = set(complaints(tool("dcentvfy"), *sources[source]))
    lines = complaints(tool("dcentvfy"), *sources[source], *ours)

    # What the images say about one another is not about us.
    new = [line for line in lines if line not in alone]
    assert unexpected(new, *BETWEEN_OBJECTS) == []


def study_objects(paths: tuple[Path, ...]) -> Iterator[EncodedDocument]:
    """Two versions of a result in three classes, their regions, a refusal, and their cards."""
    request = request_over(paths)
    card = compose_capture(request, make_picture())
    yield card
    reports = [compose_study_report(request, one, card) for one in SR_CLASS_PREFERENCE]
    yield from reports
    earlier = PredecessorReference(
        reports[0].study_instance_uid,
        reports[0].series_instance_uid,
        reports[0].sop_class_uid,
        reports[0].sop_instance_uid,
    )
    again = request_over(paths, predecessor=earlier, version_number=2)
    yield compose_study_report(again, capture=card)
    marked = request_with_regions(paths, POSITIVE)
    regions = [compose_region_report(marked, one) for one in SR_CLASS_PREFERENCE[:2]]
    yield from regions
    yield compose_study_report(marked, capture=card, regions=regions[0])
    refused = request_over(paths, refusal=REFUSAL)
    refused_card = compose_capture(refused, None)
    yield refused_card
    yield compose_refusal_report(refused, capture=refused_card)


@settings(
    max_examples=20,
    deadline=None,
    # Shrinking would start hundreds of processes to save a reader one look at a header.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(damage)
def test_results_of_a_damaged_header_are_accepted(
    tmp_path: Path, damage: tuple[set[str], set[str], dict[str, str]]
) -> None:
    request = make_request(damaged_film(tmp_path, *damage))
    anything_legal = r"Unrecognized defined term <[A-Z0-9 _]+> for value 1 of attribute"

    report, card = compose_study_report(request), compose_capture(request, None)

    assert unexpected(judge(report, tmp_path), anything_legal) == []
    assert unexpected(judge(card, tmp_path), anything_legal) == []


def test_the_judges_see_what_is_wrong(sources: dict[str, tuple[Path, ...]], tmp_path: Path) -> None:
    ds = pydicom.dcmread(_written(compose_study_report(request_over(sources["cr"])), tmp_path))
    del ds.ReferencedPerformedProcedureStepSequence
    ds.ContentSequence[0].RelationshipType = "INFERRED FROM"
    ds.save_as(tmp_path / "broken.dcm")

    lines = complaints(tool("dciodvfy"), tmp_path / "broken.dcm")

    assert [line for line in unexpected(lines, *ALLOWED) if line.startswith("Error")]


def _written(document: EncodedDocument, folder: Path) -> Path:
    path = folder / "report.dcm"
    path.write_bytes(document.data)
    return path
