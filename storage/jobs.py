"""The queue: enqueue, claim with a lease, renew, finish, give back, reclaim, dead-letter, retry.

Owns the ``job`` and ``tensor`` tables. A job is never deleted; its tensor goes when the job is
done or superseded and stays while a retry may need it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from dicom_io.errors import RefusalReason
from dicom_io.vocabulary import Finding, ImageTensor, ModelIdentity
from storage import audit, schema
from storage.clock import after
from storage.database import Database
from storage.encoding import (
    identity_from_json,
    identity_to_json,
    tensor_from_columns,
    tensor_to_columns,
)
from storage.errors import LeaseLost, NotFound
from storage.results import NewResult, ResultKind, write_result
from storage.states import JOB_MOVES, Actor, JobState, check_move

CRASHES_BEFORE_DEAD_LETTER = 2
"""The second worker that a job takes down is the last one."""

DEFAULT_MAX_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class NewJob:
    """One analysis to be done; its tensor says which instances it reads and how it was made."""

    model: ModelIdentity
    series_instance_uid: str
    instance_set_digest: str
    tensor: ImageTensor
    priority: int = 0
    """Higher goes first."""


@dataclass(frozen=True, slots=True)
class NewRefusal:
    """A model that abstains before any tensor exists."""

    model: ModelIdentity
    series_instance_uid: str
    """Empty when no series could be chosen."""
    instance_set_digest: str
    reason: RefusalReason
    message: str
    sop_instance_uids: tuple[str, ...] = ()
    """The instances looked at."""
    preprocessing_digest: str = ""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job as it stands."""

    id: int
    study_instance_uid: str
    series_instance_uid: str
    model: ModelIdentity
    instance_set_digest: str
    preprocessing_digest: str
    sop_instance_uids: tuple[str, ...]
    priority: int
    state: JobState
    state_since: datetime
    run: int
    """1, and one more with each retry by the operator."""
    attempts: int
    crashes: int
    """Workers that died or fell silent while they held it."""
    available_at: datetime
    lease_owner: str | None
    lease_until: datetime | None
    reason: str
    enqueued_at: datetime
    claimed_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job in the hands of a worker."""

    id: int
    run: int
    owner: str
    study_instance_uid: str
    series_instance_uid: str
    model: ModelIdentity
    tensor: ImageTensor
    attempts: int
    """This one included."""
    crashes: int
    enqueued_at: datetime


@dataclass(frozen=True, slots=True)
class Analysed:
    """What the worker found for one claimed job."""

    job: ClaimedJob
    findings: tuple[Finding, ...]
    analysis_started_at: datetime


@dataclass(frozen=True, slots=True)
class WaitingModel:
    """Work that waits for one model."""

    model_name: str
    model_version: str
    jobs: int
    oldest_at: datetime


def job_from_row(row: RowMapping) -> JobRecord:
    """Return the record of one row of table ``job``."""
    values: dict[str, Any] = dict(row)
    del values["model_name"], values["model_version"]
    values["model"] = identity_from_json(values.pop("model_identity"))
    values["sop_instance_uids"] = tuple(row["sop_instance_uids"])
    values["state"] = JobState(row["state"])
    return JobRecord(**values)


def enqueue_within(
    connection: Connection, study_instance_uid: str, new: NewJob, now: datetime
) -> int:
    """Enqueue within the caller's transaction; return the job's id.

    The same work again (study, series, model version, instance set, preprocessing) is the same
    job: waiting, running and done ones stay as they are, refused and failed ones wait again.
    """
    key = _key(
        study_instance_uid,
        new.series_instance_uid,
        new.model,
        new.instance_set_digest,
        new.tensor.preprocessing_digest,
    )
    known = _find(connection, key)
    if known is not None:
        _revive(connection, known, new.tensor, now)
        return known.id
    job_id = _insert_job(
        connection,
        key,
        new.model,
        new.tensor.sop_instance_uids,
        state=JobState.WAITING,
        now=now,
        priority=new.priority,
    )
    connection.execute(insert(schema.tensor).values(job_id=job_id, **tensor_to_columns(new.tensor)))
    return job_id


def refuse_within(
    connection: Connection, study_instance_uid: str, new: NewRefusal, now: datetime
) -> int:
    """Record a refusal as a job that never waited, with its result; return the job's id.

    A job of the same key that runs, is done, or was refused or failed before is left alone.
    """
    key = _key(
        study_instance_uid,
        new.series_instance_uid,
        new.model,
        new.instance_set_digest,
        new.preprocessing_digest,
    )
    known = _find(connection, key)
    if known is None:
        job_id = _insert_job(
            connection, key, new.model, new.sop_instance_uids, state=JobState.REFUSED, now=now
        )
        known = _require(connection, job_id)
    elif known.state in (JobState.WAITING, JobState.SUPERSEDED):
        _move(connection, known, JobState.REFUSED, Actor.PREPARER, now)
        _drop_tensor(connection, known.id)
    else:
        return known.id
    connection.execute(
        update(schema.job)
        .where(schema.job.c.id == known.id)
        .values(reason=new.message, finished_at=now)
    )
    write_result(
        connection,
        _new_result(known, ResultKind.REFUSAL, now, reason=new.reason, message=new.message),
        now,
    )
    return known.id


def supersede_within(
    connection: Connection, study_instance_uid: str, *, keep: Iterable[int], now: datetime
) -> tuple[int, ...]:
    """Supersede the study's waiting jobs that the newest preparation does not want."""
    table = schema.job
    query = select(table).where(
        table.c.study_instance_uid == study_instance_uid,
        table.c.state == JobState.WAITING,
        table.c.id.not_in(list(keep)),
    )
    old = [job_from_row(row) for row in connection.execute(query).mappings()]
    for job in old:
        _move(connection, job, JobState.SUPERSEDED, Actor.PREPARER, now, reason=_NEWER_SET)
        _drop_tensor(connection, job.id)
    return tuple(job.id for job in old)


