"""The parts of the worker one by one: turns, what is in hand, the watchdog, recycling, figures."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from daemon import computing, model_loading, read_ahead, recording, served_models
from daemon import worker as worker_process
from daemon.computing import Worker
from daemon.config import Config, SiteSection
from daemon.exit_codes import ExitCode
from daemon.in_hand import InHand, note_path, read_note
from daemon.load_deaths import LoadDeaths
from daemon.metrics import metrics_text
from daemon.model_loading import gpu_is_present
from daemon.model_settings import ModelsSection, WorkerSection
from daemon.read_ahead import ReadAhead
from daemon.recycling import Recycling
from daemon.role import now_utc
from daemon.served_models import ServedModels
from daemon.settings import MEBIBYTE
from daemon.status import read_status
from daemon.turns import PATIENCE, Turns, name_of
from daemon.watchdog import Watchdog, Watched
from daemon.worker import WorkerProcess
from daemon.worker_figures import Utilisation, WorkerFigures, age_seconds
from model.catalogue import read_catalogue
from model.errors import DeviceOutOfMemory, RuntimeFault, UnusableOutput
from model.package import ModelPackage
from model.runtimes.port import PredictorDescription
from storage.claims import claim_batch
from storage.database import Database, migrate, open_database
from storage.dossier import read_dossier
from storage.errors import DatabaseBusy, LeaseLost
from storage.jobs import ClaimedJob, WaitingModel, waiting_models
from storage.processes import register_process
from storage.spool import Spool
from storage.states import JobState
from tests.storage_hospital import CXR, NOON, STUDY, Hospital, make_tensor
from tests.tiny_models import write_package
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


def waiting(name: str, oldest: float, *, priority: int = 0, version: str = "1.0.0") -> WaitingModel:
    return WaitingModel(name, version, 1, NOON + timedelta(seconds=oldest), priority)


def names(found: list[WaitingModel]) -> list[str]:
    return [each.model_name for each in found]


def job(number: int, **changes: object) -> ClaimedJob:
    made = ClaimedJob(
        number, 1, "worker-1", f"{STUDY}.{number}", f"{STUDY}.{number}.1", CXR, make_tensor(), 1, 0,
        NOON,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


class TestTurns:
    """Who is served next."""

    def test_of_models_never_served_the_longest_waiting_is_first(self) -> None:
        order = Turns().order([waiting("a", 5), waiting("b", 1)], lambda _: True, NOON)
        assert names(order) == ["b", "a"]

    def test_turns_go_round_however_old_the_analyses_of_one_are(self) -> None:
        # Given a model with the oldest analysis of all, which is never claimed,
        turns, now = Turns(), NOON + timedelta(seconds=10)
        served = []

        for step in range(6):
            moment = now + timedelta(seconds=step)
            first = turns.order(
                [waiting("old", 0), waiting("new", 9), waiting("third", 9.5)],
                lambda _: True,
                moment,
            )[0]
            served.append(first.model_name)
            turns.took(name_of(first), moment)

        # then the others have their turns all the same.
        assert served == ["old", "new", "third"] * 2

    def test_urgent_analyses_come_first_but_hold_nobody_up_for_ever(self) -> None:
        turns = Turns()
        urgent, other = waiting("urgent", 9, priority=5), waiting("other", 0)
        soon = NOON + timedelta(seconds=10)
        late = NOON + PATIENCE + timedelta(seconds=1)

        assert names(turns.order([other, urgent], lambda _: True, soon)) == ["urgent", "other"]
        assert names(turns.order([other, urgent], lambda _: True, late)) == ["other", "urgent"]

    def test_model_that_must_be_loaded_waits_for_those_in_memory_but_not_for_ever(self) -> None:
        turns = Turns()
        both = [waiting("absent", 0), waiting("loaded", 9)]
        late = NOON + PATIENCE + timedelta(seconds=1)

        def is_loaded(name: str) -> bool:
            return name == "loaded@1.0.0"

        soon = NOON + timedelta(seconds=10)
        assert names(turns.order(both, is_loaded, soon)) == ["loaded", "absent"]
        assert names(turns.order(both, is_loaded, late)) == ["absent", "loaded"]
        # Once it had its turn, the other one is not put off either.
        turns.took("absent@1.0.0", late)
        assert names(turns.order(both, lambda _: True, late)) == ["loaded", "absent"]


class TestInHand:
    """Whom a death is blamed on."""

    def test_note_names_what_is_held_and_does_not_compute(self, tmp_path: Path) -> None:
        path = note_path(tmp_path, "worker-1")
        held = InHand()
        held.open_note(path)
        first, second, third = job(1), job(20), job(300)

        held.add([first, second, third])
        assert read_note(path) == {1, 20, 300}
        held.begin([second])
        assert read_note(path) == {1, 300}
        held.begin([first])
        assert read_note(path) == {300}
        assert [each.id for each in held.computing()] == [1, 20]
        held.computed([second])
        assert read_note(path) == {20, 300}
        held.drop([second, third])
        assert read_note(path) == frozenset()
        assert [each.id for each in held.all()] == [1]
        held.close_note()

    def test_no_note_or_a_broken_one_excuses_nobody(self, tmp_path: Path) -> None:
        path = tmp_path / "note"
        assert read_note(path) == frozenset()
        path.write_bytes(b"\xff\x00 rubbish")
        assert read_note(path) == frozenset()
        path.write_text("1 two 3\n")
        assert read_note(path) == frozenset()

    @pytest.mark.parametrize("is_short", [False, True])
    def test_note_that_cannot_be_written_excuses_nobody_and_that_is_said_once(
        self, tmp_path: Path, monkeypatch, caplog, is_short: bool
    ) -> None:
        # Given a note that excuses a job, and a disk that takes no more of it,
        path = note_path(tmp_path, "worker-1")
        held = InHand()
        held.open_note(path)
        held.add([job(1), job(200)])
        whole = os.pwrite

        def full(note: int, line: bytes, start: int) -> int:
            if is_short:
                return whole(note, line[:2], start)
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("daemon.in_hand.os.pwrite", full)
        with caplog.at_level(logging.INFO):
            held.begin([job(1)])
            held.add([job(30)])
            # then whoever computes now is not excused by what was written before,
            assert read_note(path) == frozenset()
            assert [each.id for each in held.all()] == [1, 200, 30]
            monkeypatch.setattr("daemon.in_hand.os.pwrite", whole)
            held.add([job(4)])

        # and the note goes on when the disk does.
        assert read_note(path) == {200, 30, 4}
        assert [each.action for each in caplog.records] == ["note_unwritten", "note_written"]
        held.close_note()


class TestWatchdog:
    """The end of what hangs."""

    def test_late_computation_ends_the_process_after_its_last_acts(self, monkeypatch, caplog):
        monkeypatch.setattr("daemon.watchdog.LOOK_SECONDS", 0.02)
        happened: list[object] = []
        dog = Watchdog(lambda watched: happened.append(watched.what), happened.append)
        dog.start()

        with dog.watch("a batch of tiny@1.0.0", 0.05):
            assert wait_until(lambda: len(happened) == 2)

        assert happened == ["a batch of tiny@1.0.0", ExitCode.HUNG]
        assert "has not ended after" in caplog.text
        dog.stop()

    def test_computation_in_time_and_a_pause_between_are_left_alone(self, monkeypatch) -> None:
        monkeypatch.setattr("daemon.watchdog.LOOK_SECONDS", 0.01)
        happened: list[object] = []
        dog = Watchdog(lambda _: None, happened.append)
        dog.start()

        for _ in range(3):
            with dog.watch("a batch", 0.2), dog.watch("a part of it", 0.2):
                time.sleep(0.02)
        time.sleep(0.25)

        assert happened == []
        dog.stop()

    def test_what_an_inner_block_takes_is_not_taken_from_the_outer_one(self, monkeypatch) -> None:
        monkeypatch.setattr("daemon.watchdog.LOOK_SECONDS", 0.01)
        happened: list[object] = []
        dog = Watchdog(lambda watched: happened.append(watched.what), happened.append)
        dog.start()

        with dog.watch("a batch", 0.2):
            with dog.watch("its explanation", 30):
                time.sleep(0.4)
            time.sleep(0.05)
            assert happened == []
            assert wait_until(lambda: len(happened) == 2)

        assert happened == ["a batch", ExitCode.HUNG]
        dog.stop()

    def test_last_acts_that_hang_too_do_not_keep_the_process(self, monkeypatch) -> None:
        monkeypatch.setattr("daemon.watchdog.LOOK_SECONDS", 0.01)
        monkeypatch.setattr("daemon.watchdog.LAST_ACTS_SECONDS", 0.05)
        blocked, ended = threading.Event(), threading.Event()

        def last_acts(_: Watched) -> None:
            blocked.wait(10)

        dog = Watchdog(last_acts, lambda _: ended.set())
        dog.start()
        with dog.watch("a batch", 0.01):
            assert ended.wait(5)
        blocked.set()
        dog.stop()

    @pytest.mark.parametrize("nested", ["", "with dog.watch('a part of it', 60): pass"])
    def test_code_that_never_lets_go_of_the_interpreter_is_ended_from_outside(
        self, nested: str
    ) -> None:
        # Given code that takes the interpreter before the watchdog's thread has looked even once,
        program = (
            "import ctypes; from daemon import watchdog\n"
            "watchdog._BACKSTOP_SECONDS = 0.2\n"
            "dog = watchdog.Watchdog(lambda _: None); dog.start()\n"
            "with dog.watch('a batch', 0.2):\n"
            f"    {nested}\n"
            "    ctypes.PyDLL(None).sleep(20)\n"
        )
        started = time.monotonic()

        ended = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=30, check=False
        )

        # then the process ends without its help, and says where it was.
        assert ended.returncode == ExitCode.FAILED
        assert b"Timeout" in ended.stderr
        assert time.monotonic() - started < 15

    def test_computation_in_time_leaves_nothing_behind_that_could_end_the_process(self) -> None:
        program = (
            "import time; from daemon import watchdog\n"
            "watchdog._BACKSTOP_SECONDS = 0.1\n"
            "dog = watchdog.Watchdog(lambda _: None); dog.start()\n"
            "with dog.watch('a batch', 0.2): pass\n"
            "time.sleep(0.6)\n"
            "dog.stop()\n"
        )

        ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=30, check=False)

        assert ended.returncode == ExitCode.OK


class TestRecycling:
    """When a worker starts anew."""

    def test_after_so_many_batches(self) -> None:
        rule = Recycling(3, 0)
        assert [bool(rule.reason(10**12 * n)) for n in range(4)] == [False, False, True, True]

    def test_on_growth_since_the_models_were_loaded_and_not_by_loading(self) -> None:
        rule = Recycling(0, 100)
        assert rule.reason(500 * MEBIBYTE) == ""
        assert rule.reason(600 * MEBIBYTE) == ""
        rule.models_changed()
        assert rule.reason(900 * MEBIBYTE) == ""
        assert "grew by 101 MiB" in rule.reason(1001 * MEBIBYTE)

    def test_never_unless_asked(self) -> None:
        rule = Recycling(0, 0)
        assert not any(rule.reason(2**40 * n) for n in range(1000))

    def test_resident_memory_is_measured(self) -> None:
        # In a process of its own: in this one, what other tests left gives memory back meanwhile.
        program = (
            "import numpy as np; from daemon.recycling import resident_bytes, return_memory;"
            "before = resident_bytes(); block = np.ones(40 << 20, np.uint8);"
            "grown = resident_bytes() - before; del block; return_memory();"
            "print(grown >> 20, (resident_bytes() - before) >> 20)"
        )
        told = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        grown, left = map(int, told.stdout.split())
        assert grown > 30
        assert left < 20


class TestFigures:
    """What is counted."""

    def test_successor_goes_on_from_what_was_left_and_survives_rubbish(self) -> None:
        figures = WorkerFigures(batches=3, images=5, places=24, computed_seconds=1.2345)
        stored = figures.as_mapping()
        assert stored["fill"] == pytest.approx(5 / 24, abs=1e-4)
        assert WorkerFigures.from_mapping(stored) == replace(figures, computed_seconds=1.234)
        assert WorkerFigures.from_mapping({"images": "many", "other": 1}) == WorkerFigures()
        assert WorkerFigures.from_mapping(None) == WorkerFigures()

    def test_utilisation_is_that_of_the_last_minute(self) -> None:
        figures = WorkerFigures()
        use = Utilisation(figures)
        assert use.share(0.0) == 0.0
        figures.computed_seconds = 5.0
        assert use.share(10.0) == 0.5
        assert use.share(200.0) == 0.0

    def test_queue_has_the_age_of_its_oldest_analysis(self) -> None:
        assert age_seconds(None, NOON) == 0
        assert age_seconds(NOON, NOON + timedelta(seconds=7)) == 7
        assert age_seconds(NOON + timedelta(seconds=7), NOON) == 0


# A worker over a real database, with a scripted network.


class ScriptedPredictor:
    """Fits so many inputs at once, and loads as told."""

    device = "CPU"

    def __init__(self, package: ModelPackage, most: int = 1000) -> None:
        self.package = package
        self.most = most
        self.batches: list[int] = []
        self.fault: Exception | None = None

    def load(self) -> None:
        if self.fault is not None:
            raise self.fault

    def warm_up(self) -> float:
        return 0.0

    def predict(self, batch: np.ndarray) -> np.ndarray:
        if len(batch) > self.most:
            raise DeviceOutOfMemory("no memory")
        self.batches.append(len(batch))
        return np.full((len(batch), 1), 0.1, np.float32)

    @property
    def description(self) -> PredictorDescription:
        return PredictorDescription(self.package.at_version, "script 1", "CPU", "float32", 1)


class Clinic:
    """A database with models and studies."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.config = Config(
            site=SiteSection(data_folder=folder / "data"),
            models=ModelsSection(folders=(folder / "models",), bundled=False),
            worker=WorkerSection(**settings),  # type: ignore[arg-type]
        )
        migrate(self.config.database_path)
        self.database: Database = open_database(self.config.database_path)
        self.hospital = Hospital(self.database, Spool(self.config.spool_folder, 0))
        self.predictors: dict[str, ScriptedPredictor] = {}
        self.most = 1000
        self._studies = 0

    def install(self, *names: str) -> None:
        for name in names:
            write_package(self.folder / "models" / f"{name}-1.0.0", name=name, weights=b"x" * 1000)

    def make(self, package: ModelPackage) -> ScriptedPredictor:
        made = ScriptedPredictor(package, self.most)
        self.predictors[package.identity.name] = made
        return made

    def worker(self) -> Worker:
        self.models = ServedModels(self.config, self.make)
        self.models.refresh()
        return Worker(self.config, self.database, self.models, "worker-1")

    def receive(self, name: str = "tiny", priority: int = 0) -> str:
        self._studies += 1
        study = f"{STUDY}.{self._studies}"
        (package,) = [
            each
            for each in read_catalogue(self.config.models.folders, bundled=False).packages
            if each.identity.name == name
        ]
        tensor = replace(
            make_tensor(package.preprocessing_digest, (f"{study}.1.1",)),
            values=np.zeros(package.recipe.shape, np.float32),
        )
        self.hospital.enqueue(
            study, now_utc(), models=(package.identity,), tensor=tensor, priority=priority
        )
        return study

    def states(self, studies: list[str]) -> list[JobState]:
        return [each.state for study in studies for each in read_dossier(self.database, study).jobs]


