"""Opening, migrating and sharing the database."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from earlier_version import set_back
from sqlalchemy import create_engine, insert, select, text
from storage_hospital import CXR, NOON, STUDY

from storage import connections, schema
from storage.database import migrate, open_database
from storage.errors import (
    ConstraintBroken,
    DatabaseBusy,
    DatabaseCorrupt,
    DatabaseMissing,
    DatabaseNewer,
    DatabaseOlder,
    DatabaseUnavailable,
    StorageError,
)
from storage.installation import read_installation
from storage.migrations.upgrade import alembic_config
from storage.overview import read_overview
from storage.prepared import among, as_list
from storage.results import latest_results
from storage.revisions import CURRENT_REVISION
from storage.studies import get_study


def test_a_missing_database_is_named_and_not_made(database_path: Path) -> None:
    for read_only in (True, False):
        with pytest.raises(DatabaseMissing, match=r"medimgd\.db"):
            open_database(database_path, read_only=read_only)

    assert not database_path.exists()


def test_migrations_make_the_schema_the_program_speaks(hospital) -> None:
    with hospital.database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []


def test_the_first_schema_is_brought_up_with_what_it_holds(database_path: Path) -> None:
    database_path.parent.mkdir()
    engine = create_engine(f"sqlite:///{database_path}")
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), "0001")
        connection.execute(
            text(
                "INSERT INTO study (study_instance_uid, modalities, state, state_since,"
                " first_instance_at, last_instance_at, instance_count, purged_at) VALUES"
                " ('1.2', '[]', 'routed', :at, :at, :at, 7, NULL),"
                " ('1.3', '[]', 'routed', :at, :at, :at, 5, :at)"
            ),
            {"at": "2024-05-17 12:00:00.000000"},
        )
    engine.dispose()
    with pytest.raises(DatabaseOlder):
        open_database(database_path)

    migrate(database_path)

    database = open_database(database_path)
    study = get_study(database, "1.2")
    removed = get_study(database, "1.3")
    with database.read() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), schema.metadata)
    database.close()
    assert differences == []
    assert (study.state, study.instance_count, study.last_instance_at) == ("routed", 7, NOON)
    assert (study.patient_mismatch_count, study.purged_instance_count) == (0, None)
    assert (removed.purged_at, removed.purged_instance_count) == (NOON, 5)


def test_a_result_of_before_is_brought_up_with_the_weights_its_job_names(
    hospital, database_path: Path
) -> None:
    hospital.analyse()
    hospital.database.close()
    set_back(database_path, hospital.spool, "0006")

    migrate(database_path)

    database = open_database(database_path)
    (result,) = latest_results(database, [STUDY])[STUDY]
    database.close()
    assert result.model == CXR


def test_migrating_twice_keeps_the_installation(database_path: Path) -> None:
    migrate(database_path)
    first = open_database(database_path)
    before = read_installation(first)
    first.close()

    migrate(database_path)

    second = open_database(database_path)
    assert read_installation(second) == before
    second.close()


def test_two_installations_have_different_namespaces(tmp_path: Path) -> None:
    namespaces = set()
    for name in ("a", "b"):
        migrate(tmp_path / name)
        database = open_database(tmp_path / name)
        namespaces.add(read_installation(database).uid_namespace)
        database.close()

    assert len(namespaces) == 2


def test_migrations_may_be_run_by_several_processes_at_once(database_path: Path) -> None:
    program = (
        "from pathlib import Path; from storage.database import migrate;"
        f"migrate(Path({str(database_path)!r}))"
    )
    children = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]

    codes = [child.wait(60) for child in children]

    assert codes == [0, 0]
    open_database(database_path).close()


def test_who_opens_a_database_while_another_process_makes_it_waits(tmp_path: Path) -> None:
    path, opened = tmp_path / "medimgd.db", threading.Event()

    def open_it() -> None:
        connections.connect_writer(path, create=True).close()
        opened.set()

    # Given a process that has begun to write and has not switched to the write-ahead log yet,
    with closing(sqlite3.connect(path, isolation_level=None)) as maker:
        maker.execute("BEGIN IMMEDIATE")
        second = threading.Thread(target=open_it)
        second.start()
        assert not opened.wait(0.3)
        maker.execute("COMMIT")

    assert opened.wait(10)
    second.join()


@pytest.mark.parametrize(
    ("revision", "error"), [("9999", DatabaseNewer), (None, DatabaseOlder)], ids=["newer", "none"]
)
def test_a_database_of_another_schema_is_refused(database_path, revision, error) -> None:
    migrate(database_path)
    with sqlite3.connect(database_path) as connection:
        connection.execute("DELETE FROM alembic_version")
        if revision:
            connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
    connection.close()

    with pytest.raises(error, match="schema"):
        open_database(database_path)
    if error is DatabaseNewer:
        with pytest.raises(DatabaseNewer):
            migrate(database_path)


def test_a_file_that_is_no_database_is_refused_and_kept(database_path: Path) -> None:
    database_path.parent.mkdir()
    database_path.write_bytes(b"this is no database at all, it is a letter " * 50)

    for attempt in (open_database, migrate, lambda path: open_database(path, read_only=True)):
        with pytest.raises(DatabaseCorrupt, match="not a usable database"):
            attempt(database_path)

    assert database_path.read_bytes().startswith(b"this is no database")


def test_settings_that_durability_rests_on_are_in_force(hospital) -> None:
    with hospital.database.read() as connection:
        found = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in (
                "journal_mode",
                "synchronous",
                "foreign_keys",
                "busy_timeout",
                "secure_delete",
            )
        }

    assert found == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 15000,
        "secure_delete": 2,
    }


def test_a_write_that_fails_leaves_nothing_behind(hospital) -> None:
    row = {"slot": "a", "role": "b", "pid": 1, "host": "h", "state": "s", "detail": {}}

    def write_and_fail() -> None:
        with hospital.database.write() as connection:
            values = {**row, "started_at": NOON, "heartbeat_at": NOON}
            connection.execute(insert(schema.process).values(**values))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()

    with hospital.database.read() as connection:
        assert connection.execute(schema.process.select()).all() == []


def test_a_broken_constraint_is_translated_without_the_values(hospital) -> None:
    values = {
        "study_instance_uid": "1.2",
        "series_instance_uid": "1.2.1",
        "description": "Marked^Name",
    }
    with pytest.raises(ConstraintBroken) as caught, hospital.database.write() as connection:
        connection.execute(insert(schema.series).values(**values))

    assert "Marked" not in str(caught.value)
    assert "Marked" not in str(caught.value.__cause__)


def test_an_instant_without_zone_is_not_stored(hospital) -> None:
    with pytest.raises(ConstraintBroken) as caught, hospital.database.write() as c:
        c.execute(
            insert(schema.association).values(id="a", slot="s", opened_at=NOON.replace(tzinfo=None))
        )

    assert "without time zone" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    "column",
    [{"expected_instances": 2**70}, {"patient_name": "Marked\udcff"}],
    ids=["integer", "text"],
)
def test_a_value_that_no_column_takes_is_refused_without_being_quoted(hospital, column) -> None:
    hospital.arrive(1)

    with pytest.raises(ConstraintBroken) as caught, hospital.database.write() as connection:
        connection.execute(schema.study.update().values(column))

    assert not caught.value.retryable
    assert "Marked" not in f"{caught.value} {caught.value.__cause__}"
    assert str(2**70) not in f"{caught.value} {caught.value.__cause__}"


def test_a_writer_that_waits_too_long_says_that_trying_again_helps(
    hospital, monkeypatch, database_path
) -> None:
    monkeypatch.setattr(connections, "BUSY_TIMEOUT_SECONDS", 0.05)
    other = open_database(database_path)
    with hospital.database.write(), pytest.raises(DatabaseBusy) as caught, other.write():
        pass
    other.close()

    assert caught.value.retryable


def test_threads_of_one_process_never_meet_the_lock(hospital, monkeypatch) -> None:
    failures = []

    def write(number: int) -> None:
        try:
            for each in range(10):
                with hospital.database.write() as connection:
                    key = f"{number}-{each}"
                    connection.execute(
                        insert(schema.association).values(id=key, slot="s", opened_at=NOON)
                    )
        except StorageError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    with hospital.database.read() as connection:
        assert len(connection.execute(schema.association.select()).all()) == 80


def test_a_reader_sees_one_snapshot_beside_a_writer(hospital, database_path) -> None:
    reader = open_database(database_path, read_only=True)
    with reader.read() as connection:
        before = connection.execute(schema.study.select()).all()
        hospital.arrive(1)
        after = connection.execute(schema.study.select()).all()

    assert before == after == []
    reader.close()


def test_a_read_only_database_refuses_to_write(hospital, database_path) -> None:
    reader = open_database(database_path, read_only=True)
    with pytest.raises(DatabaseUnavailable, match="read-only"), reader.write():
        pass
    reader.close()


@contextmanager
def _as_an_ordinary_user() -> Iterator[None]:
    """Drop root's right to write everywhere for a moment; nothing to drop for others."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_reader_needs_no_write_permission_while_nobody_writes(database_path) -> None:
    migrate(database_path)
    # Above pytest's private folders, so that another user gets there.
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "medimgd.db"
        shutil.copy(database_path, copy)
        copy.chmod(0o444)
        Path(folder).chmod(0o555)
        with _as_an_ordinary_user():
            overview = read_overview(copy, NOON)
            open_database(copy, read_only=True).close()
        Path(folder).chmod(0o755)

    assert overview.schema_revision == CURRENT_REVISION


def test_reading_leaves_no_trace_in_the_folder_when_the_daemon_is_down(database_path) -> None:
    migrate(database_path)
    before = sorted(path.name for path in database_path.parent.iterdir())

    database = open_database(database_path, read_only=True)
    database.close()

    assert before == ["medimgd.db"]
    assert {path.name for path in database_path.parent.iterdir()} <= {
        "medimgd.db",
        "medimgd.db-shm",
        "medimgd.db-wal",
    }


def test_list_of_any_length_is_one_bound_value(hospital) -> None:
    number = hospital.enqueue()
    by_id = select(schema.job.c.id).where(among(schema.job.c.id, "ids"))
    by_study = select(schema.job.c.id).where(among(schema.job.c.study_instance_uid, "studies"))

    with hospital.database.read() as connection:
        found = connection.scalars(by_id, {"ids": as_list(range(number, 100_000))}).all()
        named = connection.scalars(by_study, {"studies": as_list([STUDY, "1.2'3"])}).all()
        none = connection.scalars(by_id, {"ids": as_list([])}).all()

    assert (found, named, none) == ([number], [number], [])
