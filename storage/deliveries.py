"""One document on its way to one destination: the record, its row, and how it changes state.

Owns the ``delivery`` table. Must not know when something is sent, or asked for again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    RowMapping,
    Select,
    and_,
    case,
    exists,
    func,
    or_,
    select,
    update,
)

from storage import audit, schema
from storage.database import Database
from storage.errors import NotFound
from storage.results import replaces
from storage.states import (
    DELIVERY_MOVES,
    NO_LONGER_CONFIGURED,
    Actor,
    DeliveryState,
    check_move,
)

MISSES_UNTIL_STUCK = 10
"""Queries in vain, about five hours of them, after which a person should look."""

_DOCUMENT, _DELIVERY = schema.document, schema.delivery

NOT_FOUND = "not found"
"""What the worklist counts a delivery as that was accepted and is not there: no state of its own,
for the archive may find it yet."""

LOST = (_DELIVERY.c.state == DeliveryState.SENT) & (
    _DELIVERY.c.confirm_misses >= MISSES_UNTIL_STUCK
)
"""Of a row of ``delivery``: accepted, and not found since."""


def _given_up_for_good(delivery: FromClause) -> ColumnElement[bool]:
    """Return the condition on a row of ``delivery`` that its destination is no longer configured.

    Nobody can do anything about it, and nothing is expected of it.
    """
    return and_(
        delivery.c.state == DeliveryState.DEAD, delivery.c.last_comment == NO_LONGER_CONFIGURED
    )


def _overtaken() -> ColumnElement[bool]:
    own, later, other = schema.result.alias(), schema.result.alias(), _DELIVERY.alias()
    return (
        exists()
        .where(
            own.c.id == _DELIVERY.c.result_id,
            replaces(later, own),
            other.c.result_id == later.c.id,
            other.c.destination == _DELIVERY.c.destination,
            ~_given_up_for_good(other),
        )
        .correlate(_DELIVERY)
    )


OVERTAKEN = _overtaken()
"""Of a row of ``delivery``: its destination got a version that replaces this one, or is to get it.

Sent after that one, it would be what the destination's viewers show as the latest.
"""

UNDELIVERED = and_(
    or_(
        _DELIVERY.c.state == DeliveryState.REJECTED,
        and_(
            _DELIVERY.c.state == DeliveryState.DEAD,
            _DELIVERY.c.last_comment != NO_LONGER_CONFIGURED,
        ),
        LOST,
    ),
    ~OVERTAKEN,
)
"""Of a row of ``delivery``: its document did not arrive, and a retry may help."""


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
    """Since it was made, or since its destination answers again."""
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
    def is_given_up_for_good(self) -> bool:
        """True when an operator's retry gave it up: its destination is no longer configured."""
        return self.state is DeliveryState.DEAD and self.last_comment == NO_LONGER_CONFIGURED

    @property
    def is_lost(self) -> bool:
        """True when it was accepted, and not found since."""
        return self.state is DeliveryState.SENT and self.confirm_misses >= MISSES_UNTIL_STUCK

    @property
    def counts_as(self) -> str:
        """Its state, or that it is not found."""
        return NOT_FOUND if self.is_lost else self.state

    @property
    def is_stuck(self) -> bool:
        """True when it waits for a person: refused, given up, or accepted and not found."""
        return self.is_lost or self.state in (DeliveryState.REJECTED, DeliveryState.DEAD)


def delivery_query() -> Select[Any]:
    """Return the query for deliveries with what their documents and results know."""
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


def delivery_of(row: RowMapping) -> DeliveryRecord:
    """Return the record of one row of `delivery_query`."""
    values: dict[str, Any] = dict(row)
    values["state"] = DeliveryState(row["state"])
    return DeliveryRecord(**values)


def is_found_in(delivery: FromClause, state: DeliveryState) -> ColumnElement[bool]:
    """Return the condition that a row of ``delivery``, found by its result, is in a state.

    As an expression, which has no index: SQLite would rather read all that is in this state than
    look a row up by its result.
    """
    return delivery.c.state.concat("") == state.value


