"""Retention: the pixels of finished studies go after a time; what was said about them stays.

Removes files of the spool, the rows that point to them and the bytes of documents that nobody has
to get any more, never of a study with work pending.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)

from dicom_io.wording import number_of
from storage import audit, schema
from storage.clock import after
from storage.commitments import forget_commitments
from storage.database import Database
from storage.deliveries import UNDELIVERED
from storage.errors import SpoolFailure, StorageError
from storage.explanations import forget_explanations_within
from storage.removal import remove_set_aside, set_aside, settle_removals
from storage.results import REPLACED
from storage.shadow_runs import forget_shadow_pixels_within
from storage.spool import Spool
from storage.states import (
    Actor,
    DeliveryState,
    JobState,
    ResultState,
    StudyState,
)

_FINISHED = (StudyState.ROUTED, StudyState.UNMATCHED, StudyState.REFUSED)
"""A held study waits for a person, who will want its pixels."""

_SECONDS_PER_DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Purged:
    """One study whose pixels were removed."""

    study_instance_uid: str
    files: int
    freed_bytes: int


def purge_finished_studies(
    database: Database, spool: Spool, now: datetime, *, older_than_days: float, limit: int = 20
) -> tuple[Purged, ...]:
    """Remove the pixels of studies that are finished and at rest for longer than the time given.

    A study is finished when it was routed, refused or matched by no model, none of its jobs
    waits, runs or is dead-lettered, every result is composed or withheld, no delivery is pending,
    and no open association has brought something of it again. The time is counted from the last
    of all that happened to it, its analyses, results and deliveries. The oldest go first.

    Returns
    -------
    tuple of Purged
        At most `limit` studies; call again while it returns that many.

    Raises
    ------
    SpoolFailure
        The files of some studies cannot be removed; those of all others were, up to `limit`.
    """
    before = after(now, -older_than_days * _SECONDS_PER_DAY)
    query = _purgeable(before).order_by(schema.study.c.last_instance_at)
    with database.read() as connection:
        uids = list(connection.scalars(query))
    done: list[Purged] = []
    faults: dict[str, SpoolFailure] = {}
    for uid in uids:
        if len(done) >= limit:
            break
        try:
            purged = _purge(database, spool, uid, before, now)
        except SpoolFailure as error:
            # One folder that somebody took from us must not let the disk fill up with all others.
            faults[uid] = error
        else:
            done += [] if purged is None else [purged]
    if faults:
        uid, fault = next(iter(faults.items()))
        raise SpoolFailure(
            f"the files of {number_of(len(faults), 'study', 'studies')} cannot be removed, "
            f"the first is study {uid}: {fault}; of {len(done)} others they were"
        ) from fault
    return tuple(done)


def _purgeable(before: datetime) -> Select[Any]:
    study, job, result = schema.study, schema.job, schema.result
    uid = study.c.study_instance_uid
    # What ended a moment ago counts like what is still pending: whatever held a study back past
    # its time would else hand it over the moment it ends, with an answer nobody has read yet.
    busy_job = exists().where(
        job.c.study_instance_uid == uid,
        or_(
            job.c.state.in_([JobState.WAITING, JobState.RUNNING, JobState.FAILED]),
            job.c.state_since >= before,
        ),
    )
    open_result = exists().where(
        result.c.study_instance_uid == uid,
        or_(
            result.c.state.in_([ResultState.AWAITING, ResultState.UNCOMPOSABLE]),
            result.c.state_since >= before,
        ),
    )
    # Else the half that was known already would go, and the half that is still to come stay.
    sent_again = exists().where(
        schema.association_study.c.study_instance_uid == uid,
        schema.association_study.c.association_id == schema.association.c.id,
        schema.association.c.closed_at.is_(None),
    )
    # A conflict brings no study back: it may have been recorded after the purge.
    conflict = schema.instance_conflict
    left = select(conflict.c.study_instance_uid).where(conflict.c.received_at < before)
    return select(uid).where(
        study.c.state.in_(_FINISHED),
        or_(study.c.purged_at.is_(None), uid.in_(left)),
        study.c.state_since < before,
        study.c.last_instance_at < before,
        ~busy_job,
        ~open_result,
        ~_a_delivery_moved(before),
        ~sent_again,
    )


def _a_delivery_moved(before: datetime) -> ColumnElement[bool]:
    """Of a row of ``study``: a delivery of it is pending, or was until `before` or later."""
    result, delivery = schema.result.alias(), schema.delivery.alias()
    return exists().where(
        result.c.study_instance_uid == schema.study.c.study_instance_uid,
        delivery.c.result_id == result.c.id,
        or_(delivery.c.state == DeliveryState.PENDING, delivery.c.state_since >= before),
    )


def _purge(
    database: Database, spool: Spool, uid: str, before: datetime, now: datetime
) -> Purged | None:
    try:
        with database.write() as connection:
            # Asked again under the write lock: a late instance may have reopened it.
            still = _purgeable(before).where(schema.study.c.study_instance_uid == uid)
            if connection.execute(still).first() is None:
                return None
            paths = _forget_files(connection, uid, now)
            # Within the transaction: files left in place without rows would be indexed again as
            # a study of their own, and rows without files would promise pixels that are gone.
            set_aside(spool, paths)
    except StorageError:
        with suppress(StorageError):  # the next start settles it otherwise
            settle_removals(database, spool)
        raise
    return Purged(uid, len(paths), remove_set_aside(spool, paths))


def _forget_files(connection: Connection, uid: str, now: datetime) -> list[str]:
    instance, conflict, job = schema.instance, schema.instance_conflict, schema.job
    paths: list[str] = []
    for table in (instance, conflict):
        of_study = table.c.study_instance_uid == uid
        paths += connection.scalars(select(table.c.path).where(of_study)).all()
        connection.execute(delete(table).where(of_study))
    connection.execute(delete(schema.series).where(schema.series.c.study_instance_uid == uid))
    jobs = select(job.c.id).where(job.c.study_instance_uid == uid)
    connection.execute(delete(schema.tensor).where(schema.tensor.c.job_id.in_(jobs)))
    study = schema.study
    purged_at = connection.scalar(
        select(study.c.purged_at).where(study.c.study_instance_uid == uid)
    )
    # Since the first purge the documents have their own time: ``forget_kept_documents``.
    documents = 0 if purged_at else _forget_documents(connection, uid)
    forget_explanations_within(connection, uid)
    forget_shadow_pixels_within(connection, uid, now)
    most = func.max(study.c.instance_count, func.coalesce(study.c.purged_instance_count, 0))
    connection.execute(
        update(study)
        .where(study.c.study_instance_uid == uid)
        .values(purged_at=purged_at or now, purged_instance_count=most)
    )
    audit.append(
        connection,
        now,
        Actor.SCHEDULER,
        "pixels removed",
        uid,
        files=len(paths),
        documents=documents,
    )
    return paths


def forget_kept_documents(
    database: Database, now: datetime, *, older_than_days: float, limit: int = 200
) -> int:
    """Drop the bytes of reports that outlived their images, once nobody has to get them any more.

    The time is counted anew from the last thing that happened to a delivery of the study, so that
    a report that is not found where it arrived can still be sent again.

    Returns
    -------
    int
        Documents, of at most `limit` studies.
    """
    query = _settled_since_purge(after(now, -older_than_days * _SECONDS_PER_DAY)).limit(limit)
    with database.read() as connection:
        if connection.execute(query).first() is None:
            return 0
    total = 0
    with database.write() as connection:
        for uid in connection.scalars(query).all():
            dropped = _forget_documents(connection, uid)
            total += dropped
            audit.append(
                connection, now, Actor.SCHEDULER, "documents removed", uid, documents=dropped
            )
    return total


def _settled_since_purge(before: datetime) -> Select[Any]:
    study, result, document = schema.study, schema.result, schema.document
    uid = study.c.study_instance_uid
    return (
        select(uid)
        .distinct()
        .join(result, result.c.study_instance_uid == uid)
        .join(document, document.c.result_id == result.c.id)
        .where(
            study.c.purged_at < before,
            ~_a_delivery_moved(before),
            _is_settled(),
            func.length(document.c.data) > 0,
        )
    )


def _forget_documents(connection: Connection, uid: str) -> int:
    """Drop the bytes of documents that are settled; their rows still tell our own objects.

    Asked only while none of the study's deliveries is pending, or was a short time ago.
    """
    result, document = schema.result, schema.document
    settled = select(result.c.id).where(result.c.study_instance_uid == uid, _is_settled())
    dropped = connection.execute(
        update(document)
        .where(document.c.result_id.in_(settled), func.length(document.c.data) > 0)
        .values(data=b"")
    )
    return dropped.rowcount


def _is_settled() -> ColumnElement[bool]:
    """Of a row of ``result``: nobody waits for its documents, none of them being pending.

    The latest report of a model is kept when it was for nobody yet, or did not arrive everywhere:
    a retry still sends it. A later version that is never sent takes nothing from that.
    """
    of_result = schema.delivery.c.result_id == schema.result.c.id
    return (exists().where(of_result) & ~exists().where(of_result, UNDELIVERED)) | REPLACED


def forget_old_traffic(database: Database, now: datetime, *, older_than_days: float) -> int:
    """Remove records of closed associations, of refusals at the door and of settled commitments.

    Returns
    -------
    int
        How many.
    """
    before = after(now, -older_than_days * _SECONDS_PER_DAY)
    settled = forget_commitments(database, before)
    assoc, link, refused = schema.association, schema.association_study, schema.refused_instance
    old = and_(assoc.c.closed_at.is_not(None), assoc.c.closed_at < before)
    with database.write() as connection:
        ids = select(assoc.c.id).where(old)
        connection.execute(delete(link).where(link.c.association_id.in_(ids)))
        closed = connection.execute(delete(assoc).where(old)).rowcount
        turned_away = connection.execute(delete(refused).where(refused.c.at < before)).rowcount
    return settled + closed + turned_away
