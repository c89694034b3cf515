"""The queue of shadows' runs: claimed by a worker, given back, taken back from the dead.

Owns the worker's and the scheduler's moves of a run, and how long its lease lasts. Whatever a
shadow says is heard by nobody but ``medimgd models compare``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, RowMapping, func, or_, select, update

from dicom_io.vocabulary import Finding, ImageTensor
from storage import schema
from storage.clock import after
from storage.database import Database
from storage.encoding import findings_to_json, tensor_from_columns
from storage.errors import TensorDamaged
from storage.prepared import tensor_as_stored
from storage.shadow_runs import (
    ShadowRun,
    end_within,
    held_run,
    leased_runs,
    move_run,
    require_run,
    run_of,
)
from storage.states import Actor, ShadowState

MOST_ATTEMPTS = 3
"""A run is worth no more: the study has its answer from the version that serves."""

_DAMAGED = (
    "its tensor in the database is missing or damaged: check the disk of the data folder; the "
    "shadow is not asked about these images again"
)

_OUTDATED = "its preparation died, and other images of the study came"

_RUN, _TENSOR = schema.shadow_run, schema.shadow_tensor
_LEASED = (ShadowState.PREPARING, ShadowState.RUNNING)


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run with its tensor, leased to a worker."""

    run: ShadowRun
    tensor: ImageTensor


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
    """Claim up to `limit` runs of one shadow; one that was tried before goes alone.

    A run whose tensor is missing or damaged has failed, and no other run with it.
    """
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
        waiting = [run_of(row) for row in connection.execute(query).mappings()]
        fresh = [run for run in waiting if not run.attempts] or waiting[:1]
        for run in fresh:
            move_run(
                connection, run, ShadowState.RUNNING, Actor.WORKER, now, claimed_at=now,
                attempts=run.attempts + 1, lease_owner=owner,
                lease_until=after(now, lease_seconds),
            )  # fmt: skip
        claimed = [require_run(connection, run.id) for run in fresh]
        which = _TENSOR.c.run_id.in_([run.id for run in claimed])
        query = select(_TENSOR.c.run_id, *tensor_as_stored(_TENSOR)).where(which)
        rows = connection.execute(query).mappings().all()
    tensors = {row["run_id"]: row for row in rows}
    usable = []
    for run in claimed:
        try:
            usable.append(_with_tensor(run, tensors))
        except TensorDamaged:
            end_run(database, run, ShadowState.FAILED, _DAMAGED, now)
    return tuple(usable)


def _with_tensor(run: ShadowRun, tensors: Mapping[int, RowMapping]) -> ClaimedRun:
    row = tensors.get(run.id)
    if row is None:
        raise TensorDamaged(_DAMAGED)
    digest = run.model.preprocessing_digest
    return ClaimedRun(run, tensor_from_columns(row, run.sop_instance_uids, digest))


def finish_run(
    database: Database, run: ShadowRun, findings: Sequence[Finding], now: datetime
) -> None:
    """Record what a shadow found; raises ``LeaseLost`` when the run is not the caller's."""
    with database.write() as connection:
        end_within(
            connection, held_run(connection, run), ShadowState.DONE, Actor.WORKER, now,
            findings=findings_to_json(findings),
        )  # fmt: skip


def end_run(
    database: Database, run: ShadowRun, state: ShadowState, reason: str, now: datetime
) -> None:
    """Record that a shadow abstains (``refused``) or could not compute (``failed``)."""
    with database.write() as connection:
        end_within(connection, held_run(connection, run), state, Actor.WORKER, now, reason=reason)


def put_back_run(
    database: Database,
    run: ShadowRun,
    reason: str,
    now: datetime,
    *,
    pause_seconds: float,
    was_tried: bool = True,
) -> ShadowState:
    """Let a run wait again, for a while; after the last attempt it has failed.

    What was not tried, because who computes was not there, counts as no attempt.
    """
    with database.write() as connection:
        held = held_run(connection, run)
        if not was_tried:
            move_run(
                connection, held, ShadowState.WAITING, Actor.WORKER, now, reason=reason,
                attempts=max(0, held.attempts - 1), available_at=after(now, pause_seconds),
            )  # fmt: skip
            return ShadowState.WAITING
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
        runs = leased_runs(connection, ShadowState.RUNNING, _RUN.c.lease_owner == owner)
        for run in runs:
            move_run(
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
        if not any(leased_runs(connection, state, over) for state in _LEASED):
            return 0
    with database.write() as connection:
        running = leased_runs(connection, ShadowState.RUNNING, over)
        for run in running:
            said = f"the worker {run.lease_owner} died or fell silent"
            _again_or_failed(connection, run, said, Actor.SCHEDULER, now)
        # A preparation that is not given up is taken over by the next preparer that looks.
        preparing = leased_runs(connection, ShadowState.PREPARING, over)
        for run in preparing:
            if run.attempts >= MOST_ATTEMPTS:
                said = f"its preparation died {run.attempts} times"
                end_within(connection, run, ShadowState.FAILED, Actor.SCHEDULER, now, reason=said)
            elif _is_outdated(connection, run):
                end_within(
                    connection, run, ShadowState.DROPPED, Actor.SCHEDULER, now, reason=_OUTDATED
                )
            else:
                connection.execute(update(_RUN).where(_RUN.c.id == run.id).values(lease_until=now))
    return len(running) + len(preparing)


def _is_outdated(connection: Connection, run: ShadowRun) -> bool:
    """True when the study is not the images of this run any more: no preparer looks for it."""
    study = schema.study
    digest = connection.scalar(
        select(study.c.instance_set_digest).where(
            study.c.study_instance_uid == run.study_instance_uid
        )
    )
    return digest != run.instance_set_digest


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
        end_within(connection, run, ShadowState.FAILED, actor, now, reason=said)
        return ShadowState.FAILED
    available = after(now, pause_seconds)
    move_run(
        connection, run, ShadowState.WAITING, actor, now, reason=reason, available_at=available
    )
    return ShadowState.WAITING
