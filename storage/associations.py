"""Associations under way: a study is not complete while one that touched it is open.

Owns the ``association`` tables; closing one moves the clock of its studies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, insert, select, update

from storage import schema
from storage.database import Database
from storage.states import StudyState


def open_association(
    database: Database,
    association_id: str,
    *,
    slot: str,
    now: datetime,
    calling_ae_title: str = "",
    called_ae_title: str = "",
    address: str = "",
) -> None:
    """Record an association that was accepted by the receiver in `slot`."""
    row = {
        "id": association_id,
        "calling_ae_title": calling_ae_title,
        "called_ae_title": called_ae_title,
        "address": address,
    }
    with database.write() as connection:
        open_within(connection, [row], slot, now)


def open_within(
    connection: Connection, rows: Sequence[Mapping[str, str]], slot: str, now: datetime
) -> None:
    """Record several that were accepted, by the names of the columns, within a transaction."""
    if rows:
        values = [{**row, "slot": slot, "opened_at": now} for row in rows]
        connection.execute(insert(schema.association), values)


def close_association(database: Database, association_id: str, now: datetime) -> None:
    """Record its end, however it ended; an unknown or closed one changes nothing."""
    with database.write() as connection:
        close_within(connection, [association_id], now)


def close_within(connection: Connection, association_ids: Sequence[str], now: datetime) -> None:
    """Record the end of several within the caller's transaction."""
    if association_ids:
        _close(connection, schema.association.c.id.in_(association_ids), now)


def slots_with_open_associations(database: Database) -> tuple[str, ...]:
    """Return the slots in whose name associations are kept as open."""
    table = schema.association
    query = select(table.c.slot).where(table.c.closed_at.is_(None)).distinct()
    with database.read() as connection:
        return tuple(connection.scalars(query.order_by(table.c.slot)))


def close_associations_of(database: Database, slot: str, now: datetime) -> int:
    """Close what a receiver that died left open; called when its successor starts.

    Returns
    -------
    int
        How many there were.
    """
    with database.write() as connection:
        return _close(connection, schema.association.c.slot == slot, now)


def _close(connection: Connection, which: ColumnElement[bool], now: datetime) -> int:
    table, link, study = schema.association, schema.association_study, schema.study
    open_ones = select(table.c.id).where(which, table.c.closed_at.is_(None))
    touched = select(link.c.study_instance_uid).where(link.c.association_id.in_(open_ones))
    connection.execute(
        update(study)
        .where(
            study.c.study_instance_uid.in_(touched),
            study.c.state == StudyState.RECEIVING,
            study.c.last_instance_at < now,
        )
        .values(last_instance_at=now)
    )
    closed = connection.execute(
        update(table).where(which, table.c.closed_at.is_(None)).values(closed_at=now)
    )
    return closed.rowcount
