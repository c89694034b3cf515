"""A training that is killed goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model.errors import TrainingRunFault, TrainingStopped
from model.training.ensemble import untrained
from model.training.fit import fit_network
from model.training.run_checkpoints import LAST_NAME, read_checkpoint
from model.training.watching import Watch
from tests.training_child import digest_of, job_of, tiny_plan

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 6
PATIENCE_SECONDS = 120


def child(folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.training_child", folder, EPOCHS, seconds]
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def epochs_done(folder: Path) -> int:
    checkpoint = read_checkpoint(folder / LAST_NAME)
    return 0 if checkpoint is None else checkpoint.course.next_epoch


def test_training_that_was_killed_gives_the_weights_of_one_that_was_not(tmp_path):
    # Given a training that is killed without warning in the middle of its epochs,
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = child(killed, seconds=0.5)
    until = time.monotonic() + PATIENCE_SECONDS
    while epochs_done(killed) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert 2 <= epochs_done(killed) < EPOCHS

    # when it goes on, and another one runs through,
    again = child(killed, seconds=0)
    resumed, _ = again.communicate()
    other = child(whole, seconds=0)
    uninterrupted, _ = other.communicate()

    # then weights and history are the same to the last bit.
    assert (again.returncode, other.returncode) == (0, 0)
    assert resumed == uninterrupted != ""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    """The digest of three epochs without any interruption."""
    folder = tmp_path_factory.mktemp("whole")
    plan = tiny_plan(folder, 3)
    return digest_of(fit_network(job_of(folder, plan), lambda: untrained(plan), Watch()))


def stop_after(epochs: int) -> Watch:
    told: list[str] = []
    return Watch(note=told.append, should_stop=lambda: len(told) >= epochs)


def test_training_that_is_asked_to_stop_ends_its_epoch_and_goes_on_later(whole, tmp_path):
    # Given a training that is stopped, and killed while it wrote the weights of the next epoch,
    plan = tiny_plan(tmp_path, 3)
    job = job_of(tmp_path / "network", plan)
    with pytest.raises(TrainingStopped, match="stopped after epoch 2 of seed-0"):
        fit_network(job, lambda: untrained(plan), stop_after(2))
    assert epochs_done(job.folder) == 2
    (job.folder / "best-00002.npz").write_bytes(b"half a file")

    # when it goes on, then it is as if nothing had been, and nothing else is left.
    fitted = fit_network(job, lambda: untrained(plan), Watch())
    assert digest_of(fitted) == whole
    assert [path.name for path in job.folder.glob("best-*")] == [
        f"best-{fitted.course.best_epoch:05d}.npz"
    ]


def test_other_seed_gives_other_weights(whole, tmp_path):
    plan = tiny_plan(tmp_path, 3, fit={"seed": 6})

    fitted = fit_network(job_of(tmp_path, plan), lambda: untrained(plan), Watch())

    assert digest_of(fitted) != whole


def test_checkpoint_of_another_network_is_refused(tmp_path):
    plan = tiny_plan(tmp_path, 2)
    job = job_of(tmp_path / "network", plan)
    with pytest.raises(TrainingStopped):
        fit_network(job, lambda: untrained(plan), stop_after(1))

    other = tiny_plan(tmp_path, 2, network={"stem_channels": 5})

    with pytest.raises(TrainingRunFault, match="holds another network"):
        fit_network(job, lambda: untrained(other), Watch())


def test_patience_ends_a_training_that_gets_no_better(tmp_path):
    # Given steps so large that nothing is learned by them,
    plan = tiny_plan(tmp_path, 30, fit={"patience": 2, "measure": "loss"},
                     optimiser={"learning_rate": 1.0, "clip_norm": 0})  # fmt: skip

    fitted = fit_network(job_of(tmp_path / "network", plan), lambda: untrained(plan), Watch())

    course = fitted.course
    assert course.next_epoch < 30
    assert course.next_epoch - 1 - course.best_epoch == 2
    assert [e["epoch"] for e in course.history if e.get("chosen")] == [fitted.chosen_epoch]
