"""Opening SQLite connections: the only place that does, with the settings durability rests on.

Needs the standard library only, so that ``medimgd status`` answers without loading SQLAlchemy.
Knows no table.
"""

from __future__ import annotations

import sqlite3
import time
import unicodedata
from pathlib import Path
from urllib.parse import quote

from storage.errors import DatabaseMissing, translated_database_error

BUSY_TIMEOUT_SECONDS = 15.0
"""How long a writer waits for another process's short transaction before ``DatabaseBusy``."""

_BUSY_PAUSE_SECONDS = 0.005
_PRIMARY_CODE = 0xFF
"""Of an extended result code of SQLite, the part that says the kind."""

_WAL_SIZE_LIMIT_BYTES = 64 * 1024 * 1024
"""What a checkpoint leaves of the write-ahead log after a burst of tensors."""

_WRITER_SETTINGS = (
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    # Some distributions overwrite freed pages by default, which writes every finished tensor a
    # second time. The spool beside us holds the same pixels in plain files.
    "PRAGMA secure_delete=FAST",
    f"PRAGMA journal_size_limit={_WAL_SIZE_LIMIT_BYTES}",
)


def _uri(path: Path, parameters: str) -> str:
    return f"file:{quote(str(path.absolute()))}?{parameters}"


def _open(path: Path, parameters: str) -> sqlite3.Connection:
    # isolation_level None: transactions are begun and ended by ``storage.database`` alone.
    connection = sqlite3.connect(
        _uri(path, parameters),
        uri=True,
        timeout=BUSY_TIMEOUT_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.create_function("folded", 1, folded, deterministic=True)
    return connection


def folded(text: str) -> str:
    """Return a text as it is compared in a search; known to SQL under the same name.

    SQLite's own ``lower`` knows the letters A to Z only: a Cyrillic or Greek name would be found in
    the very spelling of its sender alone. Half-width and full-width letters are one.
    """
    return unicodedata.normalize("NFKC", text).casefold()


def connect_writer(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """Open for reading and writing; only `create` may make a new file.

    Raises
    ------
    sqlite3.Error
        Untranslated: ``storage.database`` translates for everyone.
    """
    connection = _open(path, "mode=rwc" if create else "mode=rw")
    try:
        _keep_write_ahead_log(connection)
        for setting in _WRITER_SETTINGS:
            connection.execute(setting)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _keep_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Switch to WAL, which the file remembers.

    SQLite waits for everything but the lock that this takes: of several processes that make the
    database at once all but one would be told that it is locked.
    """
    until = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            is_locked = error.sqlite_errorcode & _PRIMARY_CODE == sqlite3.SQLITE_BUSY
            if not is_locked or time.monotonic() >= until:
                raise
            time.sleep(_BUSY_PAUSE_SECONDS)
        else:
            return


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open read-only; works beside a running daemon, without one, and in a read-only folder.

    A database in WAL mode needs its ``-shm`` file, which a reader without write permission in
    the folder cannot make. While no ``-wal`` file exists nobody writes, and the main file alone
    is the whole truth.
    """
    connection = _open(path, "mode=ro")
    try:
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        if path.with_name(path.name + "-wal").exists():
            raise
        connection = _open(path, "mode=ro&immutable=1")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def require_database(path: Path) -> None:
    """Raise ``DatabaseMissing`` unless a file lies at `path`."""
    if not path.is_file():
        raise DatabaseMissing(
            f"no database at {path}: it is made by `medimgd run`; "
            "if it should exist, check the configured state folder"
        )


def open_reader(path: Path) -> sqlite3.Connection:
    """Open an existing database read-only, with errors translated.

    Raises
    ------
    DatabaseMissing, DatabaseUnavailable, DatabaseCorrupt
        As ``storage.errors`` says.
    """
    require_database(path)
    try:
        return connect_reader(path)
    except sqlite3.Error as error:
        raise translated_database_error(error, str(path)) from error
