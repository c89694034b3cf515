"""Which of a study's preparations a result belongs to: an earlier one never speaks last."""

from __future__ import annotations

from dataclasses import replace

import pytest
from storage_hospital import CXR, NOON, PNEUMONIA, STUDY, make_tensor, seconds

from dicom_io.errors import RefusalReason
from dicom_io.vocabulary import ModelIdentity, PresenceValues
from storage.claims import claim_batch, give_back, reclaim_expired
from storage.completion import complete_now
from storage.dossier import read_dossier
from storage.endings import Analysed, fail_attempt, finish_job, refuse_job
from storage.enqueueing import NewRefusal
from storage.jobs import ClaimedJob, drop_tensor, get_job
from storage.preparation import Preparation, PreparationTask, finish_preparation
from storage.results import latest_results
from storage.retry import retry_study
from storage.standings import (
    Decision,
    VersionDigests,
    admit_version,
    refuse_jobs_of_retired,
    retire_version,
)
from storage.states import JobState, StudyState
from storage.stuck_studies import WaitsForPerson, stuck_studies

NEWER = replace(CXR, version="2.0.0", weights_sha256="cd" * 32)
ABSENT = replace(PNEUMONIA, presence=PresenceValues.ABSENT, probability=0.1)
LATER = NOON + seconds(3600)
NEXT_DAY = NOON + seconds(86400)
DECIDED = Decision(LATER, "dr-house", "better on our films")


def digests(model: ModelIdentity) -> VersionDigests:
    return VersionDigests(model.name, model.version, "a1" * 32, model.weights_sha256)


def take(hospital, model: ModelIdentity, now=LATER) -> ClaimedJob:
    (job,) = claim_batch(
        hospital.database, "worker-0", model.name, model.version, 1, now, 2 * 86400
    )
    return job


def end(hospital, job: ClaimedJob, finding=PNEUMONIA, now=LATER) -> JobState:
    return finish_job(hospital.database, Analysed(job, (finding,), now), now)


def speak(hospital, model: ModelIdentity, finding=PNEUMONIA, now=LATER) -> int:
    """Let a version be asked about the study again, and answer; return its job's id."""
    retry_study(hospital.database, STUDY, now, prepare_again=True)
    hospital.prepare(now, models=(model,))
    job = take(hospital, model, now)
    assert end(hospital, job, finding, now) is JobState.DONE
    return job.id


def said(hospital) -> list[tuple[str, str]]:
    """Return version and kind of every result, oldest first."""
    return [(r.model.version, r.kind.value) for r in read_dossier(hospital.database, STUDY).results]


def test_what_failed_of_an_old_version_is_not_tried_again_after_the_new_one_spoke(
    hospital,
) -> None:
    """It failed while the new one was prepared: before, nobody would have to end it."""
    failed = hospital.enqueue()
    (job,) = hospital.claim()
    retry_study(hospital.database, STUDY, LATER, prepare_again=True)
    hospital.prepare(LATER, models=(NEWER,))
    fail_attempt(hospital.database, job, "the network broke", retryable=False, now=LATER)
    end(hospital, take(hospital, NEWER))

    retried = retry_study(hospital.database, STUDY, NEXT_DAY)

    assert (retried.job_ids, retried.superseded_job_ids) == ((), (failed,))
    assert (retried.prepared_again, retried.anything) == (False, True)
    assert hospital.claim(now=NEXT_DAY) == ()
    assert get_job(hospital.database, failed).state is JobState.SUPERSEDED
    assert said(hospital) == [("1.0.0", "failure"), ("2.0.0", "finding")]
    assert stuck_studies(hospital.database, WaitsForPerson.FAILED) == ()


@pytest.mark.parametrize(
    ("model", "digest"),
    [(NEWER, "cd" * 32), (replace(CXR, weights_sha256="ee" * 32), "ab" * 32)],
    ids=["another version", "a package replaced under its version, that prepares otherwise"],
)
def test_one_retry_is_enough_where_the_model_is_asked_otherwise_than_when_it_failed(
    hospital, model, digest
) -> None:
    failed = hospital.enqueue()
    (job,) = hospital.claim()
    fail_attempt(hospital.database, job, "the network broke", retryable=False, now=NOON)

    retry_study(hospital.database, STUDY, LATER, prepare_again=True)
    prepared = hospital.prepare(LATER, models=(model,), tensor=make_tensor(digest=digest))

    assert prepared.superseded_job_ids == (failed,)
    assert end(hospital, take(hospital, model)) is JobState.DONE
    assert stuck_studies(hospital.database, WaitsForPerson.FAILED) == ()
    assert not retry_study(hospital.database, STUDY, NEXT_DAY).anything