@pytest.fixture
def clinic(tmp_path: Path) -> Iterator[Clinic]:
    made = Clinic(tmp_path, maximum_batch=4, device="cpu")
    made.install("tiny")
    yield made
    made.database.close()


def test_batch_that_does_not_fit_is_halved_and_nobody_loses_an_attempt(clinic, caplog) -> None:
    clinic.most = 1
    worker = clinic.worker()
    studies = [clinic.receive() for _ in range(4)]

    assert worker.work()

    assert clinic.states(studies) == [JobState.DONE] * 4
    assert clinic.predictors["tiny"].batches == [1, 1, 1, 1]
    assert caplog.text.count("no memory for") == 2
    # It is remembered: the next batch is not tried whole again.
    more = [clinic.receive() for _ in range(2)]
    worker.work()
    assert clinic.states(more) == [JobState.DONE] * 2
    assert caplog.text.count("no memory for") == 2


def test_input_that_does_not_fit_alone_costs_an_attempt(clinic) -> None:
    clinic.most = 0
    worker = clinic.worker()
    studies = [clinic.receive() for _ in range(2)]

    worker.work()

    jobs = [read_dossier(clinic.database, study).jobs[0] for study in studies]
    assert [(each.state, each.attempts) for each in jobs] == [(JobState.WAITING, 1)] * 2
    assert worker.in_hand.all() == ()


