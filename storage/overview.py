"""One screen about everything, read in one snapshot: for ``medimgd status``, health and metrics.

Speaks plain SQL over the standard library's driver, because SQLAlchemy alone takes longer to
import than ``medimgd status`` may take altogether. Tests hold its column names to the schema.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from storage.connections import open_reader
from storage.errors import translated_database_error
from storage.revisions import check_revision, schema_revision
from storage.states import (
    NO_LONGER_CONFIGURED,
    CommitmentState,
    DeliveryState,
    JobState,
    ResultState,
    StudyState,
)

DEFAULT_STUCK_SECONDS = 900.0
"""Work that has not moved for this long is shown as stuck."""

_MOST_STUCK = 50
_UNDELIVERED = (DeliveryState.REJECTED, DeliveryState.DEAD, DeliveryState.SENT)
"""Of deliveries that are stuck; one that was sent is so where it is not found."""
_REFUSED_WINDOW = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class StuckItem:
    """Something that waits for a person, or has not moved for too long."""

    kind: str
    """``study``, ``job``, ``result`` or ``delivery``."""
    id: str
    study_instance_uid: str
    state: str
    since: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class DestinationOverview:
    """One destination."""

    name: str
    pending: int
    last_attempt_at: datetime | None
    last_success_at: datetime | None
    last_answer: str
    consecutive_failures: int
    breaker_until: datetime | None


@dataclass(frozen=True, slots=True)
class ProcessOverview:
    """One process of the daemon."""

    slot: str
    role: str
    pid: int
    host: str
    state: str
    detail: Mapping[str, Any]
    started_at: datetime
    heartbeat_age_seconds: float


@dataclass(frozen=True, slots=True)
class OldestStudy:
    """The study that waits longest without a result or a verdict."""

    study_instance_uid: str
    state: StudyState
    since: datetime
    """When its first instance arrived."""


@dataclass(frozen=True, slots=True)
class RefusalOverview:
    """Something turned away at the door, as ``status`` shows the newest."""

    at: datetime
    calling_ae_title: str
    address: str
    reason: str
    """With the line of configuration that would admit it, where one would."""


@dataclass(frozen=True, slots=True)
class UnreportedCommitment:
    """A requester of storage commitment that does not know what became of its request."""

    transaction_uid: str
    calling_ae_title: str
    address: str
    state: CommitmentState
    since: datetime
    last_answer: str
    """What it said, or the line of configuration that would let it be told."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of everything durable."""

    studies: Mapping[StudyState, int]
    jobs: Mapping[JobState, int]
    results: Mapping[ResultState, int]
    deliveries: Mapping[DeliveryState, int]
    commitments: Mapping[CommitmentState, int]
    """Requests for storage commitment by how far their report has come."""
    unreported: tuple[UnreportedCommitment, ...]
    """Requesters that could not be told in the last day, or cannot now; the newest three."""
    oldest_waiting: OldestStudy | None
    stuck: tuple[StuckItem, ...]
    """At most fifty, the longest stuck first."""
    stuck_count: int
    undelivered: int
    """Deliveries among them that were rejected, given up or lost, and that can be made again."""
    destinations: tuple[DestinationOverview, ...]
    processes: tuple[ProcessOverview, ...]
    studies_with_conflicts: int
    refused_last_day: int
    """Instances and associations refused at the door."""
    latest_refusals: tuple[RefusalOverview, ...]
    """The newest three of the last day."""
    open_associations: Mapping[str, int]
    """Associations under way, by the slot of the receiver that serves them."""
    results_without_delivery: int
    """Latest reports that were composed and never had a destination."""
    last_instance_at: datetime | None
    schema_revision: str


_WAITING_STUDY = """
    SELECT study_instance_uid, state, first_instance_at FROM study
    WHERE state IN ('receiving', 'complete')
       OR (state = 'routed' AND EXISTS (
            SELECT 1 FROM job WHERE job.study_instance_uid = study.study_instance_uid
            AND job.state IN ('waiting', 'running')))
    ORDER BY first_instance_at LIMIT 1
"""

