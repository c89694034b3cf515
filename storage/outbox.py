"""The outbox: every document on its way to every destination, with its own state and backoff.

Owns what is sent next, and what an attempt came to. Knows DIMSE statuses by their category only and
opens no association.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    and_,
    case,
    exists,
    select,
    update,
)

from dicom_io.statuses import TRANSIENT, is_delivered, is_transient
from storage import schema
from storage.backoff import DeliveryPolicy, backoff_seconds
from storage.clock import after
from storage.database import Database
from storage.deliveries import (
    DeliveryRecord,
    delivery_of,
    delivery_query,
    destinations_within,
    is_found_in,
    move_delivery,
    require_delivery,
    update_delivery,
)
from storage.destinations import DeliveryOutcome, record_contact, write_destination
from storage.documents import ComposedDocument, insert_document_within
from storage.states import Actor, DeliveryState


@dataclass(frozen=True, slots=True)
class DeliveryGroup:
    """What one association should carry: one result's documents, the study report last."""

    destination: str
    result_id: int
    study_instance_uid: str
    deliveries: tuple[DeliveryRecord, ...]


_DOCUMENT, _DELIVERY = schema.document, schema.delivery

_PLACES = {"SC": 0, "SR-ROI": 1, "SR": 2}
"""By role: the study report refers to the picture and the regions, so it goes last."""

MOST_PUT_OFF = 8
"""Answers of A7xx to a picture after which its report goes without it: about twenty minutes as
shipped. An archive that never has room for pictures must not be without reports."""


def _sending_order(delivery: FromClause) -> ColumnElement[int]:
    return case(_PLACES, value=delivery.c.role)


def due_deliveries(
    database: Database, now: datetime, *, limit: int = 32
) -> tuple[DeliveryGroup, ...]:
    """Return what should be sent now, grouped by destination and result.

    What was tried least goes first, then the oldest result: an object over which a destination
    breaks off every time must not keep all others waiting. Destinations behind an open breaker
    are left out. Picture and regions go before the report that names them. A
    later version waits until the earlier ones of the same model and study have left, so that a
    destination never receives them in the wrong order. For the same reason a report waits with a
    picture that was put off, as long as ``keeps_the_rest_waiting`` says.

    Parameters
    ----------
    database : Database
        The state.
    now : datetime
        The time.
    limit : int
        Groups at most.
    """
    with database.read() as connection:
        leading = sorted(
            each
            for destination in _open_destinations(connection, now)
            for each in _leading(connection, destination, now, limit)
        )[:limit]
        due = _due_of(connection, [each.result_id for each in leading], now)
    return tuple(
        DeliveryGroup(each.destination, each.result_id, of_it[0].study_instance_uid, of_it)
        for each in leading
        if (of_it := due.get((each.destination, each.result_id)))
    )


class _Leading(NamedTuple):
    """The first document that is due of one result to one destination; the least goes first."""

    attempts: int
    result_id: int
    destination: str


def _open_destinations(connection: Connection, now: datetime) -> list[str]:
    breaker = schema.destination_state
    blocked = set(connection.scalars(select(breaker.c.name).where(breaker.c.breaker_until > now)))
    waiting = destinations_within(connection, DeliveryState.PENDING)
    return [name for name in waiting if name not in blocked]


def _leading(connection: Connection, destination: str, now: datetime, limit: int) -> list[_Leading]:
    query = leading_query(destination, now).limit(limit)
    return [_Leading(*row) for row in connection.execute(query)]


def leading_query(destination: str, now: datetime) -> Select[Any]:
    """Return the query for what leads each group that is due, in the order of sending.

    However much waits, it reads no more of it than it returns, but for what is not due.
    """
    ahead = _DELIVERY.alias()
    follows = exists().where(
        _goes_before(ahead),
        is_found_in(ahead, DeliveryState.PENDING),
        ahead.c.next_attempt_at <= now,
    )
    return (
        select(_DELIVERY.c.attempts, _DELIVERY.c.result_id, _DELIVERY.c.destination)
        .where(
            _DELIVERY.c.state == DeliveryState.PENDING,
            _is_due(now),
            _DELIVERY.c.destination == destination,
            ~follows.correlate(_DELIVERY),
            ~_waits_for_an_earlier_version(),
        )
        .order_by(_DELIVERY.c.attempts, _DELIVERY.c.result_id)
    )


def _due_of(
    connection: Connection, result_ids: list[int], now: datetime
) -> dict[tuple[str, int], tuple[DeliveryRecord, ...]]:
    query = (
        delivery_query()
        .where(
            _DELIVERY.c.result_id.in_(result_ids),
            is_found_in(_DELIVERY, DeliveryState.PENDING),
            _is_due(now),
        )
        .order_by(_DELIVERY.c.result_id, _DELIVERY.c.destination, _sending_order(_DELIVERY))
    )
    records = [delivery_of(row) for row in connection.execute(query).mappings()]
    groups = groupby(records, key=lambda each: (each.destination, each.result_id))
    return {key: tuple(members) for key, members in groups}


def _is_due(now: datetime) -> ColumnElement[bool]:
    return and_(
        _DELIVERY.c.next_attempt_at <= now,
        ~_waits_for_what_was_put_off(now),
    )