def test_what_another_model_failed_at_still_waits_for_a_person(hospital) -> None:
    failed = hospital.enqueue()
    (job,) = hospital.claim()
    fail_attempt(hospital.database, job, "the network broke", retryable=False, now=NOON)

    retry_study(hospital.database, STUDY, LATER, prepare_again=True)
    hospital.prepare(LATER, models=(replace(CXR, name="another"),))

    assert get_job(hospital.database, failed).state is JobState.FAILED


def _finds_nothing(hospital, job: ClaimedJob) -> None:
    end(hospital, job, ABSENT, NEXT_DAY)


def _fails(hospital, job: ClaimedJob) -> None:
    fail_attempt(hospital.database, job, "it broke", retryable=False, now=NEXT_DAY)


def _refuses(hospital, job: ClaimedJob) -> None:
    reason, at = RefusalReason.QUALITY, NEXT_DAY
    refuse_job(hospital.database, job, reason, "blank", analysis_started_at=at, now=at)


def _kills_two_workers(hospital, job: ClaimedJob) -> None:
    reclaim_expired(hospital.database, NEXT_DAY, owner=job.owner)
    take(hospital, CXR, NEXT_DAY)
    reclaim_expired(hospital.database, NEXT_DAY, owner=job.owner)


def _given_back_and_refused(hospital, job: ClaimedJob) -> None:
    give_back(hospital.database, job.owner, NEXT_DAY)
    retire_version(hospital.database, digests(CXR), DECIDED)


def _retired_and_swept(hospital, job: ClaimedJob) -> None:
    retire_version(hospital.database, digests(CXR), DECIDED)
    give_back(hospital.database, job.owner, NEXT_DAY)
    assert refuse_jobs_of_retired(hospital.database, NEXT_DAY) == ()


def _retired_meanwhile(hospital, job: ClaimedJob) -> None:
    retire_version(hospital.database, digests(CXR), DECIDED)
    end(hospital, job, ABSENT, NEXT_DAY)


@pytest.mark.parametrize(
    "late",
    [
        _finds_nothing,
        _fails,
        _refuses,
        _kills_two_workers,
        _given_back_and_refused,
        _retired_and_swept,
        _retired_meanwhile,
    ],
)
def test_what_an_old_version_had_in_hand_does_not_replace_what_the_new_one_said(
    hospital, late
) -> None:
    old_id = hospital.enqueue()
    old = take(hospital, CXR)
    speak(hospital, NEWER)

    late(hospital, old)

    assert said(hospital) == [("2.0.0", "finding")]
    assert get_job(hospital.database, old_id).state is JobState.SUPERSEDED


def test_an_old_version_that_ends_before_the_new_one_is_still_heard(hospital) -> None:
    hospital.enqueue()
    old = take(hospital, CXR)
    retry_study(hospital.database, STUDY, LATER, prepare_again=True)
    hospital.prepare(LATER, models=(NEWER,))

    states = [end(hospital, each) for each in (old, take(hospital, NEWER))]

    assert states == [JobState.DONE, JobState.DONE]
    assert said(hospital) == [("1.0.0", "finding"), ("2.0.0", "finding")]


@pytest.mark.parametrize("clock", [NEXT_DAY, NOON, NOON - seconds(3600)])
@pytest.mark.parametrize("before", [JobState.FAILED, JobState.REFUSED, JobState.SUPERSEDED])
def test_back_at_an_earlier_version_it_speaks_last_whatever_the_clock_says(
    hospital, clock, before: JobState
) -> None:
    hospital.enqueue()
    if before is not JobState.SUPERSEDED:
        (_fails if before is JobState.FAILED else _refuses)(hospital, take(hospital, CXR))
    speak(hospital, NEWER)

    speak(hospital, CXR, now=clock)

    assert said(hospital)[-2:] == [("2.0.0", "finding"), ("1.0.0", "finding")]


