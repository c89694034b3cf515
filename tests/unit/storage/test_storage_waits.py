"""Nothing waits until a clock that was set back has caught up."""

from __future__ import annotations

from dataclasses import dataclass

from storage_hospital import NOON, STUDY, seconds, watch_writes

from dicom_io.commitment import CommitmentRequest, Reference
from storage.backoff import DeliveryPolicy
from storage.claims import claim_batch, reclaim_expired, renew
from storage.commitments import accept_commitment, due_commitments
from storage.completion import complete_now
from storage.destinations import DeliveryOutcome
from storage.outbox import due_deliveries, record_outcomes
from storage.preparation import claim_study_for_preparation, put_off_preparation
from storage.results import results_awaiting_composition, store_documents
from storage.waits import ConfiguredWaits, end_impossible_waits

AHEAD = NOON + seconds(3600)
"""What the clock said before it was set back to noon."""
POLICY = DeliveryPolicy()
CONFIGURED = ConfiguredWaits(
    study_lease_seconds=60, job_lease_seconds=60, delivery_seconds=POLICY.max_delay_seconds
)


@dataclass(frozen=True)
class Document:
    role: str = "SR"
    sop_class_uid: str = "1.2.840.10008.5.1.4.1.1.88.34"
    sop_instance_uid: str = "2.25.1"
    series_instance_uid: str = "2.25.9"
    data: bytes = b"the report"


def end(hospital, now=NOON) -> int:
    return end_impossible_waits(hospital.database, now, CONFIGURED)


def test_an_analysis_that_was_enqueued_ahead_is_claimed_at_once(hospital) -> None:
    hospital.enqueue(now=AHEAD)
    assert hospital.claim() == ()

    assert end(hospital) == 1

    assert len(hospital.claim()) == 1


def test_a_study_that_was_put_off_ahead_is_prepared_after_a_pause(hospital) -> None:
    hospital.arrive(1, now=AHEAD)
    complete_now(hospital.database, STUDY, AHEAD)
    task = hospital.claim_study(AHEAD)
    put_off_preparation(hospital.database, task, "disk away", AHEAD, 60, patience_seconds=9999)

    def claimed(now):
        return claim_study_for_preparation(hospital.database, "preparer-0", now, 60)

    assert end(hospital) == 1

    assert claimed(NOON) is None
    assert claimed(NOON + seconds(61)) is not None


def test_a_living_worker_keeps_its_lease_and_a_dead_one_does_not_for_long(hospital) -> None:
    hospital.enqueue(now=AHEAD)
    (job,) = hospital.claim(now=AHEAD)

    assert end(hospital) == 1

    assert reclaim_expired(hospital.database, NOON) == ()
    assert renew(hospital.database, [job], NOON, 60) == (job,)
    (back,) = reclaim_expired(hospital.database, NOON + seconds(61))
    assert back.id == job.id


def test_reports_and_answers_that_wait_ahead_are_sent(hospital) -> None:
    ahead = AHEAD + seconds(2 * 3600)
    hospital.analyse(now=ahead)
    (result,) = results_awaiting_composition(hospital.database)
    store_documents(hospital.database, result.id, (Document(),), ("pacs",), ahead)
    (group,) = due_deliveries(hospital.database, ahead)
    unanswered = [DeliveryOutcome(each.id, None, "no route") for each in group.deliveries]
    record_outcomes(hospital.database, "pacs", unanswered, ahead, POLICY)
    request = CommitmentRequest(
        "1.2.9", (Reference("1.2.3", "1.2.4"),), "CT1", "MEDIMGD", "10.0.0.1", "a1"
    )
    accept_commitment(hospital.database, request, ahead, first_attempt_at=ahead)
    assert not due_deliveries(hospital.database, NOON)
    assert not due_commitments(hospital.database, NOON)

    assert end(hospital) == 3

    assert len(due_deliveries(hospital.database, NOON)) == 1
    assert len(due_commitments(hospital.database, NOON)) == 1


def test_what_waits_as_long_as_it_may_is_left_alone_and_nothing_is_written(hospital) -> None:
    hospital.enqueue()
    hospital.enqueue("1.2.3")
    claim_batch(hospital.database, "worker-0", "cxr-pneumonia", "1.0.0", 1, NOON, 60)
    writes = watch_writes(hospital.database)

    # given the clock of another process a moment ahead
    assert end(hospital, NOON - seconds(5)) == 0

    assert writes == []
