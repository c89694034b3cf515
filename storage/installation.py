"""Who this installation is: the namespace of its derived UIDs and its node identifier."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select

from storage import schema
from storage.database import Database


@dataclass(frozen=True, slots=True)
class Installation:
    """Made once, with the database; never changed."""

    uid_namespace: UUID
    """Namespace of every UUIDv5 behind a derived UID."""
    node_id: str
    """Device serial number in results; random, says nothing about the site."""
    created_at: datetime


def read_installation(database: Database) -> Installation:
    """Return the identity that the first migration made."""
    with database.read() as connection:
        row = connection.execute(select(schema.installation)).one()
    return Installation(UUID(row.uid_namespace), row.node_id, row.created_at)
