"""Claiming jobs with a lease: claim, renew, give back, and take back from the dead.

A claimed job stays in the table as ``running``; whoever holds the lease may end it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    or_,
    select,
    update,
)

from storage import schema
from storage.clock import after
from storage.database import Database
from storage.encoding import (
    tensor_from_columns,
)
from storage.endings import dead_letter, held_job
from storage.jobs import ClaimedJob, JobRecord, job_from_row, move_job, require_job
from storage.states import JOB_MOVES, Actor, JobState, check_move

CRASHES_BEFORE_DEAD_LETTER = 2
"""The second worker that a job takes down is the last one."""


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
        mine = tuple(job for job in jobs if held_job(connection, job) is not None)
        connection.execute(
            update(table)
            .where(table.c.id.in_([job.id for job in mine]))
            .values(lease_until=after(now, lease_seconds))
        )
    return mine


def give_back(
    database: Database, owner: str, now: datetime, jobs: Collection[int] | None = None
) -> int:
    """Return what `owner` has claimed and will not finish; the attempt is not counted.

    Parameters
    ----------
    database : Database
        The state.
    owner : str
        In whose name they are leased; what is somebody else's by now is left alone.
    now : datetime
        This moment.
    jobs : collection of int, optional
        Only these, by id; everything the owner holds when None.
    """
    mine = schema.job.c.lease_owner == owner
    if jobs is not None:
        mine = and_(mine, schema.job.c.id.in_(jobs))
    with database.write() as connection:
        held = _running(connection, mine)
        for job in held:
            _give_back_one(connection, job, Actor.WORKER, now)
    return len(held)


def _give_back_one(connection: Connection, job: JobRecord, actor: Actor, now: datetime) -> None:
    attempts = max(0, job.attempts - 1)
    move_job(connection, job, JobState.WAITING, actor, now, attempts=attempts)


def _running(connection: Connection, which: ColumnElement[bool]) -> list[JobRecord]:
    table = schema.job
    query = select(table).where(table.c.state == JobState.RUNNING, which).order_by(table.c.id)
    return [job_from_row(row) for row in connection.execute(query).mappings().all()]


def expired_leases(database: Database, now: datetime) -> Mapping[int, str]:
    """Return the running jobs whose worker fell silent, and in whose name each is leased."""
    with database.read() as connection:
        silent = _running(connection, schema.job.c.lease_until <= now)
    return {job.id: job.lease_owner or "" for job in silent}


def reclaim_expired(
    database: Database,
    now: datetime,
    *,
    owner: str | None = None,
    not_begun: Collection[int] = (),
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
    not_begun : collection of int
        Jobs that the dead worker held and did not compute: no attempt and no crash is counted.

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
            if job.id in not_begun:
                _give_back_one(connection, job, Actor.SCHEDULER, now)
            else:
                _count_crash(connection, job, now)
        return tuple(require_job(connection, job.id) for job in dead)


def _count_crash(connection: Connection, job: JobRecord, now: datetime) -> None:
    crashes = job.crashes + 1
    table = schema.job
    connection.execute(update(table).where(table.c.id == job.id).values(crashes=crashes))
    if crashes >= CRASHES_BEFORE_DEAD_LETTER:
        reason = f"{crashes} workers died or fell silent while analysing it"
        dead_letter(connection, job, reason, Actor.SCHEDULER, now)
        return
    reason = f"the worker {job.lease_owner} died or fell silent; analysed alone next time"
    move_job(connection, job, JobState.WAITING, Actor.SCHEDULER, now, reason=reason)