@pytest.mark.parametrize("error", [LeaseLost("another's now"), DatabaseBusy("locked")])
def test_input_that_cannot_be_refused_now_leaves_its_companions_alone(
    clinic, monkeypatch, error: Exception
) -> None:
    # Given a batch whose first input gets no usable answer, which cannot be written down now,
    worker = clinic.worker()
    studies = [clinic.receive() for _ in range(3)]
    predictor = clinic.predictors["tiny"]
    whole, calls = predictor.predict, []

    def predict(batch: np.ndarray) -> np.ndarray:
        calls.append(len(batch))
        if len(calls) <= 2:
            raise UnusableOutput("not a number")
        return whole(batch)

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(predictor, "predict", predict)
    monkeypatch.setattr(computing, "refuse_job", refuse)

    assert worker.work()

    # then the others are answered, and it comes back when its lease runs out.
    assert clinic.states(studies) == [JobState.RUNNING, JobState.DONE, JobState.DONE]
    assert worker.in_hand.all() == ()


def test_worker_reads_ahead_fills_batches_and_records_beside_the_computing(clinic) -> None:
    worker = clinic.worker()
    studies = [clinic.receive() for _ in range(11)]
    worker.start()

    while worker.work(0.3):
        pass

    assert worker.recorder.drain(5)
    assert clinic.states(studies) == [JobState.DONE] * 11
    assert clinic.predictors["tiny"].batches == [4, 4, 3]
    assert worker.figures.images == 11
    assert (worker.figures.batches, worker.figures.places) == (3, 12)
    assert worker.figures.read_seconds > 0
    assert worker.figures.recorded_seconds > 0
    assert worker.in_hand.all() == ()
    worker.stop()


