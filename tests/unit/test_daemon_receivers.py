"""Several receivers of one installation: how many, what they settle, when they ask for patience."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from storage_hospital import CT_IMAGE_STORAGE, EXPLICIT_LITTLE, STUDY, Hospital, make_data_set

from daemon import backpressure as backpressure_module
from daemon import receiver as receiver_module
from daemon.backpressure import Backpressure
from daemon.config import Config, SiteSection
from daemon.indexing import IndexWriter
from daemon.metrics import metrics_text
from daemon.receiver import IndexedAssociations, SpoolSink
from daemon.receiver_settings import ReceiverSection
from daemon.role import now_utc
from daemon.running import children_of
from daemon.settling import SpoolIndexing, settle_before_receiving
from daemon.slot_lock import hold_slot, is_slot_held
from daemon.status import read_status
from dicom_io.receiving.instances import StoreRequest
from storage.associations import close_association, open_association, slots_with_open_associations
from storage.completion import CompletionRules, complete_due_studies, complete_now
from storage.database import Database, migrate, open_database
from storage.dossier import read_dossier
from storage.processes import register_process
from storage.reindexing import reindex
from storage.spool import Spool
from storage.studies import count_waiting_studies, list_studies


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "medimgd.sqlite3"
    migrate(path)
    return path


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(site=SiteSection(data_folder=tmp_path, node_id="here"))


@pytest.fixture
def database(config: Config, migrated: Path) -> Iterator[Database]:
    database = open_database(Path(shutil.copy(migrated, config.database_path)))
    yield database
    database.close()


@pytest.fixture
def hospital(config: Config, database: Database) -> Hospital:
    return Hospital(database, Spool(config.spool_folder, min_free_bytes=0, slot="receiver-1"))


# What is still coming


@pytest.mark.parametrize("known_before", [True, False])
@pytest.mark.parametrize("patient_name", ["Marked^Name", "M\xfcller^Name"])
def test_a_study_waits_for_an_instance_that_takes_longer_than_its_quiet_time(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, known_before: bool, patient_name: str
) -> None:
    # Given one association that brought a study and ended, and one that is bringing more of it,
    monkeypatch.setattr(receiver_module, "LONG_SECONDS", 0.0)
    database, rules = hospital.database, CompletionRules(quiet_seconds=30)
    if known_before:
        hospital.arrive(1, now=now_utc())
    sop = f"{STUDY}.1.2"
    whole = make_data_set(sop, pixels=b"ab" * 50_000, patient_name=patient_name)
    data_set = memoryview(whole)
    request = StoreRequest(
        "a", "CT1", "MEDIMGD", "10.0.0.1", CT_IMAGE_STORAGE, sop, EXPLICIT_LITTLE
    )
    with closing(IndexWriter(database, "receiver-1")) as index:
        IndexedAssociations(index).on_opened("a", "CT1", "MEDIMGD", "10.0.0.1")
        coming = SpoolSink(hospital.spool, index, database).begin(request)
        for start in (0, 40, 40_000):  # What came first does not say yet.
            coming.write(data_set[start : start + 40_000 if start else 40])
    if not known_before:
        hospital.arrive(1, now=now_utc())

    # then the study is not complete before that has ended, however quiet it is.
    quiet = now_utc() + timedelta(seconds=100)
    assert complete_due_studies(database, rules, quiet) == ()
    close_association(database, "a", quiet)
    coming.discard()
    assert complete_due_studies(database, rules, quiet + timedelta(seconds=29)) == ()
    assert len(complete_due_studies(database, rules, quiet + timedelta(seconds=30))) == 1


# How many


def test_each_core_has_a_receiver_up_to_four(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((1, 1), (2, 2), (64, 4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert ReceiverSection().process_count == expected
    assert ReceiverSection(processes=7).process_count == 7
    assert ReceiverSection(port=0).process_count == 1


def test_any_port_is_for_one_receiver() -> None:
    with pytest.raises(ValueError, match=r"set receiver\.processes = 1"):
        ReceiverSection(port=0, processes=2)


def test_every_receiver_is_a_child_of_its_own() -> None:
    config = Config(receiver=ReceiverSection(processes=3))

    slots = [child.slot for child in children_of(config)]

    assert slots[:3] == ["receiver-1", "receiver-2", "receiver-3"]
    assert slots[3:] == ["preparer-1", "worker-1", "courier-1", "web-1"]


# What they settle


def test_the_associations_of_a_slot_that_nobody_fills_are_closed(
    config: Config, hospital: Hospital
) -> None:
    for number in (1, 2, 3):
        open_association(hospital.database, f"a{number}", slot=f"receiver-{number}", now=now_utc())

    with hold_slot(config, "receiver-1"), hold_slot(config, "receiver-2"):
        assert is_slot_held(config, "receiver-2")
        settle_before_receiving(config, hospital.database, hospital.spool, "receiver-1")

    # The third was dropped from the configuration; the second lives and keeps its own.
    assert slots_with_open_associations(hospital.database) == ("receiver-2",)
    assert not is_slot_held(config, "receiver-2")


def wait_for(condition, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def reindexed(caplog: pytest.LogCaptureFixture) -> list[int]:
    return [record.count for record in caplog.records if record.action == "reindexed"]


def test_what_a_predecessor_did_not_record_is_indexed_beside_reception(
    config: Config, hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hospital.store(1)
    hospital.store(2)

    with SpoolIndexing(config, hospital.database, hospital.spool):
        assert wait_for(lambda: reindexed(caplog))

    assert reindexed(caplog) == [2]
    assert read_dossier(hospital.database, STUDY).study.instance_count == 2


def test_receivers_that_start_together_walk_through_the_spool_once(
    config: Config, hospital: Hospital
) -> None:
    walks = []
    first, second, third = (
        SpoolIndexing(config, hospital.database, hospital.spool) for _ in range(3)
    )
    for each in (first, second, third):
        with each._turn() as is_needed:
            walks.append(is_needed)
        each._index_in_turn()
    later = SpoolIndexing(config, hospital.database, hospital.spool)

    with later._turn() as is_needed:
        walks.append(is_needed)

    # All three asked before the first walk began; the last one after every walk.
    assert walks == [True, False, False, True]


def test_a_receiver_waits_for_the_one_that_indexes_and_can_stop_meanwhile(
    config: Config, hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hospital.store(1)
    busy = SpoolIndexing(config, hospital.database, hospital.spool)
    with busy._turn() as is_needed:
        assert is_needed
        with SpoolIndexing(config, hospital.database, hospital.spool):
            time.sleep(0.5)

    assert reindexed(caplog) == []
    with SpoolIndexing(config, hospital.database, hospital.spool):
        assert wait_for(lambda: reindexed(caplog))


def test_studies_under_reception_are_indexed_first(hospital: Hospital) -> None:
    hospital.arrive(1, study="1.2.9")
    hospital.store(2, study="1.2.9")
    hospital.arrive(1, study="1.2.1")
    complete_now(hospital.database, "1.2.1", now_utc())
    hospital.store(2, study="1.2.1")
    hospital.store(1, study="1.2.5")
    asked = iter([False, False, True])

    found = reindex(hospital.database, hospital.spool, now_utc(), lambda: next(asked))

    counts = {
        each.study_instance_uid: each.instance_count for each in list_studies(hospital.database)
    }
    assert found.recorded == 2
    assert counts == {"1.2.9": 2, "1.2.5": 1, "1.2.1": 1}


def test_indexing_while_instances_arrive_neither_loses_nor_doubles_one(
    hospital: Hospital,
) -> None:
    stop = threading.Event()
    missing = []

    def walk() -> None:
        while not stop.is_set():
            missing.append(reindex(hospital.database, hospital.spool, now_utc()).missing)

    walking = threading.Thread(target=walk)
    walking.start()
    for number in range(60):
        hospital.arrive(number)
    stop.set()
    walking.join()

    assert read_dossier(hospital.database, STUDY).study.instance_count == 60
    assert set(missing) == {0}


# When they ask for patience


def waiting(hospital: Hospital, *numbers: int) -> None:
    for number in numbers:
        hospital.arrive(1, study=f"1.2.{number}")
        complete_now(hospital.database, f"1.2.{number}", now_utc())


def analysed(database: Database, *numbers: int) -> None:
    with database.write() as connection:
        for number in numbers:
            connection.exec_driver_sql(
                "UPDATE study SET state = 'unmatched' WHERE study_instance_uid = ?",
                (f"1.2.{number}",),
            )


def test_a_long_queue_asks_for_patience_until_it_is_clearly_shorter(
    hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    section = ReceiverSection(maximum_waiting_studies=10)
    door = Backpressure(section, hospital.database, hospital.spool)
    waiting(hospital, *range(10))
    assert (door.look(), door.reason) == (False, "")

    waiting(hospital, 10)
    assert door.look()
    assert "receiver.maximum_waiting_studies (10)" in door.reason
    assert not door.look()
    analysed(hospital.database, 0)
    assert not door.look()
    analysed(hospital.database, 1)
    assert door.look()

    assert door.reason == ""
    actions = [record.action for record in caplog.records]
    assert actions == ["congested", "congestion_over"]


def test_without_a_limit_no_queue_is_too_long(hospital: Hospital) -> None:
    door = Backpressure(
        ReceiverSection(maximum_waiting_studies=0), hospital.database, hospital.spool
    )
    waiting(hospital, 1, 2, 3)

    assert not door.look()


def test_a_study_waits_once_however_many_analyses_it_has(hospital: Hospital) -> None:
    waiting(hospital, 1, 2)
    hospital.arrive(3, study="1.2.3")

    assert count_waiting_studies(hospital.database, at_most=100) == 2
    assert count_waiting_studies(hospital.database, at_most=1) == 1


def test_a_short_disk_asks_for_patience_until_there_is_room_again(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = Backpressure(ReceiverSection(), hospital.database, hospital.spool)
    free = hospital.spool.free_bytes()
    monkeypatch.setattr(backpressure_module, "RESUME_MARGIN_BYTES", free // 2)

    hospital.spool.min_free_bytes = free * 2
    assert door.look()
    assert "receiver.minimum_free_mib" in door.reason
    hospital.spool.min_free_bytes = free * 3 // 4
    assert not door.look()
    hospital.spool.min_free_bytes = 0
    assert door.look()

    assert door.reason == ""


# What is shown


def test_status_and_metrics_count_over_the_receivers_that_live(
    config: Config, database: Database
) -> None:
    now = now_utc()
    for number, beat in ((1, now), (2, now), (3, now - timedelta(minutes=1))):
        slot = f"receiver-{number}"
        register_process(
            database, slot, role="receiver", pid=os.getpid(), host="here", now=beat, state="ready",
            detail={"congested": "the disk is short" if number == 2 else ""},
        )  # fmt: skip
        for each in range(number):
            open_association(database, f"{slot} {each}", slot=slot, now=now)
    slots = [f"receiver-{number}" for number in (1, 2, 3)]
    register_process(
        database, "scheduler-1", role="scheduler", pid=os.getpid(), host="here", now=now,
        state="ready", detail={"slots": slots},
    )  # fmt: skip

    status = read_status(config, now)
    metrics = metrics_text(config).decode()

    assert status.open_associations == {"receiver-1": 1, "receiver-2": 2}
    sentences = [each for each in status.attention if "receiver-3" in each]
    assert len(sentences) == 1
    assert sentences[0].startswith("not running: ")
    assert any("the disk is short" in each for each in status.attention)
    assert 'medimgd_open_associations{slot="receiver-2"} 2.0' in metrics
    assert 'medimgd_receiver_congested{slot="receiver-1"} 0.0' in metrics
    assert 'medimgd_receiver_congested{slot="receiver-2"} 1.0' in metrics
