"""Which of a study's preparations a job belongs to, and whether a later one has spoken already.

Owns that order, kept in the instant of enqueueing, and the end of a job that comes too late. What
one model says of a study is one chain of versions, so its versions are compared by their name.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, exists, func, select

from storage import schema
from storage.jobs import JobRecord, drop_tensor, move_job
from storage.states import Actor, JobState

OVERTAKEN = "a later preparation of the study has its result already"

_INSTANT = timedelta(microseconds=1)
"""The shortest that two instants in the database can be apart."""


def preparation_instant(connection: Connection, study_instance_uid: str, now: datetime) -> datetime:
    """Return when a preparation enqueues: `now`, but after every earlier one of the study.

    The wall clock may be set back between two preparations; the order must not change with it.
    """
    table = schema.job
    newest = connection.scalar(
        select(func.max(table.c.enqueued_at)).where(
            table.c.study_instance_uid == study_instance_uid
        )
    )
    return now if newest is None else max(now, newest + _INSTANT)


def overtaken_within(
    connection: Connection, job: JobRecord, *, before: datetime | None = None
) -> bool:
    """True when a later preparation of the study has a result of this model, in any version.

    Parameters
    ----------
    connection : Connection
        Within the caller's transaction.
    job : JobRecord
        As it stands.
    before : datetime, optional
        Only preparations before this one's instant count.
    """
    table, result = schema.job, schema.result
    later = select(table.c.id).where(
        table.c.study_instance_uid == job.study_instance_uid,
        table.c.model_name == job.model.name,
        table.c.enqueued_at > job.enqueued_at,
        # A job that waits again keeps what it said before, and has not spoken since.
        exists().where(result.c.job_id == table.c.id, result.c.run == table.c.run),
    )
    if before is not None:
        later = later.where(table.c.enqueued_at < before)
    return connection.execute(later.limit(1)).first() is not None


def supersede_overtaken_within(
    connection: Connection, job: JobRecord, actor: Actor, now: datetime
) -> JobState:
    """End a job that was overtaken: it says nothing any more."""
    move_job(connection, job, JobState.SUPERSEDED, actor, now, reason=OVERTAKEN, finished_at=now)
    drop_tensor(connection, job.id)
    return JobState.SUPERSEDED
