"""Preparing complete studies: claim with a lease, finish in one transaction, give back, hold.

Owns the moves out of ``complete`` and the ``decision`` table; ``storage.jobs`` owns what a
preparation enqueues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, or_, select, update

from dicom_io.wording import number_of
from storage import audit, schema
from storage.clock import after
from storage.database import Database
from storage.encoding import plain_json
from storage.enqueueing import (
    NewJob,
    NewRefusal,
    enqueue_within,
    refuse_within,
    supersede_within,
)
from storage.errors import LeaseLost
from storage.precedence import preparation_instant
from storage.states import STUDY_MOVES, Actor, StudyState, check_move
from storage.studies import SeriesRecord, StudyRecord, read_series, require_study, study_from_row

DEFAULT_MAX_ATTEMPTS = 3
"""Preparations of one study that may die before it is held."""


@dataclass(frozen=True, slots=True)
class PreparationTask:
    """A complete study, claimed."""

    study: StudyRecord
    series: tuple[SeriesRecord, ...]
    owner: str

    @property
    def study_instance_uid(self) -> str:
        """Which study."""
        return self.study.study_instance_uid

    @property
    def instance_set_digest(self) -> str:
        """Digest of the instances that this preparation reads."""
        return self.study.instance_set_digest or ""


@dataclass(frozen=True, slots=True)
class NewDecision:
    """Why a model reads a series, or why it reads none."""

    model_name: str
    model_version: str
    series_instance_uid: str | None
    chosen: bool
    evaluation: Mapping[str, object]
    """Each condition with the value found, as ``explain`` prints it."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """What a preparation came to; written in one transaction or not at all."""

    outcome: StudyState
    """``routed``, ``unmatched``, ``refused`` or ``held``."""
    reason: str
    decisions: Sequence[NewDecision] = ()
    jobs: Sequence[NewJob] = ()
    refusals: Sequence[NewRefusal] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """What ``finish_preparation`` wrote."""

    job_ids: tuple[int, ...]
    """Enqueued now, or there already and not finished."""
    refused_job_ids: tuple[int, ...]
    superseded_job_ids: tuple[int, ...]
    """Jobs of older instance sets, or that this preparation did not want: they waited, or had
    failed and could not run again without it, or need not: it asks their model otherwise."""


def claim_study_for_preparation(
    database: Database,
    owner: str,
    now: datetime,
    lease_seconds: float,
    *,
    max_attempts: int = DEFAULT_MAX_ATTEMPTS,
) -> PreparationTask | None:
    """Claim the study that waits longest; None when there is nothing to prepare.

    The attempt is counted at once, so that a study that kills its preparer is found out.
    """
    with database.read() as connection:
        if connection.execute(_free(now, max_attempts)).first() is None:
            return None
    table = schema.study
    with database.write() as connection:
        row = connection.execute(_free(now, max_attempts)).first()
        if row is None:
            return None
        uid = row.study_instance_uid
        connection.execute(
            update(table)
            .where(table.c.study_instance_uid == uid)
            .values(
                lease_owner=owner,
                lease_until=after(now, lease_seconds),
                attempts=table.c.attempts + 1,
            )
        )
        return PreparationTask(require_study(connection, uid), read_series(connection, uid), owner)


def _free(now: datetime, max_attempts: int) -> Any:
    table = schema.study
    return (
        select(table.c.study_instance_uid)
        .where(
            table.c.state == StudyState.COMPLETE,
            table.c.attempts < max_attempts,
            or_(table.c.lease_until.is_(None), table.c.lease_until <= now),
        )
        .order_by(table.c.completed_at, table.c.study_instance_uid)
        .limit(1)
    )


def _leased(study_instance_uid: str, owner: str) -> Any:
    table = schema.study
    return and_(
        table.c.study_instance_uid == study_instance_uid,
        table.c.state == StudyState.COMPLETE,
        table.c.lease_owner == owner,
    )


def renew_preparation(
    database: Database, task: PreparationTask, now: datetime, lease_seconds: float
) -> None:
    """Extend the lease of a preparation under way.

    Raises
    ------
    LeaseLost
        The study was claimed by another, or a late instance reopened it.
    """
    with database.write() as connection:
        renewed = connection.execute(
            update(schema.study)
            .where(_leased(task.study_instance_uid, task.owner))
            .values(lease_until=after(now, lease_seconds))
        )
        if renewed.rowcount == 0:
            raise _lost(task)


def _lost(task: PreparationTask) -> LeaseLost:
    return LeaseLost(
        f"study {task.study_instance_uid} is no longer leased to {task.owner}: "
        "it was reopened or claimed by another; this preparation is dropped"
    )


def finish_preparation(
    database: Database, task: PreparationTask, preparation: Preparation, now: datetime
) -> Prepared:
    """Write decisions, jobs with tensors and refusals, and move the study, all at once.

    Raises
    ------
    LeaseLost
        Somebody else prepares the study now, or it is received again; nothing was written.
    """
    uid = task.study_instance_uid
    with database.write() as connection:
        current = require_study(connection, uid)
        if (
            current.lease_owner != task.owner
            or current.state is not StudyState.COMPLETE
            or current.instance_set_digest != task.study.instance_set_digest
        ):
            raise _lost(task)
        _write_decisions(connection, uid, preparation.decisions, now)
        at = preparation_instant(connection, uid, now)
        job_ids = tuple(
            enqueue_within(connection, uid, job, now, enqueued_at=at) for job in preparation.jobs
        )
        refused_ids = tuple(
            refuse_within(connection, uid, one, now, enqueued_at=at) for one in preparation.refusals
        )
        superseded: tuple[int, ...] = ()
        if preparation.outcome is not StudyState.HELD:
            keep = (*job_ids, *refused_ids)
            superseded = supersede_within(connection, uid, keep=keep, now=now)
        _leave_complete(connection, current, preparation, now)
    return Prepared(job_ids, refused_ids, superseded)


def _write_decisions(
    connection: Connection, uid: str, decisions: Sequence[NewDecision], now: datetime
) -> None:
    table = schema.decision
    connection.execute(delete(table).where(table.c.study_instance_uid == uid))
    if decisions:
        rows = [
            {
                "study_instance_uid": uid,
                "model_name": one.model_name,
                "model_version": one.model_version,
                "series_instance_uid": one.series_instance_uid,
                "chosen": one.chosen,
                "evaluation": plain_json(one.evaluation),
                "at": now,
            }
            for one in decisions
        ]
        connection.execute(insert(table), rows)


def _leave_complete(
    connection: Connection, study: StudyRecord, preparation: Preparation, now: datetime
) -> None:
    uid = study.study_instance_uid
    state = check_move(STUDY_MOVES, uid, study.state, preparation.outcome, Actor.PREPARER)
    connection.execute(
        update(schema.study)
        .where(schema.study.c.study_instance_uid == uid)
        .values(
            state=state,
            state_since=now,
            prepared_at=now,
            reason=preparation.reason,
            lease_owner=None,
            lease_until=None,
        )
    )
    if state is StudyState.HELD:
        audit.append(connection, now, Actor.PREPARER, "study held", uid, reason=preparation.reason)


def give_back_preparations(database: Database, owner: str) -> int:
    """Return what `owner` has claimed and will not finish; the attempt is not counted."""
    table = schema.study
    with database.write() as connection:
        returned = connection.execute(
            update(table)
            .where(table.c.state == StudyState.COMPLETE, table.c.lease_owner == owner)
            .values(lease_owner=None, lease_until=None, attempts=table.c.attempts - 1)
        )
        return returned.rowcount


def reclaim_preparations(
    database: Database,
    now: datetime,
    *,
    owner: str | None = None,
    max_attempts: int = DEFAULT_MAX_ATTEMPTS,
) -> tuple[StudyRecord, ...]:
    """Free studies whose preparer died, and hold those that were tried too often.

    Also those that are free and were tried as often as is allowed now, for nobody claims them:
    more attempts were allowed when they were freed.

    Parameters
    ----------
    database : Database
        The state.
    now : datetime
        Leases that end before are over.
    owner : str, optional
        A preparer known to be dead: its leases are over at once.
    max_attempts : int
        Deaths after which a study waits for a person.

    Returns
    -------
    tuple of StudyRecord
        The studies that are held now.
    """
    table = schema.study
    over = table.c.lease_until <= now
    if owner is not None:
        over = or_(over, table.c.lease_owner == owner)
    # An instant that is NULL is never over.
    unclaimable = and_(table.c.lease_until.is_(None), table.c.attempts >= max_attempts)
    query = select(table).where(table.c.state == StudyState.COMPLETE, or_(over, unclaimable))
    with database.read() as connection:
        if connection.execute(query.limit(1)).first() is None:
            return ()
    with database.write() as connection:
        dead = [study_from_row(row) for row in connection.execute(query).mappings().all()]
        held = tuple(study for study in dead if study.attempts >= max_attempts)
        for study in dead:
            how = "died" if study.lease_until else "failed or died"
            times = number_of(study.attempts, "time")
            said = f"preparation {how} {times}; retry when the cause is found"
            _free_or_hold(connection, study, hold=study in held, now=now, reason=said)
        return tuple(require_study(connection, study.study_instance_uid) for study in held)


def fail_preparation(
    database: Database,
    task: PreparationTask,
    reason: str,
    now: datetime,
    *,
    max_attempts: int = DEFAULT_MAX_ATTEMPTS,
) -> StudyState:
    """End an attempt that failed unexpectedly: free the study, or hold it after too many.

    Parameters
    ----------
    database : Database
        The state.
    task : PreparationTask
        As claimed.
    reason : str
        What failed, without patient data.
    now : datetime
        The time.
    max_attempts : int
        Attempts after which the study waits for a person.

    Returns
    -------
    StudyState
        ``complete`` or ``held``.
    """
    with database.write() as connection:
        study = _require_leased(connection, task)
        hold = study.attempts >= max_attempts
        said = f"preparation failed {number_of(study.attempts, 'time')}, the last time: {reason}"
        _free_or_hold(connection, study, hold=hold, now=now, reason=said)
    return StudyState.HELD if hold else StudyState.COMPLETE


def put_off_preparation(
    database: Database,
    task: PreparationTask,
    reason: str,
    now: datetime,
    pause_seconds: float,
    *,
    patience_seconds: float,
    max_attempts: int = DEFAULT_MAX_ATTEMPTS,
) -> StudyState:
    """End an attempt that may succeed later: the study is free again after a pause.

    The attempt is not counted, for it says nothing of the study, until patience with it is over;
    from then on it is held after too many.

    Parameters
    ----------
    database, task, reason, now, max_attempts
        As for ``fail_preparation``; the reason is shown while the study waits.
    pause_seconds : float
        Until the next attempt.
    patience_seconds : float
        Since it was put off for the first time, while no attempt is counted: before that nobody
        may have tried, however long it was complete.

    Returns
    -------
    StudyState
        ``complete`` or ``held``.
    """
    with database.write() as connection:
        study = _require_leased(connection, task)
        since = study.put_off_since or now
        counted = (now - since).total_seconds() >= patience_seconds
        if counted and study.attempts >= max_attempts:
            said = f"preparation failed again and again, the last time: {reason}"
            _free_or_hold(connection, study, hold=True, now=now, reason=said)
            return StudyState.HELD
        connection.execute(
            update(schema.study)
            .where(schema.study.c.study_instance_uid == study.study_instance_uid)
            .values(
                attempts=study.attempts if counted else study.attempts - 1,
                put_off_since=since,
                reason=f"preparation waits: {reason}",
                lease_owner=None,
                lease_until=after(now, pause_seconds),
            )
        )
    return StudyState.COMPLETE


def _require_leased(connection: Connection, task: PreparationTask) -> StudyRecord:
    study = require_study(connection, task.study_instance_uid)
    if study.lease_owner != task.owner or study.state is not StudyState.COMPLETE:
        raise _lost(task)
    return study


def _free_or_hold(
    connection: Connection, study: StudyRecord, *, hold: bool, now: datetime, reason: str
) -> None:
    uid = study.study_instance_uid
    values: dict[str, Any] = {"lease_owner": None, "lease_until": None}
    if hold:
        state = check_move(STUDY_MOVES, uid, study.state, StudyState.HELD, Actor.SCHEDULER)
        values |= {"state": state, "state_since": now, "reason": reason}
        audit.append(connection, now, Actor.SCHEDULER, "study held", uid, reason=reason)
    connection.execute(
        update(schema.study).where(schema.study.c.study_instance_uid == uid).values(values)
    )
