"""Studies, series and instances as the index knows them, read back as records.

Owns what the ``study``, ``series`` and ``instance`` tables mean; ``storage.recording`` fills them.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, func, or_, select, union

from storage import schema
from storage.connections import folded
from storage.database import Database
from storage.errors import ImagesLost, ImagesRemoved, NotFound
from storage.states import JobState, StudyState


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """One row of the worklist; patient attributes stay out of ``repr`` and so out of logs."""

    study_instance_uid: str
    patient_id: str = field(repr=False)
    patient_name: str = field(repr=False)
    accession_number: str = field(repr=False)
    study_date: str
    study_time: str
    description: str
    modalities: tuple[str, ...]
    instance_count: int
    conflict_count: int
    """Instances that came again under a known UID with other content."""
    expected_instances: int | None
    state: StudyState
    state_since: datetime
    reason: str
    first_instance_at: datetime
    last_instance_at: datetime
    """The last new instance, or the end of the last association that brought one."""
    completed_at: datetime | None
    prepared_at: datetime | None
    completion_evidence: Mapping[str, Any] | None
    instance_set_digest: str | None
    attempts: int
    lease_owner: str | None
    lease_until: datetime | None
    purged_at: datetime | None
    """When retention removed its files; None while they are there."""
    patient_mismatch_count: int = 0
    """Instances that name another patient than the study's first ones."""
    purged_instance_count: int | None = None
    """Instances it had when retention removed them; None when it never did."""
    put_off_since: datetime | None = None
    """When its preparation was first put off since it was complete; None when it never was."""


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """One stored instance."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    instance_number: int | None
    number_of_frames: int
    rows: int
    columns: int
    path: str
    """Below the spool's folder."""
    content_digest: str
    """As ``storage.contents`` writes it, by the algorithm of its study."""
    size: int
    received_at: datetime


@dataclass(frozen=True, slots=True)
class SeriesRecord:
    """One series with its instances in the order of their numbers."""

    series_instance_uid: str
    modality: str
    description: str
    body_part_examined: str
    series_number: int | None
    instances: tuple[InstanceRecord, ...]


@dataclass(frozen=True, slots=True)
class ConflictRecord:
    """Other content that came under a known SOP Instance UID."""

    sop_instance_uid: str
    content_digest: str
    """As ``storage.contents`` writes it, by the algorithm of its study."""
    path: str
    size: int
    received_at: datetime


def instance_set_digest(instances: Iterable[tuple[str, str]]) -> str:
    """Return the SHA-256 over (SOP Instance UID, recorded content digest) pairs, in any order.

    The recorded text decides: what an earlier version recorded gives the digest of then.
    """
    lines = sorted(f"{uid} {content}\n" for uid, content in instances)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def study_from_row(row: RowMapping) -> StudyRecord:
    """Return the record of one row of table ``study``."""
    values: dict[str, Any] = dict(row)
    values["modalities"] = tuple(row["modalities"])
    values["state"] = StudyState(row["state"])
    del values["content_algorithm"]
    return StudyRecord(**values)


def study_row(connection: Connection, uid: str) -> RowMapping | None:
    """Return the row of one study, or None."""
    query = select(schema.study).where(schema.study.c.study_instance_uid == uid)
    return connection.execute(query).mappings().one_or_none()


def require_study(connection: Connection, study_instance_uid: str) -> StudyRecord:
    """Return one study within the caller's transaction; ``NotFound`` when there is none."""
    row = study_row(connection, study_instance_uid)
    if row is None:
        raise NotFound(f"no study {study_instance_uid}: list them with `medimgd studies`")
    return study_from_row(row)


def require_images(study: StudyRecord) -> None:
    """Raise ``ImagesRemoved`` when retention removed them, ``ImagesLost`` when none is known."""
    if study.purged_at is not None:
        raise ImagesRemoved(
            f"study {study.study_instance_uid}: its images were removed on "
            f"{study.purged_at:%Y-%m-%d}; send the study again"
        )
    if study.instance_count == 0:
        raise ImagesLost(
            f"study {study.study_instance_uid}: none of its images is here but what contradicts "
            "one that is lost or damaged; send the study again"
        )


def get_study(database: Database, study_instance_uid: str) -> StudyRecord:
    """Return one study.

    Raises
    ------
    NotFound
        No instance of it was ever received.
    """
    with database.read() as connection:
        return require_study(connection, study_instance_uid)


