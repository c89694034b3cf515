"""What cannot end in a package is refused before the first epoch, not after the last one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.errors import (
    EvaluationFault,
    TrainingDataFault,
    TrainingPlanFault,
    TrainingRunFault,
    TrainingStopped,
)
from model.package import load_package
from model.training import run
from model.training.plan import TrainingPlan, read_plan
from model.training.run import RunWishes, run_training
from model.training.run_folder import RunFolder
from model.training.watching import Watch
from tests.labelled_images import put_film
from tests.tiny_training import changed, write_config, write_films

# Keras saves the state of a Dropout's generator through an older protocol of NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STOP = Watch(should_stop=lambda: True)
"""Ends a run before its first epoch, when everything before it went well."""


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    return write_films(tmp_path_factory.mktemp("films"))


def plan_of(folder: Path, **tables: Any) -> TrainingPlan:
    return read_plan(write_config(folder, changed(**tables)))


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"explanation": {"layers": ["nosuch"]}}, "the network has no layer named nosuch"),
        ({"network": {"map": True}, "regions": {"threshold": 0.5, "layer": "nosuch"}}, "nosuch"),
    ],
)
def test_layer_that_the_network_lacks_is_refused_before_the_images_are_read(
    films, tmp_path, tables, words
):
    plan = plan_of(tmp_path, **tables)

    with pytest.raises(TrainingPlanFault, match=words):
        run_training(plan, RunWishes(tmp_path / "run", films), STOP)

    assert not (tmp_path / "run" / "gate.json").exists()
    assert list((tmp_path / "run").rglob("*.keras")) == []


@pytest.mark.parametrize(("kind", "is_refused"), [("compact-3d", True), ("compact", False)])
def test_bfloat16_that_a_cpu_computes_wrongly_is_refused_at_once(films, tmp_path, kind, is_refused):
    # Given volumes, and a person who asks for bfloat16 where no GPU is,
    volume = {"kind": "volume", "slices": 4}
    plan = plan_of(tmp_path, input=volume, network={"kind": kind}, fit={"precision": "on"})

    # then what convolves across slices is not trained; slice by slice the gradients are right.
    expected = (TrainingPlanFault, "fit.precision") if is_refused else (TrainingDataFault, "cannot")
    with pytest.raises(expected[0], match=expected[1]):
        run_training(plan, RunWishes(tmp_path / "run", films), STOP)


def test_layer_that_the_untrained_network_has_is_in_the_package_whatever_was_trained(
    films, tmp_path
):
    # Given a layer by the name that Keras gives the second separable convolution,
    plan = plan_of(tmp_path, explanation={"layers": ["separable_conv2d_1"]}, fit={"epochs": 1})

    done = run_training(plan, RunWishes(tmp_path / "run", films), Watch())

    assert load_package(done.package).explanation.layers == ("separable_conv2d_1",)


def test_test_split_without_the_label_is_refused_though_balance_is_allowed(films, tmp_path):
    data = write_films(tmp_path / "films")
    put_film(data / "test" / "DARK" / "p900_1.png", 0.35, 900)
    plan = plan_of(tmp_path, data={"allow": {"balance": "The test split is small."}})

    with pytest.raises(EvaluationFault, match="no image has the label Bright"):
        run_training(plan, RunWishes(tmp_path / "run", data), STOP)

    with pytest.raises(TrainingStopped, match="stopped before seed-0"):
        run_training(plan, RunWishes(tmp_path / "other", films), STOP)


def test_label_that_all_images_have_by_which_its_threshold_is_chosen_is_refused(tmp_path):
    # Given three classes, of which validation has images with several, and all with one,
    rows = ["path,labels,split,patient"]
    for number in range(16):
        split = "train" if number < 8 else "validation"
        name = f"{number}.png"
        put_film(tmp_path / name, 0.4, number)
        labels = (
            ["A", "B", "A;B", "B"][number % 4] if split == "train" else ["A;B", "B"][number % 2]
        )
        rows.append(f"{name},{labels},{split},{number}")
    manifest = tmp_path / "films.csv"
    manifest.write_text("\n".join(rows) + "\n", encoding="utf-8")
    values = changed(data={"classes": ["A", "B"]}, head={"kind": "multi-label"})
    values["labels"] = [{"name": n, "class": n, "code": [n, "99T", n]} for n in ("A", "B")]
    plan = read_plan(write_config(tmp_path, values))

    with pytest.raises(TrainingDataFault, match=r"B: its threshold .* every one has it"):
        run_training(plan, RunWishes(tmp_path / "run", manifest), STOP)


class Killed(BaseException):
    """What nobody catches."""


@pytest.mark.parametrize("place", ["write_json", "write_config"])
def test_run_that_was_killed_while_its_folder_was_made_is_begun_again_or_gone_on_with(
    films, tmp_path, monkeypatch, place
):
    # Given a run that was killed in the midst of its record, or of its configuration,
    plan = plan_of(tmp_path)

    def die(*_arguments: object) -> None:
        (tmp_path / "run" / ".run.json.part").write_bytes(b"{")
        raise Killed

    with monkeypatch.context() as deadly:
        deadly.setattr(RunFolder if place == "write_json" else run, place, die)
        with pytest.raises(Killed):
            run_training(plan, RunWishes(tmp_path / "run", films), STOP)

    # when the record is not there, then it is begun; else it is gone on with.
    wishes = RunWishes(tmp_path / "run", films, resume=place == "write_config")
    with pytest.raises(TrainingStopped, match="stopped before seed-0"):
        run_training(plan, wishes, STOP)
    assert read_plan(tmp_path / "run" / "config.toml").digest == plan.digest


def test_networks_that_learned_from_all_images_need_a_test_split(films, tmp_path):
    folds = {"count": 2, "over": "train+validation", "use": "ensemble"}
    plan = plan_of(tmp_path, folds=folds)

    with pytest.raises(TrainingPlanFault, match="can be measured on a test split only"):
        run_training(plan, RunWishes(tmp_path / "run", films), STOP)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("device", "NVIDIA H200", "the device was NVIDIA H200, is "),
        ("dtype_policy", "mixed_bfloat16", "the precision was mixed_bfloat16, is float32"),
        ("libraries", {"keras": "3.0.0"}, "keras was 3.0.0, is "),
        ("threads", 99, r"the number of threads \(--threads\) was 99, is "),
    ],
)
def test_run_that_was_begun_where_other_numbers_are_computed_is_refused_and_stays_as_it_is(
    films, tmp_path, field, value, words
):
    # Given a run that was stopped before its first epoch,
    plan, root = plan_of(tmp_path), tmp_path / "run"
    with pytest.raises(TrainingStopped):
        run_training(plan, RunWishes(root, films), STOP)
    record = root / "environment.json"
    environment = json.loads(record.read_text(encoding="utf-8"))

    # when something else computes, then it is refused with what differs,
    other = {**environment[field], **value} if field == "libraries" else value
    record.write_text(json.dumps({**environment, field: other}), encoding="utf-8")
    with pytest.raises(TrainingRunFault, match=words):
        run_training(plan, RunWishes(root, films, resume=True), STOP)
    assert json.loads(record.read_text(encoding="utf-8"))[field] == other

    # and another Python on another system is no reason, nor are as many threads said otherwise.
    alike = {"python": "3.0", "system": "another", "threads": environment["cores"]}
    record.write_text(json.dumps({**environment, **alike}), encoding="utf-8")
    with pytest.raises(TrainingStopped):
        run_training(plan, RunWishes(root, films, resume=True), STOP)
