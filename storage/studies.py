"""Studies as they arrive: recording instances, and reading studies, series and instances back.

Owns the ``study``, ``series``, ``instance`` and ``instance_conflict`` tables while a study is
received; knows nothing of jobs and results.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, insert, or_, select, update

from dicom_io.vocabulary import InstanceHeader
from storage import audit, schema
from storage.arrivals import Arrival, StoreOutcome
from storage.database import Database
from storage.errors import NotFound
from storage.states import STUDY_MOVES, Actor, StudyState, check_move


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
    sha256: str
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
    sha256: str
    path: str
    size: int
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a batch of arrivals came to."""

    new: int
    identical: int
    conflicts: int
    reopened: tuple[str, ...]
    """Studies that had left ``receiving`` and are back there because of late instances."""


def instance_set_digest(instances: Iterable[tuple[str, str]]) -> str:
    """Return the SHA-256 over (SOP Instance UID, content SHA-256) pairs, in any order."""
    lines = sorted(f"{uid} {sha256}\n" for uid, sha256 in instances)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def record_instances(database: Database, arrivals: Sequence[Arrival], now: datetime) -> Recorded:
    """Index a batch of stored instances in one transaction.

    A new instance moves its study's clock and brings a study that was complete or further back
    to ``receiving``. The same content again changes nothing; other content under a known UID
    flags the study.
    """
    by_study: dict[str, list[Arrival]] = defaultdict(list)
    for arrival in arrivals:
        by_study[arrival.stored.header.study_instance_uid].append(arrival)
    with database.write() as connection:
        tallies = [_record_study(connection, uid, some, now) for uid, some in by_study.items()]
    return Recorded(
        new=sum(tally.new for tally in tallies),
        identical=sum(tally.identical for tally in tallies),
        conflicts=sum(tally.conflicts for tally in tallies),
        reopened=tuple(uid for tally in tallies for uid in tally.reopened),
    )


def _record_study(
    connection: Connection, uid: str, arrivals: Sequence[Arrival], now: datetime
) -> Recorded:
    study = _study_row(connection, uid) or _insert_study(connection, arrivals[0], now)
    new, conflicting = _sorted_out(connection, uid, arrivals)
    _insert_series(connection, uid, [arrival.stored.header for arrival in new])
    if new:
        connection.execute(insert(schema.instance), [_instance_values(a, now) for a in new])
    conflicts = _insert_conflicts(connection, uid, conflicting, now)
    reopened = bool(new) and study["state"] != StudyState.RECEIVING
    if new:
        _move_clock(connection, study, new, now)
        _link_associations(connection, uid, new)
    if conflicts:
        table = schema.study
        connection.execute(
            update(table)
            .where(table.c.study_instance_uid == uid)
            .values(conflict_count=table.c.conflict_count + conflicts)
        )
    return Recorded(
        len(new), len(arrivals) - len(new) - conflicts, conflicts, (uid,) if reopened else ()
    )


def _study_row(connection: Connection, uid: str) -> RowMapping | None:
    query = select(schema.study).where(schema.study.c.study_instance_uid == uid)
    return connection.execute(query).mappings().one_or_none()


def _insert_study(connection: Connection, arrival: Arrival, now: datetime) -> RowMapping:
    header = arrival.stored.header
    connection.execute(
        insert(schema.study).values(
            study_instance_uid=header.study_instance_uid,
            modalities=[],
            state=StudyState.RECEIVING,
            state_since=now,
            first_instance_at=now,
            last_instance_at=now,
            **_study_attributes(header),
        )
    )
    row = _study_row(connection, header.study_instance_uid)
    assert row is not None  # noqa: S101 - inserted above, in this transaction
    return row


def _study_attributes(header: InstanceHeader) -> dict[str, str]:
    return {
        "patient_id": header.patient_id,
        "patient_name": header.patient_name,
        "accession_number": header.accession_number,
        "study_date": header.study_date,
        "study_time": header.study_time,
        "description": header.study_description,
    }


