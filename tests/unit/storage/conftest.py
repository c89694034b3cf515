"""Fixtures for the tests of durable state."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from storage_hospital import Hospital

from storage.database import migrate, open_database
from storage.spool import Spool


@pytest.fixture
def database_path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "medimgd.db"


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new database, to be copied: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("migrated") / "medimgd.db"
    migrate(path)
    return path


@pytest.fixture
def hospital(tmp_path: Path, database_path: Path, migrated: Path) -> Iterator[Hospital]:
    database_path.parent.mkdir()
    shutil.copy(migrated, database_path)
    database = open_database(database_path)
    yield Hospital(database, Spool(tmp_path / "spool", min_free_bytes=0))
    database.close()
