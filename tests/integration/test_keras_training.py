"""Training for an instant on few small films ends in a package that loads and serves."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from typer.testing import CliRunner, Result

from daemon.cli.application import app
from daemon.cli.training import _asked_to_stop, _command
from model.errors import TrainingDataFault, TrainingRunFault, TrainingStopped
from model.package import load_package
from model.training import run_evaluation, run_tensors
from model.training.device import prepare
from model.training.ensemble import Trained, train_networks
from model.training.plan import TrainingPlan, read_plan
from model.training.plan_fit import PrecisionValues
from model.training.run import RunWishes, run_training
from model.training.run_checkpoints import read_best
from model.training.run_choice import choose
from model.training.run_folder import RunFolder, held
from model.training.run_images import RunImages, gather_images
from model.training.sources import open_dataset
from model.training.watching import Progress, Watch, silent
from tests.labelled_images import grey, put_dicom
from tests.tiny_training import BRIGHTNESS, CONFIG, changed, write_config, write_films

# Keras saves the state of a Dropout's generator through an older protocol of NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

THREE = ["DARK", "MIDDLE", "BRIGHT"]


def train(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    return write_films(
        tmp_path_factory.mktemp("films"), counts={"train": 24, "validation": 12, "test": 6}
    )


@pytest.fixture(scope="module")
def finished(films, tmp_path_factory) -> Path:
    """The folder of a run that came to its end."""
    folder = tmp_path_factory.mktemp("finished")
    values = changed(ensemble={"members": 2}, fit={"epochs": 2}, input_distribution={})
    config = write_config(folder, values)

    done = train(config, "--data", films, "--out", folder / "run", "--seed", "3", "--json")

    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said == {
        "run": str(folder / "run"), "package": str(folder / "run/package/bright-0.1.0"),
    }  # fmt: skip
    return folder / "run"


def test_package_names_how_it_came_to_be(finished):
    package = load_package(finished / "package" / "bright-0.1.0")

    assert package.training["fit"]["seed"] == 3
    assert package.training["members"] == 2
    assert package.training["images"] == (
        "train: 24 DARK, 24 BRIGHT; validation: 12 DARK, 12 BRIGHT; test: 6 DARK, 6 BRIGHT"
    )
    assert package.training["split"].startswith("by patient; no patient and no identical image")
    assert package.training["command"] == "medimgd train train.toml"
    assert package.training["calibration"].startswith("logit * ")
    assert package.metrics["split"].startswith("test: 12 images of 6 patients")
    assert package.probes is not None
    assert package.input_distribution is not None


def test_run_folder_says_all_of_it_again(finished):
    history = json.loads((finished / "networks/seed-0/history.json").read_text())["epochs"]
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert {"loss", "learning_rate", "validation_roc_auc", "validation_loss"} <= set(history[0])
    assert {p.parent.name for p in finished.glob("evaluation/*/report.html")} == {
        "validation", "test",
    }  # fmt: skip
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["libraries"]["tensorflow"]
    assert json.loads((finished / "gate.json").read_text())["passed"] is True
    with (finished / "splits.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 84
    assert rows[0]["patient"].startswith("p")
    assert "seed-1: epoch 2 of 2" in (finished / "train.log").read_text()


def test_training_does_not_round_float32_to_tensorfloat_32():
    tf.config.experimental.enable_tensor_float_32_execution(True)

    environment = prepare(PrecisionValues.OFF, 0)

    assert environment.dtype_policy == "float32"
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


def test_training_computes_on_tensorflow_whatever_keras_is_told_elsewhere():
    program = "import model.training.run, keras; print(keras.backend.backend())"

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (0, "tensorflow\n"), done.stderr


def test_run_is_done_again_from_the_configuration_in_its_folder_alone(finished, tmp_path):
    # Given a run with options of the command line, that is finished, and an empty folder elsewhere,
    done = train(finished / "config.toml", "--out", finished, "--resume")
    assert "finished already" in done.output

    # when its own configuration is carried out again, then the weights are the same.
    done = train(finished / "config.toml", "--out", tmp_path / "again")
    assert done.exit_code == 0, done.output
    again, before = (
        load_package(f / "package/bright-0.1.0") for f in (tmp_path / "again", finished)
    )
    for key in ("configuration_sha256", "splits_sha256", "fit", "chosen_epochs"):
        assert again.training[key] == before.training[key]
    assert again.metrics == before.metrics
    for name in ("networks/seed-0", "networks/seed-1"):
        mine, theirs = (best_of(folder / name) for folder in (tmp_path / "again", finished))
        assert all((a == b).all() for a, b in zip(mine, theirs, strict=True))


def best_of(network: Path) -> list[np.ndarray]:
    (path,) = network.glob("best-*.npz")
    return read_best(network, int(path.stem.removeprefix("best-")))


def test_event_files_hold_a_point_for_each_epoch(finished):
    (path,) = finished.glob("tensorboard/seed-1/events.out.tfevents.*")

    points = [
        (event.step, value.tag)
        for record in tf.data.TFRecordDataset(str(path))
        for event in [tf.compat.v1.Event.FromString(record.numpy())]
        for value in event.summary.value
    ]

    assert [step for step, tag in points if tag == "validation_roc_auc"] == [1, 2]


def test_run_that_is_finished_says_so_and_one_that_lost_its_package_packs_it_again(
    finished, films, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    arguments = (finished.parent / "train.toml", "--data", films, "--out", run)
    record = json.loads((run / "run.json").read_text())
    record["package"] = str(run / "package" / "bright-0.1.0")
    (run / "run.json").write_text(json.dumps(record))
    assert "finished already" in train(*arguments, "--resume", "--seed", "3").output

    # Given a run that was killed while it packed,
    (run / "package" / "bright-0.1.0" / "manifest.toml").unlink()
    record.pop("package")
    (run / "run.json").write_text(json.dumps(record))

    # when it goes on, then nothing is trained again.
    done = train(*arguments, "--resume", "--seed", "3")
    assert done.exit_code == 0, done.output
    assert "epoch 2 of 2" not in done.output
    again, before = (load_package(f / "package" / "bright-0.1.0") for f in (run, finished))
    assert again.identity == before.identity
    assert again.metrics == before.metrics


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "is there already; go on with it (--resume)"),
        (("--resume", "--seed", "4"), "was begun with another configuration"),
        (("--resume", "--epochs", "9"), "was begun with another configuration"),
    ],
)
def test_run_folder_is_never_taken_for_another_run(finished, films, options, words):
    done = train(finished.parent / "train.toml", "--data", films, "--out", finished, *options)

    assert done.exit_code == 1
    assert words in done.stderr


def test_two_processes_never_train_in_one_folder(finished, films):
    config = finished.parent / "train.toml"

    with held(RunFolder(finished)):
        done = train(config, "--data", films, "--out", finished, "--resume", "--seed", "3")

    assert (done.exit_code, "another process trains there" in done.stderr) == (1, True)


def test_nothing_to_go_on_with_is_said(films, tmp_path):
    config = write_config(tmp_path, CONFIG)

    done = train(config, "--data", films, "--out", tmp_path / "run", "--resume")

    assert (done.exit_code, "holds no run to go on with" in done.stderr) == (1, True)


def test_wrong_configuration_is_refused_with_every_fault(tmp_path):
    config = write_config(tmp_path, changed(fit={"epochs": 0}, head={"kind": "odd"}))

    done = train(config, "--data", tmp_path, "--out", tmp_path / "run")

    assert done.exit_code == 5
    assert "fit.epochs: must be" in done.stderr
    assert "head.kind: must be one of" in done.stderr
    assert not (tmp_path / "run").exists()


def test_data_must_be_named_somewhere(tmp_path):
    done = train(write_config(tmp_path, CONFIG), "--out", tmp_path / "run")

    assert "data.source: must name a folder" in done.stderr


def test_leak_between_the_splits_stops_the_run_unless_it_is_allowed(films, tmp_path):
    leaking = tmp_path / "films"
    shutil.copytree(films, leaking)
    film = next((leaking / "train" / "DARK").iterdir())
    shutil.copy(film, leaking / "validation" / "DARK" / "p99_1.png")
    config = write_config(tmp_path, CONFIG)

    done = train(config, "--data", leaking, "--out", tmp_path / "run")

    assert done.exit_code == 1
    assert "duplicates (1): 2 identical files in train and validation" in done.stderr
    assert json.loads((tmp_path / "run" / "gate.json").read_text())["passed"] is False
    assert not (tmp_path / "run" / "networks").exists()

    told: list[str] = []
    reason = "The copy is on purpose."
    plan = plan_of(tmp_path, data={"allow": {"duplicates": reason}})
    gathered(leaking, plan, tmp_path / "allowed", Watch(note=told.append))
    assert told == [f"allowed: duplicates (1): {reason}"]
    gate = json.loads((tmp_path / "allowed" / "gate.json").read_text())
    assert gate["reasons"] == {"duplicates": reason}


def test_interrupt_is_noted_once_and_the_second_one_ends_at_once():
    # Given a terminal's handler: a process of the test run may have been told to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with _asked_to_stop() as should_stop:
            assert not should_stop()
            signal.raise_signal(signal.SIGINT)
            assert should_stop()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_command_that_goes_on_is_one_that_a_shell_takes():
    config, folder, data = Path("my films.toml"), Path("run $1"), Path("film's.zip")

    command = _command(config, folder, data, 3, None, 0)

    assert shlex.split(command) == [
        "medimgd", "train", "my films.toml", "--out", "run $1", "--resume", "--data", "film's.zip",
        "--epochs", "3",
    ]  # fmt: skip


def plan_of(folder: Path, **tables: Any) -> TrainingPlan:
    return read_plan(write_config(folder, changed(**tables)))


def gathered(data: Path, plan: TrainingPlan, folder: Path, watch: Watch | None = None) -> RunImages:
    folder.mkdir(exist_ok=True)
    with open_dataset(data) as dataset:
        return gather_images(dataset, plan, RunFolder(folder), watch or Watch())


def trained(images: RunImages, plan: TrainingPlan, folder: Path) -> Trained:
    return train_networks(images, plan, RunFolder(folder), "float32", Watch())


def test_folds_are_measured_on_patients_they_have_not_seen_and_averaged(films, tmp_path):
    # Given a cross-validation over training and validation whose networks become the package,
    folds = {"count": 2, "over": "train+validation", "use": "ensemble"}
    plan = plan_of(tmp_path, folds=folds, fit={"epochs": 1})
    images = gathered(films, plan, tmp_path / "run")

    # when it is trained,
    found = trained(images, plan, tmp_path / "run")

    # then every image has the answer of the network that has not learned from it,
    report = json.loads((tmp_path / "run" / "folds.json").read_text())
    assert [fold["name"] for fold in report["folds"]] == ["fold-0", "fold-1"]
    assert sum(fold["images"] for fold in report["folds"]) == 72
    assert set(report["spread"]) == {"loss", "accuracy", "roc_auc", "pr_auc"}
    assert found.held_out is not None
    places, logits = found.held_out
    assert sorted(places) == list(range(72))

    # and what is chosen is chosen on these answers, for the mean of both networks.
    chosen = choose(images, found, plan)
    expected = 1 / (1 + np.exp(-(logits * chosen.scale + chosen.offset)))
    np.testing.assert_allclose(chosen.scores, expected, atol=1e-6)
    assert len(found.members) == 2
    assert chosen.network.output_shape == (None, 1)


def write_manifest_of_series(folder: Path) -> Path:
    """Write DICOM films of known patients, and a CSV manifest with several labels each."""
    rows, number = [], 0
    for split, count in (("train", 12), ("validation", 8)):
        for place in range(count):
            number += 1
            names = [[], ["BRIGHT"], ["STRIPED"], ["BRIGHT", "STRIPED"]][place % 4]
            pixels = grey(BRIGHTNESS["BRIGHT" if "BRIGHT" in names else "DARK"], number)
            if "STRIPED" in names:
                pixels[::8] = 255
            path = put_dicom(
                folder / f"{number}.dcm", pixels, PatientID=f"MRN-{split}-{place // 2}"
            )
            rows.append((path.name, ";".join(names) or "none", split))
    text = "\n".join(",".join(row) for row in [("path", "labels", "split"), *rows])
    manifest = folder / "manifest.csv"
    manifest.write_text(text + "\n", encoding="utf-8")
    return manifest


def multi_label(folder: Path) -> TrainingPlan:
    values = changed(
        data={"classes": ["BRIGHT", "STRIPED"]},
        head={"kind": "multi-label", "class_weights": "balanced"},
        fit={"epochs": 1, "drawing": "as-is", "measure": "loss"},
        optimiser={"schedule": "cosine", "name": "sgd", "learning_rate": 0.05},
    )
    values["labels"] = [
        {"name": "Bright", "class": "BRIGHT", "code": ["1", "99T", "Bright"]},
        {"name": "Striped", "class": "STRIPED", "code": ["2", "99T", "Striped"],
         "rule": "youden"},
    ]  # fmt: skip
    return read_plan(write_config(folder, values))


def test_several_labels_are_learned_from_a_manifest_of_dicom_and_no_patient_is_written(tmp_path):
    # Given DICOM films whose headers name patients,
    manifest = write_manifest_of_series(tmp_path / "data")
    plan = multi_label(tmp_path)
    images = gathered(manifest, plan, tmp_path / "run")

    # when they are learned from,
    found = trained(images, plan, tmp_path / "run")
    chosen = choose(images, found, plan)

    # then each label has its threshold, and only a number stands for a patient.
    assert [(label["name"], label["index"]) for label in chosen.labels] == [
        ("Bright", 0), ("Striped", 1),
    ]  # fmt: skip
    splits = (tmp_path / "run" / "splits.csv").read_text()
    keys = {image.patient for image in images.images}
    assert len(keys) == 10
    assert not any(key in splits for key in keys)
    assert "header-1," in splits
    everything = b"".join(p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert b"MRN" not in everything


def test_package_is_measured_on_films_whose_headers_were_emptied(tmp_path):
    # Given films without the age that the package's contract asks for,
    films = tmp_path / "films"
    for number in range(48):
        split, name = ("train", "validation")[number % 3 // 2], ("DARK", "BRIGHT")[number % 2]
        pixels = grey(BRIGHTNESS[name], number)
        put_dicom(films / split / name / f"{number}.dcm", pixels, PatientID=f"P{number}")
    values = changed(data={"deidentified": True}, fit={"epochs": 1})
    adults = {"attribute": "age_years", "range": {"min": 18}}
    values["contract"] = [{"text": "Adults.", "require": adults}]

    done = train(write_config(tmp_path, values), "--data", films, "--out", tmp_path / "run")

    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "run/evaluation/validation/report.json").read_text())
    assert (report["outcomes"]["scored"], report["outcomes"]["without_whole_contract"]) == (16, 16)


@pytest.mark.parametrize(("specificity", "is_warned"), [(0.0, True), (0.2, False)])
def test_network_that_tells_nothing_apart_is_said_to(specificity, is_warned):
    # Given a measured label, at whose threshold every image may be Present,
    figures = {
        name: SimpleNamespace(value=value)
        for name, value in (
            ("roc_auc", 0.4), ("sensitivity", 1.0), ("specificity", specificity), ("accuracy", 0.5)
        )
    }  # fmt: skip
    label = SimpleNamespace(name="Bright", threshold=0.0, figures=figures)
    told: list[str] = []

    run_evaluation._tell(SimpleNamespace(labels=[label]), "test", Watch(note=told.append))  # type: ignore[arg-type]

    assert any("tells nothing apart" in each for each in told) == is_warned


def test_classes_that_exclude_each_other_have_one_answer_each(tmp_path):
    films = write_films(tmp_path / "films", tuple(THREE), {"train": 8, "validation": 6})
    values = changed(data={"classes": THREE}, head={"kind": "multi-class"}, fit={"epochs": 1})
    values["labels"] = [{"name": "Bright", "class": "BRIGHT", "code": ["1", "99T", "Bright"]}]
    plan = read_plan(write_config(tmp_path, values))
    images = gathered(films, plan, tmp_path / "run")

    chosen = choose(images, trained(images, plan, tmp_path / "run"), plan)

    assert chosen.labels[0]["index"] == 2
    assert chosen.network.output_shape == (None, 3)
    np.testing.assert_allclose(chosen.scores.sum(axis=1), 1, atol=1e-5)


def test_layers_compute_in_16_bit_where_it_is_asked_for_and_the_package_does_not(films, tmp_path):
    plan = plan_of(tmp_path, fit={"epochs": 1}, network={"l2": 1e-4})
    images = gathered(films, plan, tmp_path / "run")

    found = train_networks(images, plan, RunFolder(tmp_path / "run"), "mixed_bfloat16", Watch())

    chosen = choose(images, found, plan)
    assert {layer.compute_dtype for layer in chosen.network.layers} == {"float32"}
    assert np.isfinite(chosen.scores).all()


class Killed(BaseException):
    """What nobody catches."""


def killed_at(number: int) -> Progress:
    def die(done: int) -> None:
        if done == number:
            raise Killed

    def progress(what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        return nullcontext(die) if what == "decoding" else silent(what, total)

    return progress


def test_decoding_that_was_killed_goes_on_where_it_stopped(films, tmp_path, monkeypatch):
    plan = plan_of(tmp_path)
    monkeypatch.setattr(run_tensors, "FLUSH_EVERY", 8)
    folder = tmp_path / "run"

    with pytest.raises(Killed):
        gathered(films, plan, folder, Watch(progress=killed_at(20)))
    assert [p.suffix for p in sorted((folder / "tensors").iterdir())] == [".part", ".rows"]

    again = gathered(films, plan, folder)
    whole = gathered(films, plan, tmp_path / "whole")
    np.testing.assert_array_equal(again.values, whole.values)
    assert [path.suffix for path in (folder / "tensors").iterdir()] == [".npy"]


def test_other_images_than_those_a_run_began_with_are_refused_and_leave_its_records_alone(
    films, tmp_path
):
    # Given a run that was stopped before its first epoch,
    plan = plan_of(tmp_path)
    stop = Watch(should_stop=lambda: True)
    with pytest.raises(TrainingStopped):
        run_training(plan, RunWishes(tmp_path / "run", films), stop)
    records = contents_of(tmp_path / "run")
    assert {"splits.csv", "gate.json", "environment.json", "run.json"} <= set(records)

    # when it is to go on with other images, of which some are in two splits,
    other = tmp_path / "films"
    shutil.copytree(films, other)
    film = next((other / "train" / "DARK").iterdir())
    shutil.copy(film, other / "validation" / "DARK" / "p99_1.png")
    with pytest.raises(TrainingDataFault, match="are not those that the run began with"):
        run_training(plan, RunWishes(tmp_path / "run", other, resume=True), Watch())

    # then nothing of it is changed, and it goes on with its own.
    assert contents_of(tmp_path / "run") == records
    with pytest.raises(TrainingStopped):
        run_training(plan, RunWishes(tmp_path / "run", films, resume=True), stop)


def contents_of(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by name; a log grows by what is said."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_stop_that_was_asked_for_while_images_were_read_trains_nothing(films, tmp_path):
    plan = plan_of(tmp_path)
    images = gathered(films, plan, tmp_path / "run")
    watch = Watch(should_stop=lambda: True)

    with pytest.raises(TrainingStopped, match="stopped before seed-0"):
        train_networks(images, plan, RunFolder(tmp_path / "run"), "float32", watch)


def test_loss_that_is_no_number_ends_the_training_with_advice(films, tmp_path):
    plan = plan_of(tmp_path, fit={"epochs": 1})
    images = gathered(films, plan, tmp_path / "run")
    broken = replace(images, values=np.full(images.values.shape, np.nan, np.float32))

    with pytest.raises(TrainingRunFault, match="lower the learning rate"):
        trained(broken, plan, tmp_path / "run")
