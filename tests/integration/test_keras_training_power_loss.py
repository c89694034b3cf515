"""A power loss never leaves half of what a training calls finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.training.plan import read_plan
from model.training.run import RunWishes, run_training
from model.training.watching import Watch
from tests.power_loss import Disk
from tests.tiny_training import changed, write_config, write_films

# Keras saves the state of a Dropout's generator through an older protocol of NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MADE_AGAIN = ("run/tensorboard/", "run/train.log", "run/.lock", "run/probes/")
"""What nothing depends on, or what a run that goes on writes anew."""


def contents_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder.parent).as_posix(): path.read_bytes() for path in files}


def test_what_a_run_has_finished_is_whole_on_disk_before_it_says_so(tmp_path, monkeypatch):
    # Given a disk that keeps only what was synced,
    films = write_films(tmp_path / "films", counts={"train": 24, "validation": 12})
    plan = read_plan(write_config(tmp_path, changed(fit={"epochs": 1}, input_distribution={})))
    disk = Disk(monkeypatch, tmp_path)
    kept: dict[str, dict[str, bytes]] = {}

    # when a training is cut off after it was measured, after it was packed, or at its end,
    def cut_off(sentence: str) -> None:
        kept[sentence.partition(":")[0].partition(" ")[0]] = disk.survivors()

    done = run_training(plan, RunWishes(tmp_path / "run", films), Watch(note=cut_off))

    # then the weights that were measured are there,
    whole = contents_of(done.folder.root)
    for name in ("run/weights.keras", "run/input_distribution.npz"):
        assert kept["validation"].get(name) == whole[name]
    # the package is there before the run's record names it,
    package = [name for name in whole if name.startswith("run/package/")]
    assert len(package) >= 5
    assert [name for name in package if kept["package"].get(name) != whole[name]] == []
    assert b'"package"' not in kept["package"]["run/run.json"]
    # and at the end everything is.
    lost = [name for name, content in whole.items() if kept["finished"].get(name) != content]
    assert [name for name in lost if not name.startswith(MADE_AGAIN)] == []
    assert b'"package"' in kept["finished"]["run/run.json"]
