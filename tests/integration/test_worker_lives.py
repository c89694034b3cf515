"""Whole lives of worker processes: killed, stopped, recycled and hung, with work read ahead."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from daemon.config import Config, load_config
from daemon.exit_codes import ExitCode
from daemon.in_hand import note_path, read_note
from daemon.metrics import metrics_text
from daemon.role import now_utc
from daemon.status import read_status
from model.catalogue import read_catalogue
from storage import schema
from storage.database import Database, migrate, open_database
from storage.processes import list_processes
from storage.spool import Spool
from storage.states import JobState
from tests.storage_hospital import STUDY, Hospital, make_tensor
from tests.tiny_models import write_package
from tests.waiting import wait_until
from tests.worker_child import DIES, GROWS, HANGS

ROOT = Path(__file__).resolve().parents[2]
SLOT = "worker-1"


class Ward:
    """An installation whose worker is a process of its own, and studies that wait for it."""

    def __init__(self, folder: Path, settings: str) -> None:
        self.config_path = folder / "medimgd.toml"
        write_package(folder / "models" / "tiny-1.0.0", weights=b"never loaded")
        self.config_path.write_text(
            f"[site]\ndata_folder = {str(folder / 'data')!r}\n"
            f"[models]\nbundled = false\nfolders = [{str(folder / 'models')!r}]\n"
            f"[worker]\nmaximum_batch = 2\ndevice = 'cpu'\n{settings}"
        )
        self.config: Config = load_config(self.config_path)
        migrate(self.config.database_path)
        self.database: Database = open_database(self.config.database_path)
        (self._package,) = read_catalogue(self.config.models.folders, bundled=False).packages
        self._hospital = Hospital(self.database, Spool(self.config.spool_folder, 0))
        self._studies = 0
        self.children: list[subprocess.Popen[bytes]] = []

    def receive(self, *brightness: float) -> list[int]:
        """Enqueue one study for each brightness; return the jobs."""
        jobs = []
        for each in brightness:
            self._studies += 1
            study = f"{STUDY}.{self._studies}"
            tensor = make_tensor(self._package.preprocessing_digest, (f"{study}.1.1",))
            values = np.full(self._package.recipe.shape, each, np.float32)
            jobs.append(
                self._hospital.enqueue(
                    study, models=(self._package.identity,), tensor=replace(tensor, values=values)
                )
            )
        return jobs

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.worker_child", str(self.config_path), SLOT],
            cwd=ROOT, env={**os.environ, **environment},
        )  # fmt: skip
        self.children.append(child)
        return child

    def run_to_its_end(self, **environment: str) -> int:
        return self.start(**environment).wait(60)

    def rows(self) -> list:
        with self.database.read() as connection:
            return list(connection.execute(select(schema.job).order_by(schema.job.c.id)).all())

    def states(self) -> Counter:
        return Counter(row.state for row in self.rows())

    def results_of_each_job(self) -> Counter:
        with self.database.read() as connection:
            return Counter(connection.execute(select(schema.result.c.job_id)).scalars())

    def figures(self) -> dict:
        (row,) = list_processes(self.database)
        return row.detail["figures"]

    def out_of_order(self, pid: int) -> dict:
        """Return what a worker says is out of order; nothing before it has loaded its models."""
        rows = [each for each in list_processes(self.database) if each.pid == pid]
        return rows[0].detail.get("out_of_order", {}) if rows else {}


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Callable[[str], Ward]]:
    made: list[Ward] = []

    def make(settings: str = "") -> Ward:
        made.append(Ward(tmp_path, settings))
        return made[-1]

    yield make
    for each in made:
        for child in each.children:
            child.kill()
            child.wait()
        each.database.close()


def test_worker_killed_again_and_again_loses_and_doubles_nothing_and_blames_no_bystander(
    ward,
) -> None:
    # Given more studies than a worker computes in one of its lives,
    chance = random.Random(5)
    site = ward()
    jobs = site.receive(*[0.1] * 60)

    # when it is killed at any moment, with batches read ahead and results not recorded yet,
    kills = 3
    for _ in range(kills):
        # Far enough for those that the last life was blamed on, which come first, to be done: a job
        # that computes at two kills is given up, and rightly.
        enough = site.states()[JobState.DONE] + 3 * site.config.worker.maximum_batch
        child = site.start(BATCH_SECONDS="0.1")
        assert wait_until(lambda n=enough: site.states()[JobState.DONE] >= n, 60)
        time.sleep(chance.uniform(0, 0.1))
        child.kill()
        child.wait()
        running = {row.id for row in site.rows() if row.state == JobState.RUNNING}
        spared = read_note(note_path(site.config.site.data_folder, SLOT))
        assert running - spared, "nothing was computing: the kill shows nothing"
        assert len(running - spared) <= 2 * site.config.worker.maximum_batch
        assert spared & running, "nothing was read ahead: the kill shows nothing"
    last = site.start(BATCH_SECONDS="0")
    assert wait_until(lambda: site.states()[JobState.DONE] == len(jobs), 60)
    last.terminate()

    # then every study has one result, and only what was computing then has a crash counted.
    assert last.wait(30) == ExitCode.OK
    assert site.results_of_each_job() == dict.fromkeys(jobs, 1)
    crashed = [row for row in site.rows() if row.crashes]
    assert 1 <= len(crashed) <= kills * 2 * site.config.worker.maximum_batch
    assert all(row.attempts == 1 + row.crashes for row in site.rows())


def test_study_that_kills_its_worker_takes_no_study_read_ahead_along(ward) -> None:
    site = ward()
    (killer, *others) = site.receive(DIES, *[0.1] * 9)

    # Two lives end over it, and the third finds it dead-lettered.
    assert [site.run_to_its_end(), site.run_to_its_end()] == [-signal.SIGKILL] * 2
    third = site.start()
    wait_until(lambda: site.states()[JobState.RUNNING] + site.states()[JobState.WAITING] == 0, 30)
    third.terminate()
    third.wait(30)

    states = {row.id: (row.state, row.crashes) for row in site.rows()}
    assert states.pop(killer) == (JobState.FAILED, 2)
    assert {state for state, _ in states.values()} == {JobState.DONE}
    # Its companion in the first batch is under suspicion once; those read ahead never are.
    assert sum(crashes for _, crashes in states.values()) <= 1
    assert set(states) == set(others)


def test_worker_that_is_stopped_gives_back_what_it_read_ahead_uncounted(ward) -> None:
    site = ward()
    jobs = site.receive(*[0.1] * 30)
    child = site.start(BATCH_SECONDS="0.2")
    wait_until(lambda: site.states()[JobState.DONE] >= 2, 30)
    child.terminate()

    assert child.wait(30) == ExitCode.OK

    states = site.states()
    assert states[JobState.RUNNING] == 0
    assert states[JobState.WAITING] >= len(jobs) - 12
    waiting = [row for row in site.rows() if row.state == JobState.WAITING]
    assert {(row.attempts, row.crashes, row.lease_owner) for row in waiting} == {(0, 0, None)}
    assert list_processes(site.database) == ()


def test_worker_starts_anew_after_so_many_batches_with_nothing_in_hand(ward) -> None:
    # Given a worker that is to start anew after three batches of two,
    site = ward("recycle_batches = 3\n")
    jobs = site.receive(*[0.1] * 9)

    # when it has computed them,
    assert site.run_to_its_end() == ExitCode.RENEWED

    # then it holds nothing, no attempt was counted for what it gave back, nobody is alarmed,
    states = site.states()
    assert (states[JobState.DONE], states[JobState.RUNNING]) == (6, 0)
    assert {row.attempts for row in site.rows() if row.state == JobState.WAITING} == {0}
    (process,) = read_status(site.config, now_utc()).processes
    assert (process.state, process.alive) == ("renewing", True)
    # and its successor goes on, counting from there.
    successor = site.start()
    wait_until(lambda: site.states()[JobState.DONE] == len(jobs), 30)
    wait_until(lambda: site.figures()["images"] == len(jobs), 30)
    assert site.figures()["recycled"] == 1
    assert "medimgd_worker_recycled" in metrics_text(site.config).decode()
    successor.terminate()
    assert successor.wait(30) == ExitCode.OK
    assert site.results_of_each_job() == dict.fromkeys(jobs, 1)


def test_worker_starts_anew_when_its_memory_has_grown(ward) -> None:
    site = ward("recycle_growth_megabytes = 40\n")
    site.receive(0.1, 0.1, GROWS, GROWS, GROWS, GROWS, GROWS, GROWS, 0.1, 0.1)

    assert site.run_to_its_end() == ExitCode.RENEWED

    assert site.states()[JobState.RUNNING] == 0
    assert site.states()[JobState.DONE] >= 4


def test_job_that_hangs_three_times_is_a_dead_letter_and_its_companions_are_done(ward) -> None:
    # Given one input over which the network does not come back, in the middle of others,
    site = ward("deadline_seconds = 1\nlong_deadline_seconds = 1\n")
    before, (hanging,), after = (
        site.receive(0.1, 0.1),
        site.receive(HANGS),
        site.receive(*[0.1] * 5),
    )

    # when three workers have been ended over it,
    assert [site.run_to_its_end() for _ in range(3)] == [ExitCode.HUNG] * 3

    # then it is given up with the reason, and it was said how often that happened,
    rows = {row.id: row for row in site.rows()}
    assert (rows[hanging].state, rows[hanging].attempts) == (JobState.FAILED, 3)
    assert "had not ended after 1 s" in rows[hanging].reason
    assert site.figures()["hung"] == 3
    # and nobody else waits for it any longer or was given up.
    last = site.start()
    wait_until(lambda: site.states()[JobState.DONE] == len(before) + len(after), 30)
    last.terminate()
    assert last.wait(30) == ExitCode.OK
    assert site.results_of_each_job() == dict.fromkeys([*before, hanging, *after], 1)
    assert sum(row.attempts for row in site.rows()) <= 3 + len(before) + len(after) + 1


@pytest.mark.parametrize(
    ("how", "ends"),
    [("hangs", [ExitCode.HUNG]), ("dies", [-signal.SIGKILL, -signal.SIGKILL])],
)
def test_model_over_whose_loading_workers_ended_is_not_tried_by_those_that_follow(
    ward, how: str, ends: list[int]
) -> None:
    # Given a model over whose loading workers end,
    site = ward("deadline_seconds = 1\nlong_deadline_seconds = 1\n")
    (job,) = site.receive(0.1)
    assert [site.run_to_its_end(LOADING=how) for _ in ends] == ends

    # when one follows that is killed, and another one,
    killed = site.start()
    assert wait_until(lambda: site.out_of_order(killed.pid) != {}, 30)
    killed.kill()
    killed.wait()
    last = site.start()
    assert wait_until(lambda: site.out_of_order(last.pid) != {}, 30)

    # then neither tries it, though it would load now, and whoever looks is told;
    assert "loading it stopped the worker" in site.out_of_order(last.pid)["tiny@1.0.0"]
    assert site.states() == {JobState.WAITING: 1}
    # and when a package changes, it is tried again.
    write_package(site.config.models.folders[0] / "other-1.0.0", name="other", weights=b"x")
    assert wait_until(lambda: site.results_of_each_job() == {job: 1}, 30)
    last.terminate()
    assert last.wait(30) == ExitCode.OK


def test_model_is_not_blamed_for_a_load_that_was_not_waited_for(ward) -> None:
    site = ward()
    child = site.start(LOADING="hangs")

    def detail() -> dict:
        rows = list_processes(site.database)
        return rows[0].detail if rows else {}

    assert wait_until(lambda: detail().get("loading", "").startswith("tiny@1.0.0 "), 30)

    # Whoever asks for a stop and then kills it leaves no word against the model.
    child.terminate()
    assert wait_until(lambda: detail()["loading"] == "", 30)
    child.kill()
    child.wait()

    assert detail()["load_deaths"] == {}
