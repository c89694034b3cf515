"""What is known of each destination by its answers: reachability, breaker, the SR class it takes.

Owns the ``destination_state`` table.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from dicom_io.statuses import describe, is_delivered, is_transient
from storage import schema
from storage.backoff import DeliveryPolicy, backoff_seconds
from storage.clock import after
from storage.database import Database


@dataclass(frozen=True, slots=True)
class DeliveryOutcome:
    """What came of one attempt."""

    delivery_id: int
    status: int | None
    """As the destination answered; None when it did not."""
    comment: str = ""
    context_refused: bool = False
    """The presentation context was not accepted: permanent, and no fallback is left."""
    is_unsent: bool = False
    """A fault of ours kept it here: that says nothing of the destination."""


@dataclass(frozen=True, slots=True)
class DestinationState:
    """What is known of a destination by its answers."""

    name: str
    last_attempt_at: datetime | None
    last_success_at: datetime | None
    last_answer: str
    sr_sop_class_uid: str | None
    """The SR class it was found to accept; None until learned."""
    consecutive_failures: int
    breaker_until: datetime | None
    """Not contacted before."""


def record_contact(
    connection: Connection,
    name: str,
    outcomes: Sequence[DeliveryOutcome],
    now: datetime,
    policy: DeliveryPolicy,
) -> None:
    """Note what one association came to: the last answer, and the breaker of an outage."""
    if outcomes and all(each.is_unsent for each in outcomes):
        return
    known = read_destination(connection, name)
    values: dict[str, Any] = {"last_attempt_at": now, "last_answer": _answer(outcomes)}
    statuses = [each.status for each in outcomes if each.status is not None]
    if any(is_delivered(status) for status in statuses):
        values["last_success_at"] = now
    unreachable = all(each.status is None and not each.context_refused for each in outcomes)
    if unreachable or (statuses and all(is_transient(status) for status in statuses)):
        failures = known.consecutive_failures + 1
        delay = backoff_seconds(
            failures,
            policy.first_delay_seconds,
            policy.max_outage_delay_seconds,
            policy.jitter,
            random.random(),  # noqa: S311 - spreads attempts, guards nothing
        )
        values |= {"consecutive_failures": failures, "breaker_until": after(now, delay)}
    else:
        values |= {"consecutive_failures": 0, "breaker_until": None}
    write_destination(connection, name, values)


def _answer(outcomes: Sequence[DeliveryOutcome]) -> str:
    if not outcomes:
        return "nothing was sent"
    # The worst answer says most: none at all, then a failure, then the rest.
    worst = max(
        outcomes,
        key=lambda each: (each.status is None, not is_delivered(each.status or 0)),
    )
    if worst.status is None:
        return worst.comment or "no answer"
    said = describe(worst.status)
    return f"{said}: {worst.comment}" if worst.comment else said


def write_destination(connection: Connection, name: str, values: dict[str, Any]) -> None:
    """Change columns of a destination, within the caller's transaction; made when new."""
    table = schema.destination_state
    changed = connection.execute(update(table).where(table.c.name == name).values(values))
    if changed.rowcount == 0:
        connection.execute(insert(table).values(name=name, **values))


def read_destination(connection: Connection, name: str) -> DestinationState:
    """As ``destination_state``, within the caller's transaction."""
    table = schema.destination_state
    row = connection.execute(select(table).where(table.c.name == name)).mappings().one_or_none()
    if row is None:
        return DestinationState(name, None, None, "", None, 0, None)
    return DestinationState(**row)


def destination_state(database: Database, name: str) -> DestinationState:
    """Return what is known of a destination; nothing yet for a new one."""
    with database.read() as connection:
        return read_destination(connection, name)


def list_destinations(database: Database) -> tuple[DestinationState, ...]:
    """Return every destination ever contacted, by name."""
    table = schema.destination_state
    with database.read() as connection:
        rows = connection.execute(select(table).order_by(table.c.name)).mappings()
        return tuple(DestinationState(**row) for row in rows)


def learn_sr_sop_class(database: Database, destination: str, sop_class_uid: str | None) -> None:
    """Remember which SR class a destination accepts; None forgets it."""
    with database.write() as connection:
        write_destination(connection, destination, {"sr_sop_class_uid": sop_class_uid})
