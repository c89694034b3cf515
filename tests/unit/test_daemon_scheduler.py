"""The scheduler's duties survive their own errors and a clock that is set."""

from __future__ import annotations

import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon import scheduler as scheduling
from daemon.config import Config, SiteSection
from daemon.in_hand import InHand, note_path
from daemon.role import now_utc
from daemon.scheduler import Scheduler
from storage.associations import open_association
from storage.backoff import DeliveryPolicy
from storage.database import Database, migrate, open_database
from storage.destinations import DeliveryOutcome
from storage.dossier import read_dossier
from storage.outbox import due_deliveries, record_outcomes
from storage.results import results_awaiting_composition, store_documents
from storage.retry import retry_study
from storage.spool import Spool
from storage.states import JobState, StudyState
from storage.studies import list_studies
from tests.storage_hospital import NOON, STUDY, Hospital


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


def test_a_duty_that_ends_while_the_clock_is_set_takes_no_other_along(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling, "CLOCK_WATCH_SECONDS", 0.05)
    called = threading.Event()
    scheduler.every(3600, called.set, "hourly")
    ended = scheduler._clock.add_job(called.clear, id="once")
    ended.remove()
    real_jobs, real = scheduler._clock.get_jobs, scheduling.time.time
    monkeypatch.setattr(scheduler._clock, "get_jobs", lambda: [ended, *real_jobs()])
    scheduler.start()

    monkeypatch.setattr(scheduling.time, "time", lambda: real() - 3600)

    assert called.wait(10)


def test_a_clock_set_forward_completes_no_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a study whose sender still sends, and a scheduler that looks once in a while,
    config = Config(site=SiteSection(data_folder=tmp_path))
    migrate(config.database_path)
    real = scheduling.time.time
    with closing(open_database(config.database_path)) as database:
        hospital = Hospital(database, Spool(config.spool_folder, 0))
        scheduler = Scheduler(config, database, hospital.spool)
        open_association(database, "a1", slot="receiver-1", now=now_utc())
        hospital.arrive(1, now=now_utc(), association_id="a1")
        hospital.arrive(1, now=now_utc(), study="1.2.3")
        scheduler.complete_studies()

        # when the clock is set forward by more than the deadline,
        monkeypatch.setattr(scheduling.time, "time", lambda: real() + 7200)
        later = datetime.now(UTC) + timedelta(hours=2)
        monkeypatch.setattr(scheduling, "now_utc", lambda: later)
        scheduler.complete_studies()
        scheduler.complete_studies()

        # then both wait on, and are complete after their quiet time.
        states = {each.study_instance_uid: each.state for each in list_studies(database)}
        assert set(states.values()) == {StudyState.RECEIVING}
        monkeypatch.setattr(scheduling, "now_utc", lambda: later + timedelta(seconds=31))
        scheduler.complete_studies()
        states = {each.study_instance_uid: each.state for each in list_studies(database)}
        assert states == {STUDY: StudyState.RECEIVING, "1.2.3": StudyState.COMPLETE}


def test_a_clock_set_forward_takes_no_living_worker_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(site=SiteSection(data_folder=tmp_path))
    migrate(config.database_path)
    real, steady = scheduling.time.time, scheduling.time.monotonic
    with closing(open_database(config.database_path)) as database:
        hospital = Hospital(database, Spool(config.spool_folder, 0))
        hospital.enqueue(now=now_utc())
        hospital.claim(now=now_utc())
        scheduler = Scheduler(config, database, hospital.spool)

        def states() -> list[JobState]:
            scheduler.reclaim_leases()
            return [each.state for each in read_dossier(database, STUDY).jobs]

        monkeypatch.setattr(scheduling.time, "time", lambda: real() + 7200)
        later = now_utc() + timedelta(hours=2)
        monkeypatch.setattr(scheduling, "now_utc", lambda: later)

        # Its next beats renew the lease; without one a later look takes the job back.
        for _ in range(2):
            assert states() == [JobState.RUNNING]
        monkeypatch.setattr(scheduling.time, "monotonic", lambda: steady() + 6)
        assert states() == [JobState.WAITING]


def test_what_a_silent_worker_had_only_read_ahead_is_not_blamed(tmp_path: Path) -> None:
    config = Config(site=SiteSection(data_folder=tmp_path))
    migrate(config.database_path)
    with closing(open_database(config.database_path)) as database:
        hospital = Hospital(database, Spool(config.spool_folder, 0))
        studies = ("1.2.1", "1.2.2")
        for study in studies:
            hospital.enqueue(study)
        computed, ahead = hospital.claim(limit=2, owner="worker-1")
        in_hand, others = InHand(), InHand()
        in_hand.open_note(note_path(tmp_path, "worker-1"))
        in_hand.add([computed, ahead])
        in_hand.begin([computed])
        # The note of another slot says nothing of this one's jobs.
        others.open_note(note_path(tmp_path, "worker-2"))
        others.add([computed])

        # The leases ended long ago.
        Scheduler(config, database, hospital.spool).reclaim_leases()

        first, second = [read_dossier(database, study).jobs[0] for study in studies]
        assert (first.state, first.attempts, first.crashes) == (JobState.WAITING, 1, 1)
        assert (second.state, second.attempts, second.crashes) == (JobState.WAITING, 0, 0)
        for each in (in_hand, others):
            each.close_note()


def test_an_analysis_does_not_wait_until_the_clock_has_caught_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config(site=SiteSection(data_folder=tmp_path))
    migrate(config.database_path)
    with closing(open_database(config.database_path)) as database:
        hospital = Hospital(database, Spool(config.spool_folder, 0))
        hospital.enqueue(now=now_utc() + timedelta(hours=1))

        Scheduler(config, database, hospital.spool).end_impossible_waits()

        assert len(hospital.claim(now=now_utc())) == 1
    assert "the clock was set back: 1 waits" in caplog.text


def test_a_report_that_outlived_its_images_goes_once_it_has_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(site=SiteSection(data_folder=tmp_path))
    migrate(config.database_path)
    with closing(open_database(config.database_path)) as database:
        spool = Spool(config.spool_folder, 0)
        scheduler = Scheduler(config, database, spool)
        Hospital(database, spool).analyse()
        (result,) = results_awaiting_composition(database)
        report = SimpleNamespace(
            role="SR", sop_class_uid="1.2", sop_instance_uid="2.25.1",
            series_instance_uid="2.25.9", data=b"bytes",
        )  # fmt: skip
        store_documents(database, result.id, [report], ["pacs"], NOON)
        _answer(database, None, NOON, DeliveryPolicy(max_age_seconds=0))

        here = []
        for day in (31, 62):
            now = NOON + timedelta(days=day)
            monkeypatch.setattr(scheduling, "now_utc", lambda now=now: now)
            scheduler.keep_retention()
            (document,) = read_dossier(database, STUDY).documents
            here.append(document.is_here)
            if day == 31:
                retry_study(database, STUDY, now, destinations=["pacs"])
                _answer(database, 0, now, DeliveryPolicy())

    assert here == [True, False]


def _answer(database: Database, status: int | None, now: datetime, policy: DeliveryPolicy) -> None:
    (group,) = due_deliveries(database, now)
    (delivery,) = group.deliveries
    outcome = DeliveryOutcome(delivery.id, status)
    record_outcomes(database, group.destination, [outcome], now, policy)
