"""Recording what the spool stored: instances, the study's clock, conflicts, late arrivals.

Owns the moves back to ``receiving``; knows nothing of jobs and results.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, func, insert, select, update

from dicom_io.vocabulary import InstanceHeader
from storage import audit, schema
from storage.arrivals import Arrival, StoreOutcome
from storage.contents import DigestAlgorithm, algorithm_of
from storage.database import Database
from storage.prepared import among, as_list
from storage.redigesting import redigested
from storage.states import STUDY_MOVES, Actor, StudyState, check_move


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a batch of arrivals came to."""

    new: int
    identical: int
    conflicts: int
    reopened: tuple[str, ...]
    """Studies that had left ``receiving`` and are back there because of late instances."""


def record_instances(database: Database, arrivals: Sequence[Arrival], now: datetime) -> Recorded:
    """Index a batch of stored instances in one transaction.

    A new instance moves its study's clock and brings a study that was complete or further back
    to ``receiving``. The same content again changes nothing; other content under a known UID
    flags the study.
    """
    arrivals = redigested(database, arrivals)
    with database.write() as connection:
        return record_within(connection, arrivals, now)


def record_within(connection: Connection, arrivals: Sequence[Arrival], now: datetime) -> Recorded:
    """Record arrivals that are ``redigested`` already, within the caller's transaction."""
    by_study: dict[str, list[Arrival]] = defaultdict(list)
    for arrival in arrivals:
        by_study[arrival.stored.header.study_instance_uid].append(arrival)
    tallies = [_record_study(connection, uid, some, now) for uid, some in by_study.items()]
    return Recorded(
        new=sum(tally.new for tally in tallies),
        identical=sum(tally.identical for tally in tallies),
        conflicts=sum(tally.conflicts for tally in tallies),
        reopened=tuple(uid for tally in tallies for uid in tally.reopened),
    )


# Built once: making and compiling them anew costs more than SQLite takes to execute them.
_STUDY = select(schema.study).where(schema.study.c.study_instance_uid == bindparam("uid"))
_KNOWN_INSTANCES = select(
    schema.instance.c.sop_instance_uid, schema.instance.c.content_digest
).where(
    schema.instance.c.study_instance_uid == bindparam("uid"),
    among(schema.instance.c.sop_instance_uid, "sop_instance_uids"),
)
_KNOWN_SERIES = select(schema.series.c.series_instance_uid).where(
    schema.series.c.study_instance_uid == bindparam("uid")
)
_KNOWN_LINKS = select(schema.association_study.c.association_id).where(
    schema.association_study.c.study_instance_uid == bindparam("uid"),
    schema.association_study.c.association_id.in_(bindparam("association_ids", expanding=True)),
)
# Counted and not added up: of those from before a purge the rows went with their files.
_COUNT_CONFLICTS = (
    update(schema.study)
    .where(schema.study.c.study_instance_uid == bindparam("uid"))
    .values(
        conflict_count=select(func.count())
        .select_from(schema.instance_conflict)
        .where(schema.instance_conflict.c.study_instance_uid == bindparam("uid"))
        .scalar_subquery()
    )
)
_INSERT_INSTANCE = insert(schema.instance)
_INSERT_LINK = insert(schema.association_study)


def _study_row(connection: Connection, uid: str) -> RowMapping | None:
    return connection.execute(_STUDY, {"uid": uid}).mappings().one_or_none()


def _record_study(
    connection: Connection, uid: str, arrivals: Sequence[Arrival], now: datetime
) -> Recorded:
    study = _study_row(connection, uid) or _insert_study(connection, arrivals[0], now)
    new, conflicting = _sorted_out(connection, study, arrivals)
    _insert_series(connection, uid, [arrival.stored.header for arrival in new])
    if new:
        connection.execute(_INSERT_INSTANCE, [_instance_values(a, now) for a in new])
    conflicts = _insert_conflicts(connection, uid, conflicting, now)
    reopened = bool(new) and study["state"] != StudyState.RECEIVING
    if new:
        _move_clock(connection, study, new, now)
    # Also for what is known: indexing the spool again may have recorded it a moment earlier, and
    # retention leaves a study alone while it is sent again.
    ids = {arrival.association_id for arrival in arrivals if arrival.association_id is not None}
    link_within(connection, uid, ids)
    if conflicts or (new and study["purged_at"]):
        connection.execute(_COUNT_CONFLICTS, {"uid": uid})
    return Recorded(
        len(new), len(arrivals) - len(new) - conflicts, conflicts, (uid,) if reopened else ()
    )


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
            content_algorithm=DigestAlgorithm.BLAKE3,
            **_study_attributes(header),
        )
    )
    row = _study_row(connection, header.study_instance_uid)
    assert row is not None  # noqa: S101 - inserted above, in this transaction
    return row