def test_back_at_an_earlier_version_what_it_has_in_hand_counts_as_of_now(hospital) -> None:
    hospital.enqueue()
    old = take(hospital, CXR)
    speak(hospital, NEWER)
    retry_study(hospital.database, STUDY, NEXT_DAY, prepare_again=True)
    hospital.prepare(NEXT_DAY, models=(CXR,))

    state = end(hospital, old, now=NEXT_DAY)

    assert state is JobState.DONE
    assert said(hospital) == [("2.0.0", "finding"), ("1.0.0", "finding")]


def test_a_model_of_another_name_overtakes_nothing(hospital) -> None:
    hospital.enqueue()
    old = take(hospital, CXR)
    speak(hospital, replace(NEWER, name="ct-nodule"))

    assert end(hospital, old) is JobState.DONE


def test_what_was_refused_before_a_later_preparation_spoke_waits_for_nobody(hospital) -> None:
    hospital.enqueue()
    _refuses(hospital, take(hospital, CXR))
    admit_version(hospital.database, digests(NEWER), DECIDED)
    speak(hospital, NEWER)

    retried = retry_study(hospital.database, STUDY, NEXT_DAY)

    assert not retried.prepared_again
    assert stuck_studies(hospital.database, WaitsForPerson.REFUSED) == ()


def refusal_of(task: PreparationTask, job: ClaimedJob) -> Preparation:
    """Return the preparer's refusal of what a job was about."""
    refusal = NewRefusal(
        CXR, job.series_instance_uid, task.instance_set_digest, RefusalReason.GEOMETRY,
        "slices are missing", preprocessing_digest=job.tensor.preprocessing_digest,
    )  # fmt: skip
    return Preparation(StudyState.REFUSED, "", refusals=[refusal])


def refuse_again(hospital, job: ClaimedJob) -> None:
    """Let the preparer refuse what a job was about, in the newest preparation."""
    retry_study(hospital.database, STUDY, NEXT_DAY, prepare_again=True)
    task = hospital.claim_study(NEXT_DAY)
    finish_preparation(hospital.database, task, refusal_of(task, job), NEXT_DAY)


def test_back_at_an_earlier_version_it_may_refuse_what_it_failed_at(hospital) -> None:
    hospital.enqueue()
    failed = take(hospital, CXR)
    _fails(hospital, failed)
    speak(hospital, NEWER)

    refuse_again(hospital, failed)

    assert get_job(hospital.database, failed.id).state is JobState.REFUSED
    assert said(hospital)[-2:] == [("2.0.0", "finding"), ("1.0.0", "refusal")]


def test_what_failed_and_is_refused_when_it_is_prepared_again_is_refused(hospital) -> None:
    hospital.enqueue()
    failed = take(hospital, CXR)
    _fails(hospital, failed)

    refuse_again(hospital, failed)

    job = get_job(hospital.database, failed.id)
    assert (job.state, job.reason) == (JobState.REFUSED, "slices are missing")
    assert said(hospital) == [("1.0.0", "failure"), ("1.0.0", "refusal")]
    assert stuck_studies(hospital.database, WaitsForPerson.FAILED) == ()


def test_what_failed_without_a_tensor_ends_with_a_preparation_that_does_not_want_it(
    hospital,
) -> None:
    # Given an analysis that failed because its tensor was lost,
    failed = hospital.enqueue()
    with hospital.database.write() as connection:
        drop_tensor(connection, failed)
    assert hospital.claim() == ()
    assert get_job(hospital.database, failed).state is JobState.FAILED

    # when a retry prepares the study anew, and no model reads it any more,
    assert retry_study(hospital.database, STUDY, LATER).prepared_again
    unmatched = Preparation(StudyState.UNMATCHED, "no model reads it")
    finish_preparation(hospital.database, hospital.claim_study(LATER), unmatched, LATER)

    # nothing could let it run again: it waits for nobody.
    assert get_job(hospital.database, failed).state is JobState.SUPERSEDED
    assert stuck_studies(hospital.database, WaitsForPerson.FAILED) == ()
    assert said(hospital) == [("1.0.0", "failure")]


def test_back_at_an_earlier_version_it_speaks_again_of_what_it_has_analysed(hospital) -> None:
    first = hospital.analyse()
    speak(hospital, NEWER)

    assert speak(hospital, CXR, ABSENT, NEXT_DAY) == first

    assert [each[0] for each in said(hospital)] == ["1.0.0", "2.0.0", "1.0.0"]
    (latest,) = latest_results(hospital.database, [STUDY])[STUDY]
    assert (latest.version_number, latest.findings) == (3, (ABSENT,))
    assert latest.predecessor_result_id is not None


