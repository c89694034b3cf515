"""The life of a process: it beats until its end, and a stop is asked for by signals."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from daemon.config import Config, SiteSection
from daemon.role import RoleProcess
from storage.database import Database, migrate, open_database
from storage.processes import list_processes
from tests.waiting import wait_until


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    migrate(tmp_path / "medimgd.sqlite3")
    made = open_database(tmp_path / "medimgd.sqlite3")
    yield made
    made.close()


@pytest.fixture
def renewed() -> list[datetime]:
    """Return when the leases of the process were renewed."""
    return []


@pytest.fixture
def role(
    tmp_path: Path, database: Database, renewed: list[datetime], monkeypatch: pytest.MonkeyPatch
) -> Iterator[RoleProcess]:
    monkeypatch.setattr("daemon.role.HEARTBEAT_SECONDS", 0.02)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    config = Config(site=SiteSection(data_folder=tmp_path))
    made = RoleProcess(config, database, "worker", "worker-1", renewed.append)
    made.begin()
    yield made
    made.end()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_leases_are_renewed_until_the_last_batch_has_ended_after_a_stop_was_asked_for(
    role: RoleProcess, renewed: list[datetime], database: Database
) -> None:
    role.request_stop()
    count = len(renewed)

    assert wait_until(lambda: len(renewed) >= count + 3)

    role.end()
    assert not role._beat.is_alive()
    assert list_processes(database) == ()


def test_first_signal_lets_an_end_go_on_that_the_process_began_itself(
    role: RoleProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    exits: list[int] = []
    monkeypatch.setattr("daemon.role.os._exit", exits.append)
    role.request_stop()

    os.kill(os.getpid(), signal.SIGTERM)
    assert exits == []

    os.kill(os.getpid(), signal.SIGTERM)
    assert exits == [128 + signal.SIGTERM]
    assert role.is_stopping


def test_the_heart_goes_on_after_an_unexpected_error(
    role: RoleProcess,
    renewed: list[datetime],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail_once(now: datetime) -> None:
        monkeypatch.setattr(role, "_renew", renewed.append)
        raise RuntimeError("dictionary changed size during iteration")

    count = len(renewed)
    monkeypatch.setattr(role, "_renew", fail_once)

    assert wait_until(lambda: len(renewed) >= count + 3)
    assert "unexpected RuntimeError in test_daemon_role" in caplog.text
