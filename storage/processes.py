"""The processes of the daemon as they report themselves: role, state, heartbeat.

Owns the ``process`` table; starts and stops nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, select, update

from storage import schema
from storage.database import Database
from storage.encoding import plain_json


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One slot of the daemon and who fills it."""

    slot: str
    """Unique among all hosts, for example ``worker-0@host``; a successor takes it over."""
    role: str
    pid: int
    host: str
    state: str
    """In its own words: ``starting``, ``ready``, ``stopping``, ``stopped``."""
    detail: Mapping[str, Any]
    """Device, models, port and the like."""
    started_at: datetime
    heartbeat_at: datetime


def register_process(
    database: Database,
    slot: str,
    *,
    role: str,
    pid: int,
    host: str,
    now: datetime,
    state: str = "starting",
    detail: Mapping[str, object] | None = None,
) -> None:
    """Take a slot, from whoever held it before."""
    with database.write() as connection:
        connection.execute(delete(schema.process).where(schema.process.c.slot == slot))
        connection.execute(
            insert(schema.process).values(
                slot=slot,
                role=role,
                pid=pid,
                host=host,
                state=state,
                detail=plain_json(detail or {}),
                started_at=now,
                heartbeat_at=now,
            )
        )


def heartbeat(
    database: Database,
    slot: str,
    now: datetime,
    *,
    state: str | None = None,
    detail: Mapping[str, object] | None = None,
) -> None:
    """Say that the process lives, and what changed about it."""
    values: dict[str, Any] = {"heartbeat_at": now}
    if state is not None:
        values["state"] = state
    if detail is not None:
        values["detail"] = plain_json(detail)
    with database.write() as connection:
        connection.execute(
            update(schema.process).where(schema.process.c.slot == slot).values(values)
        )


def remove_process(database: Database, slot: str) -> None:
    """Free a slot that the configuration no longer has."""
    with database.write() as connection:
        connection.execute(delete(schema.process).where(schema.process.c.slot == slot))


def list_processes(database: Database) -> tuple[ProcessRecord, ...]:
    """Return every slot, by name."""
    with database.read() as connection:
        rows = connection.execute(select(schema.process).order_by(schema.process.c.slot))
        return tuple(ProcessRecord(**row) for row in rows.mappings())
