"""How a claimed job ends: with findings, a refusal, another attempt, or as a dead letter.

Every ending is one transaction of the job's move and its result, open to the lease's holder only.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection

from dicom_io.errors import RefusalReason
from storage import audit
from storage.clock import after
from storage.database import Database
from storage.errors import LeaseLost
from storage.explanations import write_explanations
from storage.jobs import (
    ClaimedJob,
    JobRecord,
    drop_tensor,
    move_job,
    require_job,
    result_of,
)
from storage.plain_endings import Analysed, finish_plain_ones, plain_ones
from storage.precedence import overtaken_within, supersede_overtaken_within
from storage.results import ResultKind, write_result
from storage.standings import withdrawal_within
from storage.states import Actor, JobState

__all__ = (
    "Analysed",
    "dead_letter",
    "fail_attempt",
    "finish_batch",
    "finish_job",
    "held_job",
    "refuse_job",
    "require_held",
)

DEFAULT_MAX_ATTEMPTS = 5


def finish_job(database: Database, analysed: Analysed, now: datetime) -> JobState:
    """Record findings: job ``done`` and its result, in one transaction. Repeating is harmless.

    Returns
    -------
    JobState
        ``done``; ``superseded`` when a later preparation of the study, with newer images or by
        another version, was finished first: its report stays the latest, and this one is not
        made; or ``refused`` when the model was retired meanwhile.

    Raises
    ------
    LeaseLost
        The job is somebody else's now; nothing was written.
    """
    with database.write() as connection:
        return _finish_within(connection, analysed, now)


def finish_batch(
    database: Database, batch: Sequence[Analysed], now: datetime
) -> tuple[JobState | None, ...]:
    """Record the findings of a batch in one transaction.

    Returns
    -------
    tuple of JobState or None
        In the order of `batch`, as ``finish_job``; None where the lease was lost.
    """
    with database.write() as connection:
        plain = plain_ones(connection, batch)
        states = tuple(
            JobState.DONE if place in plain else _finish_or_none(connection, each, now)
            for place, each in enumerate(batch)
        )
        finish_plain_ones(connection, plain.values(), now)
    return states


def _finish_or_none(connection: Connection, analysed: Analysed, now: datetime) -> JobState | None:
    try:
        return _finish_within(connection, analysed, now)
    except LeaseLost:
        return None


def _finish_within(connection: Connection, analysed: Analysed, now: datetime) -> JobState:
    current = require_job(connection, analysed.job.id)
    if current.run == analysed.job.run and current.state is JobState.DONE:
        return JobState.DONE
    job = require_held(connection, analysed.job)
    if overtaken_within(connection, job):
        return supersede_overtaken_within(connection, job, Actor.WORKER, now)
    withdrawn = withdrawal_within(connection, job.model.name, job.model.version)
    if withdrawn:
        # Retired while it was computing: what a person has stopped says nothing any more.
        return _refuse_within(
            connection, job, RefusalReason.WITHDRAWN, withdrawn, analysed.analysis_started_at, now
        )
    move_job(connection, job, JobState.DONE, Actor.WORKER, now, finished_at=now)
    drop_tensor(connection, job.id)
    result_id = write_result(
        connection,
        result_of(
            job,
            ResultKind.FINDING,
            analysed.analysis_started_at,
            findings=analysed.findings,
            detection=analysed.detection,
        ),
        now,
    )
    write_explanations(connection, result_id, analysed.explanations)
    return JobState.DONE


def refuse_job(
    database: Database,
    job: ClaimedJob,
    reason: RefusalReason,
    message: str,
    *,
    analysis_started_at: datetime,
    now: datetime,
) -> JobState:
    """Record that the model abstains; raises ``LeaseLost`` like ``finish_job``."""
    with database.write() as connection:
        held = require_held(connection, job)
        if overtaken_within(connection, held):
            return supersede_overtaken_within(connection, held, Actor.WORKER, now)
        return _refuse_within(connection, held, reason, message, analysis_started_at, now)


def _refuse_within(
    connection: Connection,
    held: JobRecord,
    reason: RefusalReason,
    message: str,
    analysis_started_at: datetime,
    now: datetime,
) -> JobState:
    move_job(connection, held, JobState.REFUSED, Actor.WORKER, now, reason=message, finished_at=now)
    result = result_of(
        held, ResultKind.REFUSAL, analysis_started_at, reason=reason, message=message
    )
    write_result(connection, result, now)
    return JobState.REFUSED


def fail_attempt(
    database: Database,
    job: ClaimedJob,
    reason: str,
    *,
    retryable: bool,
    now: datetime,
    max_attempts: int = DEFAULT_MAX_ATTEMPTS,
    retry_after_seconds: float = 0.0,
    suspect: bool = False,
) -> JobState:
    """End an attempt that failed: the job waits again, or is dead-lettered with a result.

    Parameters
    ----------
    database : Database
        The state.
    job : ClaimedJob
        Leased to the caller.
    reason : str
        What happened, in a sentence.
    retryable : bool
        Whether doing the same again can help.
    now : datetime
        This moment.
    max_attempts : int
        The last one ends as a dead letter.
    retry_after_seconds : float
        How long it waits before it may be claimed.
    suspect : bool
        It stopped a whole worker: from now on it is claimed alone, as after a crash, but no crash
        is counted beyond the first.

    Returns
    -------
    JobState
        ``waiting``, ``failed`` or ``superseded``.
    """
    with database.write() as connection:
        held = require_held(connection, job)
        if retryable and held.attempts < max_attempts:
            available = after(now, retry_after_seconds)
            crashes = max(1, held.crashes) if suspect else held.crashes
            move_job(
                connection,
                held,
                JobState.WAITING,
                Actor.WORKER,
                now,
                reason=reason,
                available_at=available,
                crashes=crashes,
            )
            return JobState.WAITING
        said = f"{reason} (attempt {held.attempts} of {max_attempts})" if retryable else reason
        return dead_letter(connection, held, said, Actor.WORKER, now)


def dead_letter(
    connection: Connection, job: JobRecord, reason: str, actor: Actor, now: datetime
) -> JobState:
    """Give a job up, with a result that says why, within the caller's transaction."""
    if overtaken_within(connection, job):
        return supersede_overtaken_within(connection, job, actor, now)
    move_job(connection, job, JobState.FAILED, actor, now, reason=reason, finished_at=now)
    write_result(
        connection,
        result_of(
            job,
            ResultKind.FAILURE,
            job.claimed_at or now,
            reason=RefusalReason.SOFTWARE_FAILURE,
            message=reason,
        ),
        now,
    )
    audit.append(
        connection,
        now,
        actor,
        "job dead-lettered",
        job.study_instance_uid,
        job_id=job.id,
        reason=reason,
    )
    return JobState.FAILED


def held_job(connection: Connection, job: ClaimedJob) -> JobRecord | None:
    """Return the job as it stands if it still runs under the caller's lease."""
    current = require_job(connection, job.id)
    mine = current.lease_owner == job.owner and current.run == job.run
    return current if mine and current.state is JobState.RUNNING else None


def require_held(connection: Connection, job: ClaimedJob) -> JobRecord:
    """Return the job as it stands; ``LeaseLost`` unless it runs under the caller's lease."""
    held = held_job(connection, job)
    if held is None:
        raise LeaseLost(
            f"job {job.id} is no longer leased to {job.owner}: "
            "the lease ran out and it was given to another; these findings are dropped"
        )
    return held
