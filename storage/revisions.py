"""Which schema a database stands at, and whether this program may use it.

Needs the standard library only, like ``storage.connections``.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from storage.errors import DatabaseNewer, DatabaseOlder

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010")
"""Every migration this program knows, oldest first."""

CURRENT_REVISION = REVISIONS[-1]


def schema_revision(connection: sqlite3.Connection) -> str | None:
    """Return the migration the database stands at; None for a file never migrated."""
    query = "SELECT name FROM sqlite_master WHERE type='table' AND name='alembic_version'"
    if connection.execute(query).fetchone() is None:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def check_revision(revision: str | None, path: Path) -> None:
    """Raise unless the database stands at the revision this program was written for.

    Raises
    ------
    DatabaseNewer, DatabaseOlder
        Named with what to do.
    """
    if revision == CURRENT_REVISION:
        return
    if revision is None or revision in REVISIONS:
        raise DatabaseOlder(
            f"{path} is at schema {revision or 'none'}, this program needs {CURRENT_REVISION}: "
            "start `medimgd run` once, which migrates it"
        )
    raise DatabaseNewer(
        f"{path} is at schema {revision}, this program knows {CURRENT_REVISION} at most: "
        "use the medimgd version that wrote it, or a later one"
    )