_NEWER_SET = "a newer instance set of the study is analysed instead"


def _key(
    study_instance_uid: str,
    series_instance_uid: str,
    model: ModelIdentity,
    instance_set_digest: str,
    preprocessing_digest: str,
) -> dict[str, str]:
    return {
        "study_instance_uid": study_instance_uid,
        "series_instance_uid": series_instance_uid,
        "model_name": model.name,
        "model_version": model.version,
        "instance_set_digest": instance_set_digest,
        "preprocessing_digest": preprocessing_digest,
    }


def _find(connection: Connection, key: Mapping[str, str]) -> JobRecord | None:
    table = schema.job
    query = select(table).where(and_(*(table.c[name] == value for name, value in key.items())))
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else job_from_row(row)


def _require(connection: Connection, job_id: int) -> JobRecord:
    query = select(schema.job).where(schema.job.c.id == job_id)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no job {job_id}")
    return job_from_row(row)


def _insert_job(
    connection: Connection,
    key: Mapping[str, str],
    model: ModelIdentity,
    sop_instance_uids: Sequence[str],
    *,
    state: JobState,
    now: datetime,
    priority: int = 0,
) -> int:
    inserted = connection.execute(
        insert(schema.job).values(
            **key,
            model_identity=identity_to_json(model),
            sop_instance_uids=list(sop_instance_uids),
            priority=priority,
            state=state,
            state_since=now,
            available_at=now,
            enqueued_at=now,
        )
    )
    assert inserted.inserted_primary_key is not None  # noqa: S101 - one row, integer key
    return int(inserted.inserted_primary_key[0])


def _revive(connection: Connection, job: JobRecord, tensor: ImageTensor, now: datetime) -> None:
    if job.state in (JobState.REFUSED, JobState.FAILED):
        # Only a retry brings a study with such a job back to its preparer.
        actor = Actor.OPERATOR
    elif job.state is JobState.SUPERSEDED:
        actor = Actor.PREPARER
    else:
        return
    _drop_tensor(connection, job.id)
    connection.execute(insert(schema.tensor).values(job_id=job.id, **tensor_to_columns(tensor)))
    _wait_again(connection, job, actor, now)


