"""The region report: groups with coordinates only, one tracking UID for a region on many images."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_io.errors import CannotCompose
from dicom_io.results.region_report import compose_region_report
from dicom_io.results.request import (
    EncodedDocument,
    PredecessorReference,
    ReportRequest,
    SRClassValues,
    SRTitleValues,
)
from dicom_io.results.study_report import compose_study_report
from dicom_io.vocabulary import Code, Detection, PresenceValues
from tests.regions_material import NODULE, make_outline, make_region
from tests.results_material import MODEL, NEGATIVE, POSITIVE, make_finding, make_request, write_film

FIRST, SECOND = "2.25.2001", "2.25.2002"
UNCLEAR = make_finding("Pneumonia", PresenceValues.UNDETERMINED, 0.45)
EARLIER = PredecessorReference("2.25.1001", "2.25.71", SRClassValues.COMPREHENSIVE_3D, "2.25.72")
EARLIER_REGIONS = replace(EARLIER, series_instance_uid="2.25.81", sop_instance_uid="2.25.82")


@pytest.fixture
def slices(tmp_path: Path) -> tuple[Path, ...]:
    return tuple(write_film(tmp_path, SOPInstanceUID=uid) for uid in (FIRST, SECOND, "2.25.2003"))


def request_for(paths: tuple[Path, ...], *regions: Any, note: str = "", **changes: Any):
    fields = {"findings": (POSITIVE, NEGATIVE), "detection": Detection(regions, note), **changes}
    return make_request(*paths, **fields)


def read(document: EncodedDocument) -> pydicom.Dataset:
    return pydicom.dcmread(BytesIO(document.data))


def groups_of(document: EncodedDocument) -> list[Dataset]:
    (measurements,) = [
        item for item in read(document).ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == "126010"
    ]  # fmt: skip
    return list(measurements.ContentSequence)


def item_of(group: Dataset, value: str) -> Dataset:
    (found,) = items_of(group, value)
    return found


def items_of(group: Dataset, value: str) -> list[Dataset]:
    return [
        each for each in group.ContentSequence
        if each.ConceptNameCodeSequence[0].CodeValue == value
    ]  # fmt: skip


def test_a_region_on_two_slices_is_two_groups_with_one_tracking_uid(slices):
    outlines = (make_outline(FIRST, 0.6), make_outline(SECOND, 0.8126, long_axis_mm=12.5))
    request = request_for(slices, make_region((), outlines=outlines))

    groups = groups_of(compose_region_report(request))

    assert [each.ContentTemplateSequence[0].TemplateIdentifier for each in groups] == ["1410"] * 2
    assert {item_of(each, "112039").TextValue for each in groups} == {"Nodule 1"}
    assert len({item_of(each, "112040").UID for each in groups}) == 1
    regions = [item_of(each, "111030") for each in groups]
    assert [each.GraphicData for each in regions] == [[1, 0.5, 3, 0.5, 3, 2, 1, 2, 1, 0.5]] * 2
    sources = [each.ContentSequence[0] for each in regions]
    assert [each.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for each in sources] == [
        FIRST, SECOND,
    ]  # fmt: skip
    assert {each.RelationshipType for each in sources} == {"SELECTED FROM"}
    certainties = [item_of(each, "111012").MeasuredValueSequence[0] for each in groups]
    assert [each.NumericValue for each in certainties] == [60.0, 81.3]
    assert [len(items_of(each, "103339001")) for each in groups] == [0, 1]
    axis = item_of(groups[1], "103339001").MeasuredValueSequence[0]
    assert axis.NumericValue == 12.5
    assert axis.MeasurementUnitsCodeSequence[0].CodeValue == "mm"
    assert {item_of(each, "130400").RelationshipType for each in groups} == {"CONTAINS"}
    assert item_of(groups[0], "121071").ConceptCodeSequence[0].CodeValue == NODULE.value


def test_every_group_has_coordinates_and_the_title_that_viewers_draw(slices):
    request = request_for(
        slices, make_region([FIRST]), make_region([SECOND], 2),
        sr_title=SRTitleValues.AI_ANALYSIS_RESULTS,
    )  # fmt: skip

    document = compose_region_report(request)

    assert read(document).ConceptNameCodeSequence[0].CodeValue == "126000"
    assert all(items_of(group, "111030") for group in groups_of(document))
    kinds = {item.ConceptNameCodeSequence[0].CodeValue for item in read(document).ContentSequence}
    assert "C0034375" not in kinds  # a place for words, as study reports have


def test_regions_are_preliminary_and_in_a_series_of_their_own(slices):
    model = replace(MODEL, demonstration=True)
    request = request_for(slices, make_region([FIRST]), model=model, version_number=3)

    ds = read(compose_region_report(request))
    report = read(compose_study_report(request))

    assert (ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag) == (
        "COMPLETE", "UNVERIFIED", "PRELIMINARY",
    )  # fmt: skip
    assert ds.SeriesDescription == "AI REGIONS - NOT VERIFIED (DEMO cxr-pneumonia)"
    assert ds.InstanceNumber == 3
    assert ds.SeriesInstanceUID != report.SeriesInstanceUID
    assert ds.SeriesNumber != report.SeriesNumber
    (group,) = groups_of(compose_region_report(request))
    assert item_of(group, "111002").TextValue == (
        "box around positions of the detection map at or above 40 %; "
        "demonstration model, no clinical claim"
    )


def test_all_that_was_analysed_is_evidence_and_only_the_marked_images_are_listed(slices):
    request = request_for(slices, make_region([SECOND]))

    ds = read(compose_region_report(request))

    (study,) = ds.CurrentRequestedProcedureEvidenceSequence
    evidence = [
        instance.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence for instance in series.ReferencedSOPSequence
    ]  # fmt: skip
    assert evidence == [FIRST, SECOND, "2.25.2003"]
    (library,) = items_of(ds, "111028")
    (group,) = library.ContentSequence
    assert [
        each.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for each in group.ContentSequence
    ] == [SECOND]


def test_an_undetermined_finding_has_regions_that_claim_no_finding(slices):
    request = request_for(slices, make_region([FIRST]), findings=(UNCLEAR, NEGATIVE))

    (group,) = groups_of(compose_region_report(request))

    assert items_of(group, "121071") == []
    assert item_of(group, NODULE.value).ConceptCodeSequence[0].CodeMeaning == "Undetermined"


def test_a_frame_of_a_multi_frame_image_is_named(slices):
    outline = make_outline(FIRST, frame_number=17)
    request = request_for(slices, make_region((), outlines=(outline,)))

    (group,) = groups_of(compose_region_report(request))

    (source,) = item_of(group, "111030").ContentSequence
    assert source.ReferencedSOPSequence[0].ReferencedFrameNumber == 17


def test_the_same_regions_give_the_same_bytes_and_others_another_uid(slices):
    request = request_for(slices, make_region([FIRST]))
    moved = request_for(slices, make_region([SECOND]))

    one, again = compose_region_report(request), compose_region_report(request)
    other = compose_region_report(moved)
    lesser = compose_region_report(request, SRClassValues.ENHANCED)

    assert one == again
    assert len({one.sop_instance_uid, other.sop_instance_uid, lesser.sop_instance_uid}) == 3
    assert one.series_instance_uid == other.series_instance_uid
    tracked = [item_of(groups_of(each)[0], "112040").UID for each in (one, other)]
    assert tracked[0] == tracked[1]


def test_a_region_is_not_tracked_as_the_finding_it_belongs_to(slices):
    request = request_for(slices, make_region([FIRST], name="Pneumonia"))

    (group,) = groups_of(compose_region_report(request))
    finding = groups_of(compose_study_report(request))[0]

    assert item_of(group, "112040").UID != item_of(finding, "112040").UID


def test_the_study_report_counts_the_regions_and_lists_their_report(slices):
    request = request_for(slices, make_region([FIRST]), make_region([SECOND], 2), note="of 3 found")
    regions = compose_region_report(request)

    ds = read(compose_study_report(request, regions=regions))

    (words,) = items_of(ds, "C0034375")
    assert words.ContentSequence[0].TextValue.endswith(
        "2 regions in a report of their own; of 3 found."
    )
    listed = {
        instance.ReferencedSOPInstanceUID
        for study in ds.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence for instance in series.ReferencedSOPSequence
    }  # fmt: skip
    assert regions.sop_instance_uid in listed


def replaced_by(document: EncodedDocument) -> list[str]:
    return [
        instance.ReferencedSOPInstanceUID
        for study in read(document).get("PredecessorDocumentsSequence", ())
        for series in study.ReferencedSeriesSequence for instance in series.ReferencedSOPSequence
    ]  # fmt: skip


def test_a_later_region_report_replaces_the_earlier_one(slices):
    request = request_for(
        slices, make_region([FIRST]), predecessor=EARLIER, earlier_regions=EARLIER_REGIONS,
        version_number=2,
    )  # fmt: skip

    assert replaced_by(compose_region_report(request)) == ["2.25.82"]
    assert replaced_by(compose_study_report(request)) == ["2.25.72"]


def test_where_nothing_is_marked_any_more_the_study_report_replaces_the_regions_too(slices):
    request = request_for(
        slices, note="no position of the map reaches the threshold", predecessor=EARLIER,
        earlier_regions=EARLIER_REGIONS, version_number=2,
    )  # fmt: skip

    assert replaced_by(compose_study_report(request)) == ["2.25.72", "2.25.82"]


def test_what_cannot_be_reported_is_refused(slices):
    region = make_region([FIRST])

    with pytest.raises(CannotCompose, match="no regions"):
        compose_region_report(request_for(slices))
    with pytest.raises(CannotCompose, match="must lie on analysed images"):
        compose_region_report(request_for(slices, make_region(["2.25.9"])))
    with pytest.raises(CannotCompose, match="belong to a finding that is not absent"):
        request_for(slices, replace(region, label="Pneumothorax"))
    with pytest.raises(CannotCompose, match="no backslash"):
        request_for(slices, replace(region, code=Code("1\\2", "99TEST", "x")))


def test_a_request_without_regions_says_nothing_of_places(slices):
    silent: ReportRequest = make_request(*slices)

    assert "region" not in silent.summary
    assert silent.regions == ()
