"""Training for an instant on few real films ends in a package that loads and serves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model.package import load_package
from model.runtimes.check import try_package
from model.training.cxr_pneumonia_card import CLASSES, VERSION

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def few_films(unpacked, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    source = unpacked("chest-xray-224")
    root = next(path.parent for path in source.rglob("val") if path.is_dir())
    for split, count in (("train", 20), ("val", 10)):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for path in sorted((root / split / name).iterdir())[:count]:
                shutil.copy(path, folder / split / name)
    return folder


def test_script_writes_a_package_that_passes_every_check(few_films, tmp_path):
    # Given a few films of each class,
    command = [
        sys.executable, "-m", "model.training.cxr_pneumonia", "--data", str(few_films),
        "--out", str(tmp_path), "--epochs", "2", "--seed", "3",
    ]  # fmt: skip

    # when the script runs on them,
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    # then the package keeps its own word and names how it came to be.
    assert done.returncode == 0, done.stderr[-2000:]
    package = load_package(tmp_path / f"cxr-pneumonia-{VERSION}")
    assert package.training["settings"]["seed"] == 3
    assert package.training["films"] == (
        "train: 20 NORMAL, 20 PNEUMONIA; validation: 10 NORMAL, 10 PNEUMONIA"
    )
    assert set(package.metrics["sensitivity"]) == {"value", "low", "high"}
    assert try_package(package.folder, "cpu").faults == ()


def test_leak_between_the_splits_stops_the_script(few_films, tmp_path):
    leaking = tmp_path / "films"
    shutil.copytree(few_films, leaking)
    film = next((leaking / "train" / "NORMAL").iterdir())
    shutil.copy(film, leaking / "val" / "NORMAL")

    done = subprocess.run(
        [
            sys.executable, "-m", "model.training.cxr_pneumonia", "--data", str(leaking),
            "--out", str(tmp_path / "out"), "--epochs", "2",
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert "in both splits" in done.stderr
    assert not (tmp_path / "out").exists()
