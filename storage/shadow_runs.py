"""One run of a shadow: the record, its row, and the one way in which it changes state.

Owns the ``shadow_run`` and ``shadow_tensor`` tables. They stand apart from jobs and results, so
that nothing that composes, delivers, lists or counts results can meet a run. Must not know who asks
for a run and when.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, delete, select, update

from dicom_io.vocabulary import Finding
from storage import schema
from storage.database import Database
from storage.encoding import finding_from_json
from storage.errors import LeaseLost, NotFound
from storage.states import SHADOW_MOVES, Actor, ShadowState, check_move

_RUN, _TENSOR = schema.shadow_run, schema.shadow_tensor


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


def run_of(row: RowMapping) -> ShadowRun:
    """Return the record of one row of ``shadow_run``."""
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


def require_run(connection: Connection, run_id: int) -> ShadowRun:
    """Return a run by its number, or raise ``NotFound``."""
    row = connection.execute(select(_RUN).where(_RUN.c.id == run_id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no shadow run {run_id}")
    return run_of(row)


def held_run(connection: Connection, run: ShadowRun) -> ShadowRun:
    """Return the run as it stands now; raises ``LeaseLost`` when it is no longer the caller's."""
    current = require_run(connection, run.id)
    if current.lease_owner != run.lease_owner or current.state is not run.state:
        raise LeaseLost(
            f"shadow run {run.id} is no longer leased to {run.lease_owner}: "
            "it was dropped or given to another; what was found is not kept"
        )
    return current


def leased_runs(
    connection: Connection, state: ShadowState, which: ColumnElement[bool]
) -> list[ShadowRun]:
    """Return the runs of one state whose lease fulfils `which`, the oldest first."""
    query = select(_RUN).where(_RUN.c.state == state, which).order_by(_RUN.c.id)
    return [run_of(row) for row in connection.execute(query).mappings()]


def move_run(
    connection: Connection,
    run: ShadowRun,
    after_state: ShadowState,
    actor: Actor,
    now: datetime,
    **values: Any,
) -> None:
    """Change the state of a run, which frees its lease unless `values` name another."""
    subject = f"shadow run {run.id}"
    state = check_move(SHADOW_MOVES, subject, run.state, after_state, actor)
    changes = {"reason": "", "lease_owner": None, "lease_until": None, **values}
    connection.execute(
        update(_RUN).where(_RUN.c.id == run.id).values(state=state, state_since=now, **changes)
    )


def end_within(
    connection: Connection,
    run: ShadowRun,
    state: ShadowState,
    actor: Actor,
    now: datetime,
    **values: Any,
) -> None:
    """End a run for good, within the caller's transaction; its tensor goes."""
    move_run(connection, run, state, actor, now, finished_at=now, **values)
    connection.execute(delete(_TENSOR).where(_TENSOR.c.run_id == run.id))


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


def _drop(
    connection: Connection, which: ColumnElement[bool], reason: str, actor: Actor, now: datetime
) -> int:
    not_asked = [ShadowState.PREPARING, ShadowState.WAITING]
    query = select(_RUN).where(which, _RUN.c.state.in_(not_asked)).order_by(_RUN.c.id)
    runs = [run_of(row) for row in connection.execute(query).mappings()]
    for run in runs:
        end_within(connection, run, ShadowState.DROPPED, actor, now, reason=reason)
    return len(runs)


def runs_of_study(database: Database, study_instance_uid: str) -> tuple[ShadowRun, ...]:
    """Return what shadows said about a study, for tests and tools; no page shows it."""
    query = select(_RUN).where(_RUN.c.study_instance_uid == study_instance_uid)
    with database.read() as connection:
        rows = connection.execute(query.order_by(_RUN.c.id)).mappings()
        return tuple(run_of(row) for row in rows)
