"""Alembic's entry: runs the migrations on the connection that ``storage.database`` opened."""

from __future__ import annotations

from alembic import context

from storage.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # The caller's transaction holds the whole upgrade: all of it happens, or nothing.
    transactional_ddl=False,
)
context.run_migrations()
