"""The outbox: every document on its way to every destination, with its own state and backoff.

Owns the ``delivery`` table. Knows DIMSE statuses by their category only and opens no association.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    case,
    exists,
    func,
    select,
    update,
)

from dicom_io.statuses import is_delivered, is_transient
from storage import audit, schema
from storage.backoff import DeliveryPolicy, backoff_seconds
from storage.clock import after
from storage.database import Database
from storage.destinations import DeliveryOutcome, record_contact, write_destination
from storage.errors import NotFound
from storage.results import ComposedDocument, insert_document_within
from storage.states import DELIVERY_MOVES, Actor, DeliveryState, check_move

ASK_AGAIN_SECONDS = 60.0
"""After the first query in vain: an archive may file what it accepted some moments later."""

LONGEST_ASK_AGAIN_SECONDS = 3600.0

MISSES_UNTIL_STUCK = 10
"""Queries in vain, about five hours of them, after which a person should look."""


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """One document on its way to one destination."""

    id: int
    result_id: int
    document_id: int
    role: str
    destination: str
    state: DeliveryState
    state_since: datetime
    attempts: int
    next_attempt_at: datetime
    last_status: int | None
    """The DIMSE status of the last attempt; None when no answer came."""
    last_comment: str
    """The destination's own words, verbatim."""
    created_at: datetime
    sent_at: datetime | None
    confirmed_at: datetime | None
    confirm_misses: int
    """Queries since it was sent that did not find it."""
    confirm_next_at: datetime | None
    """Not asked for before; None when it was never missed."""
    study_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str

    @property
    def is_stuck(self) -> bool:
        """True when it waits for a person: refused, given up, or accepted and not found."""
        gone = self.state is DeliveryState.SENT and self.confirm_misses >= MISSES_UNTIL_STUCK
        return gone or self.state in (DeliveryState.REJECTED, DeliveryState.DEAD)


@dataclass(frozen=True, slots=True)
class DeliveryGroup:
    """What one association should carry: one result's documents, the study report last."""

    destination: str
    result_id: int
    study_instance_uid: str
    deliveries: tuple[DeliveryRecord, ...]


_DOCUMENT = schema.document


_DELIVERY = schema.delivery

_SENDING_ORDER = case({"SC": 0, "SR-ROI": 1}, value=_DELIVERY.c.role, else_=2)
"""The study report refers to the picture and the regions, so it goes last."""


def _query() -> Select[Any]:
    return select(
        _DELIVERY,
        schema.result.c.study_instance_uid,
        _DOCUMENT.c.sop_class_uid,
        _DOCUMENT.c.sop_instance_uid,
        _DOCUMENT.c.series_instance_uid,
    ).select_from(
        _DELIVERY.join(_DOCUMENT, _DOCUMENT.c.id == _DELIVERY.c.document_id).join(
            schema.result, schema.result.c.id == _DELIVERY.c.result_id
        )
    )


def _from_row(row: RowMapping) -> DeliveryRecord:
    values: dict[str, Any] = dict(row)
    values["state"] = DeliveryState(row["state"])
    return DeliveryRecord(**values)


def due_deliveries(
    database: Database, now: datetime, *, limit: int = 32
) -> tuple[DeliveryGroup, ...]:
    """Return what should be sent now, grouped by destination and result.

    What was tried least goes first, then the oldest result: an object over which a destination
    breaks off every time must not keep all others waiting. Destinations behind an open breaker
    are left out. A group never splits: picture and regions go before the report that names them. A
    later version waits until the earlier ones of the same model and study have left, so that a
    destination never receives them in the wrong order.

    Parameters
    ----------
    database : Database
        The state.
    now : datetime
        The time.
    limit : int
        Groups at most.
    """
    breaker = schema.destination_state
    blocked = select(breaker.c.name).where(breaker.c.breaker_until > now)
    due_groups = (
        select(
            _DELIVERY.c.destination,
            _DELIVERY.c.result_id,
            func.max(_DELIVERY.c.attempts).label("tried"),
        )
        .where(
            _DELIVERY.c.state == DeliveryState.PENDING,
            _DELIVERY.c.next_attempt_at <= now,
            _DELIVERY.c.destination.not_in(blocked),
            ~_waits_for_an_earlier_version(),
        )
        .group_by(_DELIVERY.c.destination, _DELIVERY.c.result_id)
        .order_by(func.max(_DELIVERY.c.attempts), _DELIVERY.c.result_id, _DELIVERY.c.destination)
        .limit(limit)
        .subquery()
    )
    query = (
        _query()
        .join(
            due_groups,
            (due_groups.c.destination == _DELIVERY.c.destination)
            & (due_groups.c.result_id == _DELIVERY.c.result_id),
        )
        .where(_DELIVERY.c.state == DeliveryState.PENDING, _DELIVERY.c.next_attempt_at <= now)
        .order_by(
            due_groups.c.tried, _DELIVERY.c.result_id, _DELIVERY.c.destination, _SENDING_ORDER
        )
    )
    with database.read() as connection:
        records = [_from_row(row) for row in connection.execute(query).mappings()]
    groups = groupby(records, key=lambda each: (each.destination, each.result_id))
    return tuple(_group(tuple(members)) for _, members in groups)


