"""The operator's retry: everything of one study that waits for a person is set going again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from storage import audit
from storage.completion import complete_within, hold_reason
from storage.database import Database
from storage.jobs import (
    JobRecord,
    has_tensor_within,
    jobs_of_study_within,
    retry_job_within,
)
from storage.precedence import overtaken_within, supersede_overtaken_within
from storage.redelivery import has_undelivered_within, resend_within
from storage.results import recompose_within, results_of_study_within
from storage.states import Actor, JobState, ResultState, StudyState
from storage.stuck_studies import WaitsForPerson
from storage.studies import StudyRecord, require_images, require_study

_STUCK_JOBS = (JobState.FAILED, JobState.REFUSED)
_STUCK_STUDIES = (StudyState.HELD, StudyState.UNMATCHED, StudyState.REFUSED)


@dataclass(frozen=True, slots=True)
class Retried:
    """What was set going again."""

    prepared_again: bool = False
    """The study is ``complete`` again; its preparer decides anew."""
    stays_held: bool = False
    """It is held, and that is not for a retry of many studies to end."""
    job_ids: tuple[int, ...] = ()
    superseded_job_ids: tuple[int, ...] = ()
    """Not tried again: a later preparation of the study has spoken already."""
    result_ids: tuple[int, ...] = ()
    delivery_ids: tuple[int, ...] = ()
    overtaken_delivery_ids: tuple[int, ...] = ()
    """Not sent again: their destination got a later version of the report, or is to get it."""

    @property
    def anything(self) -> bool:
        """False when nothing of the study waited for a person."""
        return self.prepared_again or any(
            (self.job_ids, self.superseded_job_ids, self.result_ids, self.delivery_ids)
        )


def retry_study(
    database: Database,
    study_instance_uid: str,
    now: datetime,
    *,
    prepare_again: bool = False,
    destinations: Sequence[str] = (),
    among: WaitsForPerson | None = None,
) -> Retried:
    """Retry what failed, was refused, rejected or given up.

    An analysis that failed or was refused before a later preparation of the study spoke, by a newer
    version say, is ended instead: its answer would take the place of the later one.

    Parameters
    ----------
    database : Database
        The state.
    study_instance_uid : str
        Which study.
    now : datetime
        The time.
    prepare_again : bool
        Also let a routed study be prepared again, for example after a model was installed.
        What is done already is not repeated; stuck jobs wait for the preparation, which knows
        the weights of now.
    destinations : sequence of str
        Every destination that is configured: one that was never offered a result gets it, and
        deliveries to others are given up. With none named the outbox keeps its destinations.
    among : WaitsForPerson, optional
        It is one of many studies that wait over this, and nobody looked at it by itself: a hold
        ends only when that is what they wait over, and never one that ``hold_reason`` explains.

    Raises
    ------
    NotFound
        No such study.
    ImagesRemoved
        Retention removed its images: until it is sent again, only documents that did not arrive
        somewhere can be sent once more, and there is none.
    ImagesLost
        None of its images is known.
    """
    with database.write() as connection:
        study = require_study(connection, study_instance_uid)
        if study.purged_at is None:
            retried = _retry_all(connection, study, now, prepare_again, destinations, among)
        else:
            retried = _resend_kept(connection, study, now, prepare_again, destinations)
        audit.append(
            connection,
            now,
            Actor.OPERATOR,
            "retry",
            study_instance_uid,
            prepared_again=retried.prepared_again,
            jobs=retried.job_ids,
            superseded_jobs=retried.superseded_job_ids,
            results=retried.result_ids,
            deliveries=retried.delivery_ids,
        )
    return retried


def _retry_all(
    connection: Connection,
    study: StudyRecord,
    now: datetime,
    prepare_again: bool,
    destinations: Sequence[str],
    among: WaitsForPerson | None,
) -> Retried:
    uid = study.study_instance_uid
    superseded, stuck = _stuck_jobs(connection, uid)
    for job in superseded:
        supersede_overtaken_within(connection, job, Actor.OPERATOR, now)
    # A study that is prepared again anyway revives its jobs with what the preparer finds.
    jobs = [job for job in stuck if not prepare_again and has_tensor_within(connection, job.id)]
    for job in jobs:
        retry_job_within(connection, job, now)
    stays_held = _stays_held(study, among)
    again = (study.state in _STUCK_STUDIES and not stays_held) or (
        study.state is StudyState.ROUTED and (prepare_again or _without(jobs, stuck))
    )
    if again:
        evidence = {"reason": "retried by the operator", "judged_at": now.isoformat()}
        complete_within(connection, uid, evidence, actor=Actor.OPERATOR, now=now)
    recomposed = _recompose(connection, uid, now)
    resent = resend_within(connection, uid, destinations, now)
    return Retried(
        again,
        stays_held,
        tuple(job.id for job in jobs),
        tuple(job.id for job in superseded),
        recomposed,
        resent.delivery_ids,
        resent.overtaken_ids,
    )


def _resend_kept(
    connection: Connection,
    study: StudyRecord,
    now: datetime,
    prepare_again: bool,
    destinations: Sequence[str],
) -> Retried:
    """Send what retention kept of a study because it did not arrive; the rest is gone."""
    uid = study.study_instance_uid
    if prepare_again or not has_undelivered_within(connection, uid):
        require_images(study)
    resent = resend_within(connection, uid, destinations, now)
    return Retried(delivery_ids=resent.delivery_ids, overtaken_delivery_ids=resent.overtaken_ids)


def _stuck_jobs(
    connection: Connection, study_instance_uid: str
) -> tuple[list[JobRecord], list[JobRecord]]:
    """Return the study's stuck jobs: those a later preparation overtook, and the others."""
    overtaken: list[JobRecord] = []
    others: list[JobRecord] = []
    for job in jobs_of_study_within(connection, study_instance_uid):
        if job.state in _STUCK_JOBS:
            (overtaken if overtaken_within(connection, job) else others).append(job)
    return overtaken, others


def _stays_held(study: StudyRecord, among: WaitsForPerson | None) -> bool:
    if among is None or study.state is not StudyState.HELD:
        return False
    to_look_into = hold_reason(
        study.instance_count, study.patient_mismatch_count, study.purged_instance_count
    )
    return among is not WaitsForPerson.HELD or bool(to_look_into)


def _without(jobs: list[JobRecord], stuck: list[JobRecord]) -> bool:
    """True when some stuck job has no tensor and has to be prepared again."""
    return len(jobs) < len(stuck)


def _recompose(connection: Connection, uid: str, now: datetime) -> tuple[int, ...]:
    results = results_of_study_within(connection, uid)
    stuck = [each for each in results if each.state is ResultState.UNCOMPOSABLE]
    for each in stuck:
        recompose_within(connection, each, now)
    return tuple(each.id for each in stuck)
