"""What was refused at the door, and why: instances not stored and associations not admitted.

Owns the ``refused_instance`` table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, select

from storage import schema
from storage.database import Database


@dataclass(frozen=True, slots=True)
class RefusedInstance:
    """One refusal; UIDs are as received and may be no UIDs at all."""

    at: datetime
    calling_ae_title: str
    called_ae_title: str
    address: str
    sop_class_uid: str
    sop_instance_uid: str
    """Empty when the association itself was refused."""
    status: int | None
    """The C-STORE status answered; None for a refused association."""
    reason: str


_LONGEST = 256
"""A peer chooses these texts; the table must not grow by them."""


def record_refused_instance(
    database: Database,
    now: datetime,
    *,
    reason: str,
    status: int | None = None,
    calling_ae_title: str = "",
    called_ae_title: str = "",
    address: str = "",
    sop_class_uid: str = "",
    sop_instance_uid: str = "",
) -> None:
    """Keep why something was not stored; texts are cut at 256 characters."""
    values = {
        "calling_ae_title": calling_ae_title,
        "called_ae_title": called_ae_title,
        "address": address,
        "sop_class_uid": sop_class_uid,
        "sop_instance_uid": sop_instance_uid,
        "reason": reason,
        "status": status,
    }
    with database.write() as connection:
        refuse_within(connection, [values], now)


def refuse_within(
    connection: Connection, rows: Sequence[Mapping[str, str | int | None]], now: datetime
) -> None:
    """Keep several refusals, by the names of the columns, within the caller's transaction."""
    cut = [
        {name: text[:_LONGEST] if isinstance(text, str) else text for name, text in row.items()}
        | {"at": now}
        for row in rows
    ]
    if cut:
        connection.execute(insert(schema.refused_instance), cut)


def list_refused_instances(database: Database, *, limit: int = 100) -> tuple[RefusedInstance, ...]:
    """Return the newest refusals first."""
    table = schema.refused_instance
    with database.read() as connection:
        rows = connection.execute(select(table).order_by(table.c.id.desc()).limit(limit)).all()
    return tuple(
        RefusedInstance(
            row.at,
            row.calling_ae_title,
            row.called_ae_title,
            row.address,
            row.sop_class_uid,
            row.sop_instance_uid,
            row.status,
            row.reason,
        )
        for row in rows
    )
