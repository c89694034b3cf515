"""Claiming jobs with a lease: claim, renew, give back, and take back from the dead.

A claimed job stays in the table as ``running``; whoever holds the lease may end it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    bindparam,
    select,
    update,
)

from storage import schema
from storage.clock import after
from storage.database import Database
from storage.encoding import identity_from_text, tensor_from_columns, uids_from_text
from storage.endings import dead_letter, held_job
from storage.errors import StorageError, TensorDamaged
from storage.jobs import (
    ClaimedJob,
    JobRecord,
    drop_tensor,
    job_from_row,
    move_job,
    require_job,
)
from storage.prepared import among, as_list, as_stored, tensor_as_stored
from storage.states import JOB_MOVES, Actor, JobState, check_move

CRASHES_BEFORE_DEAD_LETTER = 2
"""The second worker that a job takes down is the last one."""


_JOB, _TENSOR = schema.job, schema.tensor

# Built once, for SQLAlchemy would take longer over building them anew for each batch than SQLite
# takes over answering; JSON that is the same in every row of a batch is left to `storage.encoding`.
_CLAIMABLE = (
    select(
        _JOB.c.id,
        _JOB.c.run,
        _JOB.c.study_instance_uid,
        _JOB.c.series_instance_uid,
        as_stored(_JOB.c.model_identity),
        as_stored(_JOB.c.sop_instance_uids),
        _JOB.c.preprocessing_digest,
        _JOB.c.attempts,
        _JOB.c.crashes,
        _JOB.c.enqueued_at,
    )
    .where(
        _JOB.c.model_name == bindparam("name"),
        _JOB.c.model_version == bindparam("version"),
        _JOB.c.state == JobState.WAITING,
        _JOB.c.available_at <= bindparam("now"),
    )
    .order_by(_JOB.c.priority.desc(), _JOB.c.id)
    .limit(bindparam("most"))
)
_CLAIM = (
    update(_JOB)
    .where(among(_JOB.c.id, "ids"))
    .values(
        state=JobState.RUNNING,
        state_since=bindparam("now"),
        claimed_at=bindparam("now"),
        attempts=_JOB.c.attempts + 1,
        lease_owner=bindparam("owner"),
        lease_until=bindparam("until"),
    )
)
_TENSORS = select(_TENSOR.c.job_id, *tensor_as_stored(_TENSOR)).where(
    among(_TENSOR.c.job_id, "ids")
)


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

    A job that a worker died over is claimed alone, so that the next death names the killer. One
    whose tensor is missing or damaged is dead-lettered for that, and no other job with it.

    Raises
    ------
    StorageError
        Nothing is claimed, or what was is given back.
    """
    wanted = {"name": model_name, "version": model_version, "now": now}
    with database.read() as connection:
        if connection.execute(_CLAIMABLE, {**wanted, "most": 1}).first() is None:
            return ()  # an idle worker takes no write lock
    check_move(JOB_MOVES, "a waiting job", JobState.WAITING, JobState.RUNNING, Actor.WORKER)
    with database.write() as connection:
        waiting = connection.execute(_CLAIMABLE, {**wanted, "most": limit}).mappings().all()
        chosen = _batch(waiting)
        ids = as_list(row["id"] for row in chosen)
        until = after(now, lease_seconds)
        connection.execute(_CLAIM, {"ids": ids, "owner": owner, "now": now, "until": until})
    try:
        tensors = _read_tensors(database, ids)
    except StorageError:
        # The fault is the database's: a lease that ran out would be counted as the job's.
        give_back(database, owner, now, [row["id"] for row in chosen])
        raise
    claimed, damaged = [], {}
    for row in chosen:
        try:
            claimed.append(_claimed(row, tensors, owner))
        except TensorDamaged as error:
            damaged[row["id"]] = str(error)
    if damaged:
        _give_up(database, owner, damaged, now)
    return tuple(claimed)


def _read_tensors(database: Database, ids: str) -> dict[int, RowMapping]:
    with database.read() as connection:
        rows = connection.execute(_TENSORS, {"ids": ids}).mappings()
        return {row["job_id"]: row for row in rows}


def _give_up(database: Database, owner: str, damaged: Mapping[int, str], now: datetime) -> None:
    """Dead-letter claimed jobs without a usable tensor, which goes, so that a retry makes it."""
    with database.write() as connection:
        for job in _running(connection, _held_by(owner, damaged)):
            drop_tensor(connection, job.id)
            dead_letter(connection, job, damaged[job.id], Actor.WORKER, now)


def _batch(waiting: Sequence[RowMapping]) -> Sequence[RowMapping]:
    if waiting and waiting[0]["crashes"]:
        return waiting[:1]
    return [row for row in waiting if not row["crashes"]]


def _claimed(job: RowMapping, tensors: Mapping[int, RowMapping], owner: str) -> ClaimedJob:
    tensor = tensors.get(job["id"])
    if tensor is None:
        raise TensorDamaged(
            "its tensor is not in the database any more: 'medimgd retry STUDY' prepares it anew"
        )
    return ClaimedJob(
        id=job["id"],
        run=job["run"],
        owner=owner,
        study_instance_uid=job["study_instance_uid"],
        series_instance_uid=job["series_instance_uid"],
        model=identity_from_text(job["model_identity"]),
        tensor=tensor_from_columns(
            tensor, uids_from_text(job["sop_instance_uids"]), job["preprocessing_digest"]
        ),
        attempts=job["attempts"] + 1,
        crashes=job["crashes"],
        enqueued_at=job["enqueued_at"],
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
    with database.write() as connection:
        held = _running(connection, _held_by(owner, jobs))
        for job in held:
            _give_back_one(connection, job, Actor.WORKER, now)
    return len(held)


def _give_back_one(connection: Connection, job: JobRecord, actor: Actor, now: datetime) -> None:
    attempts = max(0, job.attempts - 1)
    move_job(connection, job, JobState.WAITING, actor, now, attempts=attempts)


def _held_by(owner: str, jobs: Collection[int] | None) -> ColumnElement[bool]:
    mine = _JOB.c.lease_owner == owner
    return mine if jobs is None else and_(mine, _JOB.c.id.in_(jobs))


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
        A worker known to be dead: its leases are over at once, and no others are looked at. What
        another silent worker had not begun, nobody tells who knows of this one.
    not_begun : collection of int
        Jobs that the dead workers held and did not compute: no attempt and no crash is counted.

    Returns
    -------
    tuple of JobRecord
        Every job taken back, as it stands now: ``waiting``, or ``failed`` after the second crash.
    """
    table = schema.job
    over = table.c.lease_until <= now if owner is None else table.c.lease_owner == owner
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