def _wait_again(connection: Connection, job: JobRecord, actor: Actor, now: datetime) -> None:
    _move(
        connection,
        job,
        JobState.WAITING,
        actor,
        now,
        run=job.run + 1,
        attempts=0,
        crashes=0,
        available_at=now,
        finished_at=None,
    )


def _move(
    connection: Connection,
    job: JobRecord,
    after_state: JobState,
    actor: Actor,
    now: datetime,
    **values: Any,
) -> None:
    state = check_move(JOB_MOVES, f"job {job.id}", job.state, after_state, actor)
    changes = {"reason": "", **values, "lease_owner": None, "lease_until": None}
    connection.execute(
        update(schema.job)
        .where(schema.job.c.id == job.id)
        .values(state=state, state_since=now, **changes)
    )


def _drop_tensor(connection: Connection, job_id: int) -> None:
    connection.execute(delete(schema.tensor).where(schema.tensor.c.job_id == job_id))


def _new_result(
    job: JobRecord,
    kind: ResultKind,
    started_at: datetime,
    *,
    findings: tuple[Finding, ...] = (),
    reason: RefusalReason | None = None,
    message: str = "",
) -> NewResult:
    return NewResult(
        job_id=job.id,
        run=job.run,
        study_instance_uid=job.study_instance_uid,
        model=job.model,
        instance_set_digest=job.instance_set_digest,
        preprocessing_digest=job.preprocessing_digest,
        kind=kind,
        findings=findings,
        refusal_reason=reason,
        refusal_message=message,
        analysis_started_at=started_at,
    )


def waiting_models(database: Database, now: datetime) -> tuple[WaitingModel, ...]:
    """Return which models have claimable jobs, the longest waiting first."""
    table = schema.job
    oldest = func.min(table.c.enqueued_at)
    query = (
        select(table.c.model_name, table.c.model_version, func.count(), oldest)
        .where(table.c.state == JobState.WAITING, table.c.available_at <= now)
        .group_by(table.c.model_name, table.c.model_version)
        .order_by(oldest)
    )
    with database.read() as connection:
        return tuple(WaitingModel(*row) for row in connection.execute(query))


def claim_batch(
    database: Database,
    owner: str,
    model_name: str,
    model_version: str,
    limit: int,
    now: datetime,
    lease_seconds: float,
) -> tuple[ClaimedJob, ...]:
    """Claim up to `limit` jobs of one model, by priority and age, with their tensors.

    A job that a worker died over is claimed alone, so that the next death names the killer.
    """
    table = schema.job
    query = (
        select(table)
        .where(
            table.c.model_name == model_name,
            table.c.model_version == model_version,
            table.c.state == JobState.WAITING,
            table.c.available_at <= now,
        )
        .order_by(table.c.priority.desc(), table.c.id)
        .limit(limit)
    )
    with database.read() as connection:
        if connection.execute(query.limit(1)).first() is None:
            return ()  # an idle worker takes no write lock
    with database.write() as connection:
        waiting = [job_from_row(row) for row in connection.execute(query).mappings()]
        chosen = _batch(waiting)
        for job in chosen:
            check_move(JOB_MOVES, f"job {job.id}", job.state, JobState.RUNNING, Actor.WORKER)
        connection.execute(
            update(table)
            .where(table.c.id.in_([job.id for job in chosen]))
            .values(
                state=JobState.RUNNING,
                state_since=now,
                claimed_at=now,
                attempts=table.c.attempts + 1,
                lease_owner=owner,
                lease_until=after(now, lease_seconds),
            )
        )
    return _with_tensors(database, chosen, owner)


def _batch(waiting: Sequence[JobRecord]) -> Sequence[JobRecord]:
    if waiting and waiting[0].crashes:
        return waiting[:1]
    return [job for job in waiting if not job.crashes]


def _with_tensors(
    database: Database, jobs: Sequence[JobRecord], owner: str
) -> tuple[ClaimedJob, ...]:
    table = schema.tensor
    query = select(table).where(table.c.job_id.in_([job.id for job in jobs]))
    with database.read() as connection:
        rows = {row["job_id"]: row for row in connection.execute(query).mappings()}
    return tuple(
        ClaimedJob(
            id=job.id,
            run=job.run,
            owner=owner,
            study_instance_uid=job.study_instance_uid,
            series_instance_uid=job.series_instance_uid,
            model=job.model,
            tensor=tensor_from_columns(
                rows[job.id], job.sop_instance_uids, job.preprocessing_digest
            ),
            attempts=job.attempts + 1,
            crashes=job.crashes,
            enqueued_at=job.enqueued_at,
        )
        for job in jobs
    )