def count_waiting_studies(database: Database, *, at_most: int) -> int:
    """Count the studies that wait for preparation or for a model, up to `at_most`."""
    unprepared = select(schema.study.c.study_instance_uid).where(
        schema.study.c.state == StudyState.COMPLETE
    )
    unanalysed = select(schema.job.c.study_instance_uid).where(
        schema.job.c.state.in_((JobState.WAITING, JobState.RUNNING))
    )
    waiting = union(unprepared, unanalysed).limit(at_most).subquery()
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(waiting)).scalar_one()


def list_studies(
    database: Database,
    *,
    states: Iterable[StudyState] | None = None,
    search: str = "",
    limit: int = 100,
    offset: int = 0,
) -> tuple[StudyRecord, ...]:
    """Return studies, the one with the newest instance first.

    Parameters
    ----------
    database : Database
        Where to look.
    states : iterable of StudyState, optional
        Only these.
    search : str
        Part of a name, patient ID, accession number or the beginning of a study UID.
    limit, offset : int
        The page.
    """
    table = schema.study
    query: Select[Any] = select(table).order_by(
        table.c.last_instance_at.desc(), table.c.study_instance_uid
    )
    if states is not None:
        query = query.where(table.c.state.in_([str(state) for state in states]))
    if search:
        part = folded(search)
        query = query.where(
            or_(
                func.folded(table.c.patient_name).contains(part, autoescape=True),
                func.folded(table.c.patient_id).contains(part, autoescape=True),
                func.folded(table.c.accession_number).contains(part, autoescape=True),
                table.c.study_instance_uid.startswith(search, autoescape=True),
            )
        )
    with database.read() as connection:
        rows = connection.execute(query.limit(limit).offset(offset)).mappings().all()
    return tuple(study_from_row(row) for row in rows)


def studies_named(database: Database, text: str) -> tuple[str, ...]:
    """Return the UIDs that begin with a text, and those of studies with that accession number."""
    table = schema.study
    query = select(table.c.study_instance_uid).where(
        or_(
            func.folded(func.trim(table.c.accession_number)) == folded(text),
            table.c.study_instance_uid.startswith(text, autoescape=True),
        )
    )
    with database.read() as connection:
        return tuple(connection.scalars(query.order_by(table.c.study_instance_uid)))


def read_series(connection: Connection, study_instance_uid: str) -> tuple[SeriesRecord, ...]:
    """Return the series of a study with their instances, within the caller's transaction."""
    series, instance = schema.series, schema.instance
    by_series: dict[str, list[InstanceRecord]] = defaultdict(list)
    instances = (
        select(instance)
        .where(instance.c.study_instance_uid == study_instance_uid)
        .order_by(instance.c.instance_number, instance.c.sop_instance_uid)
    )
    for row in connection.execute(instances).mappings():
        values = dict(row)
        del values["study_instance_uid"]
        by_series[values.pop("series_instance_uid")].append(InstanceRecord(**values))
    query = (
        select(series)
        .where(series.c.study_instance_uid == study_instance_uid)
        .order_by(series.c.series_number, series.c.series_instance_uid)
    )
    return tuple(
        SeriesRecord(
            row.series_instance_uid,
            row.modality,
            row.description,
            row.body_part_examined,
            row.series_number,
            tuple(by_series[row.series_instance_uid]),
        )
        for row in connection.execute(query)
    )


def read_conflicts(connection: Connection, study_instance_uid: str) -> tuple[ConflictRecord, ...]:
    """Return what came under a known UID with other content, oldest first."""
    table = schema.instance_conflict
    query = select(table).where(table.c.study_instance_uid == study_instance_uid)
    return tuple(
        ConflictRecord(
            row.sop_instance_uid, row.content_digest, row.path, row.size, row.received_at
        )
        for row in connection.execute(query.order_by(table.c.id))
    )


def get_series(database: Database, study_instance_uid: str) -> tuple[SeriesRecord, ...]:
    """Return the series of a study with their instances; empty when there are none."""
    with database.read() as connection:
        return read_series(connection, study_instance_uid)


def instance_paths(database: Database, study_instance_uid: str) -> dict[str, str]:
    """Return the path below the spool's folder of every instance, by SOP Instance UID."""
    table = schema.instance
    query = select(table.c.sop_instance_uid, table.c.path).where(
        table.c.study_instance_uid == study_instance_uid
    )
    with database.read() as connection:
        return {row.sop_instance_uid: row.path for row in connection.execute(query)}