_STUDY_ATTRIBUTES = (
    "patient_id",
    "patient_name",
    "accession_number",
    "study_date",
    "study_time",
    "description",
)


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
    connection: Connection, study: RowMapping, arrivals: Sequence[Arrival]
) -> tuple[list[Arrival], list[Arrival]]:
    """Return the arrivals not known yet, and those that contradict what is known."""
    uid = study["study_instance_uid"]
    sop_uids = [arrival.stored.header.sop_instance_uid for arrival in arrivals]
    rows = connection.execute(
        _KNOWN_INSTANCES, {"uid": uid, "sop_instance_uids": as_list(sop_uids)}
    )
    known = {row.sop_instance_uid: row.content_digest for row in rows}
    new, conflicting = [], []
    for arrival in arrivals:
        stored = arrival.stored
        sop_uid = stored.header.sop_instance_uid
        if algorithm_of(stored.content_digest) != study["content_algorithm"]:
            continue  # Its file is gone (``redigested``): nothing tells what it was.
        if stored.outcome is StoreOutcome.CONFLICT:
            conflicting.append(arrival)
        elif sop_uid not in known:
            if stored.outcome is StoreOutcome.IDENTICAL and not stored.path.exists():
                continue  # Retention took the study away between the answer and this row.
            known[sop_uid] = stored.content_digest
            new.append(arrival)
        elif known[sop_uid] != stored.content_digest:
            # The spool keeps files by series; the same UID in another series meets here only.
            conflicting.append(arrival)
    return new, conflicting


def _insert_series(connection: Connection, uid: str, headers: Sequence[InstanceHeader]) -> None:
    if not headers:
        return
    known = set(connection.scalars(_KNOWN_SERIES, {"uid": uid}))
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
        connection.execute(insert(schema.series), list(rows.values()))


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
        "content_digest": stored.content_digest,
        "size": stored.size,
        "received_at": now,
    }


def _insert_conflicts(
    connection: Connection, uid: str, arrivals: Sequence[Arrival], now: datetime
) -> int:
    if not arrivals:
        return 0
    table = schema.instance_conflict
    query = select(table.c.sop_instance_uid, table.c.content_digest, table.c.path).where(
        table.c.study_instance_uid == uid
    )
    known = {
        (row.sop_instance_uid, row.content_digest): row.path for row in connection.execute(query)
    }
    inserted = 0
    for arrival in arrivals:
        stored = arrival.stored
        key = (stored.header.sop_instance_uid, stored.content_digest)
        if key in known:
            if not stored.path.with_name(Path(known[key]).name).exists():
                _move_conflict(connection, uid, arrival)
            continue
        if not stored.path.exists():
            continue  # Retention took the study away between the answer and this row.
        known[key] = stored.relative_path
        inserted += 1
        connection.execute(
            insert(table).values(
                study_instance_uid=uid,
                sop_instance_uid=key[0],
                content_digest=key[1],
                path=stored.relative_path,
                size=stored.size,
                received_at=now,
            )
        )
        audit.append(
            connection, now, Actor.RECEIVER, "instance conflict", uid, sop_instance_uid=key[0]
        )
    return inserted


def _move_conflict(connection: Connection, uid: str, arrival: Arrival) -> None:
    """Let the row of a conflict whose file somebody took away point to what came in its place.

    It may have another name, and retention removes what the rows name. The folder is the same: the
    same content belongs to the same series.
    """
    stored, table = arrival.stored, schema.instance_conflict
    connection.execute(
        update(table)
        .where(
            table.c.study_instance_uid == uid,
            table.c.sop_instance_uid == stored.header.sop_instance_uid,
            table.c.content_digest == stored.content_digest,
        )
        .values(path=stored.relative_path, size=stored.size)
    )