def ahead_of(clinic: Clinic) -> ReadAhead:
    worker = clinic.worker()
    return worker.ahead


def test_batch_is_topped_up_while_it_waits_for_the_device(clinic) -> None:
    ahead = ahead_of(clinic)
    clinic.receive()
    ahead.start()
    assert wait_until(lambda: sum(len(each.jobs) for each in ahead._ready) == 1)

    for _ in range(2):
        clinic.receive()
    assert wait_until(lambda: sum(len(each.jobs) for each in ahead._ready) == 3)

    assert len(ahead.take()) == 3
    ahead.stop()


def test_study_alone_and_an_urgent_one_are_not_kept_waiting_for_a_batch_to_fill(
    tmp_path: Path,
) -> None:
    clinic = Clinic(tmp_path, maximum_batch=4, fill_seconds=3.0, device="cpu")
    clinic.install("tiny")
    ahead = ahead_of(clinic)
    ahead.start()
    seconds = []

    # Given nothing for long, then an urgent one right behind it, then another of the stream,
    for priority in (0, 5, 0):
        clinic.receive(priority=priority)
        assert wait_until(lambda: bool(ahead._ready))
        started = time.monotonic()
        if priority or not seconds:
            assert len(ahead.take(5)) == 1
        else:
            second = threading.Timer(0.2, lambda: [clinic.receive() for _ in range(3)])
            second.start()
            assert len(ahead.take(5)) == 4
            second.join()
        seconds.append(time.monotonic() - started)

    # then only the last one waited, and only until its batch was full.
    assert max(seconds[:2]) < 1.0
    assert 0.2 <= seconds[2] < 3.0
    ahead.stop()
    clinic.database.close()