def _sorted_out(
    connection: Connection, uid: str, arrivals: Sequence[Arrival]
) -> tuple[list[Arrival], list[Arrival]]:
    """Return the arrivals not known yet, and those that contradict what is known."""
    table = schema.instance
    known: dict[str, str] = {}
    sop_uids = [arrival.stored.header.sop_instance_uid for arrival in arrivals]
    for chunk in _chunks(sop_uids):
        query = select(table.c.sop_instance_uid, table.c.sha256).where(
            table.c.study_instance_uid == uid, table.c.sop_instance_uid.in_(chunk)
        )
        known.update((row.sop_instance_uid, row.sha256) for row in connection.execute(query))
    new, conflicting = [], []
    for arrival in arrivals:
        stored = arrival.stored
        sop_uid = stored.header.sop_instance_uid
        if stored.outcome is StoreOutcome.CONFLICT:
            conflicting.append(arrival)
        elif sop_uid not in known:
            known[sop_uid] = stored.sha256
            new.append(arrival)
        elif known[sop_uid] != stored.sha256:
            # The spool keeps files by series; the same UID in another series meets here only.
            conflicting.append(arrival)
    return new, conflicting


_MOST_PARAMETERS = 500
"""Bound values per statement; SQLite's limit is far above, statement caching is not."""