def _move_clock(
    connection: Connection, study: RowMapping, new: Sequence[Arrival], now: datetime
) -> None:
    headers = [arrival.stored.header for arrival in new]
    filled_in, strangers = _filled_in(study, headers)
    modalities = {*study["modalities"], *(h.modality for h in headers if h.modality)}
    values: dict[str, Any] = {
        "last_instance_at": now,
        "modalities": sorted(modalities),
        # A purged study that comes again is counted anew: its rows went with its files.
        "instance_count": len(new) + (0 if study["purged_at"] else study["instance_count"]),
        "patient_mismatch_count": strangers
        + (0 if study["purged_at"] else study["patient_mismatch_count"]),
        "purged_at": None,
        **{name: filled_in.get(name, study[name]) for name in _STUDY_ATTRIBUTES},
    }
    uid, state = study["study_instance_uid"], StudyState(study["state"])
    if strangers:
        audit.append(connection, now, Actor.RECEIVER, "patient differs", uid, instances=strangers)
    if state is not StudyState.RECEIVING:
        values |= _reopened(uid, state, now)
        audit.append(
            connection, now, Actor.RECEIVER, "study reopened", uid, was=state, new=len(new)
        )
        query = update(schema.study).where(schema.study.c.study_instance_uid == uid)
        connection.execute(query.values(values))
    else:
        connection.execute(_MOVE_CLOCK, {"uid": uid, **values})


_MOVE_CLOCK = (
    update(schema.study)
    .where(schema.study.c.study_instance_uid == bindparam("uid"))
    .values(
        {
            name: bindparam(name)
            for name in (
                "last_instance_at",
                "modalities",
                "instance_count",
                "patient_mismatch_count",
                "purged_at",
                *_STUDY_ATTRIBUTES,
            )
        }
    )
)
"""The usual case: the study is under reception and one more batch came."""


def _filled_in(study: RowMapping, headers: Sequence[InstanceHeader]) -> tuple[dict[str, str], int]:
    """Return attributes that the study lacked and a later instance has, and how many differ.

    An instance that names another patient fills in nothing: its values belong to somebody else.
    Where nothing but conflicts is known, theirs count for nothing: they are not what is analysed.
    """
    is_begun = study["instance_count"] > 0
    found: dict[str, str] = {name: study[name] if is_begun else "" for name in _STUDY_ATTRIBUTES}
    strangers = 0
    for header in headers:
        if _names_another_patient(found, header):
            strangers += 1
            continue
        for name, value in _study_attributes(header).items():
            found[name] = found[name] or value
    return {name: value for name, value in found.items() if value != study[name]}, strangers


def _names_another_patient(study: Mapping[str, str], header: InstanceHeader) -> bool:
    """Compare Patient ID, and the name only where one side has no ID; empty says nothing."""
    known, given = study["patient_id"].strip(), header.patient_id.strip()
    if not (known and given):
        names, others = _plain(study["patient_name"]), _plain(header.patient_name)
        return bool(names and others) and names.isdisjoint(others)
    return known != given


def _plain(name: str) -> frozenset[str]:
    """Return the groups of a name without what modalities write differently: case and separators.

    One group in common is enough: not every modality writes all of them.
    """
    groups = name.casefold().split("=")
    words = (" ".join("".join(c if c.isalnum() else " " for c in each).split()) for each in groups)
    return frozenset(each for each in words if each)


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


def link_within(connection: Connection, uid: str, ids: Set[str]) -> None:
    """Note which associations bring instances of a study, within the caller's transaction.

    It is not complete before they end; one that is not known yet is received later.
    """
    if not ids:
        return
    known = connection.scalars(_KNOWN_LINKS, {"uid": uid, "association_ids": sorted(ids)})
    rows = [
        {"association_id": each, "study_instance_uid": uid} for each in sorted(ids - set(known))
    ]
    if rows:
        connection.execute(_INSERT_LINK, rows)
