"""Regions of a result: kept as they were found, part of what is stated, sent before the report."""

from __future__ import annotations

from dataclasses import replace

from storage_hospital import CXR, NOON, PNEUMONIA, STUDY, Hospital, seconds

from dicom_io.vocabulary import Detection
from storage.completion import complete_now
from storage.endings import Analysed, finish_job
from storage.outbox import due_deliveries, replace_document
from storage.results import (
    NewResult,
    ResultKind,
    ResultRecord,
    new_result_values,
    results_awaiting_composition,
    store_documents,
)
from tests.regions_material import make_outline, make_region
from tests.unit.storage.test_storage_results import SC, SR, Document

OUTLINES = (
    make_outline("2.25.5", 0.7, frame_number=3, long_axis_mm=4.5),
    make_outline("2.25.6"),
)
FOUND = Detection(
    (
        make_region((), label=PNEUMONIA.label, site=None, outlines=OUTLINES),
        make_region(["2.25.7"], 2, label=PNEUMONIA.label),
    ),
    "2 more regions are left out",
)
REGIONS = Document("SR-ROI", SR.sop_class_uid, "2.25.4", data=b"the regions")


def result_of(hospital: Hospital, detection: Detection | None) -> ResultRecord:
    hospital.enqueue()
    (job,) = hospital.claim()
    finish_job(hospital.database, Analysed(job, (PNEUMONIA,), NOON, detection=detection), NOON)
    (result,) = results_awaiting_composition(hospital.database)
    return result


def test_regions_come_back_as_they_were_found(hospital: Hospital) -> None:
    assert result_of(hospital, FOUND).detection == FOUND


def test_regions_of_a_second_version_are_kept_too(hospital: Hospital) -> None:
    first = result_of(hospital, FOUND)
    store_documents(hospital.database, first.id, (SR, REGIONS, SC), (), NOON)
    hospital.arrive(2, now=NOON + seconds(1))
    complete_now(hospital.database, STUDY, NOON + seconds(2))
    hospital.prepare(NOON + seconds(3))
    (job,) = hospital.claim(now=NOON + seconds(4))
    fewer = replace(FOUND, regions=FOUND.regions[:1], note="")

    finish_job(
        hospital.database, Analysed(job, (PNEUMONIA,), NOON, detection=fewer), NOON + seconds(5)
    )

    (result,) = results_awaiting_composition(hospital.database)
    assert (result.version_number, result.detection) == (2, fewer)


def test_a_model_that_tells_no_places_leaves_nothing(hospital: Hospital) -> None:
    assert result_of(hospital, None).detection is None


def test_regions_are_part_of_what_a_result_states() -> None:
    moved = replace(FOUND, regions=(make_region(["2.25.8"], label=PNEUMONIA.label),))

    digests = {digest_of(each) for each in (None, FOUND, moved, replace(FOUND, note=""))}

    assert len(digests) == 4


def digest_of(detection: Detection | None) -> str:
    new = NewResult(
        job_id=1, run=1, study_instance_uid=STUDY, model=CXR, instance_set_digest="ab",
        preprocessing_digest="cd", kind=ResultKind.FINDING, findings=(PNEUMONIA,),
        refusal_reason=None, refusal_message="", analysis_started_at=NOON, detection=detection,
    )  # fmt: skip
    return str(new_result_values(new, None, NOON)["result_digest"])


def test_regions_are_sent_between_the_picture_and_the_report(hospital: Hospital) -> None:
    result = result_of(hospital, FOUND)
    store_documents(hospital.database, result.id, (SR, REGIONS, SC), ("pacs",), NOON)

    (group,) = due_deliveries(hospital.database, NOON)

    assert [each.role for each in group.deliveries] == ["SC", "SR-ROI", "SR"]


def test_regions_step_down_to_another_class_by_themselves(hospital: Hospital) -> None:
    result = result_of(hospital, FOUND)
    store_documents(hospital.database, result.id, (SR, REGIONS, SC), ("pacs",), NOON)
    (group,) = due_deliveries(hospital.database, NOON)
    regions, report = group.deliveries[1:]
    enhanced = replace(REGIONS, sop_class_uid="1.2.3", sop_instance_uid="2.25.44")

    moved = replace_document(hospital.database, regions.id, enhanced, NOON)

    assert (moved.role, moved.sop_instance_uid) == ("SR-ROI", "2.25.44")
    (again,) = due_deliveries(hospital.database, NOON)
    assert again.deliveries[2] == report