def renew(
    database: Database, jobs: Sequence[ClaimedJob], now: datetime, lease_seconds: float
) -> tuple[ClaimedJob, ...]:
    """Extend the leases (the heartbeat); return the jobs that are still the caller's."""
    table = schema.job
    with database.write() as connection:
        mine = tuple(job for job in jobs if _held(connection, job) is not None)
        connection.execute(
            update(table)
            .where(table.c.id.in_([job.id for job in mine]))
            .values(lease_until=after(now, lease_seconds))
        )
    return mine


def _held(connection: Connection, job: ClaimedJob) -> JobRecord | None:
    """Return the job as it stands if it still runs under the caller's lease."""
    current = _require(connection, job.id)
    mine = current.lease_owner == job.owner and current.run == job.run
    return current if mine and current.state is JobState.RUNNING else None


def _require_held(connection: Connection, job: ClaimedJob) -> JobRecord:
    held = _held(connection, job)
    if held is None:
        raise LeaseLost(
            f"job {job.id} is no longer leased to {job.owner}: "
            "the lease ran out and it was given to another; these findings are dropped"
        )
    return held


def finish_job(database: Database, analysed: Analysed, now: datetime) -> JobState:
    """Record findings: job ``done`` and its result, in one transaction. Repeating is harmless.

    Returns
    -------
    JobState
        ``done``, or ``superseded`` when a newer instance set was finished first: its report
        stays the latest, and this one is not made.

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
    states: list[JobState | None] = []
    with database.write() as connection:
        for analysed in batch:
            try:
                states.append(_finish_within(connection, analysed, now))
            except LeaseLost:
                states.append(None)
    return tuple(states)


def _finish_within(connection: Connection, analysed: Analysed, now: datetime) -> JobState:
    current = _require(connection, analysed.job.id)
    if current.run == analysed.job.run and current.state is JobState.DONE:
        return JobState.DONE
    job = _require_held(connection, analysed.job)
    if _overtaken(connection, job):
        return _supersede_running(connection, job, Actor.WORKER, now)
    _move(connection, job, JobState.DONE, Actor.WORKER, now, finished_at=now)
    _drop_tensor(connection, job.id)
    write_result(
        connection,
        _new_result(
            job, ResultKind.FINDING, analysed.analysis_started_at, findings=analysed.findings
        ),
        now,
    )
    return JobState.DONE


def _overtaken(connection: Connection, job: JobRecord) -> bool:
    """True when a later preparation of the study has a result of this model version already."""
    table, result = schema.job, schema.result
    later = exists().where(
        table.c.study_instance_uid == job.study_instance_uid,
        table.c.model_name == job.model.name,
        table.c.model_version == job.model.version,
        table.c.enqueued_at > job.enqueued_at,
        result.c.job_id == table.c.id,
    )
    return bool(connection.scalar(select(later)))


def _supersede_running(
    connection: Connection, job: JobRecord, actor: Actor, now: datetime
) -> JobState:
    _move(connection, job, JobState.SUPERSEDED, actor, now, reason=_NEWER_SET, finished_at=now)
    _drop_tensor(connection, job.id)
    return JobState.SUPERSEDED


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
        held = _require_held(connection, job)
        if _overtaken(connection, held):
            return _supersede_running(connection, held, Actor.WORKER, now)
        _move(
            connection, held, JobState.REFUSED, Actor.WORKER, now, reason=message, finished_at=now
        )
        write_result(
            connection,
            _new_result(
                held, ResultKind.REFUSAL, analysis_started_at, reason=reason, message=message
            ),
            now,
        )
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
) -> JobState:
    """End an attempt that failed: the job waits again, or is dead-lettered with a result.

    Returns
    -------
    JobState
        ``waiting``, ``failed`` or ``superseded``.
    """
    with database.write() as connection:
        held = _require_held(connection, job)
        if retryable and held.attempts < max_attempts:
            available = after(now, retry_after_seconds)
            _move(
                connection,
                held,
                JobState.WAITING,
                Actor.WORKER,
                now,
                reason=reason,
                available_at=available,
            )
            return JobState.WAITING
        said = f"{reason} (attempt {held.attempts} of {max_attempts})" if retryable else reason
        return _dead_letter(connection, held, said, Actor.WORKER, now)


def _dead_letter(
    connection: Connection, job: JobRecord, reason: str, actor: Actor, now: datetime
) -> JobState:
    if _overtaken(connection, job):
        return _supersede_running(connection, job, actor, now)
    _move(connection, job, JobState.FAILED, actor, now, reason=reason, finished_at=now)
    write_result(
        connection,
        _new_result(
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


def give_back(database: Database, owner: str, now: datetime) -> int:
    """Return what `owner` has claimed and will not finish; the attempt is not counted."""
    with database.write() as connection:
        jobs = _running(connection, schema.job.c.lease_owner == owner)
        for job in jobs:
            _move(
                connection,
                job,
                JobState.WAITING,
                Actor.WORKER,
                now,
                attempts=max(0, job.attempts - 1),
            )
    return len(jobs)


def _running(connection: Connection, which: ColumnElement[bool]) -> list[JobRecord]:
    table = schema.job
    query = select(table).where(table.c.state == JobState.RUNNING, which).order_by(table.c.id)
    return [job_from_row(row) for row in connection.execute(query).mappings().all()]


def reclaim_expired(
    database: Database, now: datetime, *, owner: str | None = None
) -> tuple[JobRecord, ...]:
    """Take back the jobs of workers that died, and count the crash.

    Parameters
    ----------
    database : Database
        The state.
    now : datetime
        Leases that end before are over.
    owner : str, optional
        A worker known to be dead: its leases are over at once.

    Returns
    -------
    tuple of JobRecord
        Every job taken back, as it stands now: ``waiting``, or ``failed`` after the second crash.
    """
    table = schema.job
    over = table.c.lease_until <= now
    if owner is not None:
        over = or_(over, table.c.lease_owner == owner)
    with database.read() as connection:
        if not _running(connection, over):
            return ()
    with database.write() as connection:
        dead = _running(connection, over)
        for job in dead:
            _count_crash(connection, job, now)
        return tuple(_require(connection, job.id) for job in dead)


def _count_crash(connection: Connection, job: JobRecord, now: datetime) -> None:
    crashes = job.crashes + 1
    table = schema.job
    connection.execute(update(table).where(table.c.id == job.id).values(crashes=crashes))
    if crashes >= CRASHES_BEFORE_DEAD_LETTER:
        reason = f"{crashes} workers died or fell silent while analysing it"
        _dead_letter(connection, job, reason, Actor.SCHEDULER, now)
        return
    reason = f"the worker {job.lease_owner} died or fell silent; analysed alone next time"
    _move(connection, job, JobState.WAITING, Actor.SCHEDULER, now, reason=reason)


def has_tensor_within(connection: Connection, job_id: int) -> bool:
    """True while the job could run without being prepared again."""
    query = select(schema.tensor.c.job_id).where(schema.tensor.c.job_id == job_id)
    return connection.execute(query).first() is not None


def retry_job_within(connection: Connection, job: JobRecord, now: datetime) -> None:
    """Let a refused or failed job wait again, in a new run with its counters at zero."""
    _wait_again(connection, job, Actor.OPERATOR, now)


def jobs_of_study_within(connection: Connection, study_instance_uid: str) -> tuple[JobRecord, ...]:
    """Return a study's jobs, oldest first."""
    table = schema.job
    query = select(table).where(table.c.study_instance_uid == study_instance_uid)
    rows = connection.execute(query.order_by(table.c.id)).mappings()
    return tuple(job_from_row(row) for row in rows)


def get_job(database: Database, job_id: int) -> JobRecord:
    """Return one job; ``NotFound`` when there is none."""
    with database.read() as connection:
        return _require(connection, job_id)
