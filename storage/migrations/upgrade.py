"""Running the migrations and naming the installation; the only module that imports Alembic."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, insert, select

from storage.revisions import CURRENT_REVISION
from storage.schema import installation


def alembic_config(connection: Connection) -> Config:
    """Return a configuration that points at this package and at an open connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection) -> None:
    """Bring the database to the current revision and give a new one its identity."""
    command.upgrade(alembic_config(connection), CURRENT_REVISION)
    if connection.execute(select(installation.c.only)).first() is None:
        connection.execute(
            insert(installation).values(
                only=1,
                uid_namespace=str(uuid4()),
                node_id=str(uuid4()),
                created_at=datetime.now(UTC),
            )
        )
