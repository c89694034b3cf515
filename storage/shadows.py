"""Runs of shadows: what a version says that is heard by nobody but ``medimgd models compare``.

Owns the ``shadow_run`` and ``shadow_tensor`` tables and every move of a run. They stand apart
from jobs and results, so that nothing that composes, delivers, lists or counts results can meet
one.
"""

from __future__ import annotations

from collections.abc import Sequence
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

from dicom_io.vocabulary import Finding, ImageTensor
from storage import schema
from storage.clock import after
from storage.database import Database
from storage.encoding import (
    finding_from_json,
    findings_to_json,
    tensor_from_columns,
    tensor_to_columns,
)
from storage.errors import LeaseLost, NotFound
from storage.states import SHADOW_MOVES, Actor, ShadowState, StudyState, check_move
from storage.studies import SeriesRecord, StudyRecord, read_series, require_study

MOST_ATTEMPTS = 3
"""A run is worth no more: the study has its answer from the version that serves."""

_RUN, _TENSOR = schema.shadow_run, schema.shadow_tensor
_PREPARED = (StudyState.ROUTED, StudyState.UNMATCHED, StudyState.REFUSED)
_LEASED = (ShadowState.PREPARING, ShadowState.RUNNING)


@dataclass(frozen=True, slots=True)
class ShadowModel:
    """The version a run is for."""

    name: str
    version: str
    weights_sha256: str
    preprocessing_digest: str

    @property
    def at_version(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class ShadowRun:
    """One run as it stands."""

    id: int
    study_instance_uid: str
    instance_set_digest: str
    model: ShadowModel
    series_instance_uid: str
    """Empty while no series is chosen."""
    sop_instance_uids: tuple[str, ...]
    state: ShadowState
    state_since: datetime
    attempts: int
    lease_owner: str | None
    lease_until: datetime | None
    findings: tuple[Finding, ...]
    """Of one that is done; empty for all others."""
    reason: str
    claimed_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class ShadowTask:
    """A study to be shown to a shadow, leased to a preparer."""

    run: ShadowRun
    study: StudyRecord
    series: tuple[SeriesRecord, ...]


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run with its tensor, leased to a worker."""

    run: ShadowRun
    tensor: ImageTensor


def claim_study_for_shadow(
    database: Database,
    model: ShadowModel,
    owner: str,
    *,
    since: datetime,
    now: datetime,
    lease_seconds: float,
) -> ShadowTask | None:
    """Claim a study that the active models have been asked about, and this shadow has not.

    Parameters
    ----------
    database : Database
        The state.
    model : ShadowModel
        The shadow.
    owner : str
        In whose name the run is leased.
    since : datetime
        Studies prepared before the shadow began are left alone.
    now : datetime
        The time.
    lease_seconds : float
        After which a silent preparer's run is free again.
    """
    with database.read() as connection:
        if _free_study(connection, model, since, now) is None:
            return None
    with database.write() as connection:
        uid = _free_study(connection, model, since, now)
        if uid is None:
            return None
        study = require_study(connection, uid)
        run = _lease_preparation(connection, study, model, owner, now, lease_seconds)
        return ShadowTask(run, study, read_series(connection, uid))


def _free_study(
    connection: Connection, model: ShadowModel, since: datetime, now: datetime
) -> str | None:
    study = schema.study
    same = and_(
        _RUN.c.study_instance_uid == study.c.study_instance_uid,
        _RUN.c.model_name == model.name,
        _RUN.c.model_version == model.version,
        _RUN.c.instance_set_digest == study.c.instance_set_digest,
    )
    taken_over = exists().where(
        same, _RUN.c.state == ShadowState.PREPARING, _RUN.c.lease_until <= now
    )
    query = (
        select(study.c.study_instance_uid)
        .where(
            study.c.prepared_at >= since,
            study.c.state.in_(_PREPARED),
            study.c.instance_set_digest.is_not(None),
            study.c.purged_at.is_(None),
            or_(~exists().where(same), taken_over),
        )
        .order_by(study.c.prepared_at)
        .limit(1)
    )
    return connection.scalar(query)


def _lease_preparation(
    connection: Connection,
    study: StudyRecord,
    model: ShadowModel,
    owner: str,
    now: datetime,
    lease_seconds: float,
) -> ShadowRun:
    key = {
        "study_instance_uid": study.study_instance_uid,
        "model_name": model.name,
        "model_version": model.version,
        "instance_set_digest": study.instance_set_digest,
    }
    lease = {
        "state": ShadowState.PREPARING,
        "state_since": now,
        "lease_owner": owner,
        "lease_until": after(now, lease_seconds),
        "claimed_at": now,
        "weights_sha256": model.weights_sha256,
        "preprocessing_digest": model.preprocessing_digest,
    }
    which = and_(*(_RUN.c[name] == value for name, value in key.items()))
    known = connection.scalar(select(_RUN.c.id).where(which))
    if known is None:
        added = connection.execute(
            insert(_RUN).values(
                **key, **lease, attempts=1, available_at=now, findings=[], sop_instance_uids=[]
            )
        )
        assert added.inserted_primary_key is not None  # noqa: S101 - one row, integer key
        known = int(added.inserted_primary_key[0])
    else:
        changes = {**lease, "attempts": _RUN.c.attempts + 1}
        connection.execute(update(_RUN).where(_RUN.c.id == known).values(changes))
    return _require(connection, known)


def await_worker(
    database: Database, run: ShadowRun, series_instance_uid: str, tensor: ImageTensor, now: datetime
) -> None:
    """Let a prepared run wait for a worker; raises ``LeaseLost`` when it is not the caller's."""
    with database.write() as connection:
        held = _held(connection, run)
        connection.execute(insert(_TENSOR).values(run_id=held.id, **tensor_to_columns(tensor)))
        _move(
            connection, held, ShadowState.WAITING, Actor.PREPARER, now,
            series_instance_uid=series_instance_uid, attempts=0, available_at=now,
            sop_instance_uids=list(tensor.sop_instance_uids),
        )  # fmt: skip


def end_preparation(
    database: Database,
    run: ShadowRun,
    state: ShadowState,
    reason: str,
    now: datetime,
    *,
    series_instance_uid: str = "",
) -> None:
    """End a run that needs no worker: ``refused``, ``unmatched`` or ``failed``."""
    with database.write() as connection:
        _move(
            connection, _held(connection, run), state, Actor.PREPARER, now, reason=reason,
            finished_at=now, series_instance_uid=series_instance_uid,
        )  # fmt: skip


def waiting_shadows(database: Database, now: datetime) -> tuple[tuple[str, str], ...]:
    """Return name and version of the shadows that studies wait for, the longest waiting first."""
    query = (
        select(_RUN.c.model_name, _RUN.c.model_version)
        .where(_RUN.c.state == ShadowState.WAITING, _RUN.c.available_at <= now)
        .group_by(_RUN.c.model_name, _RUN.c.model_version)
        .order_by(func.min(_RUN.c.id))
    )
    with database.read() as connection:
        return tuple((name, version) for name, version in connection.execute(query))


def claim_runs(
    database: Database,
    owner: str,
    model_name: str,
    model_version: str,
    limit: int,
    now: datetime,
    lease_seconds: float,
) -> tuple[ClaimedRun, ...]:
    """Claim up to `limit` runs of one shadow; one that was tried before goes alone."""
    query = (
        select(_RUN)
        .where(
            _RUN.c.model_name == model_name,
            _RUN.c.model_version == model_version,
            _RUN.c.state == ShadowState.WAITING,
            _RUN.c.available_at <= now,
        )
        .order_by(_RUN.c.attempts, _RUN.c.id)
        .limit(limit)
    )
    with database.write() as connection:
        waiting = [_run(row) for row in connection.execute(query).mappings()]
        fresh = [run for run in waiting if not run.attempts] or waiting[:1]
        for run in fresh:
            _move(
                connection, run, ShadowState.RUNNING, Actor.WORKER, now, claimed_at=now,
                attempts=run.attempts + 1, lease_owner=owner,
                lease_until=after(now, lease_seconds),
            )  # fmt: skip
        claimed = [_require(connection, run.id) for run in fresh]
        which = _TENSOR.c.run_id.in_([run.id for run in claimed])
        rows = connection.execute(select(_TENSOR).where(which)).mappings().all()
    tensors = {row["run_id"]: row for row in rows}
    return tuple(
        ClaimedRun(
            run,
            tensor_from_columns(
                tensors[run.id], run.sop_instance_uids, run.model.preprocessing_digest
            ),
        )
        for run in claimed
    )


def finish_run(
    database: Database, run: ShadowRun, findings: Sequence[Finding], now: datetime
) -> None:
    """Record what a shadow found; raises ``LeaseLost`` when the run is not the caller's."""
    with database.write() as connection:
        _end_within(
            connection, _held(connection, run), ShadowState.DONE, Actor.WORKER, now,
            findings=findings_to_json(findings),
        )  # fmt: skip


def end_run(
    database: Database, run: ShadowRun, state: ShadowState, reason: str, now: datetime
) -> None:
    """Record that a shadow abstains (``refused``) or could not compute (``failed``)."""
    with database.write() as connection:
        _end_within(connection, _held(connection, run), state, Actor.WORKER, now, reason=reason)


def put_back_run(
    database: Database, run: ShadowRun, reason: str, now: datetime, *, pause_seconds: float
) -> ShadowState:
    """Let a run wait again, for a while; after the last attempt it has failed."""
    with database.write() as connection:
        held = _held(connection, run)
        return _again_or_failed(
            connection, held, reason, Actor.WORKER, now, pause_seconds=pause_seconds
        )


def renew_runs(
    database: Database, runs: Sequence[ShadowRun], now: datetime, lease_seconds: float
) -> None:
    """Extend the leases of runs in hand (the heartbeat); what was lost stays lost."""
    with database.write() as connection:
        for run in runs:
            connection.execute(
                update(_RUN)
                .where(
                    _RUN.c.id == run.id,
                    _RUN.c.lease_owner == run.lease_owner,
                    _RUN.c.state == run.state,
                )
                .values(lease_until=after(now, lease_seconds))
            )


def give_back_runs(database: Database, owner: str, now: datetime) -> int:
    """Return what a worker has claimed and will not finish; the attempt is not counted."""
    with database.write() as connection:
        runs = _leased(connection, ShadowState.RUNNING, _RUN.c.lease_owner == owner)
        for run in runs:
            _move(
                connection, run, ShadowState.WAITING, Actor.WORKER, now,
                attempts=max(0, run.attempts - 1),
            )  # fmt: skip
    return len(runs)


def reclaim_runs(database: Database, now: datetime, *, owner: str | None = None) -> int:
    """Take back runs of processes that died; one that killed too many has failed.

    Parameters
    ----------
    database : Database
        The state.
    now : datetime
        Leases that end before are over.
    owner : str, optional
        A process known to be dead: its leases are over at once.
    """
    over: ColumnElement[bool] = _RUN.c.lease_until <= now
    if owner is not None:
        over = or_(over, _RUN.c.lease_owner == owner)
    with database.read() as connection:
        if not any(_leased(connection, state, over) for state in _LEASED):
            return 0
    with database.write() as connection:
        running = _leased(connection, ShadowState.RUNNING, over)
        for run in running:
            said = f"the worker {run.lease_owner} died or fell silent"
            _again_or_failed(connection, run, said, Actor.SCHEDULER, now)
        # A preparation that is not given up is taken over by the next preparer that looks.
        preparing = _leased(connection, ShadowState.PREPARING, over)
        for run in preparing:
            if run.attempts >= MOST_ATTEMPTS:
                said = f"its preparation died {run.attempts} times"
                _end_within(connection, run, ShadowState.FAILED, Actor.SCHEDULER, now, reason=said)
            else:
                connection.execute(update(_RUN).where(_RUN.c.id == run.id).values(lease_until=now))
    return len(running) + len(preparing)


def drop_runs_within(
    connection: Connection, model_name: str, model_version: str, actor: Actor, now: datetime
) -> int:
    """Drop what an ended shadow has not been asked yet, within the caller's transaction."""
    which = and_(_RUN.c.model_name == model_name, _RUN.c.model_version == model_version)
    return _drop(connection, which, "the shadow ended", actor, now)


def forget_shadow_pixels_within(
    connection: Connection, study_instance_uid: str, now: datetime
) -> None:
    """Drop the tensors of a study whose pixels retention removes, and the runs that need them."""
    which = _RUN.c.study_instance_uid == study_instance_uid
    _drop(connection, which, "retention removed the pixels", Actor.SCHEDULER, now)
    runs = select(_RUN.c.id).where(which)
    connection.execute(delete(_TENSOR).where(_TENSOR.c.run_id.in_(runs)))


def runs_of_study(database: Database, study_instance_uid: str) -> tuple[ShadowRun, ...]:
    """Return what shadows said about a study, for tests and tools; no page shows it."""
    query = select(_RUN).where(_RUN.c.study_instance_uid == study_instance_uid)
    with database.read() as connection:
        rows = connection.execute(query.order_by(_RUN.c.id)).mappings()
        return tuple(_run(row) for row in rows)


def run_counts(database: Database, model_name: str, model_version: str) -> dict[ShadowState, int]:
    """Return how many runs of a shadow stand in which state."""
    query = (
        select(_RUN.c.state, func.count())
        .where(_RUN.c.model_name == model_name, _RUN.c.model_version == model_version)
        .group_by(_RUN.c.state)
    )
    with database.read() as connection:
        return {ShadowState(state): count for state, count in connection.execute(query)}


def run_from_row(row: RowMapping) -> ShadowRun:
    """Return the record of one row of ``shadow_run``."""
    return _run(row)


def _run(row: RowMapping) -> ShadowRun:
    values: dict[str, Any] = dict(row)
    del values["available_at"]
    values["model"] = ShadowModel(
        values.pop("model_name"),
        values.pop("model_version"),
        values.pop("weights_sha256"),
        values.pop("preprocessing_digest"),
    )
    values["sop_instance_uids"] = tuple(row["sop_instance_uids"])
    values["state"] = ShadowState(row["state"])
    values["findings"] = tuple(finding_from_json(each) for each in row["findings"])
    return ShadowRun(**values)


def _require(connection: Connection, run_id: int) -> ShadowRun:
    row = connection.execute(select(_RUN).where(_RUN.c.id == run_id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no shadow run {run_id}")
    return _run(row)


def _held(connection: Connection, run: ShadowRun) -> ShadowRun:
    current = _require(connection, run.id)
    if current.lease_owner != run.lease_owner or current.state is not run.state:
        raise LeaseLost(
            f"shadow run {run.id} is no longer leased to {run.lease_owner}: "
            "it was dropped or given to another; what was found is not kept"
        )
    return current


def _leased(
    connection: Connection, state: ShadowState, which: ColumnElement[bool]
) -> list[ShadowRun]:
    query = select(_RUN).where(_RUN.c.state == state, which).order_by(_RUN.c.id)
    return [_run(row) for row in connection.execute(query).mappings()]


def _move(
    connection: Connection,
    run: ShadowRun,
    after_state: ShadowState,
    actor: Actor,
    now: datetime,
    **values: Any,
) -> None:
    subject = f"shadow run {run.id}"
    state = check_move(SHADOW_MOVES, subject, run.state, after_state, actor)
    changes = {"reason": "", "lease_owner": None, "lease_until": None, **values}
    connection.execute(
        update(_RUN).where(_RUN.c.id == run.id).values(state=state, state_since=now, **changes)
    )


def _end_within(
    connection: Connection,
    run: ShadowRun,
    state: ShadowState,
    actor: Actor,
    now: datetime,
    **values: Any,
) -> None:
    _move(connection, run, state, actor, now, finished_at=now, **values)
    connection.execute(delete(_TENSOR).where(_TENSOR.c.run_id == run.id))


def _again_or_failed(
    connection: Connection,
    run: ShadowRun,
    reason: str,
    actor: Actor,
    now: datetime,
    *,
    pause_seconds: float = 0.0,
) -> ShadowState:
    if run.attempts >= MOST_ATTEMPTS:
        said = f"{reason} (attempt {run.attempts} of {MOST_ATTEMPTS})"
        _end_within(connection, run, ShadowState.FAILED, actor, now, reason=said)
        return ShadowState.FAILED
    available = after(now, pause_seconds)
    _move(connection, run, ShadowState.WAITING, actor, now, reason=reason, available_at=available)
    return ShadowState.WAITING


def _drop(
    connection: Connection, which: ColumnElement[bool], reason: str, actor: Actor, now: datetime
) -> int:
    not_asked = [ShadowState.PREPARING, ShadowState.WAITING]
    query = select(_RUN).where(which, _RUN.c.state.in_(not_asked)).order_by(_RUN.c.id)
    runs = [_run(row) for row in connection.execute(query).mappings()]
    for run in runs:
        _end_within(connection, run, ShadowState.DROPPED, actor, now, reason=reason)
    return len(runs)
