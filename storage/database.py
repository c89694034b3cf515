"""The database: short read and write transactions, one translation of every foreign error.

The only module that makes an engine. Holds what is particular to SQLite together with
``storage.connections``; knows no table but the revision.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, exc, pool

from storage.connections import (
    connect_reader,
    connect_writer,
    require_database,
)
from storage.errors import (
    DatabaseUnavailable,
    StorageError,
    refused_value,
    translated_database_error,
)
from storage.revisions import REVISIONS, check_revision, schema_revision

_WRITES = "medimgd_writes"
"""Execution option that turns BEGIN into BEGIN IMMEDIATE."""


class Database:
    """Hands out transactions; safe to share between the threads of one process.

    Parameters
    ----------
    engine : Engine
        Made by ``open_database``.
    path : Path
        The database file, for messages and ``status``.
    read_only : bool
        ``write`` is refused.
    """

    def __init__(self, engine: Engine, path: Path, *, read_only: bool) -> None:
        self._engine = engine
        self.path = path
        self.read_only = read_only
        # Threads of one process queue here, fairly; SQLite's own lock is polled.
        self._writing = threading.Lock()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection that sees one snapshot from its first query to its last."""
        with self._translated(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a connection inside BEGIN IMMEDIATE; committed at the end, or rolled back.

        Raises
        ------
        DatabaseBusy
            Another process wrote for longer than the busy timeout.
        """
        if self.read_only:
            raise DatabaseUnavailable(f"{self.path} was opened read-only: nothing can be written")
        with self._translated(), self._writing, self._engine.connect() as connection:
            writer = connection.execution_options(**{_WRITES: True})
            with writer.begin():
                yield writer

    def close(self) -> None:
        """Close every pooled connection; transactions under way are not waited for."""
        self._engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as error:
            raise translated_database_error(error.orig, str(self.path)) from error
        except exc.TimeoutError as error:
            raise DatabaseUnavailable(
                f"no connection to {self.path} became free: too many threads use it at once"
            ) from error
        except sqlite3.Error as error:
            raise translated_database_error(error, str(self.path)) from error
        except exc.StatementError as error:
            raise refused_value(error.orig or error, str(self.path)) from error
        except (OverflowError, ValueError) as error:
            # The driver's own, for integers beyond 64 bits and text that is no Unicode.
            raise refused_value(error, str(self.path)) from error


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _make_engine(path: Path, *, read_only: bool, create: bool = False) -> Engine:
    def connect() -> sqlite3.Connection:
        return connect_reader(path) if read_only else connect_writer(path, create=create)

    engine = create_engine(
        "sqlite://",
        creator=connect,
        poolclass=pool.QueuePool,
        pool_size=8,
        max_overflow=56,
        # Bound values may hold a patient's name and must not reach an exception message.
        hide_parameters=True,
    )
    event.listen(engine, "begin", _begin)
    return engine


def open_database(path: Path, *, read_only: bool = False) -> Database:
    """Open an existing, migrated database.

    Parameters
    ----------
    path : Path
        The database file.
    read_only : bool
        For the command line and the web page: works without the daemon, never blocks it.

    Raises
    ------
    DatabaseMissing, DatabaseOlder, DatabaseNewer, DatabaseUnavailable, DatabaseCorrupt
        As ``storage.errors`` says.
    """
    require_database(path)
    database = Database(_make_engine(path, read_only=read_only), path, read_only=read_only)
    try:
        with database.read() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)  # noqa: S101 - made by _make_engine
            check_revision(schema_revision(driver), path)
    except StorageError:
        database.close()
        raise
    return database


def migrate(path: Path) -> None:
    """Create the database or bring it to the current schema, in one transaction.

    Several processes may do so at once: the second waits and finds nothing left to do.

    Raises
    ------
    DatabaseNewer
        The database was written by a later version; nothing is changed.
    """
    # Alembic is slow to import and needed here only.
    from storage.migrations.upgrade import upgrade  # noqa: PLC0415

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseUnavailable(f"cannot create the folder {path.parent}: {error}") from error
    database = Database(_make_engine(path, read_only=False, create=True), path, read_only=False)
    try:
        with database.write() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)  # noqa: S101 - made by _make_engine
            revision = schema_revision(driver)
            if revision not in (None, *REVISIONS):
                check_revision(revision, path)
            upgrade(connection)
    finally:
        database.close()
