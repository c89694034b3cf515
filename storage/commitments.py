"""Requests for storage commitment: kept before they are answered, until their report was taken.

Owns the ``commitment`` table. Must not know how a report travels; what may be promised is
``storage.holdings``' question.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, delete, func, insert, select, update

from dicom_io.commitment import CommitmentReport, CommitmentRequest, Reference, ReportAnswer
from dicom_io.statuses import describe, is_delivered
from storage import audit, schema
from storage.backoff import backoff_seconds
from storage.clock import after
from storage.database import Database
from storage.errors import NotFound, TooManyCommitments
from storage.states import COMMITMENT_MOVES, Actor, CommitmentState, check_move

MOST_PENDING = 10_000
"""Reports owed at once. A requester nobody can report to must not fill the disk."""

_LONGEST_ANSWER = 512
_TABLE = schema.commitment


@dataclass(frozen=True, slots=True)
class ReportPolicy:
    """How patiently a report is repeated."""

    first_delay_seconds: float = 10.0
    max_delay_seconds: float = 300.0
    """A modality that was switched on again hears of its images within minutes."""
    jitter: float = 0.2
    given_up_after: int = 5
    """Answers of failure after which the requester is believed."""
    max_age_seconds: float = 3 * 86400.0
    """Modalities give up waiting after hours; a long weekend is the most anybody waits."""


@dataclass(frozen=True, slots=True)
class CommitmentRecord:
    """One request and how far its report has come."""

    id: int
    request: CommitmentRequest
    is_duplicate: bool
    """Its transaction UID was in use for other instances: nothing of it is committed to."""
    state: CommitmentState
    state_since: datetime
    requested_at: datetime
    attempts: int
    refusals: int
    """Answers of failure to its report."""
    next_attempt_at: datetime
    last_answer: str
    """In words; what the requester said, or why nobody could be told."""
    committed_count: int | None
    failed_count: int | None
    """What the last report said; None while there was none."""


def accept_commitment(
    database: Database, request: CommitmentRequest, now: datetime, *, first_attempt_at: datetime
) -> CommitmentRecord:
    """Keep a request; once this returns, its report is owed whatever happens.

    The same request again while its report is owed changes nothing: its sender missed our answer.
    Other instances under a transaction UID in use make a request that nothing is committed of.

    Parameters
    ----------
    database : Database
        The state.
    request : CommitmentRequest
        As it came.
    now : datetime
        The time.
    first_attempt_at : datetime
        When `due_commitments` gives it out, unless somebody reported before.

    Raises
    ------
    TooManyCommitments
        Nothing was kept.
    """
    with database.write() as connection:
        in_use = _pending_of(connection, request)
        same = next((each for each in in_use if _asks_the_same(each, request)), None)
        if same is not None:
            return same
        owed = connection.scalar(
            select(func.count()).where(_TABLE.c.state == CommitmentState.PENDING)
        )
        if (owed or 0) >= MOST_PENDING:
            raise TooManyCommitments(
                f"{owed} reports of storage commitment are owed, the most allowed: "
                "'medimgd status' says who cannot be told"
            )
        new = connection.execute(
            insert(_TABLE).values(
                transaction_uid=request.transaction_uid,
                calling_ae_title=request.calling_ae_title,
                called_ae_title=request.called_ae_title,
                address=request.address,
                association_id=request.association_id,
                references=[[r.sop_class_uid, r.sop_instance_uid] for r in request.references],
                is_duplicate=bool(in_use),
                state=CommitmentState.PENDING,
                state_since=now,
                requested_at=now,
                next_attempt_at=first_attempt_at,
            )
        )
        (key,) = new.inserted_primary_key or (0,)
        return _require(connection, key)


def due_commitments(
    database: Database, now: datetime, *, limit: int = 20
) -> tuple[CommitmentRecord, ...]:
    """Return requests whose report should be tried now, the longest due first."""
    query = (
        select(_TABLE)
        .where(_TABLE.c.state == CommitmentState.PENDING, _TABLE.c.next_attempt_at <= now)
        .order_by(_TABLE.c.next_attempt_at, _TABLE.c.id)
        .limit(limit)
    )
    with database.read() as connection:
        return tuple(_from_row(row) for row in connection.execute(query).mappings())


def get_commitment(database: Database, commitment_id: int) -> CommitmentRecord:
    """Return one request; ``NotFound`` when there is none."""
    with database.read() as connection:
        return _require(connection, commitment_id)


def list_commitments(database: Database, *, limit: int = 100) -> tuple[CommitmentRecord, ...]:
    """Return the newest requests first."""
    query = select(_TABLE).order_by(_TABLE.c.id.desc()).limit(limit)
    with database.read() as connection:
        return tuple(_from_row(row) for row in connection.execute(query).mappings())


def postpone_commitment(database: Database, commitment_id: int, until: datetime) -> None:
    """Set when a pending request is due; an attempt was not made."""
    with database.write() as connection:
        connection.execute(
            update(_TABLE)
            .where(_TABLE.c.id == commitment_id, _TABLE.c.state == CommitmentState.PENDING)
            .values(next_attempt_at=until)
        )


def record_report(
    database: Database,
    commitment_id: int,
    report: CommitmentReport | None,
    answer: ReportAnswer,
    actor: Actor,
    now: datetime,
    policy: ReportPolicy,
) -> CommitmentRecord:
    """Record what came of one attempt to report; a request settled meanwhile is left alone.

    Parameters
    ----------
    report : CommitmentReport or None
        What was, or would have been, said.
    answer : ReportAnswer
        Success and warnings settle the request; no answer is repeated until it is too old, a
        failure a few times.
    """
    with database.write() as connection:
        known = _require(connection, commitment_id)
        if known.state is not CommitmentState.PENDING:
            return known
        values = _counts(report) | {
            "attempts": known.attempts + 1,
            "refusals": known.refusals + (answer.status is not None),
            "last_answer": _in_words(answer),
        }
        state = judge_answer(known, answer, now, policy)
        if state is CommitmentState.PENDING:
            values["next_attempt_at"] = after(now, _delay(known.attempts + 1, policy))
        else:
            values |= {"state": _moved(known, state, actor), "state_since": now}
        connection.execute(update(_TABLE).where(_TABLE.c.id == commitment_id).values(values))
        settled = _require(connection, commitment_id)
        if state is not CommitmentState.PENDING:
            _write_audit(connection, settled, actor, now)
        return settled


def judge_answer(
    record: CommitmentRecord, answer: ReportAnswer, now: datetime, policy: ReportPolicy
) -> CommitmentState:
    """Return the state an answer leads to; a pure function."""
    if answer.status is not None and is_delivered(answer.status):
        return CommitmentState.REPORTED
    if answer.status is not None and record.refusals + 1 >= policy.given_up_after:
        return CommitmentState.FAILED
    age = (now - record.requested_at).total_seconds()
    return CommitmentState.FAILED if age >= policy.max_age_seconds else CommitmentState.PENDING


def forget_commitments(database: Database, before: datetime) -> int:
    """Remove requests settled before an instant; return how many."""
    settled = and_(_TABLE.c.state != CommitmentState.PENDING, _TABLE.c.state_since < before)
    with database.write() as connection:
        return connection.execute(delete(_TABLE).where(settled)).rowcount


def _pending_of(connection: Connection, request: CommitmentRequest) -> list[CommitmentRecord]:
    query = select(_TABLE).where(
        _TABLE.c.transaction_uid == request.transaction_uid,
        _TABLE.c.calling_ae_title == request.calling_ae_title,
        _TABLE.c.state == CommitmentState.PENDING,
    )
    return [_from_row(row) for row in connection.execute(query).mappings()]


def _asks_the_same(known: CommitmentRecord, request: CommitmentRequest) -> bool:
    return known.request.references == request.references


def _moved(known: CommitmentRecord, state: CommitmentState, actor: Actor) -> CommitmentState:
    return check_move(COMMITMENT_MOVES, f"commitment {known.id}", known.state, state, actor)


def _counts(report: CommitmentReport | None) -> dict[str, Any]:
    if report is None:
        return {}
    return {"committed_count": len(report.committed), "failed_count": len(report.failed)}


def _delay(attempts: int, policy: ReportPolicy) -> float:
    return backoff_seconds(
        attempts,
        policy.first_delay_seconds,
        policy.max_delay_seconds,
        policy.jitter,
        random.random(),  # noqa: S311 - spreads attempts, guards nothing
    )


def _in_words(answer: ReportAnswer) -> str:
    said = "" if answer.status is None else describe(answer.status)
    words = ": ".join(part for part in (said, answer.comment) if part) or "no answer"
    return "".join(c if c.isprintable() else " " for c in words)[:_LONGEST_ANSWER]


def _write_audit(
    connection: Connection, record: CommitmentRecord, actor: Actor, now: datetime
) -> None:
    audit.append(
        connection,
        now,
        actor,
        f"commitment {record.state}",
        record.request.transaction_uid,
        requester=record.request.calling_ae_title,
        address=record.request.address,
        committed=record.committed_count,
        failed=record.failed_count,
        attempts=record.attempts,
    )


def _require(connection: Connection, commitment_id: int) -> CommitmentRecord:
    query = select(_TABLE).where(_TABLE.c.id == commitment_id)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no request for storage commitment {commitment_id}")
    return _from_row(row)


def _from_row(row: RowMapping) -> CommitmentRecord:
    return CommitmentRecord(
        id=row["id"],
        request=CommitmentRequest(
            row["transaction_uid"],
            _references(row["references"]),
            row["calling_ae_title"],
            row["called_ae_title"],
            row["address"],
            row["association_id"],
        ),
        is_duplicate=row["is_duplicate"],
        state=CommitmentState(row["state"]),
        state_since=row["state_since"],
        requested_at=row["requested_at"],
        attempts=row["attempts"],
        refusals=row["refusals"],
        next_attempt_at=row["next_attempt_at"],
        last_answer=row["last_answer"],
        committed_count=row["committed_count"],
        failed_count=row["failed_count"],
    )


def _references(pairs: Sequence[Sequence[str]]) -> tuple[Reference, ...]:
    return tuple(Reference(sop_class, sop_instance) for sop_class, sop_instance in pairs)