def _waits_for_an_earlier_version() -> ColumnElement[bool]:
    own, earlier, ahead = schema.result.alias(), schema.result.alias(), _DELIVERY.alias()
    return (
        exists()
        .where(
            own.c.id == _DELIVERY.c.result_id,
            earlier.c.study_instance_uid == own.c.study_instance_uid,
            earlier.c.model_name == own.c.model_name,
            earlier.c.version_number < own.c.version_number,
            ahead.c.result_id == earlier.c.id,
            ahead.c.destination == _DELIVERY.c.destination,
            ahead.c.state == DeliveryState.PENDING,
        )
        .correlate(_DELIVERY)
    )


def _group(members: tuple[DeliveryRecord, ...]) -> DeliveryGroup:
    first = members[0]
    return DeliveryGroup(first.destination, first.result_id, first.study_instance_uid, members)


def record_outcomes(
    database: Database,
    destination: str,
    outcomes: Sequence[DeliveryOutcome],
    now: datetime,
    policy: DeliveryPolicy,
) -> tuple[DeliveryRecord, ...]:
    """Record what came of one association's attempts.

    Success and warnings are ``sent``. No answer or A7xx is repeated with growing delay and opens
    the destination's breaker; other failures are repeated a few times and then ``rejected``.
    A delivery that is not pending any more is left alone.

    Returns
    -------
    tuple of DeliveryRecord
        As they stand now.
    """
    with database.write() as connection:
        for outcome in outcomes:
            delivery = _require(connection, outcome.delivery_id)
            if delivery.state is DeliveryState.PENDING:
                _record(connection, delivery, outcome, now, policy)
        record_contact(connection, destination, outcomes, now, policy)
        return tuple(_require(connection, outcome.delivery_id) for outcome in outcomes)


def judge_outcome(
    delivery: DeliveryRecord, outcome: DeliveryOutcome, now: datetime, policy: DeliveryPolicy
) -> DeliveryState:
    """Return the state an outcome leads to; a pure function."""
    attempts = delivery.attempts + 1
    status = outcome.status
    if status is not None and is_delivered(status):
        return DeliveryState.SENT
    permanent = outcome.context_refused or (status is not None and not is_transient(status))
    if permanent and attempts >= policy.rejected_after:
        return DeliveryState.REJECTED
    age = (now - delivery.created_at).total_seconds()
    if age >= policy.max_age_seconds or attempts >= policy.max_attempts:
        return DeliveryState.DEAD
    return DeliveryState.PENDING


