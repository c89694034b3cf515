"""Whether destinations hold what they accepted: what to ask for, and what the answers come to.

Owns the patience with which an archive is asked. Opens no association.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, func, select

from storage import schema
from storage.backoff import backoff_seconds
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
from storage.states import Actor, DeliveryState

ASK_AGAIN_SECONDS = 60.0
"""After the first query in vain: an archive may file what it accepted some moments later."""

LONGEST_ASK_AGAIN_SECONDS = 3600.0

_DOCUMENT, _DELIVERY = schema.document, schema.delivery

_DUE_AT = func.coalesce(_DELIVERY.c.confirm_next_at, _DELIVERY.c.sent_at)


def confirm_deliveries(
    database: Database, destination: str, sop_instance_uids: Iterable[str], now: datetime
) -> int:
    """Mark sent documents as held by the destination (storage commitment or a query)."""
    with database.write() as connection:
        # Under the write lock: a retry may have sent it again, or given it up, meanwhile.
        confirmed = _sent(connection, destination, sop_instance_uids)
        for delivery in confirmed:
            move_delivery(
                connection,
                delivery,
                DeliveryState.CONFIRMED,
                Actor.COURIER,
                now,
                {"confirmed_at": now},
            )
    return len(confirmed)


def _sent(
    connection: Connection, destination: str, sop_instance_uids: Iterable[str]
) -> list[DeliveryRecord]:
    query = sent_query(destination, sop_instance_uids)
    return [delivery_of(row) for row in connection.execute(query).mappings()]


def sent_query(destination: str, sop_instance_uids: Iterable[str]) -> Select[Any]:
    """Return the query for what was sent there under these UIDs, looked up by their documents."""
    return delivery_query().where(
        _DELIVERY.c.destination == destination,
        _DELIVERY.c.result_id == _DOCUMENT.c.result_id,
        is_found_in(_DELIVERY, DeliveryState.SENT),
        _DOCUMENT.c.sop_instance_uid.in_(list(sop_instance_uids)),
    )


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
    with database.read() as connection:
        if destinations is None:
            destinations = list(destinations_within(connection, DeliveryState.SENT))
        first = [
            delivery_id
            for destination in destinations
            for delivery_id in _first(connection, destination, sent_before, now, limit)
        ]
        query = delivery_query().where(_DELIVERY.c.id.in_(first)).order_by(_DUE_AT, _DELIVERY.c.id)
        return tuple(delivery_of(row) for row in connection.execute(query).mappings())


def _first(
    connection: Connection,
    destination: str,
    sent_before: datetime,
    now: datetime | None,
    limit: int,
) -> list[int]:
    found = [
        row
        for query in unconfirmed_queries(destination, sent_before, now or sent_before)
        for row in connection.execute(query.limit(limit))
    ]
    return [delivery_id for _, delivery_id in sorted(map(tuple, found))[:limit]]


def unconfirmed_queries(
    destination: str, sent_before: datetime, now: datetime
) -> tuple[Select[Any], Select[Any]]:
    """Return the queries for what was never asked for, and for what was missed, longest due first.

    Two, because each reads no more than it returns, however much was sent.
    """
    sent = select(_DUE_AT, _DELIVERY.c.id).where(
        _DELIVERY.c.state == DeliveryState.SENT,
        _DELIVERY.c.destination == destination,
        _DELIVERY.c.sent_at < sent_before,
    )
    return (
        sent.where(_DELIVERY.c.confirm_next_at.is_(None)).order_by(_DELIVERY.c.sent_at),
        sent.where(_DELIVERY.c.confirm_next_at <= now).order_by(_DELIVERY.c.confirm_next_at),
    )


def record_confirmation_miss(
    database: Database, delivery_ids: Collection[int], now: datetime
) -> None:
    """Note that a query did not find these; they are asked for again, at last once an hour."""
    with database.write() as connection:
        for delivery_id in delivery_ids:
            delivery = require_delivery(connection, delivery_id)
            if delivery.state is not DeliveryState.SENT:
                continue
            misses = delivery.confirm_misses + 1
            delay = backoff_seconds(misses, ASK_AGAIN_SECONDS, LONGEST_ASK_AGAIN_SECONDS, 0.0, 0.0)
            values = {"confirm_misses": misses, "confirm_next_at": after(now, delay)}
            update_delivery(connection, delivery_id, values)
