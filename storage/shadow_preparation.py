"""Studies that are to be shown to a shadow, and how a preparer claims and ends such a run.

Owns which study is free for which shadow, and the preparer's moves. Must not know how a series is
chosen or a tensor made.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, and_, exists, insert, or_, select, update

from dicom_io.vocabulary import ImageTensor
from storage import schema
from storage.clock import after
from storage.database import Database
from storage.encoding import tensor_to_columns
from storage.shadow_runs import ShadowModel, ShadowRun, held_run, move_run, require_run
from storage.states import Actor, ShadowState, StudyState
from storage.studies import SeriesRecord, StudyRecord, read_series, require_study

_RUN, _TENSOR = schema.shadow_run, schema.shadow_tensor
_NOT_PREPARED = (StudyState.RECEIVING, StudyState.COMPLETE, StudyState.HELD)
"""Named instead of the others: SQLite would look those up one by one, all studies that there are,
and not the few that were prepared since."""


@dataclass(frozen=True, slots=True)
class ShadowTask:
    """A study to be shown to a shadow, leased to a preparer."""

    run: ShadowRun
    study: StudyRecord
    series: tuple[SeriesRecord, ...]


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
            study.c.state.not_in(_NOT_PREPARED),
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
    return require_run(connection, known)


def await_worker(
    database: Database, run: ShadowRun, series_instance_uid: str, tensor: ImageTensor, now: datetime
) -> None:
    """Let a prepared run wait for a worker; raises ``LeaseLost`` when it is not the caller's."""
    with database.write() as connection:
        held = held_run(connection, run)
        connection.execute(insert(_TENSOR).values(run_id=held.id, **tensor_to_columns(tensor)))
        move_run(
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
        move_run(
            connection, held_run(connection, run), state, Actor.PREPARER, now, reason=reason,
            finished_at=now, series_instance_uid=series_instance_uid,
        )  # fmt: skip