def _chunks(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (
        values[start : start + _MOST_PARAMETERS]
        for start in range(0, len(values), _MOST_PARAMETERS)
    )


def _insert_series(connection: Connection, uid: str, headers: Sequence[InstanceHeader]) -> None:
    if not headers:
        return
    table = schema.series
    query = select(table.c.series_instance_uid).where(table.c.study_instance_uid == uid)
    known = set(connection.scalars(query))
    rows = {
        header.series_instance_uid: {
            "study_instance_uid": uid,
            "series_instance_uid": header.series_instance_uid,
            "modality": header.modality,
            "description": header.series_description,
            "body_part_examined": header.body_part_examined,
            "series_number": header.series_number,
        }
        for header in headers
        if header.series_instance_uid not in known
    }
    if rows:
        connection.execute(insert(table), list(rows.values()))


def _instance_values(arrival: Arrival, now: datetime) -> dict[str, Any]:
    stored, header = arrival.stored, arrival.stored.header
    return {
        "study_instance_uid": header.study_instance_uid,
        "sop_instance_uid": header.sop_instance_uid,
        "series_instance_uid": header.series_instance_uid,
        "sop_class_uid": header.sop_class_uid,
        "transfer_syntax_uid": header.transfer_syntax_uid,
        "instance_number": header.instance_number,
        "number_of_frames": header.number_of_frames,
        "rows": header.rows,
        "columns": header.columns,
        "path": stored.relative_path,
        "sha256": stored.sha256,
        "size": stored.size,
        "received_at": now,
    }


def _insert_conflicts(
    connection: Connection, uid: str, arrivals: Sequence[Arrival], now: datetime
) -> int:
    if not arrivals:
        return 0
    table = schema.instance_conflict
    query = select(table.c.sop_instance_uid, table.c.sha256).where(
        table.c.study_instance_uid == uid
    )
    known = {(row.sop_instance_uid, row.sha256) for row in connection.execute(query)}
    inserted = 0
    for arrival in arrivals:
        stored = arrival.stored
        key = (stored.header.sop_instance_uid, stored.sha256)
        if key in known:
            continue
        known.add(key)
        inserted += 1
        connection.execute(
            insert(table).values(
                study_instance_uid=uid,
                sop_instance_uid=key[0],
                sha256=key[1],
                path=stored.relative_path,
                size=stored.size,
                received_at=now,
            )
        )
        audit.append(
            connection, now, Actor.RECEIVER, "instance conflict", uid, sop_instance_uid=key[0]
        )
    return inserted


def _move_clock(
    connection: Connection, study: RowMapping, new: Sequence[Arrival], now: datetime
) -> None:
    headers = [arrival.stored.header for arrival in new]
    modalities = {*study["modalities"], *(h.modality for h in headers if h.modality)}
    values: dict[str, Any] = {
        "last_instance_at": now,
        "modalities": sorted(modalities),
        # A purged study that comes again is counted anew: its rows went with its files.
        "instance_count": len(new) + (0 if study["purged_at"] else study["instance_count"]),
        "purged_at": None,
        **_filled_in(study, headers),
    }
    uid, state = study["study_instance_uid"], StudyState(study["state"])
    if state is not StudyState.RECEIVING:
        values |= _reopened(uid, state, now)
        audit.append(
            connection, now, Actor.RECEIVER, "study reopened", uid, was=state, new=len(new)
        )
    connection.execute(
        update(schema.study).where(schema.study.c.study_instance_uid == uid).values(values)
    )


def _filled_in(study: RowMapping, headers: Sequence[InstanceHeader]) -> dict[str, str]:
    """Return attributes that the study lacked and a later instance has."""
    found: dict[str, str] = {}
    for header in headers:
        for name, value in _study_attributes(header).items():
            if value and not study[name]:
                found.setdefault(name, value)
    return found


def _reopened(uid: str, state: StudyState, now: datetime) -> dict[str, Any]:
    return {
        "state": check_move(STUDY_MOVES, uid, state, StudyState.RECEIVING, Actor.RECEIVER),
        "state_since": now,
        "reason": f"late instances, after the study was {state}",
        "completed_at": None,
        "prepared_at": None,
        "completion_evidence": None,
        "instance_set_digest": None,
        "attempts": 0,
        "lease_owner": None,
        "lease_until": None,
    }


def _link_associations(connection: Connection, uid: str, new: Sequence[Arrival]) -> None:
    table = schema.association_study
    ids = {arrival.association_id for arrival in new} - {None}
    query = select(table.c.association_id).where(
        table.c.study_instance_uid == uid, table.c.association_id.in_(ids)
    )
    missing = ids - set(connection.scalars(query)) if ids else set()
    if missing:
        rows = [{"association_id": each, "study_instance_uid": uid} for each in missing]
        connection.execute(insert(table), rows)


def study_from_row(row: RowMapping) -> StudyRecord:
    """Return the record of one row of table ``study``."""
    values: dict[str, Any] = dict(row)
    values["modalities"] = tuple(row["modalities"])
    values["state"] = StudyState(row["state"])
    return StudyRecord(**values)


def get_study(database: Database, study_instance_uid: str) -> StudyRecord:
    """Return one study.

    Raises
    ------
    NotFound
        No instance of it was ever received.
    """
    with database.read() as connection:
        return require_study(connection, study_instance_uid)


def require_study(connection: Connection, study_instance_uid: str) -> StudyRecord:
    """Return one study within the caller's transaction; ``NotFound`` when there is none."""
    row = _study_row(connection, study_instance_uid)
    if row is None:
        raise NotFound(f"no study {study_instance_uid}: list them with `medimgd studies`")
    return study_from_row(row)


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
        query = query.where(
            or_(
                table.c.patient_name.icontains(search, autoescape=True),
                table.c.patient_id.icontains(search, autoescape=True),
                table.c.accession_number.icontains(search, autoescape=True),
                table.c.study_instance_uid.startswith(search, autoescape=True),
            )
        )
    with database.read() as connection:
        rows = connection.execute(query.limit(limit).offset(offset)).mappings().all()
    return tuple(study_from_row(row) for row in rows)


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
        ConflictRecord(row.sop_instance_uid, row.sha256, row.path, row.size, row.received_at)
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


def set_expected_instances(database: Database, study_instance_uid: str, count: int | None) -> None:
    """Note how many instances the study should have, when a query or rule knows."""
    with database.write() as connection:
        require_study(connection, study_instance_uid)
        connection.execute(
            update(schema.study)
            .where(schema.study.c.study_instance_uid == study_instance_uid)
            .values(expected_instances=count)
        )
