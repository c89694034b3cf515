"""Preparation and the queue: claim, lease, finish, refuse, die, retry."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
from sqlalchemy import select
from storage_hospital import CXR, NOON, PNEUMONIA, STUDY, make_tensor, seconds

from dicom_io.errors import RefusalReason
from storage import schema
from storage.claims import claim_batch, give_back, reclaim_expired, renew
from storage.completion import complete_now
from storage.dossier import read_dossier
from storage.endings import Analysed, fail_attempt, finish_batch, finish_job, refuse_job
from storage.enqueueing import NewRefusal
from storage.errors import LeaseLost
from storage.jobs import get_job, waiting_models
from storage.preparation import (
    NewDecision,
    Preparation,
    claim_study_for_preparation,
    fail_preparation,
    finish_preparation,
    give_back_preparations,
    put_off_preparation,
    reclaim_preparations,
    renew_preparation,
)
from storage.results import ResultKind, latest_results
from storage.retry import retry_study
from storage.states import JobState, StudyState
from storage.studies import get_study

NEWER = replace(CXR, version="2.0.0")


def _tensors(hospital) -> int:
    with hospital.database.read() as connection:
        return len(connection.execute(select(schema.tensor.c.job_id)).all())


def _results(hospital, study: str = STUDY):
    return read_dossier(hospital.database, study).results


def test_a_complete_study_is_claimed_once_with_everything_in_it(hospital) -> None:
    hospital.arrive(1, 2)
    complete_now(hospital.database, STUDY, NOON)

    task = hospital.claim_study()

    assert task.study_instance_uid == STUDY
    assert [len(series.instances) for series in task.series] == [2]
    assert len(task.instance_set_digest) == 64
    assert claim_study_for_preparation(hospital.database, "other", NOON, 60) is None


def test_a_preparation_is_written_at_once_with_its_decisions(hospital) -> None:
    hospital.arrive(1)
    complete_now(hospital.database, STUDY, NOON)
    task = hospital.claim_study()
    decision = NewDecision("cxr", "1", None, chosen=False, evaluation={"Modality": ["CT", "DX"]})

    finish_preparation(
        hospital.database,
        task,
        Preparation(StudyState.UNMATCHED, "no model reads CT", [decision]),
        NOON,
    )

    dossier = read_dossier(hospital.database, STUDY)
    assert (dossier.study.state, dossier.study.reason) == ("unmatched", "no model reads CT")
    assert dossier.study.lease_owner is None
    assert [each.evaluation for each in dossier.decisions] == [{"Modality": ["CT", "DX"]}]


def test_a_preparation_that_a_late_instance_overtook_writes_nothing(hospital) -> None:
    hospital.arrive(1)
    complete_now(hospital.database, STUDY, NOON)
    task = hospital.claim_study()
    hospital.arrive(2)

    with pytest.raises(LeaseLost, match="reopened"):
        finish_preparation(
            hospital.database,
            task,
            Preparation(StudyState.ROUTED, "", jobs=[hospital.new_job(task)]),
            NOON,
        )
    with pytest.raises(LeaseLost):
        renew_preparation(hospital.database, task, NOON, 60)

    assert read_dossier(hospital.database, STUDY).jobs == ()


def test_a_preparation_of_an_older_set_is_dropped_though_its_owner_holds_the_newer(
    hospital,
) -> None:
    hospital.arrive(1)
    complete_now(hospital.database, STUDY, NOON)
    older = hospital.claim_study()
    hospital.arrive(2)
    complete_now(hospital.database, STUDY, NOON)
    newer = hospital.claim_study()

    with pytest.raises(LeaseLost):
        finish_preparation(hospital.database, older, Preparation(StudyState.UNMATCHED, ""), NOON)
    finish_preparation(hospital.database, newer, Preparation(StudyState.UNMATCHED, ""), NOON)

    assert get_study(hospital.database, STUDY).state is StudyState.UNMATCHED


def test_a_preparation_with_an_illegal_outcome_writes_nothing(hospital) -> None:
    hospital.arrive(1)
    complete_now(hospital.database, STUDY, NOON)
    task = hospital.claim_study()

    with pytest.raises(Exception, match="complete -> receiving"):
        finish_preparation(
            hospital.database,
            task,
            Preparation(StudyState.RECEIVING, "", jobs=[hospital.new_job(task)]),
            NOON,
        )

    assert _tensors(hospital) == 0


def test_a_study_that_kills_its_preparer_is_held_with_the_reason(hospital) -> None:
    hospital.arrive(1)
    complete_now(hospital.database, STUDY, NOON)
    database = hospital.database

    for attempt in range(3):
        now = NOON + seconds(100 * attempt)
        assert claim_study_for_preparation(database, "p", now, 60) is not None
        held = reclaim_preparations(database, now + seconds(61))

    assert [study.state for study in held] == [StudyState.HELD]
    assert "died 3 times" in held[0].reason
    assert claim_study_for_preparation(database, "p", NOON + seconds(999), 60) is None


def test_a_study_tried_more_often_than_is_allowed_now_is_held_and_not_left_for_ever(
    hospital,
) -> None:
    # Given a study that was freed twice, of five attempts,
    hospital.arrive(1)
    complete_now(hospital.database, STUDY, NOON)
    for _ in range(2):
        fail_preparation(hospital.database, hospital.claim_study(), "?", NOON, max_attempts=5)
    assert reclaim_preparations(hospital.database, NOON, max_attempts=5) == ()
    # when no more than two are allowed any more, nobody claims it,
    assert claim_study_for_preparation(hospital.database, "p", NOON, 60, max_attempts=2) is None

    (held,) = reclaim_preparations(hospital.database, NOON, max_attempts=2)

    # and it waits for a person, who can let it be tried anew.
    assert (held.state, held.reason) == (
        StudyState.HELD, "preparation failed or died 2 times; retry when the cause is found",
    )  # fmt: skip
    assert retry_study(hospital.database, STUDY, NOON).prepared_again
    assert hospital.claim_study().study.attempts == 1


def test_preparations_of_a_preparer_known_to_be_dead_are_free_at_once(hospital) -> None:
    hospital.arrive(1)
    complete_now(hospital.database, STUDY, NOON)
    hospital.claim_study(owner="dead")

    assert reclaim_preparations(hospital.database, NOON, owner="somebody else") == ()
    assert claim_study_for_preparation(hospital.database, "p", NOON, 60) is None
    reclaim_preparations(hospital.database, NOON, owner="dead")

    assert hospital.claim_study().study.attempts == 2


def test_a_preparation_given_back_is_no_attempt(hospital) -> None:
    hospital.arrive(1)
    complete_now(hospital.database, STUDY, NOON)

    for _ in range(5):
        task = hospital.claim_study()
        renew_preparation(hospital.database, task, NOON, 60)
        assert task.study.attempts == 1
        assert give_back_preparations(hospital.database, "preparer-0") == 1


@pytest.mark.parametrize("backlog_days", [0, 3])
def test_a_preparation_that_is_put_off_counts_only_when_patience_is_over(
    hospital, backlog_days: int
) -> None:
    hospital.arrive(1)
    complete_now(hospital.database, STUDY, NOON)
    first = NOON + seconds(86400 * backlog_days)

    early = [_put_off(hospital, first + seconds(60 * minute)) for minute in range(5)]
    soon = first + seconds(299)
    assert claim_study_for_preparation(hospital.database, "p", soon, 60) is None
    late = [_put_off(hospital, first + seconds(3600 + 60 * minute)) for minute in range(3)]

    assert set(early) == {StudyState.COMPLETE}
    assert late == [StudyState.COMPLETE, StudyState.COMPLETE, StudyState.HELD]
    assert "disk away" in get_study(hospital.database, STUDY).reason


def _put_off(hospital, now: datetime) -> StudyState:
    task = hospital.claim_study(now)
    return put_off_preparation(hospital.database, task, "disk away", now, 60, patience_seconds=3600)


def _retried(hospital, now: datetime) -> None:
    for minute in range(3):
        _put_off(hospital, now + seconds(60 * minute))
    retry_study(hospital.database, STUDY, now + seconds(180))


def _late_instance(hospital, now: datetime) -> None:
    hospital.arrive(2, now=now)
    complete_now(hospital.database, STUDY, now)


@pytest.mark.parametrize("anew", [_retried, _late_instance])
def test_patience_begins_anew_with_a_study_that_is_complete_again(hospital, anew) -> None:
    hospital.arrive(1)
    complete_now(hospital.database, STUDY, NOON)
    _put_off(hospital, NOON)
    later = NOON + seconds(2 * 3600)
    anew(hospital, later)

    states = [_put_off(hospital, later + seconds(600 + 60 * minute)) for minute in range(4)]

    assert set(states) == {StudyState.COMPLETE}


def test_a_preparation_that_keeps_failing_is_held(hospital) -> None:
    hospital.arrive(1)
    complete_now(hospital.database, STUDY, NOON)

    states = [
        fail_preparation(hospital.database, hospital.claim_study(), "disk unreadable", NOON)
        for _ in range(3)
    ]

    assert states == [StudyState.COMPLETE, StudyState.COMPLETE, StudyState.HELD]
    assert "disk unreadable" in get_study(hospital.database, STUDY).reason


def test_a_claimed_job_brings_its_tensor_back_bit_for_bit(hospital) -> None:
    job_id = hospital.enqueue()

    (job,) = hospital.claim()

    expected = make_tensor()
    assert (job.id, job.study_instance_uid, job.model) == (job_id, STUDY, CXR)
    np.testing.assert_array_equal(job.tensor.values, expected.values)
    assert job.tensor.values.dtype == np.float32
    assert replace(job.tensor, values=expected.values) == replace(expected, notes={"low": 2.0})
    assert hospital.claim() == ()
    assert get_job(hospital.database, job_id).state is JobState.RUNNING


def test_batches_respect_model_priority_and_age(hospital) -> None:
    first = hospital.enqueue("1.2.1")
    urgent = hospital.enqueue("1.2.2", priority=5)
    last = hospital.enqueue("1.2.3")
    hospital.enqueue("1.2.4", models=(NEWER,))

    waiting = waiting_models(hospital.database, NOON)

    assert [(each.model_version, each.jobs) for each in waiting] == [("1.0.0", 3), ("2.0.0", 1)]
    assert [job.id for job in hospital.claim(2)] == [urgent, first]
    assert [job.id for job in hospital.claim(2)] == [last]


def test_findings_end_a_job_once_and_for_all(hospital) -> None:
    job_id = hospital.enqueue()
    (job,) = hospital.claim()
    analysed = Analysed(job, (PNEUMONIA,), NOON)

    states = [finish_job(hospital.database, analysed, NOON + seconds(each)) for each in (1, 2)]

    assert states == [JobState.DONE, JobState.DONE]
    (result,) = _results(hospital)
    assert (result.job_id, result.kind, result.findings) == (job_id, "finding", (PNEUMONIA,))
    assert (result.version_number, result.predecessor_result_id) == (1, None)
    assert (result.model, result.finished_at) == (CXR, NOON + seconds(1))
    assert result.sop_instance_uids == (f"{STUDY}.1.1",)
    assert _tensors(hospital) == 0


def test_the_same_work_enqueued_again_is_the_same_job(hospital) -> None:
    job_id = hospital.analyse()

    retried = retry_study(hospital.database, STUDY, NOON, prepare_again=True)
    prepared = hospital.prepare()

    assert retried.prepared_again
    assert prepared.job_ids == (job_id,)
    assert get_job(hospital.database, job_id).state is JobState.DONE
    assert hospital.claim() == ()
    assert len(_results(hospital)) == 1


def test_a_new_model_version_is_new_work_and_names_its_predecessor(hospital) -> None:
    hospital.analyse()
    retry_study(hospital.database, STUDY, NOON, prepare_again=True)
    hospital.prepare(models=(CXR, NEWER))

    (job,) = claim_batch(hospital.database, "w", CXR.name, "2.0.0", 5, NOON, 60)
    finish_job(hospital.database, Analysed(job, (PNEUMONIA,), NOON), NOON)

    first, second = _results(hospital)
    assert (second.version_number, second.predecessor_result_id) == (2, first.id)
    assert first.result_digest != second.result_digest
    assert latest_results(hospital.database, [STUDY]) == {STUDY: (second,)}


def test_late_instances_supersede_the_job_that_still_waits(hospital) -> None:
    old = hospital.enqueue()
    hospital.arrive(2, now=NOON + seconds(60))
    complete_now(hospital.database, STUDY, NOON + seconds(90))

    prepared = hospital.prepare(NOON + seconds(91))

    assert prepared.superseded_job_ids == (old,)
    assert get_job(hospital.database, old).state is JobState.SUPERSEDED
    assert [job.id for job in hospital.claim(5, NOON + seconds(92))] == list(prepared.job_ids)
    assert _tensors(hospital) == 1


def test_an_older_set_that_is_finished_later_does_not_become_the_latest_report(hospital) -> None:
    old_id = hospital.enqueue()
    (old,) = hospital.claim()
    hospital.arrive(2, now=NOON + seconds(10))
    complete_now(hospital.database, STUDY, NOON + seconds(20))
    hospital.prepare(NOON + seconds(21))
    (new,) = hospital.claim(now=NOON + seconds(22))
    absent = replace(PNEUMONIA, probability=0.1)

    finish_job(hospital.database, Analysed(new, (PNEUMONIA,), NOON), NOON + seconds(23))
    state = finish_job(hospital.database, Analysed(old, (absent,), NOON), NOON + seconds(24))

    assert state is JobState.SUPERSEDED
    assert [result.job_id for result in _results(hospital)] == [new.id]
    assert get_job(hospital.database, old_id).state is JobState.SUPERSEDED


@pytest.mark.parametrize("reopened", [False, True])
def test_a_clock_set_back_does_not_make_the_newer_report_lose(hospital, reopened: bool) -> None:
    old_id = hospital.enqueue()
    (old,) = hospital.claim()
    earlier = NOON - seconds(3600)
    hospital.arrive(2, now=earlier)
    complete_now(hospital.database, STUDY, earlier)
    (new_id,) = hospital.prepare(earlier).job_ids
    (new,) = hospital.claim(now=earlier)
    if reopened:
        hospital.arrive(3, now=earlier)

    first = finish_job(hospital.database, Analysed(old, (PNEUMONIA,), earlier), earlier)
    second = finish_job(hospital.database, Analysed(new, (PNEUMONIA,), earlier), earlier)

    assert (first, second) == (JobState.DONE, JobState.DONE)
    assert [result.job_id for result in _results(hospital)] == [old_id, new_id]


def test_after_a_clock_set_back_the_older_set_still_does_not_overtake(hospital) -> None:
    hospital.enqueue()
    (old,) = hospital.claim()
    earlier = NOON - seconds(3600)
    hospital.arrive(2, now=earlier)
    complete_now(hospital.database, STUDY, earlier)
    hospital.prepare(earlier)
    (new,) = hospital.claim(now=earlier)

    finish_job(hospital.database, Analysed(new, (PNEUMONIA,), earlier), earlier)
    state = finish_job(hospital.database, Analysed(old, (PNEUMONIA,), earlier), earlier)

    assert state is JobState.SUPERSEDED
    assert [result.job_id for result in _results(hospital)] == [new.id]


def test_two_jobs_of_one_preparation_do_not_supersede_each_other(hospital) -> None:
    hospital.arrive(1)
    hospital.arrive(2, series=f"{STUDY}.2")
    complete_now(hospital.database, STUDY, NOON)
    task = hospital.claim_study()
    jobs = [hospital.new_job(task), hospital.new_job(task, series_instance_uid=f"{STUDY}.2")]
    finish_preparation(hospital.database, task, Preparation(StudyState.ROUTED, "", jobs=jobs), NOON)
    first, second = hospital.claim(2)

    states = finish_batch(
        hospital.database, [Analysed(each, (PNEUMONIA,), NOON) for each in (second, first)], NOON
    )

    assert states == (JobState.DONE, JobState.DONE)


def test_a_worker_whose_lease_ran_out_cannot_end_the_job(hospital) -> None:
    hospital.enqueue()
    (slow,) = hospital.claim(owner="slow")
    reclaim_expired(hospital.database, NOON + seconds(60))
    (fast,) = hospital.claim(now=NOON + seconds(61), owner="fast")

    assert renew(hospital.database, [slow], NOON, 60) == ()
    with pytest.raises(LeaseLost):
        finish_job(hospital.database, Analysed(slow, (), NOON), NOON)
    with pytest.raises(LeaseLost):
        fail_attempt(hospital.database, slow, "x", retryable=True, now=NOON)
    states = finish_batch(
        hospital.database,
        [Analysed(slow, (), NOON), Analysed(fast, (PNEUMONIA,), NOON)],
        NOON + seconds(62),
    )

    assert states == (None, JobState.DONE)
    (result,) = _results(hospital)
    assert result.findings == (PNEUMONIA,)


def test_a_renewed_lease_does_not_expire(hospital) -> None:
    hospital.enqueue()
    jobs = hospital.claim()

    assert renew(hospital.database, jobs, NOON + seconds(59), 60) == jobs
    assert reclaim_expired(hospital.database, NOON + seconds(61)) == ()


def test_a_job_that_kills_two_workers_is_a_dead_letter_and_its_neighbours_are_not(
    hospital,
) -> None:
    ids = [hospital.enqueue(f"1.2.{each}") for each in range(1, 4)]
    killer = ids[1]
    now = NOON

    for _ in range(9):
        now += seconds(100)
        batch = hospital.claim(8, now, owner="w")
        if killer in [job.id for job in batch]:
            reclaim_expired(hospital.database, now, owner="w")
        else:
            finish_batch(
                hospital.database, [Analysed(job, (PNEUMONIA,), now) for job in batch], now
            )

    states = [get_job(hospital.database, each).state for each in ids]
    assert states == [JobState.DONE, JobState.FAILED, JobState.DONE]
    dead = get_job(hospital.database, killer)
    assert (dead.crashes, dead.attempts) == (2, 2)
    (result,) = _results(hospital, "1.2.2")
    assert (result.kind, result.refusal_reason) == ("failure", RefusalReason.SOFTWARE_FAILURE)
    assert "2 workers died" in result.refusal_message


def test_jobs_given_back_wait_again_and_the_attempt_is_not_counted(hospital) -> None:
    job_id = hospital.enqueue()
    hospital.claim()

    assert give_back(hospital.database, "worker-0", NOON) == 1

    job = get_job(hospital.database, job_id)
    assert (job.state, job.attempts, job.crashes) == ("waiting", 0, 0)
    assert [each.id for each in hospital.claim()] == [job_id]


def test_a_failed_attempt_waits_and_after_the_last_is_a_dead_letter(hospital) -> None:
    job_id = hospital.enqueue()
    now = NOON
    states = []
    for _ in range(3):
        (job,) = hospital.claim(now=now)
        states.append(
            fail_attempt(
                hospital.database,
                job,
                "out of memory",
                retryable=True,
                now=now,
                max_attempts=3,
                retry_after_seconds=30,
            )
        )
        assert hospital.claim(now=now + seconds(29)) == ()
        now += seconds(30)

    assert states == [JobState.WAITING, JobState.WAITING, JobState.FAILED]
    assert "attempt 3 of 3" in get_job(hospital.database, job_id).reason
    assert _tensors(hospital) == 1


def test_a_failure_that_will_not_pass_is_a_dead_letter_at_once_and_can_be_retried(hospital) -> None:
    job_id = hospital.enqueue()
    (job,) = hospital.claim()
    fail_attempt(hospital.database, job, "shape", retryable=False, now=NOON)

    retried = retry_study(hospital.database, STUDY, NOON + seconds(5))

    assert (retried.job_ids, retried.prepared_again) == ((job_id,), False)
    (again,) = hospital.claim(now=NOON + seconds(6))
    assert (again.run, again.attempts) == (2, 1)
    finish_job(hospital.database, Analysed(again, (PNEUMONIA,), NOON), NOON + seconds(7))
    failure, finding = _results(hospital)
    assert (failure.kind, finding.kind) == (ResultKind.FAILURE, ResultKind.FINDING)
    assert finding.predecessor_result_id == failure.id


def test_a_worker_may_refuse(hospital) -> None:
    hospital.enqueue()
    (job,) = hospital.claim()

    refuse_job(
        hospital.database,
        job,
        RefusalReason.QUALITY,
        "blank image",
        analysis_started_at=NOON,
        now=NOON,
    )

    (result,) = _results(hospital)
    assert (result.kind, result.refusal_reason) == ("refusal", RefusalReason.QUALITY)
    assert result.refusal_message == "blank image"


def _refusal() -> NewRefusal:
    return NewRefusal(CXR, "", "ee" * 32, RefusalReason.GEOMETRY, "slices are missing")


def test_a_refusal_before_any_tensor_is_a_job_with_a_result(hospital) -> None:
    prepared = hospital.refuse(_refusal())

    (job_id,) = prepared.refused_job_ids
    job = get_job(hospital.database, job_id)
    assert (job.state, job.reason) == ("refused", "slices are missing")
    (result,) = _results(hospital)
    assert (result.kind, result.series_instance_uid) == ("refusal", "")
    assert get_study(hospital.database, STUDY).state is StudyState.REFUSED


def test_a_refused_study_is_prepared_again_by_retry_and_the_same_refusal_is_not_repeated(
    hospital,
) -> None:
    hospital.refuse(_refusal())

    retried = retry_study(hospital.database, STUDY, NOON)
    finish_preparation(
        hospital.database,
        hospital.claim_study(),
        Preparation(StudyState.REFUSED, "", refusals=[_refusal()]),
        NOON,
    )

    assert retried.prepared_again
    assert len(_results(hospital)) == 1


def test_a_refused_job_waits_again_when_a_retry_finds_it_fit(hospital) -> None:
    job_id = hospital.enqueue()
    (job,) = hospital.claim()
    refuse_job(
        hospital.database, job, RefusalReason.QUALITY, "x", analysis_started_at=NOON, now=NOON
    )
    with hospital.database.write() as connection:
        connection.execute(schema.tensor.delete())

    assert retry_study(hospital.database, STUDY, NOON).prepared_again
    prepared = hospital.prepare()

    assert prepared.job_ids == (job_id,)
    assert [each.run for each in hospital.claim()] == [2]


REPLACED = replace(CXR, weights_sha256="ef" * 32)


def test_a_retry_analyses_with_weights_replaced_under_the_same_version(hospital) -> None:
    job_id = hospital.enqueue()
    (job,) = hospital.claim()
    fail_attempt(hospital.database, job, "weights replaced", retryable=False, now=NOON)

    retried = retry_study(hospital.database, STUDY, NOON, prepare_again=True)
    # It waits for its preparer: with the old weights it would only fail once more.
    assert (retried.prepared_again, hospital.claim()) == (True, ())
    assert hospital.prepare(models=(REPLACED,)).job_ids == (job_id,)

    (again,) = hospital.claim()
    assert (again.model, again.run) == (REPLACED, 2)
    finish_job(hospital.database, Analysed(again, (PNEUMONIA,), NOON), NOON)
    assert _results(hospital)[-1].model == REPLACED


def test_a_job_that_waits_is_for_the_weights_of_the_newest_preparation(hospital) -> None:
    hospital.enqueue()
    retry_study(hospital.database, STUDY, NOON, prepare_again=True)

    hospital.prepare(models=(REPLACED,))

    assert [each.model for each in hospital.claim()] == [REPLACED]


def test_what_is_done_keeps_the_weights_it_was_done_with(hospital) -> None:
    hospital.analyse()
    retry_study(hospital.database, STUDY, NOON, prepare_again=True)

    hospital.prepare(models=(REPLACED,))

    assert [each.model for each in _results(hospital)] == [CXR]


def test_nothing_to_retry_is_said(hospital) -> None:
    hospital.analyse()

    assert not retry_study(hospital.database, STUDY, NOON).anything