def test_job_that_a_worker_died_over_shares_its_batch_with_nobody(clinic) -> None:
    ahead = ahead_of(clinic)
    jobs = [job(1), job(2), job(3, crashes=1), job(4)]
    for each in jobs:
        ahead._put([each], is_urgent=False)

    assert [[each.id for each in batch.jobs] for batch in ahead._ready] == [[1, 2], [3], [4]]
    ahead._put([job(9)], is_urgent=True)
    assert [each.id for each in ahead._ready[0].jobs] == [9]


def test_what_waits_is_looked_at_again_once_a_claim_finds_less_than_it_asked_for(
    clinic, monkeypatch
) -> None:
    monkeypatch.setattr(read_ahead, "LOOK_SECONDS", 60.0)
    whole, looks = read_ahead.waiting_models, []

    def counted(*arguments: object) -> object:
        looks.append(arguments)
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(read_ahead, "waiting_models", counted)
    ahead = ahead_of(clinic)
    for _ in range(9):
        clinic.receive()

    taken = [len(ahead.take()) for _ in range(3)]

    assert (taken, len(looks)) == ([4, 4, 1], 1)
    assert ahead.take() == ()
    clinic.receive()
    assert len(ahead.take()) == 1
    assert len(looks) == 3


def test_device_at_rest_does_not_wait_for_more_than_its_first_batch(clinic, monkeypatch) -> None:
    claim, look, limits, are_here = claim_batch, waiting_models, [], threading.Event()

    def noted(*arguments: object) -> object:
        limits.append(arguments[4])
        return claim(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(read_ahead, "claim_batch", noted)
    monkeypatch.setattr(
        read_ahead, "waiting_models", lambda *given: look(*given) if are_here.is_set() else ()
    )
    monkeypatch.setattr(read_ahead, "STREAM_SECONDS", 0.1)
    worker = clinic.worker()
    clinic.receive()
    are_here.set()
    assert worker.work()
    are_here.clear()
    limits.clear()

    # Given a device that has rested for a while when eleven analyses come at once,
    studies = [clinic.receive() for _ in range(11)]
    worker.start()
    arrival = threading.Timer(0.3, are_here.set)
    arrival.start()
    while worker.work(2):
        pass

    assert worker.recorder.drain(5)
    assert clinic.states(studies) == [JobState.DONE] * 11
    assert limits[:2] == [4, 32]
    arrival.join()
    worker.stop()


def test_claiming_survives_a_database_that_is_away_for_a_while(clinic, monkeypatch) -> None:
    monkeypatch.setattr(read_ahead, "ERROR_PAUSE_SECONDS", 0.05)
    worker = clinic.worker()
    whole, broken = read_ahead.waiting_models, [2]

    def sometimes(*arguments: object) -> object:
        if broken[0]:
            broken[0] -= 1
            raise RuntimeFault("away") if broken[0] else ZeroDivisionError
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(read_ahead, "waiting_models", sometimes)
    study = clinic.receive()
    worker.start()

    assert worker.work(5)

    assert worker.recorder.drain(5)
    assert clinic.states([study]) == [JobState.DONE]
    worker.stop()


def test_jobs_are_computed_though_the_note_of_them_cannot_be_written(clinic, monkeypatch) -> None:
    worker = clinic.worker()
    study = clinic.receive()
    worker.in_hand.open_note(note_path(clinic.folder, "worker-1"))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("daemon.in_hand.os.pwrite", full)
    worker.start()

    assert worker.work(5)

    assert worker.recorder.drain(5)
    assert clinic.states([study]) == [JobState.DONE]
    worker.stop()
    worker.in_hand.close_note()


def test_findings_that_cannot_be_written_now_are_written_later_and_one_bad_one_alone_is_lost(
    clinic, monkeypatch
) -> None:
    monkeypatch.setattr(recording, "PAUSE_SECONDS", 0.02)
    worker = clinic.worker()
    studies = [clinic.receive() for _ in range(3)]
    whole, outage = recording.finish_batch, [2]
    bad = read_dossier(clinic.database, studies[1]).jobs[0].id

    class Away(RuntimeFault):
        """The disk is full for now."""

        retryable = True

    def finish(database: Database, batch, now):
        if outage[0]:
            outage[0] -= 1
            raise Away("full")
        if any(each.job.id == bad for each in batch):
            raise ZeroDivisionError
        return whole(database, batch, now)

    monkeypatch.setattr(recording, "finish_batch", finish)
    worker.start()
    assert worker.work(5)

    assert worker.recorder.drain(5)
    assert clinic.states(studies) == [JobState.DONE, JobState.RUNNING, JobState.DONE]
    # Its lease is renewed no more: it comes back when it runs out, and that counts.
    assert worker.in_hand.all() == ()
    worker.stop()


# Memory, and the CPU in a GPU's stead.


@pytest.fixture
def sized(tmp_path: Path, monkeypatch) -> Iterator[Clinic]:
    """Three models of 40 MiB each, and room for two."""
    clinic = Clinic(tmp_path, maximum_batch=4, memory_megabytes=100, device="cpu")
    clinic.install("a", "b", "c")
    resident = [0]

    def load(package: ModelPackage, predictor: ScriptedPredictor) -> float:
        predictor.load()
        resident[0] += 40 * MEBIBYTE
        return 0.0

    monkeypatch.setattr(model_loading, "load_warm", load)
    monkeypatch.setattr(model_loading, "resident_bytes", lambda: resident[0])
    monkeypatch.setattr(served_models, "TIMES_THE_WEIGHTS", 40 * MEBIBYTE // 1000)
    yield clinic
    clinic.database.close()


def test_models_beyond_the_memory_are_loaded_for_their_turn_in_place_of_the_least_used(
    sized: Clinic,
) -> None:
    worker = sized.worker()
    assert sorted(sized.models.detail()["loaded_mib"]) == ["a@1.0.0", "b@1.0.0"]  # type: ignore[call-overload]
    assert sized.models.detail()["models"] == ["a@1.0.0", "b@1.0.0", "c@1.0.0"]

    studies = [sized.receive("a"), sized.receive("c")]
    assert worker.work()
    assert worker.work()

    assert sized.states(studies) == [JobState.DONE] * 2
    loaded = sized.models.detail()["loaded_mib"]
    assert loaded == {"a@1.0.0": 40, "c@1.0.0": 40}
    assert sized.models.out_of_order == {}


def test_worker_that_reads_ahead_serves_all_models_within_the_memory(sized: Clinic) -> None:
    worker = sized.worker()
    studies = [sized.receive(name) for name in ("a", "b", "c") * 3]
    worker.start()

    deadline = time.monotonic() + 20
    while sized.states(studies) != [JobState.DONE] * 9 and time.monotonic() < deadline:
        worker.work(0.05)
        assert len(sized.models.detail()["loaded_mib"]) <= 2  # type: ignore[arg-type]

    assert sized.states(studies) == [JobState.DONE] * 9
    worker.stop()


def test_model_loaded_for_its_turn_is_no_growth_of_the_memory(sized: Clinic, monkeypatch) -> None:
    # Given a worker that starts anew when it has grown by less than a model occupies,
    monkeypatch.setattr(worker_process, "resident_bytes", model_loading.resident_bytes)
    section = sized.config.worker.model_copy(update={"recycle_growth_megabytes": 30})
    config = sized.config.model_copy(update={"worker": section})
    process = WorkerProcess(config, sized.database, "worker-1", sized.make)

    # when it has to load models in the place of others,
    for name in ("a", "c", "b"):
        study = sized.receive(name)

        def is_done(study: str = study) -> bool:
            process._step()
            return sized.states([study]) == [JobState.DONE]

        assert wait_until(is_done)
    process._worker.stop()

    # then it does not take that for growth.
    assert not process._is_renewing
    assert process._models.load_count > 3


def test_what_loading_took_for_a_while_is_no_part_of_what_a_model_occupies(
    sized: Clinic, monkeypatch
) -> None:
    # Given a runtime that frees half of what it took, and a system that is told of it when asked,
    resident = [0]

    def load(package: ModelPackage, predictor: ScriptedPredictor) -> float:
        predictor.load()
        resident[0] += 80 * MEBIBYTE
        return 0.0

    def return_memory() -> None:
        resident[0] -= 40 * MEBIBYTE

    monkeypatch.setattr(model_loading, "load_warm", load)
    monkeypatch.setattr(model_loading, "resident_bytes", lambda: resident[0])
    monkeypatch.setattr(model_loading, "return_memory", return_memory)

    sized.worker()

    assert sized.models.detail()["loaded_mib"] == {"a@1.0.0": 40, "b@1.0.0": 40}


def test_model_too_large_for_the_memory_is_served_alone_and_said(tmp_path, monkeypatch, caplog):
    clinic = Clinic(tmp_path, memory_megabytes=10, device="cpu")
    clinic.install("big", "other")
    resident = iter(range(0, 10**12, 40 * MEBIBYTE))
    monkeypatch.setattr(model_loading, "resident_bytes", lambda: next(resident))
    worker = clinic.worker()
    study = clinic.receive("other")

    assert worker.work()

    assert clinic.states([study]) == [JobState.DONE]
    assert clinic.models.detail()["loaded_mib"] == {"other@1.0.0": 40}
    assert "more than worker.memory_megabytes allows" in caplog.text
    clinic.database.close()


@pytest.mark.parametrize(
    "fault", [DeviceOutOfMemory("the GPU is full"), RuntimeFault("gpu was asked for")]
)
def test_cpu_stands_in_for_a_gpu_that_cannot_be_used_and_that_is_said_once(
    tmp_path, caplog, fault: Exception
) -> None:
    # Given a GPU that is wanted and cannot be used,
    clinic = Clinic(tmp_path, device="gpu")
    clinic.install("tiny")

    def on_gpu(package: ModelPackage) -> ScriptedPredictor:
        made = ScriptedPredictor(package)
        made.fault = fault
        return made

    with caplog.at_level(logging.ERROR):
        models = ServedModels(clinic.config, on_gpu, make_on_cpu=clinic.make)
        models.refresh()
        worker = Worker(clinic.config, clinic.database, models, "worker-1")
        studies = [clinic.receive(), clinic.receive()]
        for _ in studies:
            worker.work()

    # then the CPU serves, with the longer deadline, and log, status and metrics say why.
    assert clinic.states(studies) == [JobState.DONE] * 2
    assert worker._deadline("tiny@1.0.0", (16, 16, 1)) == clinic.config.worker.long_deadline_seconds
    assert caplog.text.count("in the GPU's stead") == 1
    register_process(
        clinic.database, "worker-1", role="worker", pid=1, host=clinic.config.site.node_id,
        now=now_utc(), state="ready", detail=models.detail(),
    )  # fmt: skip
    (sentence,) = [
        each for each in read_status(clinic.config, now_utc()).attention if "CPU" in each
    ]
    assert str(fault) in sentence
    said = metrics_text(clinic.config).decode()
    assert 'medimgd_worker_cpu_instead{model="tiny@1.0.0",slot="worker-1"} 1.0' in said
    clinic.database.close()


def test_metrics_name_no_shadow(clinic) -> None:
    names = ("tiny@1.0.0", "tiny@2.0.0")
    detail = {
        "shadows": ["tiny@2.0.0"],
        "loaded_mib": dict.fromkeys(names, 40),
        "on_cpu_instead": dict.fromkeys(names, "no GPU"),
    }
    register_process(
        clinic.database, "worker-1", role="worker", pid=1, host=clinic.config.site.node_id,
        now=now_utc(), state="ready", detail=detail,
    )  # fmt: skip

    said = metrics_text(clinic.config).decode()

    assert said.count("tiny@1.0.0") == 2
    assert "tiny@2.0.0" not in said


def test_model_for_which_the_device_has_no_memory_now_is_tried_again(clinic, monkeypatch) -> None:
    # Given a device that is full for a moment while a model is loaded,
    monkeypatch.setattr(served_models, "ANOTHER_TRY_SECONDS", 0.0)
    monkeypatch.setattr(served_models, "PAUSE_FOR_EACH_SECOND", 0.0)
    moments = [DeviceOutOfMemory("the device is full")] * 2

    def load(package: ModelPackage, predictor: ScriptedPredictor) -> float:
        if moments:
            raise moments.pop()
        return 0.0

    monkeypatch.setattr(model_loading, "load_warm", load)
    worker = clinic.worker()
    study = clinic.receive()
    assert not worker.work()
    assert clinic.models.out_of_order == {"tiny@1.0.0": "the device is full"}

    # then its analyses wait, and it serves once there is room.
    assert wait_until(clinic.models.refresh)
    assert clinic.models.out_of_order == {"tiny@1.0.0": "the device is full"}
    assert wait_until(clinic.models.refresh)
    assert clinic.models.out_of_order == {}
    assert worker.work()
    assert clinic.states([study]) == [JobState.DONE]


def test_version_that_another_replaced_is_unloaded_once_it_has_finished(
    clinic, monkeypatch, caplog
) -> None:
    # Given a version for which a study waits when another one takes its place,
    caplog.set_level(logging.INFO)
    worker = clinic.worker()
    first = clinic.receive()
    write_package(clinic.folder / "models" / "tiny-2.0.0", version="2.0.0", weights=b"x" * 1000)
    assert clinic.models.refresh()

    # when it has finished, then it stays for a while, in case that more waits for it,
    assert worker.work()
    assert clinic.states([first]) == [JobState.DONE]
    assert not clinic.models.refresh()
    assert clinic.models.is_loaded("tiny@1.0.0")

    # and gives its memory back when nothing did; what serves stays.
    monkeypatch.setattr(served_models, "FINISHED_SECONDS", 0.0)
    assert clinic.models.refresh()
    assert clinic.models.detail()["models"] == ["tiny@2.0.0"]
    assert caplog.text.count("tiny@1.0.0 has finished what waited for it, and is unloaded") == 1
    assert not clinic.models.refresh()
    # What is asked of it after all, by a retry say, loads it again.
    assert clinic.models.obtain("tiny@1.0.0") is not None


def test_another_try_takes_no_room_of_models_that_serve(sized: Clinic, monkeypatch) -> None:
    # Given a model that did not fit when it took the place of another,
    monkeypatch.setattr(served_models, "ANOTHER_TRY_SECONDS", 0.0)
    monkeypatch.setattr(served_models, "PAUSE_FOR_EACH_SECOND", 0.0)
    worker = sized.worker()
    whole, full = model_loading.load_warm, [DeviceOutOfMemory("the device is full")]

    def load(package: ModelPackage, predictor: ScriptedPredictor) -> float:
        if full:
            raise full.pop()
        return whole(package, predictor)

    monkeypatch.setattr(model_loading, "load_warm", load)
    assert sized.models.obtain("c@1.0.0") is None
    assert sized.models.obtain("a@1.0.0") is not None

    # when its time has come,
    assert wait_until(sized.models.refresh)

    # then it waits for somebody who needs it.
    assert sized.models.out_of_order == {}
    assert sorted(sized.models.detail()["loaded_mib"]) == ["a@1.0.0", "b@1.0.0"]  # type: ignore[call-overload]
    studies = [sized.receive("c")]
    assert worker.work()
    assert sized.states(studies) == [JobState.DONE]


def test_package_that_is_broken_is_not_excused_by_the_device(tmp_path) -> None:
    clinic = Clinic(tmp_path, device="cpu")
    clinic.install("tiny")

    def broken(package: ModelPackage) -> ScriptedPredictor:
        made = ScriptedPredictor(package)
        made.fault = RuntimeFault("weights are truncated")
        return made

    models = ServedModels(clinic.config, broken, make_on_cpu=clinic.make)
    models.refresh()

    assert models.out_of_order == {"tiny@1.0.0": "weights are truncated"}
    assert clinic.predictors == {}
    clinic.database.close()


def test_known_shape_has_the_short_deadline_and_the_first_batch_the_long_one(clinic) -> None:
    worker = clinic.worker()
    section = clinic.config.worker
    assert worker._deadline("tiny@1.0.0", (16, 16, 1)) == section.long_deadline_seconds
    clinic.receive()
    worker.work()
    assert worker._deadline("tiny@1.0.0", (16, 16, 1)) == section.deadline_seconds
    assert worker._deadline("tiny@1.0.0", (32, 16, 1)) == section.long_deadline_seconds


@pytest.mark.parametrize(("looks_inside", "blocks"), [(False, 3), (True, 1)])
def test_explanations_of_a_batch_have_their_own_time(clinic, *, looks_inside, blocks) -> None:
    # Given a model that finds what it looks for in three inputs of one batch,
    worker, watched = clinic.worker(), []
    predictor = clinic.predictors["tiny"]
    predictor.predict = lambda batch: np.full((len(batch), 1), 0.9, np.float32)
    if looks_inside:
        predictor.explain = lambda batch, outputs: None
    studies = [clinic.receive() for _ in range(3)]

    @contextmanager
    def guard(what: str, seconds: float) -> Iterator[None]:
        watched.append((what, seconds))
        yield

    worker._guard = guard
    worker.work()

    # then whatever explains them by hundreds of predictions has a deadline for each.
    seconds = clinic.config.worker.long_deadline_seconds
    explaining = ("the explanation of what tiny@1.0.0 found", seconds)
    assert watched == [("a batch of tiny@1.0.0", seconds), *[explaining] * blocks]
    assert clinic.states(studies) == [JobState.DONE] * 3


def test_model_given_up_is_out_of_order_until_a_package_changes_and_the_others_serve(
    clinic,
) -> None:
    # Given a model whose loading hung, as its worker left it,
    clinic.install("other")
    packages = read_catalogue(clinic.config.models.folders, bundled=False).packages
    (tiny,) = (each for each in packages if each.identity.name == "tiny")
    hung = LoadDeaths()
    with hung.watch(tiny):
        hung.give_up()
        left = hung.as_mapping()

    # when two workers follow each other, of which the first leaves what it knows,
    for _ in range(2):
        deaths = LoadDeaths(left)
        models = ServedModels(clinic.config, clinic.make, deaths=deaths)
        models.refresh()
        left = deaths.as_mapping()
        assert list(clinic.predictors) == ["other"]
        assert "did not end in time" in models.out_of_order["tiny@1.0.0"]
        assert models.obtain("tiny@1.0.0") is None

    # then both do without it, and it is tried when a package changes.
    clinic.install("third")
    models.refresh()
    assert sorted(clinic.predictors) == ["other", "third", "tiny"]
    assert models.out_of_order == {}


def test_one_death_over_a_load_may_be_chance_and_a_load_that_ends_acquits(clinic) -> None:
    (tiny,) = read_catalogue(clinic.config.models.folders, bundled=False).packages
    rows: list[Mapping[str, object]] = []

    def life() -> LoadDeaths:
        deaths = LoadDeaths(rows[-1] if rows else {}, lambda: rows.append(deaths.as_mapping()))
        return deaths

    # What stands in the row when a worker begins to load is what a death there leaves behind.
    with life().watch(tiny):
        first = life()
        assert not first.is_given_up(tiny)
        with first.watch(tiny):
            assert life().is_given_up(tiny)
            changed = replace(tiny, manifest_sha256="ab" * 32)
            assert not life().is_given_up(changed)

    assert rows[-1] == {"loading": "", "load_deaths": {}}
    assert not life().is_given_up(tiny)
    assert not LoadDeaths({"load_deaths": None}).is_given_up(tiny)


def test_gpu_is_present_when_the_system_has_its_device(tmp_path: Path) -> None:
    assert not gpu_is_present(tmp_path)
    (tmp_path / "nvidiactl").touch()
    assert not gpu_is_present(tmp_path)
    (tmp_path / "nvidia0").touch()
    assert gpu_is_present(tmp_path)


def test_long_deadline_must_be_longer() -> None:
    with pytest.raises(ValueError, match=r"must not be shorter than worker\.deadline_seconds"):
        WorkerSection(deadline_seconds=10, long_deadline_seconds=5)
