"""The queue's records: one job per study, series, model version and instance set; never deleted.

Owns the ``job`` and ``tensor`` tables and every move of a job. A tensor goes when its job is done
or superseded and stays while a retry may need it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Connection,
    RowMapping,
    delete,
    func,
    select,
    update,
)

from dicom_io.errors import RefusalReason
from dicom_io.vocabulary import Detection, Finding, ImageTensor, ModelIdentity
from storage import schema
from storage.database import Database
from storage.encoding import (
    identity_from_json,
)
from storage.errors import NotFound
from storage.results import NewResult, ResultKind
from storage.states import JOB_MOVES, Actor, JobState, check_move


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
    """By the newest preparation that wanted it; see ``storage.precedence``."""
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
class WaitingModel:
    """Work that waits for one model."""

    model_name: str
    model_version: str
    jobs: int
    oldest_at: datetime
    priority: int
    """The highest among them; above 0 is urgent."""


def job_from_row(row: RowMapping) -> JobRecord:
    """Return the record of one row of table ``job``."""
    values: dict[str, Any] = dict(row)
    del values["model_name"], values["model_version"]
    values["model"] = identity_from_json(values.pop("model_identity"))
    values["sop_instance_uids"] = tuple(row["sop_instance_uids"])
    values["state"] = JobState(row["state"])
    return JobRecord(**values)


def require_job(connection: Connection, job_id: int) -> JobRecord:
    """Return one job within the caller's transaction; ``NotFound`` when there is none."""
    query = select(schema.job).where(schema.job.c.id == job_id)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no job {job_id}")
    return job_from_row(row)


def open_jobs(
    database: Database, study_instance_uids: Iterable[str]
) -> dict[str, tuple[JobRecord, ...]]:
    """Return the jobs that wait or run, by study, for one page of the worklist."""
    table = schema.job
    query = (
        select(table)
        .where(
            table.c.study_instance_uid.in_(list(study_instance_uids)),
            table.c.state.in_([JobState.WAITING, JobState.RUNNING]),
        )
        .order_by(table.c.id)
    )
    found: dict[str, list[JobRecord]] = defaultdict(list)
    with database.read() as connection:
        for row in connection.execute(query).mappings():
            found[row["study_instance_uid"]].append(job_from_row(row))
    return {uid: tuple(jobs) for uid, jobs in found.items()}


def get_job(database: Database, job_id: int) -> JobRecord:
    """Return one job; ``NotFound`` when there is none."""
    with database.read() as connection:
        return require_job(connection, job_id)


def jobs_of_study_within(connection: Connection, study_instance_uid: str) -> tuple[JobRecord, ...]:
    """Return a study's jobs, oldest first."""
    table = schema.job
    query = select(table).where(table.c.study_instance_uid == study_instance_uid)
    rows = connection.execute(query.order_by(table.c.id)).mappings()
    return tuple(job_from_row(row) for row in rows)


def waiting_models(database: Database, now: datetime) -> tuple[WaitingModel, ...]:
    """Return which models have claimable jobs, the longest waiting first."""
    table = schema.job
    oldest = func.min(table.c.enqueued_at)
    query = (
        select(
            table.c.model_name,
            table.c.model_version,
            func.count(),
            oldest,
            func.max(table.c.priority),
        )
        .where(table.c.state == JobState.WAITING, table.c.available_at <= now)
        .group_by(table.c.model_name, table.c.model_version)
        .order_by(oldest)
    )
    with database.read() as connection:
        return tuple(WaitingModel(*row) for row in connection.execute(query))


def move_job(
    connection: Connection,
    job: JobRecord,
    after_state: JobState,
    actor: Actor,
    now: datetime,
    **values: Any,
) -> None:
    """Make one move of the table and end any lease; ``IllegalMove`` when it is not open."""
    state = check_move(JOB_MOVES, f"job {job.id}", job.state, after_state, actor)
    changes = {"reason": "", **values, "lease_owner": None, "lease_until": None}
    connection.execute(
        update(schema.job)
        .where(schema.job.c.id == job.id)
        .values(state=state, state_since=now, **changes)
    )


def wait_again(connection: Connection, job: JobRecord, actor: Actor, now: datetime) -> None:
    """Let a job wait in a new run, its counters at zero."""
    move_job(
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


def drop_tensor(connection: Connection, job_id: int) -> None:
    """Remove the tensor of a job that will not run again."""
    connection.execute(delete(schema.tensor).where(schema.tensor.c.job_id == job_id))


def has_tensor_within(connection: Connection, job_id: int) -> bool:
    """True while the job could run without being prepared again."""
    query = select(schema.tensor.c.job_id).where(schema.tensor.c.job_id == job_id)
    return connection.execute(query).first() is not None


def retry_job_within(connection: Connection, job: JobRecord, now: datetime) -> None:
    """Let a refused or failed job wait again, in a new run with its counters at zero."""
    wait_again(connection, job, Actor.OPERATOR, now)


def result_of(
    job: JobRecord,
    kind: ResultKind,
    started_at: datetime,
    *,
    findings: tuple[Finding, ...] = (),
    detection: Detection | None = None,
    reason: RefusalReason | None = None,
    message: str = "",
) -> NewResult:
    """Return the result a job ends with, with all that identifies its input."""
    return NewResult(
        job_id=job.id,
        run=job.run,
        study_instance_uid=job.study_instance_uid,
        model=job.model,
        instance_set_digest=job.instance_set_digest,
        preprocessing_digest=job.preprocessing_digest,
        kind=kind,
        findings=findings,
        detection=detection,
        refusal_reason=reason,
        refusal_message=message,
        analysis_started_at=started_at,
    )
