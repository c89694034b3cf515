"""An installation set back: database and spool as a version of an earlier schema left them.

Until schema 0007 contents were digested by SHA-256, and no study said by what.
"""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

from alembic import command
from sqlalchemy import create_engine

from storage.contents import DigestAlgorithm, content_digest
from storage.migrations.upgrade import alembic_config
from storage.spool import Spool, is_conflict

_DIGESTED = ("instance", "instance_conflict")


def set_back(database_path: Path, spool: Spool, revision: str = "0007") -> None:
    """Put the database that a version of schema `revision` would have written in the place of one.

    It must be closed. Conflicts get the names of then, and sets of instances the digests.
    """
    earlier = database_path.with_name("earlier.db")
    engine = create_engine(f"sqlite:///{earlier}")
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), revision)
    engine.dispose()
    with closing(sqlite3.connect(earlier)) as connection:
        connection.execute("ATTACH ? AS later", (str(database_path),))
        sets_now = _set_digests(connection, "later", "content_digest")
        for table in _tables(connection):
            _copy(connection, table)
        _digest_by_sha256(connection, spool)
        _rename_sets(connection, sets_now, _set_digests(connection, "main", "sha256"))
        connection.commit()
    for each in database_path.parent.glob(f"{database_path.name}*"):
        each.unlink()
    earlier.rename(database_path)


def sha256_of_content(transfer_syntax_uid: str, data_set: bytes) -> str:
    """Return what was recorded of an instance until schema 0007."""
    return hashlib.sha256(f"{transfer_syntax_uid}\0".encode() + data_set).hexdigest()


def set_digest(pairs: list[tuple[str, str]]) -> str:
    """Return the digest of a set of instances, as it always was."""
    return hashlib.sha256("".join(sorted(f"{a} {b}\n" for a, b in pairs)).encode()).hexdigest()


def _tables(connection: sqlite3.Connection) -> list[str]:
    query = "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    return [name for (name,) in connection.execute(query) if name != "alembic_version"]


def _columns(connection: sqlite3.Connection, schema: str, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f"PRAGMA {schema}.table_info({table})")]


def _copy(connection: sqlite3.Connection, table: str) -> None:
    now = _columns(connection, "later", table)
    then = _columns(connection, "main", table)
    sources = {name: name for name in then if name in now}
    if table in _DIGESTED:
        sources["sha256"] = "content_digest"
    into = ", ".join(f'"{name}"' for name in sources)
    values = ", ".join(f'"{name}"' for name in sources.values())
    connection.execute(f"INSERT INTO main.{table} ({into}) SELECT {values} FROM later.{table}")


def _rename_conflicts(spool: Spool) -> dict[str, str]:
    """Give conflicts the names of then; return those by the names of now."""
    renamed = {}
    for path in [path for path in spool.stored_instances() if is_conflict(path)]:
        digits = content_digest(path, DigestAlgorithm.SHA256)[:12]
        then = path.with_name(f"{path.name.split('.conflict')[0]}.conflict-{digits}.dcm")
        path.rename(then)
        now = path.relative_to(spool.folder).as_posix()
        renamed[now] = then.relative_to(spool.folder).as_posix()
    return renamed


def _digest_by_sha256(connection: sqlite3.Connection, spool: Spool) -> None:
    renamed = _rename_conflicts(spool)
    for table in _DIGESTED:
        rows = connection.execute(f"SELECT rowid, path FROM main.{table}").fetchall()
        for row, now in rows:
            then = renamed.get(now, now)
            digest = content_digest(spool.absolute(then), DigestAlgorithm.SHA256)
            statement = f"UPDATE main.{table} SET sha256 = ?, path = ? WHERE rowid = ?"
            connection.execute(statement, (digest, then, row))


def _set_digests(connection: sqlite3.Connection, schema: str, column: str) -> dict[str, str]:
    pairs: dict[str, list[tuple[str, str]]] = {}
    query = f"SELECT study_instance_uid, sop_instance_uid, {column} FROM {schema}.instance"
    for study, instance, digest in connection.execute(query):
        pairs.setdefault(study, []).append((instance, digest))
    return {study: set_digest(some) for study, some in pairs.items()}


def _rename_sets(connection: sqlite3.Connection, now: dict[str, str], then: dict[str, str]) -> None:
    for table in _tables(connection):
        if "instance_set_digest" in _columns(connection, "main", table):
            statement = f"UPDATE main.{table} SET instance_set_digest = ?"
            for study, digest in then.items():
                where = f"{statement} WHERE instance_set_digest = ?"
                connection.execute(where, (digest, now[study]))
