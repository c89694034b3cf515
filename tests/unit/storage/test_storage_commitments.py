"""What is committed to, and how long a report is owed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from storage_hospital import CT_IMAGE_STORAGE, NOON, STUDY, make_data_set, make_prefix, seconds

from dicom_io.commitment import CommitmentReport, CommitmentRequest, Reference, ReportAnswer
from dicom_io.statuses import FailureReasonValues
from storage import commitments
from storage.arrivals import Arrival
from storage.audit import list_audit
from storage.commitments import (
    ReportPolicy,
    accept_commitment,
    due_commitments,
    forget_commitments,
    get_commitment,
    list_commitments,
    postpone_commitment,
    record_report,
)
from storage.completion import complete_now
from storage.errors import NotFound, SpoolFailure, TooManyCommitments
from storage.holdings import examine, in_spool
from storage.preparation import Preparation, claim_study_for_preparation, finish_preparation
from storage.recording import record_instances
from storage.retention import forget_old_traffic, purge_finished_studies
from storage.states import Actor, CommitmentState, StudyState

POLICY = ReportPolicy(jitter=0.0)
OTHER_CLASS = "1.2.840.10008.5.1.4.1.1.4"
ALL = CommitmentReport("1.2.3", (Reference(CT_IMAGE_STORAGE, "1"),), ())


def ct(number: int, study: str = STUDY) -> Reference:
    return Reference(CT_IMAGE_STORAGE, f"{study}.1.{number}")


def request(*references: Reference, transaction: str = "1.2.3", ae: str = "CT1"):
    return CommitmentRequest(
        transaction, references or (ct(1),), ae, "MEDIMGD", "10.0.0.5", "association"
    )


def reasons(found) -> dict[str, FailureReasonValues]:
    return {each.reference.sop_instance_uid: each.reason for each in found.failed}


def accept(hospital, *references: Reference, now=NOON, **changes):
    return accept_commitment(
        hospital.database, request(*references, **changes), now, first_attempt_at=now
    )


def answer(hospital, record, status, now=NOON, report=ALL, actor=Actor.COURIER):
    return record_report(
        hospital.database, record.id, report, ReportAnswer(status, "said"), actor, now, POLICY
    )


# What is committed to


def test_what_is_synced_and_indexed_is_committed_to(hospital) -> None:
    hospital.arrive(1, 2)

    found = examine(hospital.database, hospital.spool, [ct(1), ct(2)])

    assert found.committed == (ct(1), ct(2))
    assert (found.failed, found.unsettled) == ((), ())


def test_an_instance_that_never_came_is_not_here_and_takes_nothing_from_the_others(
    hospital,
) -> None:
    hospital.arrive(1)

    found = examine(hospital.database, hospital.spool, [ct(9), ct(1)])

    assert found.committed == (ct(1),)
    assert reasons(found) == {ct(9).sop_instance_uid: FailureReasonValues.NO_SUCH_INSTANCE}


def test_an_instance_under_another_class_is_not_the_one_asked_for(hospital) -> None:
    hospital.arrive(1)
    wrong = Reference(OTHER_CLASS, ct(1).sop_instance_uid)

    found = examine(hospital.database, hospital.spool, [wrong, ct(1)])

    assert found.committed == (ct(1),)
    assert reasons(found) == {wrong.sop_instance_uid: FailureReasonValues.CLASS_INSTANCE_CONFLICT}


def test_an_instance_the_index_has_not_heard_of_yet_is_asked_for_again(hospital) -> None:
    stored = hospital.store(1)

    found = examine(hospital.database, hospital.spool, [ct(1)])
    record_instances(hospital.database, [Arrival(stored)], NOON)
    later = examine(hospital.database, hospital.spool, [ct(1)])

    assert found.unsettled == (ct(1),)
    assert (found.committed, found.failed) == ((), ())
    assert later.committed == (ct(1),)


def test_half_a_file_is_no_instance(hospital) -> None:
    part = hospital.spool.folder / "incoming" / "receiver.host.1.aa.part"
    part.write_bytes(make_prefix(ct(1).sop_instance_uid))

    found = examine(hospital.database, hospital.spool, [ct(1)])

    assert reasons(found) == {ct(1).sop_instance_uid: FailureReasonValues.NO_SUCH_INSTANCE}


def test_a_file_that_changed_its_size_is_not_committed_to(hospital) -> None:
    hospital.arrive(1, 2)
    path = next(path for path in hospital.spool.stored_instances() if path.stem.endswith(".1"))
    path.write_bytes(path.read_bytes()[:-1])

    found = examine(hospital.database, hospital.spool, [ct(1), ct(2)])

    assert found.committed == (ct(2),)
    assert reasons(found) == {ct(1).sop_instance_uid: FailureReasonValues.PROCESSING_FAILURE}


def test_a_file_that_somebody_removed_is_not_committed_to(hospital) -> None:
    hospital.arrive(1)
    next(hospital.spool.stored_instances()).unlink()

    found = examine(hospital.database, hospital.spool, [ct(1)])

    assert reasons(found) == {ct(1).sop_instance_uid: FailureReasonValues.NO_SUCH_INSTANCE}


def test_an_unmounted_spool_is_a_reason_to_ask_later_and_no_verdict(hospital) -> None:
    hospital.arrive(1)
    studies = hospital.spool.folder / "studies"
    studies.rename(hospital.spool.folder / "elsewhere")

    for reference in (ct(1), ct(2)):
        with pytest.raises(SpoolFailure, match="is not there"):
            examine(hospital.database, hospital.spool, [reference])


def test_an_instance_with_two_contents_is_not_committed_to(hospital) -> None:
    hospital.arrive(1, 2)
    hospital.arrive(1, pixels=b"\5\6\7\x08")

    found = examine(hospital.database, hospital.spool, [ct(1), ct(2)])

    assert found.committed == (ct(2),)
    assert reasons(found) == {ct(1).sop_instance_uid: FailureReasonValues.PROCESSING_FAILURE}


def test_an_instance_with_other_content_that_the_index_has_not_heard_of_is_asked_for_again(
    hospital,
) -> None:
    hospital.arrive(1, 2)
    hospital.store(1, pixels=b"\7" * 16)

    found = examine(hospital.database, hospital.spool, [ct(1), ct(2)])

    assert found.unsettled == (ct(1),)
    assert (found.committed, found.failed) == ((ct(2),), ())


def test_an_instance_uid_used_in_two_studies_is_not_committed_to(hospital) -> None:
    hospital.arrive(1)
    other = f"{STUDY}.7"
    stored = hospital.spool.store(
        make_prefix(ct(1).sop_instance_uid),
        make_data_set(ct(1).sop_instance_uid, study=other, series=f"{other}.1"),
    )
    record_instances(hospital.database, [Arrival(stored)], NOON)

    found = examine(hospital.database, hospital.spool, [ct(1)])

    assert reasons(found) == {ct(1).sop_instance_uid: FailureReasonValues.PROCESSING_FAILURE}


def test_what_retention_removed_is_not_here(hospital) -> None:
    hospital.arrive(1)
    complete_now(hospital.database, STUDY, NOON)
    task = claim_study_for_preparation(hospital.database, "preparer-0", NOON, 60)
    finish_preparation(hospital.database, task, Preparation(StudyState.UNMATCHED, ""), NOON)
    later = NOON + seconds(86400 * 31)
    assert purge_finished_studies(hospital.database, hospital.spool, later, older_than_days=30)

    found = examine(hospital.database, hospital.spool, [ct(1)])

    assert reasons(found) == {ct(1).sop_instance_uid: FailureReasonValues.NO_SUCH_INSTANCE}


def test_many_instances_are_looked_for_in_the_spool_at_once(hospital) -> None:
    for number in range(1, 13):
        hospital.store(number, study=f"{STUDY}.{number}")
    wanted = [ct(number, f"{STUDY}.{number}").sop_instance_uid for number in range(1, 13)]

    assert in_spool(hospital.spool, [*wanted, "1.2.3.4"]) == set(wanted)
    assert in_spool(hospital.spool, [wanted[0], "1.2.3.4"]) == {wanted[0]}


def test_an_instance_is_found_by_its_uid_without_reading_the_whole_index(hospital) -> None:
    with hospital.database.read() as connection:
        plan = connection.exec_driver_sql(
            "EXPLAIN QUERY PLAN SELECT path FROM instance WHERE sop_instance_uid IN ('1', '2')"
        ).all()

    assert "USING INDEX ix_instance_sop" in str(plan)


# How long a report is owed


def test_a_request_is_owed_until_its_requester_took_the_report(hospital) -> None:
    record = accept(hospital, ct(1), ct(2))

    (due,) = due_commitments(hospital.database, NOON)
    assert due == record
    assert due.request == request(ct(1), ct(2))
    done = answer(hospital, record, 0x0000, actor=Actor.RECEIVER)

    assert (done.state, done.committed_count, done.failed_count) == ("reported", 1, 0)
    assert due_commitments(hospital.database, NOON + seconds(1e6)) == ()
    (line,) = list_audit(hospital.database, subject="1.2.3")
    assert (line.actor, line.action) == ("receiver", "commitment reported")


def test_a_report_nobody_answered_is_repeated_with_growing_pauses_until_it_is_too_old(
    hospital,
) -> None:
    record = accept(hospital)

    pauses = []
    now = NOON
    for _ in range(7):
        after = answer(hospital, record, None, now)
        pauses.append((after.next_attempt_at - now).total_seconds())
        now = after.next_attempt_at
    too_late = answer(hospital, record, None, NOON + seconds(POLICY.max_age_seconds))

    assert pauses == [10, 20, 40, 80, 160, 300, 300]
    assert (after.state, after.attempts, after.refusals) == (CommitmentState.PENDING, 7, 0)
    assert (too_late.state, too_late.last_answer) == (CommitmentState.FAILED, "said")


def test_a_requester_that_keeps_refusing_its_report_is_believed(hospital) -> None:
    record = accept(hospital)

    states = [answer(hospital, record, 0x0110).state for _ in range(5)]

    assert states == ["pending"] * 4 + ["failed"]
    assert get_commitment(hospital.database, record.id).last_answer == "0110 failure: said"


def test_an_answer_after_the_end_changes_nothing(hospital) -> None:
    record = accept(hospital)
    done = answer(hospital, record, 0x0000)

    assert answer(hospital, record, None, NOON + seconds(9)) == done


def test_a_request_repeated_while_its_report_is_owed_is_one_request(hospital) -> None:
    first = accept(hospital, ct(1), ct(2))

    again = accept(hospital, ct(1), ct(2), now=NOON + seconds(5))

    assert again == first
    assert len(list_commitments(hospital.database)) == 1


def test_other_instances_under_a_transaction_in_use_are_a_duplicate(hospital) -> None:
    accept(hospital, ct(1))

    other = accept(hospital, ct(2))
    stranger = accept(hospital, ct(2), ae="CT2")

    assert (other.is_duplicate, stranger.is_duplicate) == (True, False)


def test_a_transaction_uid_may_be_used_again_after_its_report(hospital) -> None:
    answer(hospital, accept(hospital, ct(1)), 0x0000)

    again = accept(hospital, ct(2))

    assert not again.is_duplicate
    assert again.state is CommitmentState.PENDING


def test_requests_beyond_the_limit_are_not_kept(hospital, monkeypatch) -> None:
    monkeypatch.setattr(commitments, "MOST_PENDING", 2)
    accept(hospital, transaction="1.1")
    accept(hospital, transaction="1.2")

    with pytest.raises(TooManyCommitments, match="2 reports"):
        accept(hospital, transaction="1.3")


def test_a_postponed_report_comes_when_it_is_due(hospital) -> None:
    record = accept(hospital)

    postpone_commitment(hospital.database, record.id, NOON + seconds(5))

    assert due_commitments(hospital.database, NOON + seconds(4)) == ()
    assert due_commitments(hospital.database, NOON + seconds(5)) == (
        replace(record, next_attempt_at=NOON + seconds(5)),
    )


def test_settled_requests_are_forgotten_with_the_old_traffic_and_owed_ones_never(hospital) -> None:
    done = accept(hospital, transaction="1.1")
    answer(hospital, done, 0x0000)
    owed = accept(hospital, transaction="1.2")

    assert forget_commitments(hospital.database, NOON) == 0
    forget_old_traffic(hospital.database, NOON + seconds(86400 * 31), older_than_days=30)

    assert list_commitments(hospital.database) == (owed,)
    with pytest.raises(NotFound, match="storage commitment"):
        get_commitment(hospital.database, done.id)
