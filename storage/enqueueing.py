"""What a preparation leaves in the queue: new jobs with their tensors, refusals, superseded jobs.

Works within the preparer's transaction; ``storage.preparation`` owns that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Connection,
    and_,
    exists,
    insert,
    or_,
    select,
    update,
)

from dicom_io.errors import RefusalReason
from dicom_io.vocabulary import ImageTensor, ModelIdentity
from storage import schema
from storage.encoding import (
    identity_to_json,
    tensor_to_columns,
)
from storage.jobs import (
    JobRecord,
    drop_tensor,
    job_from_row,
    move_job,
    require_job,
    result_of,
    wait_again,
)
from storage.precedence import overtaken_within
from storage.results import ResultKind, write_result
from storage.states import Actor, JobState

_UNSAID = (JobState.WAITING, JobState.SUPERSEDED, JobState.FAILED)
_SAID = (JobState.DONE, JobState.REFUSED)

_NOT_WANTED = "a later preparation of the study is analysed instead"


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


def enqueue_within(
    connection: Connection,
    study_instance_uid: str,
    new: NewJob,
    now: datetime,
    *,
    enqueued_at: datetime,
) -> int:
    """Enqueue within the caller's transaction; return the job's id.

    The same work again (study, series, model version, instance set, preprocessing) is the same
    job: waiting, running and done ones stay as they are, refused and failed ones wait again, and
    so does a done one that a preparation between has replaced, by another version say. One that
    waits is for the weights of now, should a package have been replaced under its version.
    Whatever its state, it belongs to this preparation from now on: `enqueued_at` is its instant,
    by ``storage.precedence``.
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
        _revive(connection, known, new, now, enqueued_at)
        _update(connection, known, enqueued_at=enqueued_at)
        return known.id
    job_id = _insert_job(
        connection,
        key,
        new.model,
        new.tensor.sop_instance_uids,
        state=JobState.WAITING,
        now=now,
        enqueued_at=enqueued_at,
        priority=new.priority,
    )
    connection.execute(insert(schema.tensor).values(job_id=job_id, **tensor_to_columns(new.tensor)))
    return job_id


def refuse_within(
    connection: Connection,
    study_instance_uid: str,
    new: NewRefusal,
    now: datetime,
    *,
    enqueued_at: datetime,
) -> int:
    """Record a refusal as a job that never waited, with its result; return the job's id.

    A job of the same key that runs, is done, or was refused before says nothing new, unless another
    version has spoken since; it belongs to this preparation all the same, as in ``enqueue_within``.
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
            connection,
            key,
            new.model,
            new.sop_instance_uids,
            state=JobState.REFUSED,
            now=now,
            enqueued_at=enqueued_at,
        )
        known = require_job(connection, job_id)
    elif known.state in _UNSAID or _is_replaced(connection, known, enqueued_at):
        # As in _revive, a failed one is here by a retry. A new run: in the one before it may have
        # said something.
        actor = Actor.OPERATOR if known.state is JobState.FAILED else Actor.PREPARER
        move_job(connection, known, JobState.REFUSED, actor, now, run=known.run + 1)
        drop_tensor(connection, known.id)
        _take_identity(connection, known, new.model)
        _update(connection, known, enqueued_at=enqueued_at)
        known = require_job(connection, known.id)
    else:
        _update(connection, known, enqueued_at=enqueued_at)
        return known.id
    _update(connection, known, reason=new.message, finished_at=now)
    write_result(
        connection,
        result_of(known, ResultKind.REFUSAL, now, reason=new.reason, message=new.message),
        now,
    )
    return known.id


def supersede_within(
    connection: Connection, study_instance_uid: str, *, keep: Iterable[int], now: datetime
) -> tuple[int, ...]:
    """Supersede the study's waiting jobs that the newest preparation does not want.

    And failed ones without a tensor: only a preparation that wants them could let them run again.
    And those of models that it asks otherwise, in another version say, or about other images: what
    those answer stands for the failed ones, and a person is asked again only if they fail too.
    """
    table, tensor, kept = schema.job, schema.tensor, schema.job.alias()
    has_tensor = exists().where(tensor.c.job_id == table.c.id)
    keep = list(keep)
    asked = select(kept.c.model_name).where(kept.c.id.in_(keep))
    query = select(table).where(
        table.c.study_instance_uid == study_instance_uid,
        or_(
            table.c.state == JobState.WAITING,
            and_(table.c.state == JobState.FAILED, or_(~has_tensor, table.c.model_name.in_(asked))),
        ),
        table.c.id.not_in(keep),
    )
    old = [job_from_row(row) for row in connection.execute(query).mappings()]
    for job in old:
        move_job(connection, job, JobState.SUPERSEDED, Actor.PREPARER, now, reason=_NOT_WANTED)
        drop_tensor(connection, job.id)
    return tuple(job.id for job in old)


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


def _insert_job(
    connection: Connection,
    key: Mapping[str, str],
    model: ModelIdentity,
    sop_instance_uids: Sequence[str],
    *,
    state: JobState,
    now: datetime,
    enqueued_at: datetime,
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
            enqueued_at=enqueued_at,
        )
    )
    assert inserted.inserted_primary_key is not None  # noqa: S101 - one row, integer key
    return int(inserted.inserted_primary_key[0])


def _revive(
    connection: Connection, job: JobRecord, new: NewJob, now: datetime, enqueued_at: datetime
) -> None:
    if job.state is JobState.WAITING:
        _take_identity(connection, job, new.model)
        return
    if job.state in (JobState.REFUSED, JobState.FAILED):
        # Only a retry brings a study with such a job back to its preparer.
        actor = Actor.OPERATOR
    elif job.state is JobState.SUPERSEDED or _is_replaced(connection, job, enqueued_at):
        actor = Actor.PREPARER
    else:
        return
    drop_tensor(connection, job.id)
    connection.execute(insert(schema.tensor).values(job_id=job.id, **tensor_to_columns(new.tensor)))
    _take_identity(connection, job, new.model)
    wait_again(connection, job, actor, now)


def _is_replaced(connection: Connection, job: JobRecord, enqueued_at: datetime) -> bool:
    """True when what it said holds no more, though this preparation wants it: it is said again."""
    return job.state in _SAID and overtaken_within(connection, job, before=enqueued_at)


def _take_identity(connection: Connection, job: JobRecord, model: ModelIdentity) -> None:
    """Note the model's weights as they are now; a result of before keeps the ones it came from."""
    if model != job.model:
        _update(connection, job, model_identity=identity_to_json(model))


def _update(connection: Connection, job: JobRecord, **values: Any) -> None:
    """Change columns of a job that are not its state."""
    connection.execute(update(schema.job).where(schema.job.c.id == job.id).values(**values))