def test_what_two_series_said_is_not_analysed_again_for_the_one_that_spoke_first(
    hospital,
) -> None:
    hospital.arrive(1)
    hospital.arrive(2, series=f"{STUDY}.2")
    complete_now(hospital.database, STUDY, NOON)
    for now in (NOON, LATER):
        task = hospital.claim_study(now)
        jobs = [hospital.new_job(task), hospital.new_job(task, series_instance_uid=f"{STUDY}.2")]
        routed = Preparation(StudyState.ROUTED, "", jobs=jobs)
        finish_preparation(hospital.database, task, routed, now)
        if now == NOON:
            for _ in jobs:
                end(hospital, take(hospital, CXR))
            retry_study(hospital.database, STUDY, LATER, prepare_again=True)

    assert hospital.claim(now=LATER) == ()


def test_back_at_a_replaced_version_what_was_said_keeps_the_weights_that_said_it(hospital) -> None:
    hospital.analyse()
    speak(hospital, NEWER)
    replaced = replace(CXR, weights_sha256="ef" * 32)

    speak(hospital, replaced, ABSENT, NEXT_DAY)

    results = read_dossier(hospital.database, STUDY).results
    assert [each.model for each in results] == [CXR, NEWER, replaced]


def prepare_again(hospital, model: ModelIdentity, now=LATER) -> int:
    """Let a version be asked about the study again; return its job's id."""
    retry_study(hospital.database, STUDY, now, prepare_again=True)
    return hospital.prepare(now, models=(model,)).job_ids[0]


def test_a_version_wanted_and_not_heard_again_lets_what_was_said_since_stand(hospital) -> None:
    hospital.analyse()
    speak(hospital, NEWER)
    prepare_again(hospital, CXR)

    job_id = prepare_again(hospital, NEWER)

    assert get_job(hospital.database, job_id).state is JobState.DONE
    assert said(hospital) == [("1.0.0", "finding"), ("2.0.0", "finding")]


def test_what_a_version_said_before_it_was_wanted_again_overtakes_nothing(hospital) -> None:
    newest = replace(NEWER, version="3.0.0")
    hospital.analyse()
    speak(hospital, NEWER)
    prepare_again(hospital, newest)
    between = take(hospital, newest)
    prepare_again(hospital, CXR)

    states = [end(hospital, each) for each in (between, take(hospital, CXR))]

    assert states == [JobState.DONE, JobState.DONE]
    assert [each[0] for each in said(hospital)] == ["1.0.0", "2.0.0", "3.0.0", "1.0.0"]


def test_a_refusal_is_said_again_after_another_version_spoke_while_it_was_prepared(
    hospital,
) -> None:
    hospital.enqueue()
    refused = take(hospital, CXR)
    _refuses(hospital, refused)
    prepare_again(hospital, NEWER)
    between = take(hospital, NEWER)
    retry_study(hospital.database, STUDY, NEXT_DAY, prepare_again=True)
    task = hospital.claim_study(NEXT_DAY)
    end(hospital, between, now=NEXT_DAY)

    finish_preparation(hospital.database, task, refusal_of(task, refused), NEXT_DAY)

    assert get_job(hospital.database, refused.id).reason == "slices are missing"
    assert said(hospital)[-2:] == [("2.0.0", "finding"), ("1.0.0", "refusal")]


def test_a_refusal_takes_the_place_of_what_another_version_said_since_it_was_analysed(
    hospital,
) -> None:
    hospital.enqueue()
    done = take(hospital, CXR)
    end(hospital, done)
    speak(hospital, NEWER)

    refuse_again(hospital, done)

    assert get_job(hospital.database, done.id).state is JobState.REFUSED
    assert said(hospital)[-2:] == [("2.0.0", "finding"), ("1.0.0", "refusal")]


def test_what_is_refused_again_and_was_not_replaced_says_nothing_new(hospital) -> None:
    hospital.enqueue()
    refused = take(hospital, CXR)
    _refuses(hospital, refused)

    refuse_again(hospital, refused)

    assert said(hospital) == [("1.0.0", "refusal")]