def destinations_within(connection: Connection, state: DeliveryState) -> Iterator[str]:
    """Yield the destinations of deliveries in a state, by name; reads one row of each."""
    after = ""
    while after is not None:
        query = select(func.min(_DELIVERY.c.destination)).where(
            _DELIVERY.c.state == state, _DELIVERY.c.destination > after
        )
        after = connection.scalar(query)
        if after is not None:
            yield after


def require_delivery(connection: Connection, delivery_id: int) -> DeliveryRecord:
    """Return a delivery by its number, or raise ``NotFound``."""
    row = (
        connection.execute(delivery_query().where(_DELIVERY.c.id == delivery_id))
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise NotFound(f"no delivery {delivery_id}")
    return delivery_of(row)


def update_delivery(connection: Connection, delivery_id: int, values: dict[str, Any]) -> None:
    """Change columns of a delivery that are not its state."""
    connection.execute(update(_DELIVERY).where(_DELIVERY.c.id == delivery_id).values(values))


def move_delivery(
    connection: Connection,
    delivery: DeliveryRecord,
    after_state: DeliveryState,
    actor: Actor,
    now: datetime,
    values: dict[str, Any],
) -> None:
    """Change the state of a delivery, and other columns with it."""
    subject = f"delivery {delivery.id}"
    state = check_move(DELIVERY_MOVES, subject, delivery.state, after_state, actor)
    update_delivery(connection, delivery.id, {**values, "state": state, "state_since": now})
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


def retry_delivery_within(connection: Connection, delivery: DeliveryRecord, now: datetime) -> None:
    """Let a rejected, dead or vanished delivery be sent again at once, its age counted anew."""
    values = {
        "attempts": 0,
        "next_attempt_at": now,
        "created_at": now,
        "confirm_misses": 0,
        "confirm_next_at": None,
    }
    move_delivery(connection, delivery, DeliveryState.PENDING, Actor.OPERATOR, now, values)


def end_delivery_within(
    connection: Connection, delivery: DeliveryRecord, comment: str, now: datetime
) -> None:
    """Give a delivery up for the operator; one that is dead already is told why."""
    if delivery.state is DeliveryState.DEAD:
        update_delivery(connection, delivery.id, {"last_comment": comment})
        return
    values = {"last_comment": comment}
    move_delivery(connection, delivery, DeliveryState.DEAD, Actor.OPERATOR, now, values)


def deliveries_of_study_within(
    connection: Connection, study_instance_uid: str
) -> tuple[DeliveryRecord, ...]:
    """Return a study's deliveries, oldest result first."""
    query = (
        delivery_query()
        .where(schema.result.c.study_instance_uid == study_instance_uid)
        .order_by(_DELIVERY.c.id)
    )
    return tuple(delivery_of(row) for row in connection.execute(query).mappings())


def is_overtaken_within(connection: Connection, delivery_id: int) -> bool:
    """True when a version that replaces this one went to the same destination, or is to go."""
    query = select(_DELIVERY.c.id).where(_DELIVERY.c.id == delivery_id, OVERTAKEN)
    return connection.execute(query).first() is not None


def delivery_states(database: Database, result_ids: Iterable[int]) -> dict[int, dict[str, int]]:
    """Return how many deliveries of each result count as what, for the worklist.

    That is their state, or ``NOT_FOUND``. Those to destinations that are no longer configured, and
    given up for it, are left out.
    """
    counts_as = case((LOST, NOT_FOUND), else_=_DELIVERY.c.state)
    query = (
        select(_DELIVERY.c.result_id, counts_as, func.count())
        .where(_DELIVERY.c.result_id.in_(list(result_ids)), ~_given_up_for_good(_DELIVERY))
        .group_by(_DELIVERY.c.result_id, counts_as)
    )
    counts: dict[int, dict[str, int]] = {}
    with database.read() as connection:
        for result_id, word, count in connection.execute(query):
            counts.setdefault(result_id, {})[word] = count
    return counts
