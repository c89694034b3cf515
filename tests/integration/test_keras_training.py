"""Training for an instant on few small films ends in a package that loads and serves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model.package import load_package
from model.runtimes.check import try_package
from tests.tiny_training import CONFIG, write_config, write_films

ROOT = Path(__file__).resolve().parents[2]


def train(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "daemon", "train", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    return write_films(
        tmp_path_factory.mktemp("films"), counts={"train": 16, "validation": 8, "test": 6}
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"), CONFIG)


def test_run_ends_in_a_package_that_passes_every_check(films, config, tmp_path):
    # Given a configuration and films in three splits,
    run = tmp_path / "run"

    # when they are trained on,
    done = train(config, "--data", films, "--out", run, "--seed", "3", "--threads", "1", "--json")

    # then the package keeps its own word and names how it came to be,
    assert done.returncode == 0, done.stderr[-2000:]
    package = load_package(Path(json.loads(done.stdout)["package"]))
    assert package.training["fit"]["seed"] == 3
    assert package.training["images"] == (
        "train: 16 DARK, 16 BRIGHT; validation: 8 DARK, 8 BRIGHT; test: 6 DARK, 6 BRIGHT"
    )
    assert set(package.metrics["sensitivity"]) == {"value", "low", "high"}
    assert package.metrics["split"].startswith("test: 12 images of 6 patients")
    assert try_package(package.folder, "cpu").faults == ()

    # and the run folder says all of it again.
    reports = {path.parent.name for path in run.glob("evaluation/*/report.html")}
    assert reports == {"validation", "test"}
    assert (run / "config.toml").read_text() == config.read_text()
    assert len(json.loads((run / "networks/seed-0/history.json").read_text())["epochs"]) == 3
    assert list(run.glob("tensorboard/seed-0/events.out.tfevents.*"))


def test_leak_between_the_splits_stops_the_run_with_a_list(films, config, tmp_path):
    leaking = tmp_path / "films"
    shutil.copytree(films, leaking)
    film = next((leaking / "train" / "DARK").iterdir())
    shutil.copy(film, leaking / "validation" / "DARK" / "p99_1.png")

    done = train(config, "--data", leaking, "--out", tmp_path / "run")

    assert done.returncode == 1
    assert "duplicates (1): 2 identical files in train and validation" in done.stderr
    assert not (tmp_path / "run" / "networks").exists()
    assert json.loads((tmp_path / "run" / "gate.json").read_text())["passed"] is False