# Waiting for a person whatever the time; waiting for a process only when it takes too long.
_STUCK = """
    SELECT 'study', study_instance_uid, study_instance_uid, state, state_since, reason FROM study
    WHERE state = 'held' OR (state = 'complete' AND state_since < :before)
    UNION ALL
    SELECT 'job', CAST(id AS TEXT), study_instance_uid, state, state_since, reason FROM job
    WHERE state = 'failed' OR (state IN ('waiting', 'running') AND state_since < :before)
    UNION ALL
    SELECT 'result', CAST(id AS TEXT), study_instance_uid, state, state_since, reason FROM result
    WHERE state = 'uncomposable' OR (state = 'awaiting' AND state_since < :before)
    UNION ALL
    SELECT 'delivery', CAST(delivery.id AS TEXT), result.study_instance_uid, delivery.state,
           delivery.state_since, delivery.destination || ': ' ||
           CASE delivery.state WHEN 'sent' THEN 'sent but not found by C-FIND'
                               ELSE delivery.last_comment END
    FROM delivery JOIN result ON result.id = delivery.result_id
    WHERE (delivery.state = 'pending' AND delivery.state_since < :before)
       OR ((delivery.state = 'rejected'
            OR (delivery.state = 'dead' AND delivery.last_comment <> :given_up)
            OR (delivery.state = 'sent' AND delivery.confirm_misses >= 10))
           -- What retention removed nobody can send again.
           AND EXISTS (SELECT 1 FROM document WHERE document.id = delivery.document_id
                       AND LENGTH(document.data) > 0)
           -- Nor is it sent after a later version (storage.deliveries.OVERTAKEN).
           AND NOT EXISTS (
             SELECT 1 FROM result AS later JOIN delivery AS other ON other.result_id = later.id
             WHERE later.study_instance_uid = result.study_instance_uid
               AND later.model_name = result.model_name
               AND later.version_number > result.version_number
               AND later.state = 'composed'
               AND other.destination = delivery.destination
               AND NOT (other.state = 'dead' AND other.last_comment = :given_up)))
"""

_UNREPORTED = """
    SELECT transaction_uid, calling_ae_title, address, state, requested_at, last_answer
    FROM commitment
    WHERE (state = 'failed' AND state_since >= :day)
       OR (state = 'pending' AND requested_at < :before)
    ORDER BY id DESC LIMIT 3
"""

_WITHOUT_DELIVERY = """
    SELECT COUNT(*) FROM result
    WHERE state = 'composed'
      AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.result_id = result.id)
      AND NOT EXISTS (
        SELECT 1 FROM result AS later
        WHERE later.study_instance_uid = result.study_instance_uid
          AND later.model_name = result.model_name
          AND later.version_number > result.version_number
          AND later.state = 'composed')
"""

_OPEN_ASSOCIATIONS = """
    SELECT slot, COUNT(*) FROM association WHERE closed_at IS NULL GROUP BY slot ORDER BY slot
"""

_DESTINATIONS = """
    SELECT names.name, COALESCE(pending.number, 0), known.last_attempt_at, known.last_success_at,
           COALESCE(known.last_answer, ''), COALESCE(known.consecutive_failures, 0),
           known.breaker_until
    FROM (SELECT name FROM destination_state UNION SELECT destination FROM delivery) AS names
    LEFT JOIN destination_state AS known ON known.name = names.name
    LEFT JOIN (SELECT destination, COUNT(*) AS number FROM delivery WHERE state = 'pending'
               GROUP BY destination) AS pending ON pending.destination = names.name
    ORDER BY names.name
"""

_PROCESSES = """
    SELECT slot, role, pid, host, state, detail, started_at, heartbeat_at
    FROM process ORDER BY role, slot
"""


def read_overview(
    path: Path, now: datetime, *, stuck_seconds: float = DEFAULT_STUCK_SECONDS
) -> Overview:
    """Read the overview of a database file, whether or not a daemon runs.

    Raises
    ------
    DatabaseMissing, DatabaseUnavailable, DatabaseBusy, DatabaseCorrupt
        As ``storage.errors`` says.
    """
    with closing(open_reader(path)) as connection:
        try:
            connection.execute("BEGIN")
            return _read(connection, path, now, stuck_seconds)
        except sqlite3.Error as error:
            raise translated_database_error(error, str(path)) from error


