"""The audit trail: who did what to which study, when. Rows are added, never changed.

Details hold UIDs, states and reasons, never a patient's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from storage import schema
from storage.database import Database
from storage.encoding import plain_json


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the trail."""

    at: datetime
    actor: str
    action: str
    subject: str
    """The study UID, or what else was acted upon."""
    detail: Mapping[str, Any]


def append(
    connection: Connection,
    now: datetime,
    actor: str,
    action: str,
    subject: str = "",
    **detail: object,
) -> None:
    """Add a line within the caller's transaction, so that deed and line stand or fall together."""
    connection.execute(
        insert(schema.audit).values(
            at=now, actor=actor, action=action, subject=subject, detail=plain_json(detail)
        )
    )


def record_deed(
    database: Database,
    now: datetime,
    actor: str,
    action: str,
    subject: str = "",
    **detail: object,
) -> None:
    """Add a line in a transaction of its own."""
    with database.write() as connection:
        append(connection, now, actor, action, subject, **detail)


def list_audit(
    database: Database, *, subject: str | None = None, limit: int = 200
) -> tuple[AuditEntry, ...]:
    """Return the newest lines first, of one subject or of all."""
    with database.read() as connection:
        return entries_within(connection, subject=subject, limit=limit)


def entries_within(
    connection: Connection, *, subject: str | None = None, limit: int = 200
) -> tuple[AuditEntry, ...]:
    """As ``list_audit``, within the caller's transaction."""
    query = select(schema.audit).order_by(schema.audit.c.id.desc()).limit(limit)
    if subject is not None:
        query = query.where(schema.audit.c.subject == subject)
    rows = connection.execute(query)
    return tuple(AuditEntry(r.at, r.actor, r.action, r.subject, r.detail) for r in rows)
