"""The index writer: batches that wait a moment, in order, whatever the database does."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from storage_hospital import STUDY, Hospital, watch_writes

from daemon import indexing
from daemon.indexing import LINGER_SECONDS, Closed, IndexWriter, Opened, Refused, Report
from storage.arrivals import Arrival
from storage.database import Database, migrate, open_database
from storage.door import list_refused_instances
from storage.dossier import read_dossier
from storage.errors import NotFound, SpoolFailure
from storage.recording import Recorded
from storage.spool import Spool


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "medimgd.sqlite3"
    migrate(path)
    return path


@pytest.fixture
def hospital(tmp_path: Path, migrated: Path) -> Iterator[Hospital]:
    database = open_database(Path(shutil.copy(migrated, tmp_path / "medimgd.sqlite3")))
    yield Hospital(database, Spool(tmp_path / "spool", min_free_bytes=0))
    database.close()


def count_of(database: Database) -> int:
    try:
        return read_dossier(database, STUDY).study.instance_count
    except NotFound:
        return 0


def test_what_comes_close_together_is_written_together(hospital: Hospital) -> None:
    arrivals = [Arrival(hospital.store(number), "a") for number in range(20)]
    writes = watch_writes(hospital.database)
    index = IndexWriter(hospital.database, "receiver-1")

    index.put(Opened("a", "CT1", "MEDIMGD", "10.0.0.1"))
    for arrival in arrivals:
        index.put(arrival)
    index.put(Closed("a"))
    index.close()

    assert len(writes) == 1
    assert count_of(hospital.database) == 20


def test_a_single_report_waits_no_longer_than_the_linger(hospital: Hospital) -> None:
    arrival = Arrival(hospital.store(1), "a")
    index = IndexWriter(hospital.database, "receiver-1")
    started = time.monotonic()

    index.put(arrival)
    while not count_of(hospital.database):
        assert time.monotonic() - started < LINGER_SECONDS + 2
        time.sleep(0.005)
    waited = time.monotonic() - started
    index.close()

    assert waited >= LINGER_SECONDS * 0.9


def test_a_full_batch_does_not_wait(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "LINGER_SECONDS", 60.0)
    monkeypatch.setattr(indexing, "MOST_PER_BATCH", 3)
    index = IndexWriter(hospital.database, "receiver-1")

    # One more: the writer may have taken the first from the queue or not.
    for number in (1, 2, 3, 4):
        index.put(Arrival(hospital.store(number), "a"))
    deadline = time.monotonic() + 10
    while count_of(hospital.database) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    written = count_of(hospital.database)
    index.close()

    assert written >= 3


def test_a_backlog_is_written_without_waiting_between_its_batches(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "LINGER_SECONDS", 60.0)
    monkeypatch.setattr(indexing, "MOST_PER_BATCH", 3)
    monkeypatch.setattr(indexing, "RETRY_SECONDS", 0.01)
    arrivals = [Arrival(hospital.store(number), "a") for number in range(10)]
    index = IndexWriter(hospital.database, "receiver-1")

    with hospital.database.write():
        for arrival in arrivals:
            index.put(arrival)
        started = time.monotonic()
    index.close()

    assert count_of(hospital.database) == 10
    assert time.monotonic() - started < 30


def test_senders_wait_while_too_much_is_unwritten(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "MOST_QUEUED", 3)
    monkeypatch.setattr(indexing, "RETRY_SECONDS", 0.01)
    index = IndexWriter(hospital.database, "receiver-1")
    arrivals = [Arrival(hospital.store(number), "a") for number in range(6)]

    with hospital.database.write():
        index.put(arrivals[0])
        time.sleep(LINGER_SECONDS * 3)
        for arrival in arrivals[1:]:
            index.put(arrival)
        while_locked = index.is_overloaded
    deadline = time.monotonic() + 10
    while index.is_overloaded and time.monotonic() < deadline:
        time.sleep(0.01)
    afterwards = index.is_overloaded
    index.close()

    assert (while_locked, afterwards) == (True, False)
    assert count_of(hospital.database) == 6


def test_what_senders_are_told_meanwhile_does_not_lengthen_the_queue(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(indexing, "MOST_QUEUED", 3)
    monkeypatch.setattr(indexing, "RETRY_SECONDS", 0.01)
    caplog.set_level("INFO")
    index = IndexWriter(hospital.database, "receiver-1")
    arrivals = [Arrival(hospital.store(number), "a") for number in range(6)]

    with hospital.database.write():
        index.put(arrivals[0])
        time.sleep(LINGER_SECONDS * 3)
        for arrival in arrivals[1:]:
            index.put(arrival)
        queued = index._reports.qsize()
        for _ in range(50):
            index.put(Refused("the index is behind", "CT1", "MEDIMGD", "10.0.0.1"))
        while_refusing = index._reports.qsize()
    index.close()

    assert while_refusing == queued
    assert count_of(hospital.database) == 6
    assert "50 refusals were logged and not recorded" in caplog.text


@pytest.mark.parametrize(("failures", "indexed"), [(3, 5), (10_000, 4)])
def test_a_file_that_cannot_be_read_is_tried_again_for_a_while(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, failures: int, indexed: int
) -> None:
    monkeypatch.setattr(indexing, "MOST_FILE_TRIES", 5)
    monkeypatch.setattr(indexing, "RETRY_SECONDS", 0.001)
    arrivals = [Arrival(hospital.store(number), "a") for number in range(5)]
    left = iter(range(failures))
    record = indexing.record_reports

    def record_or_fail(
        database: Database, reports: list[Report], slot: str, now: datetime
    ) -> Recorded:
        if arrivals[2] in reports and next(left, None) is not None:
            raise SpoolFailure("could not read it (EIO)")
        return record(database, reports, slot, now)

    monkeypatch.setattr(indexing, "record_reports", record_or_fail)
    index = IndexWriter(hospital.database, "receiver-1")
    for arrival in arrivals:
        index.put(arrival)
    index.close()

    assert count_of(hospital.database) == indexed
    refused = [each.reason for each in list_refused_instances(hospital.database)]
    assert len(refused) == 5 - indexed
    assert all("stored and acknowledged" in reason for reason in refused)
