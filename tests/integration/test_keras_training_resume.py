"""A training that is killed goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from model.errors import TrainingRunFault, TrainingStopped
from model.training.ensemble import untrained
from model.training.fit import fit_network
from model.training.fit_steps import Phase, phases_of
from model.training.networks.backbones import BACKBONE_LAYER
from model.training.run_checkpoints import LAST_NAME, read_checkpoint
from model.training.watching import Watch
from tests.training_child import digest_of, job_of, tiny_plan

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 6
PATIENCE_SECONDS = 120


def child(*folders: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.training_child", EPOCHS, seconds, *folders]
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
    again = child(killed, whole, seconds=0)
    printed, _ = again.communicate()

    # then weights and history are the same to the last bit.
    assert again.returncode == 0
    resumed, uninterrupted = printed.split()
    assert resumed == uninterrupted


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


@keras.saving.register_keras_serializable("tests")
class Overflown(keras.layers.Layer):
    """Passes on while training, and gives no numbers after it: a mean that has overflown."""

    def call(self, values, training=False):
        return values if training else values * np.float32(np.nan)


def test_answers_that_are_no_numbers_end_the_training_with_a_reason(tmp_path):
    plan = tiny_plan(tmp_path, 2)

    def overflowing() -> keras.Model:
        image = keras.Input((32, 32, 1))
        pooled = keras.layers.GlobalAveragePooling2D()(image)
        return keras.Model(image, keras.layers.Dense(1, name="logits")(Overflown()(pooled)))

    with pytest.raises(TrainingRunFault, match=r"epoch 1 the network's answers .* are no numbers"):
        fit_network(job_of(tmp_path / "network", plan), overflowing, Watch())


def with_backbone() -> keras.Model:
    """Return a network with a backbone of one convolution and its normalisation."""
    keras.utils.set_random_seed(1)
    inner = keras.Sequential(
        [
            keras.layers.Input((32, 32, 1)),
            keras.layers.Conv2D(3, 3, 4),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
        ],
        name=BACKBONE_LAYER,
    )
    image = keras.Input((32, 32, 1))
    return keras.Model(image, keras.layers.Dense(1, name="logits")(inner(image)))


def test_backbone_stays_as_it_was_until_it_is_fine_tuned_and_a_stop_between_changes_nothing(
    tmp_path,
):
    # Given a training that leaves the backbone alone for two of four epochs,
    plan = tiny_plan(tmp_path, 4)
    plan = replace(plan, network=replace(plan.network, frozen_epochs=2, fine_tune_rate=0.5))
    assert phases_of(plan) == (Phase(0, 2, is_frozen=True), Phase(2, 4, rate=0.5))
    before = with_backbone().get_layer(BACKBONE_LAYER).get_weights()

    def backbone(folder: Path) -> list[np.ndarray]:
        checkpoint = read_checkpoint(folder / LAST_NAME)
        assert checkpoint is not None
        network = with_backbone()
        for array, variable in zip(checkpoint.network, network.variables, strict=True):
            variable.assign(array)
        return network.get_layer(BACKBONE_LAYER).get_weights()

    # when it is stopped at the end of these and in the midst of the others,
    job = job_of(tmp_path / "stopped", plan)
    for epoch, watch in ((2, stop_after(2)), (3, stop_after(1))):
        with pytest.raises(TrainingStopped, match=f"after epoch {epoch}"):
            fit_network(job, with_backbone, watch)
        same = [bool((a == b).all()) for a, b in zip(backbone(job.folder), before, strict=True)]
        # then nothing of it moves at first, and then all of it.
        assert (all(same), any(same)) == ((True, True) if epoch < 3 else (False, False))
    stopped = fit_network(job, with_backbone, Watch())

    # and the weights are those of a training without a stop.
    whole = fit_network(job_of(tmp_path / "whole", plan), with_backbone, Watch())
    assert digest_of(stopped) == digest_of(whole)
    rates = [entry["learning_rate"] for entry in whole.course.history]
    assert rates[2] < rates[0]
