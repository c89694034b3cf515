"""The scheduler's duties survive their own errors and a clock that is set."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from daemon import scheduler as scheduling
from daemon.config import Config, SiteSection
from daemon.scheduler import Scheduler
from storage.database import migrate, open_database
from storage.spool import Spool


@pytest.fixture
def scheduler(tmp_path: Path):
    config = Config(site=SiteSection(data_folder=tmp_path))
    migrate(config.database_path)
    database = open_database(config.database_path)
    made = Scheduler(config, database, Spool(config.spool_folder, 0))
    yield made
    made.stop()
    database.close()


def test_a_duty_that_fails_is_called_again(scheduler: Scheduler) -> None:
    calls = threading.Semaphore(0)

    def failing() -> None:
        calls.release()
        raise RuntimeError("broken")

    scheduler.every(0.05, failing, "failing")
    scheduler.start()

    assert calls.acquire(timeout=10)
    assert calls.acquire(timeout=10)


def test_a_clock_set_back_does_not_silence_the_duties(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling, "CLOCK_WATCH_SECONDS", 0.05)
    called = threading.Event()
    scheduler.every(3600, called.set, "hourly")
    real = scheduling.time.time
    scheduler.start()
    assert not called.wait(0.3)

    monkeypatch.setattr(scheduling.time, "time", lambda: real() - 3600)

    assert called.wait(10)
