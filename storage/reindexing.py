"""Indexing the spool again: what was stored and acknowledged, and not recorded, is recorded.

Run at start, before new associations are accepted. The spool is the truth; the index follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import select

from dicom_io.errors import InvalidUID, UnreadableInstance
from storage import audit, schema
from storage.arrivals import Arrival
from storage.database import Database
from storage.recording import record_instances
from storage.spool import Spool
from storage.states import Actor

_BATCH = 200


@dataclass(frozen=True, slots=True)
class Reindexed:
    """What a walk over the spool found."""

    files: int
    recorded: int
    """Files that had no row and have one now."""
    unreadable: tuple[str, ...]
    """Files below the spool's folder that cannot be read; they stay where they are."""
    missing: int
    """Rows whose file is gone."""


def reindex(database: Database, spool: Spool, now: datetime) -> Reindexed:
    """Record every stored instance that the database does not know.

    Walks study by study, so that memory stays flat however large the spool is.
    """
    files, recorded, missing = 0, 0, 0
    unreadable: list[str] = []
    pending: list[Arrival] = []
    for uid in spool.study_uids():
        present = {
            path.relative_to(spool.folder).as_posix(): path for path in spool.instances_of(uid)
        }
        known = _known_paths(database, uid)
        files += len(present)
        missing += len(known - present.keys())
        for relative in sorted(present.keys() - known):
            arrival = _arrival(spool, present[relative])
            if arrival is None:
                unreadable.append(relative)
            else:
                pending.append(arrival)
        if len(pending) >= _BATCH:
            recorded += _record(database, pending, now)
            pending = []
    recorded += _record(database, pending, now)
    if recorded or unreadable or missing:
        audit.record_deed(
            database,
            now,
            Actor.RECEIVER,
            "spool indexed again",
            files=files,
            recorded=recorded,
            unreadable=len(unreadable),
            missing=missing,
        )
    return Reindexed(files, recorded, tuple(unreadable), missing)


def _known_paths(database: Database, uid: str) -> set[str]:
    with database.read() as connection:
        return {
            path
            for table in (schema.instance, schema.instance_conflict)
            for path in connection.scalars(
                select(table.c.path).where(table.c.study_instance_uid == uid)
            )
        }


def _arrival(spool: Spool, path: Path) -> Arrival | None:
    try:
        return Arrival(spool.read_stored(path))
    except (UnreadableInstance, InvalidUID):
        return None


def _record(database: Database, arrivals: list[Arrival], now: datetime) -> int:
    if not arrivals:
        return 0
    done = record_instances(database, arrivals, now)
    return done.new + done.conflicts