def _goes_before(ahead: FromClause) -> ColumnElement[bool]:
    return and_(
        ahead.c.result_id == _DELIVERY.c.result_id,
        ahead.c.destination == _DELIVERY.c.destination,
        _sending_order(ahead) < _sending_order(_DELIVERY),
    )


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
            is_found_in(ahead, DeliveryState.PENDING),
        )
        .correlate(_DELIVERY)
    )


def _waits_for_what_was_put_off(now: datetime) -> ColumnElement[bool]:
    ahead = _DELIVERY.alias()
    return (
        exists()
        .where(
            _goes_before(ahead),
            is_found_in(ahead, DeliveryState.PENDING),
            ahead.c.next_attempt_at > now,
            ahead.c.last_status.between(TRANSIENT.start, TRANSIENT.stop - 1),
            ahead.c.attempts < MOST_PUT_OFF,
        )
        .correlate(_DELIVERY)
    )


def keeps_the_rest_waiting(
    delivery: DeliveryRecord, outcome: DeliveryOutcome, now: datetime, policy: DeliveryPolicy
) -> bool:
    """True when what follows in the group should wait until this one is tried again.

    So a report does not arrive before its picture. One that is rejected, given up or was put off
    ``MOST_PUT_OFF`` times keeps nothing waiting. A pure function.
    """
    return (
        outcome.status is not None
        and is_transient(outcome.status)
        and judge_outcome(delivery, outcome, now, policy) is DeliveryState.PENDING
        and _attempts(delivery, outcome) < MOST_PUT_OFF
    )


def record_outcomes(
    database: Database,
    destination: str,
    outcomes: Sequence[DeliveryOutcome],
    now: datetime,
    policy: DeliveryPolicy,
) -> tuple[DeliveryRecord, ...]:
    """Record what came of one association's attempts.

    Success and warnings are ``sent``. No answer or A7xx is repeated with growing delay and opens
    the destination's breaker; other failures are repeated a few times and then ``rejected``, where
    what was tried during an outage does not count. What a fault of ours kept here is tried again
    with growing delay and keeps nothing else waiting.
    A delivery that is not pending any more is left alone.

    Returns
    -------
    tuple of DeliveryRecord
        As they stand now.
    """
    with database.write() as connection:
        for outcome in outcomes:
            delivery = require_delivery(connection, outcome.delivery_id)
            if delivery.state is DeliveryState.PENDING:
                _record(connection, delivery, outcome, now, policy)
        record_contact(connection, destination, outcomes, now, policy)
        return tuple(require_delivery(connection, outcome.delivery_id) for outcome in outcomes)


def judge_outcome(
    delivery: DeliveryRecord, outcome: DeliveryOutcome, now: datetime, policy: DeliveryPolicy
) -> DeliveryState:
    """Return the state an outcome leads to; a pure function."""
    attempts = _attempts(delivery, outcome)
    status = outcome.status
    if status is not None and is_delivered(status):
        return DeliveryState.SENT
    permanent = outcome.context_refused or (status is not None and not is_transient(status))
    if permanent and attempts >= policy.rejected_after:
        return DeliveryState.REJECTED
    age = (now - delivery.created_at).total_seconds()
    if age >= policy.max_age_seconds:
        return DeliveryState.DEAD
    return DeliveryState.PENDING


def _attempts(delivery: DeliveryRecord, outcome: DeliveryOutcome) -> int:
    """Return how often it was tried with this one: anew when the destination answers again.

    What was tried in vain during an outage says nothing of the document: an archive that answers
    with a failure while it starts would reject all that waited for it, or be asked hours later.
    """
    answers = outcome.status is not None or outcome.context_refused
    was_silent = delivery.last_status is None and not (
        # A refused context has no status either; its words are always the same.
        outcome.context_refused and delivery.last_comment == outcome.comment
    )
    return 1 if answers and was_silent else delivery.attempts + 1


def _record(
    connection: Connection,
    delivery: DeliveryRecord,
    outcome: DeliveryOutcome,
    now: datetime,
    policy: DeliveryPolicy,
) -> None:
    attempts = _attempts(delivery, outcome)
    values: dict[str, Any] = {
        "attempts": attempts,
        "last_status": outcome.status,
        "last_comment": outcome.comment,
    }
    state = judge_outcome(delivery, outcome, now, policy)
    if state is DeliveryState.PENDING:
        values["next_attempt_at"] = _next_attempt(attempts, outcome, now, policy)
        update_delivery(connection, delivery.id, values)
        return
    if state is DeliveryState.SENT:
        values["sent_at"] = now
    move_delivery(connection, delivery, state, Actor.COURIER, now, values)


def _next_attempt(
    attempts: int, outcome: DeliveryOutcome, now: datetime, policy: DeliveryPolicy
) -> datetime:
    if outcome.status is None and not outcome.context_refused and not outcome.is_unsent:
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
        delivery = require_delivery(connection, delivery_id)
        known = _composed(connection, delivery.result_id, document.role, document.sop_class_uid)
        document_id = known or insert_document_within(connection, delivery.result_id, document, now)
        update_delivery(
            connection, delivery_id, {"document_id": document_id, "next_attempt_at": now}
        )
        return require_delivery(connection, delivery_id)


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
