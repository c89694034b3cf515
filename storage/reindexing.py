"""Indexing the spool again: what was stored and acknowledged, and not recorded, is recorded.

Run at the start of a receiver, beside the reception of new instances. The spool is the truth; the
index follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import select

from dicom_io.errors import InstanceUnavailable, InvalidUID, UnreadableInstance
from storage import audit, schema
from storage.arrivals import Arrival
from storage.database import Database
from storage.errors import ConstraintBroken, SpoolFailure
from storage.recording import record_instances
from storage.removal import settle_removals
from storage.spool import Spool
from storage.states import Actor, StudyState

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
    unrecorded: tuple[str, ...] = ()
    """Files that were read and that the database refuses; they stay where they are."""


def reindex(
    database: Database,
    spool: Spool,
    now: datetime,
    should_stop: Callable[[], bool] = lambda: False,
) -> Reindexed:
    """Record every stored instance that the database does not know.

    What a killed purge left half removed is settled first, or its rest would look like a study.

    Walks study by study, so that memory stays flat however large the spool is. Studies under
    reception come first: they are what a killed receiver was at, and they must not become complete
    without what it acknowledged.

    Parameters
    ----------
    database, spool, now
        What is compared, and the moment that is recorded.
    should_stop : callable, optional
        Asked before each study; True leaves the rest to another time.
    """
    walk = _Walk(database, spool, now)
    walk.settle()
    for uid in _most_urgent_first(database, spool):
        if should_stop():
            break
        walk.visit(uid)
    walk.record_pending()
    found = walk.found()
    if found.recorded or found.unreadable or found.missing or found.unrecorded:
        audit.record_deed(
            database,
            now,
            Actor.RECEIVER,
            "spool indexed again",
            files=found.files,
            recorded=found.recorded,
            unreadable=len(found.unreadable),
            unrecorded=len(found.unrecorded),
            missing=found.missing,
        )
    return found


class _Walk:
    """One walk over the spool and what it found so far."""

    def __init__(self, database: Database, spool: Spool, now: datetime) -> None:
        self._database, self._spool, self._now = database, spool, now
        self._files = self._recorded = self._missing = 0
        self._unreadable: list[str] = []
        self._unrecorded: list[str] = []
        self._pending: list[Arrival] = []

    def found(self) -> Reindexed:
        """Return what was found."""
        return Reindexed(
            self._files,
            self._recorded,
            tuple(self._unreadable),
            self._missing,
            tuple(self._unrecorded),
        )

    def settle(self) -> None:
        """Finish purges that were killed; what cannot be read waits for the next start."""
        try:
            settle_removals(self._database, self._spool)
        except (SpoolFailure, UnreadableInstance):
            self._unreadable.append("removing")

    def visit(self, uid: str) -> None:
        """Compare the files of one study with its rows; queue what has none."""
        try:
            present = {self._relative(path): path for path in self._spool.instances_of(uid)}
        except SpoolFailure:
            self._unreadable.append(f"studies/{uid}")
            return
        known = _known_paths(self._database, uid)
        self._files += len(present)
        # Looked for again: a new instance may have come between the two lists.
        self._missing += sum(
            not self._spool.absolute(each).exists() for each in known - present.keys()
        )
        unknown = [present[relative] for relative in sorted(present.keys() - known)]
        try:
            # Who named them may have died before the names were synced. A row says that they are.
            self._spool.sync_names(unknown)
        except SpoolFailure:
            self._unreadable.append(f"studies/{uid}")
            return
        for path in unknown:
            self._read(path)
        if len(self._pending) >= _BATCH:
            self.record_pending()

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._spool.folder).as_posix()

    def _read(self, path: Path) -> None:
        try:
            self._pending.append(Arrival(self._spool.read_stored(path)))
        except (UnreadableInstance, InvalidUID, InstanceUnavailable, SpoolFailure):
            self._unreadable.append(self._relative(path))

    def record_pending(self) -> None:
        """Record what is queued; a file that is refused or unreadable stops no other."""
        pending, self._pending = self._pending, []
        try:
            self._record(pending)
        except (ConstraintBroken, SpoolFailure, UnreadableInstance):
            for arrival in pending:
                self._record_alone(arrival)

    def _record_alone(self, arrival: Arrival) -> None:
        try:
            self._record([arrival])
        except ConstraintBroken:
            self._unrecorded.append(arrival.stored.relative_path)
        except (SpoolFailure, UnreadableInstance):
            self._unreadable.append(arrival.stored.relative_path)

    def _record(self, arrivals: Sequence[Arrival]) -> None:
        if arrivals:
            done = record_instances(self._database, arrivals, self._now)
            self._recorded += done.new + done.conflicts


def _most_urgent_first(database: Database, spool: Spool) -> list[str]:
    """Return every study of the spool: under reception, then not known yet, then the others."""
    with database.read() as connection:
        query = select(schema.study.c.study_instance_uid, schema.study.c.state)
        states = {row.study_instance_uid: row.state for row in connection.execute(query)}
    urgency = {StudyState.RECEIVING.value: 0, None: 1}
    return sorted(spool.study_uids(), key=lambda uid: urgency.get(states.get(uid), 2))


def _known_paths(database: Database, uid: str) -> set[str]:
    with database.read() as connection:
        return {
            path
            for table in (schema.instance, schema.instance_conflict)
            for path in connection.scalars(
                select(table.c.path).where(table.c.study_instance_uid == uid)
            )
        }