def _require(connection: Connection, delivery_id: int) -> DeliveryRecord:
    row = connection.execute(_query().where(_DELIVERY.c.id == delivery_id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no delivery {delivery_id}")
    return _from_row(row)


def _record(
    connection: Connection,
    delivery: DeliveryRecord,
    outcome: DeliveryOutcome,
    now: datetime,
    policy: DeliveryPolicy,
) -> None:
    attempts = delivery.attempts + 1
    values: dict[str, Any] = {
        "attempts": attempts,
        "last_status": outcome.status,
        "last_comment": outcome.comment,
    }
    state = judge_outcome(delivery, outcome, now, policy)
    if state is DeliveryState.PENDING:
        values["next_attempt_at"] = _next_attempt(attempts, outcome, now, policy)
        _update(connection, delivery.id, values)
        return
    if state is DeliveryState.SENT:
        values["sent_at"] = now
    _move(connection, delivery, state, Actor.COURIER, now, values)


def _next_attempt(
    attempts: int, outcome: DeliveryOutcome, now: datetime, policy: DeliveryPolicy
) -> datetime:
    if outcome.status is None and not outcome.context_refused:
        # The destination's breaker is the delay: when it answers again, everything goes at once.
        return now
    delay = backoff_seconds(
        attempts,
        policy.first_delay_seconds,
        policy.max_delay_seconds,
        policy.jitter,
        random.random(),  # noqa: S311 - spreads attempts, guards nothing
    )
    return after(now, delay)


def _update(connection: Connection, delivery_id: int, values: dict[str, Any]) -> None:
    connection.execute(update(_DELIVERY).where(_DELIVERY.c.id == delivery_id).values(values))


def _move(
    connection: Connection,
    delivery: DeliveryRecord,
    after_state: DeliveryState,
    actor: Actor,
    now: datetime,
    values: dict[str, Any],
) -> None:
    subject = f"delivery {delivery.id}"
    state = check_move(DELIVERY_MOVES, subject, delivery.state, after_state, actor)
    _update(connection, delivery.id, {**values, "state": state, "state_since": now})
    if state in (DeliveryState.REJECTED, DeliveryState.DEAD):
        audit.append(
            connection,
            now,
            actor,
            f"delivery {state}",
            delivery.study_instance_uid,
            delivery_id=delivery.id,
            destination=delivery.destination,
            status=values.get("last_status"),
        )


def _composed(connection: Connection, result_id: int, role: str, sop_class_uid: str) -> int | None:
    return connection.scalar(
        select(_DOCUMENT.c.id).where(
            _DOCUMENT.c.result_id == result_id,
            _DOCUMENT.c.role == role,
            _DOCUMENT.c.sop_class_uid == sop_class_uid,
        )
    )


def replace_document(
    database: Database, delivery_id: int, document: ComposedDocument, now: datetime
) -> DeliveryRecord:
    """Let a pending delivery carry the same statement in another SOP class.

    The first document stays for other destinations. When the result has a document of this
    class already, those bytes are used and the given ones are dropped.
    """
    with database.write() as connection:
        delivery = _require(connection, delivery_id)
        known = _composed(connection, delivery.result_id, document.role, document.sop_class_uid)
        document_id = known or insert_document_within(connection, delivery.result_id, document, now)
        _update(connection, delivery_id, {"document_id": document_id, "next_attempt_at": now})
        return _require(connection, delivery_id)


def confirm_deliveries(
    database: Database, destination: str, sop_instance_uids: Iterable[str], now: datetime
) -> int:
    """Mark sent documents as held by the destination (storage commitment or a query)."""
    confirmed = _sent(database, destination, sop_instance_uids)
    with database.write() as connection:
        for delivery in confirmed:
            _move(
                connection,
                delivery,
                DeliveryState.CONFIRMED,
                Actor.COURIER,
                now,
                {"confirmed_at": now},
            )
    return len(confirmed)


def _sent(
    database: Database, destination: str, sop_instance_uids: Iterable[str]
) -> list[DeliveryRecord]:
    query = _query().where(
        _DELIVERY.c.destination == destination,
        _DELIVERY.c.state == DeliveryState.SENT,
        _DOCUMENT.c.sop_instance_uid.in_(list(sop_instance_uids)),
    )
    with database.read() as connection:
        return [_from_row(row) for row in connection.execute(query).mappings()]


def unconfirmed_deliveries(
    database: Database,
    *,
    sent_before: datetime,
    destinations: Collection[str] | None = None,
    now: datetime | None = None,
    limit: int = 100,
) -> tuple[DeliveryRecord, ...]:
    """Return what was sent before an instant, is not confirmed and should be asked for now.

    Parameters
    ----------
    database : Database
        The state.
    sent_before : datetime
        Destinations may take a moment to file what they accepted.
    destinations : collection of str, optional
        Only these; all when absent.
    now : datetime, optional
        The time; `sent_before` when absent.
    limit : int
        At most so many of each destination, the longest due first: neither a destination that
        does not answer nor documents it does not find keep others waiting.
    """
    due_at = func.coalesce(_DELIVERY.c.confirm_next_at, _DELIVERY.c.sent_at)
    place = func.row_number().over(partition_by=_DELIVERY.c.destination, order_by=due_at)
    due = select(_DELIVERY.c.id, due_at.label("due_at"), place.label("place")).where(
        _DELIVERY.c.state == DeliveryState.SENT,
        _DELIVERY.c.sent_at < sent_before,
        _DELIVERY.c.confirm_next_at.is_(None)
        | (_DELIVERY.c.confirm_next_at <= (now or sent_before)),
    )
    if destinations is not None:
        due = due.where(_DELIVERY.c.destination.in_(list(destinations)))
    first = due.subquery()
    query = (
        _query()
        .join(first, first.c.id == _DELIVERY.c.id)
        .where(first.c.place <= limit)
        .order_by(first.c.due_at, _DELIVERY.c.id)
    )
    with database.read() as connection:
        return tuple(_from_row(row) for row in connection.execute(query).mappings())


def record_confirmation_miss(
    database: Database, delivery_ids: Collection[int], now: datetime
) -> None:
    """Note that a query did not find these; they are asked for again, at last once an hour."""
    with database.write() as connection:
        for delivery_id in delivery_ids:
            delivery = _require(connection, delivery_id)
            if delivery.state is not DeliveryState.SENT:
                continue
            misses = delivery.confirm_misses + 1
            delay = backoff_seconds(misses, ASK_AGAIN_SECONDS, LONGEST_ASK_AGAIN_SECONDS, 0.0, 0.0)
            values = {"confirm_misses": misses, "confirm_next_at": after(now, delay)}
            _update(connection, delivery_id, values)


def retry_delivery_within(connection: Connection, delivery: DeliveryRecord, now: datetime) -> None:
    """Let a rejected, dead or vanished delivery be sent again at once, its age counted anew."""
    values = {
        "attempts": 0,
        "next_attempt_at": now,
        "created_at": now,
        "confirm_misses": 0,
        "confirm_next_at": None,
    }
    _move(connection, delivery, DeliveryState.PENDING, Actor.OPERATOR, now, values)


def end_delivery_within(
    connection: Connection, delivery: DeliveryRecord, comment: str, now: datetime
) -> None:
    """Give a delivery up for the operator; one that is dead already is told why."""
    if delivery.state is DeliveryState.DEAD:
        _update(connection, delivery.id, {"last_comment": comment})
        return
    values = {"last_comment": comment}
    _move(connection, delivery, DeliveryState.DEAD, Actor.OPERATOR, now, values)


def deliveries_of_study_within(
    connection: Connection, study_instance_uid: str
) -> tuple[DeliveryRecord, ...]:
    """Return a study's deliveries, oldest result first."""
    query = (
        _query()
        .where(schema.result.c.study_instance_uid == study_instance_uid)
        .order_by(_DELIVERY.c.id)
    )
    return tuple(_from_row(row) for row in connection.execute(query).mappings())


def delivery_states(
    database: Database, result_ids: Iterable[int]
) -> dict[int, dict[DeliveryState, int]]:
    """Return how many deliveries of each result stand in which state, for the worklist."""
    query = (
        select(_DELIVERY.c.result_id, _DELIVERY.c.state, func.count())
        .where(_DELIVERY.c.result_id.in_(list(result_ids)))
        .group_by(_DELIVERY.c.result_id, _DELIVERY.c.state)
    )
    counts: dict[int, dict[DeliveryState, int]] = {}
    with database.read() as connection:
        for result_id, state, count in connection.execute(query):
            counts.setdefault(result_id, {})[DeliveryState(state)] = count
    return counts


def wake_destination(database: Database, destination: str, now: datetime) -> int:
    """Close a destination's breaker and make all its pending deliveries due at once."""
    with database.write() as connection:
        write_destination(
            connection, destination, {"breaker_until": None, "consecutive_failures": 0}
        )
        woken = connection.execute(
            update(_DELIVERY)
            .where(
                _DELIVERY.c.destination == destination,
                _DELIVERY.c.state == DeliveryState.PENDING,
                _DELIVERY.c.next_attempt_at > now,
            )
            .values(next_attempt_at=now)
        )
        return woken.rowcount
