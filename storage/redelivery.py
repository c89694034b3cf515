"""Deliveries made or ended after composing, because the configured destinations have changed.

Owns what a retry and a new destination do to the outbox; knows destinations by name only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, exists, func, select

from storage import audit, schema
from storage.database import Database
from storage.deliveries import (
    UNDELIVERED,
    deliveries_of_study_within,
    end_delivery_within,
    is_overtaken_within,
    retry_delivery_within,
)
from storage.results import REPLACED, insert_deliveries_within
from storage.states import NO_LONGER_CONFIGURED, Actor, DeliveryState, ResultState


@dataclass(frozen=True, slots=True)
class Resent:
    """What a retry made of a study's deliveries."""

    delivery_ids: tuple[int, ...]
    """Pending because of it."""
    overtaken_ids: tuple[int, ...]
    """Did not arrive and stay as they are, for a later version goes where they were to go."""


def resend_within(
    connection: Connection, study_instance_uid: str, destinations: Sequence[str], now: datetime
) -> Resent:
    """Send again what was refused, given up or lost, and what a destination never was offered.

    Deliveries to destinations that are not among `destinations` are given up for good; with no
    destination named, none is added and none given up. A report is not sent again to a destination
    that got a later version of it, or is to get one, be it because of this very retry.
    """
    present = _documents_with_data(connection, study_instance_uid)
    deliveries = deliveries_of_study_within(connection, study_instance_uid)
    of_study = schema.result.c.study_instance_uid == study_instance_uid
    offered = _offer(connection, of_study, destinations, now)
    revived: list[int] = []
    overtaken: list[int] = []
    # The latest first, and after what is offered: a later version that goes now, goes instead.
    for each in reversed(deliveries):
        if destinations and each.destination not in destinations:
            if each.state is DeliveryState.PENDING or each.is_stuck:
                end_delivery_within(connection, each, NO_LONGER_CONFIGURED, now)
        elif each.is_stuck and each.document_id in present:
            if is_overtaken_within(connection, each.id):
                overtaken.append(each.id)
            else:
                retry_delivery_within(connection, each, now)
                revived.append(each.id)
    return Resent((*sorted(revived), *offered), tuple(sorted(overtaken)))


def has_undelivered_within(connection: Connection, study_instance_uid: str) -> bool:
    """True when a document of the study did not arrive somewhere, and is here to be sent again."""
    delivery, result, document = schema.delivery, schema.result, schema.document
    query = (
        select(delivery.c.id)
        .join(result, result.c.id == delivery.c.result_id)
        .join(document, document.c.id == delivery.c.document_id)
        .where(
            result.c.study_instance_uid == study_instance_uid,
            UNDELIVERED,
            func.length(document.c.data) > 0,
        )
    )
    return connection.execute(query.limit(1)).first() is not None


def deliver_undelivered(database: Database, destinations: Sequence[str], now: datetime) -> int:
    """Send results that were composed while no destination was configured at all.

    Of each study and model the latest version that was composed goes, unless its documents were
    removed by retention.

    Returns
    -------
    int
        Deliveries made.
    """
    nowhere = ~exists().where(schema.delivery.c.result_id == schema.result.c.id)
    with database.read() as connection:
        if not destinations or not _offerable(connection, nowhere):
            return 0
    with database.write() as connection:
        made = _offer(connection, nowhere, destinations, now)
        if made:
            audit.append(
                connection,
                now,
                Actor.COURIER,
                "results offered to new destinations",
                deliveries=len(made),
                destinations=destinations,
            )
    return len(made)


def _offer(
    connection: Connection,
    which: ColumnElement[bool],
    destinations: Sequence[str],
    now: datetime,
) -> list[int]:
    made: list[int] = []
    table = schema.delivery
    for result_id, document_id, role in _offerable(connection, which):
        same = (table.c.result_id == result_id) & (table.c.role == role)
        known = set(connection.scalars(select(table.c.destination).where(same)))
        missing = [each for each in destinations if each not in known]
        insert_deliveries_within(connection, result_id, document_id, role, missing, now)
        made += connection.scalars(
            select(table.c.id).where(same, table.c.destination.in_(missing)).order_by(table.c.id)
        )
    return made


def _offerable(connection: Connection, which: ColumnElement[bool]) -> list[tuple[int, int, str]]:
    """Return result, document and role of what the latest composed versions have to send.

    A later version that is not composed keeps none back: it may never be, and where it is after
    all, it is sent after this one.
    """
    result, document = schema.result, schema.document
    # A role has a second document only where a destination wanted another SOP class.
    first = func.min(document.c.id)
    query = (
        select(document.c.result_id, first, document.c.role)
        .join(result, result.c.id == document.c.result_id)
        .where(
            which,
            result.c.state == ResultState.COMPOSED,
            ~REPLACED,
            func.length(document.c.data) > 0,
        )
        .group_by(document.c.result_id, document.c.role)
        .order_by(document.c.result_id, document.c.role)
    )
    return [(row[0], row[1], row[2]) for row in connection.execute(query)]


def _documents_with_data(connection: Connection, study_instance_uid: str) -> set[int]:
    document, result = schema.document, schema.result
    query = (
        select(document.c.id)
        .join(result, result.c.id == document.c.result_id)
        .where(result.c.study_instance_uid == study_instance_uid, func.length(document.c.data) > 0)
    )
    return set(connection.scalars(query))