def _read(
    connection: sqlite3.Connection, path: Path, now: datetime, stuck_seconds: float
) -> Overview:
    revision = schema_revision(connection)
    check_revision(revision, path)
    stuck = _stuck(connection, now, stuck_seconds)
    since = (_stored(now - _REFUSED_WINDOW),)
    return Overview(
        studies=_counts(connection, "study", StudyState),
        jobs=_counts(connection, "job", JobState),
        results=_counts(connection, "result", ResultState),
        deliveries=_counts(connection, "delivery", DeliveryState),
        commitments=_counts(connection, "commitment", CommitmentState),
        unreported=_unreported(connection, now, stuck_seconds),
        oldest_waiting=_oldest(connection),
        # Every one is counted and few are shown: thousands may fail at once.
        stuck=stuck[:_MOST_STUCK],
        stuck_count=len(stuck),
        undelivered=sum(each.kind == "delivery" and each.state in _UNDELIVERED for each in stuck),
        destinations=_destinations(connection),
        processes=_processes(connection, now),
        studies_with_conflicts=_number(
            connection, "SELECT COUNT(*) FROM study WHERE conflict_count > 0"
        ),
        refused_last_day=_number(
            connection, "SELECT COUNT(*) FROM refused_instance WHERE at >= ?", since
        ),
        latest_refusals=_refusals(connection, since),
        open_associations=dict(connection.execute(_OPEN_ASSOCIATIONS).fetchall()),
        results_without_delivery=_number(connection, _WITHOUT_DELIVERY),
        last_instance_at=_instant(_one(connection, "SELECT MAX(received_at) FROM instance")),
        schema_revision=revision or "",
    )


StateT = TypeVar("StateT", StudyState, JobState, ResultState, DeliveryState, CommitmentState)


def _counts(
    connection: sqlite3.Connection, table: str, states: type[StateT]
) -> Mapping[StateT, int]:
    rows = connection.execute(f"SELECT state, COUNT(*) FROM {table} GROUP BY state")  # noqa: S608
    found = dict(rows.fetchall())
    return {state: found.get(state.value, 0) for state in states}


def _stored(instant: datetime) -> str:
    """Return an instant as ``UTCDateTime`` stores it, for comparison."""
    return instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def _instant(stored: str | None) -> datetime | None:
    return None if stored is None else datetime.fromisoformat(stored).replace(tzinfo=UTC)


def _known(stored: str) -> datetime:
    return datetime.fromisoformat(stored).replace(tzinfo=UTC)


def _one(connection: sqlite3.Connection, query: str, values: tuple[Any, ...] = ()) -> Any:
    row = connection.execute(query, values).fetchone()
    return None if row is None else row[0]


def _number(connection: sqlite3.Connection, query: str, values: tuple[Any, ...] = ()) -> int:
    return int(_one(connection, query, values))


def _oldest(connection: sqlite3.Connection) -> OldestStudy | None:
    row = connection.execute(_WAITING_STUDY).fetchone()
    return None if row is None else OldestStudy(row[0], StudyState(row[1]), _known(row[2]))


def _stuck(
    connection: sqlite3.Connection, now: datetime, stuck_seconds: float
) -> tuple[StuckItem, ...]:
    values = {
        "before": _stored(now - timedelta(seconds=stuck_seconds)),
        "given_up": NO_LONGER_CONFIGURED,
    }
    return tuple(
        StuckItem(kind, each_id, uid, state, _known(since), reason)
        for kind, each_id, uid, state, since, reason in connection.execute(
            f"{_STUCK} ORDER BY 5", values
        )
    )


def _refusals(connection: sqlite3.Connection, since: tuple[str]) -> tuple[RefusalOverview, ...]:
    rows = connection.execute(
        "SELECT at, calling_ae_title, address, reason FROM refused_instance WHERE at >= ? "
        "ORDER BY id DESC LIMIT 3",
        since,
    )
    return tuple(
        RefusalOverview(_known(at), calling, address, reason)
        for at, calling, address, reason in rows
    )


def _unreported(
    connection: sqlite3.Connection, now: datetime, stuck_seconds: float
) -> tuple[UnreportedCommitment, ...]:
    values = {
        "day": _stored(now - _REFUSED_WINDOW),
        "before": _stored(now - timedelta(seconds=stuck_seconds)),
    }
    return tuple(
        UnreportedCommitment(uid, calling, address, CommitmentState(state), _known(since), answer)
        for uid, calling, address, state, since, answer in connection.execute(_UNREPORTED, values)
    )


def _destinations(connection: sqlite3.Connection) -> tuple[DestinationOverview, ...]:
    return tuple(
        DestinationOverview(
            name, pending, _instant(attempt), _instant(success), answer, failures, _instant(until)
        )
        for name, pending, attempt, success, answer, failures, until in connection.execute(
            _DESTINATIONS
        )
    )


def _processes(connection: sqlite3.Connection, now: datetime) -> tuple[ProcessOverview, ...]:
    return tuple(
        ProcessOverview(
            slot,
            role,
            pid,
            host,
            state,
            json.loads(detail),
            _known(started),
            (now - _known(beat)).total_seconds(),
        )
        for slot, role, pid, host, state, detail, started, beat in connection.execute(_PROCESSES)
    )
