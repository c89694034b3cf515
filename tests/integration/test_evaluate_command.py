"""``medimgd evaluate`` and ``medimgd data check`` as people start them, with a real network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import model
from daemon.cli import evaluating
from daemon.cli.application import app
from daemon.exit_codes import ExitCode
from dicom_io.tensors import image_values_to_tensor, read_film
from model.evaluation.bootstrap import ROUNDS
from model.evaluation.subgroups import GAP_LIMIT
from model.package import load_package
from model.training.gate_report import GateLimits
from tests.labelled_images import put_film
from tests.tiny_models import TinyModel, write_package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return write_package(folder, intensity={"kind": "full"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten films of each class and split; one bright film is darker than the threshold."""
    folder = tmp_path_factory.mktemp("data")
    for place, split in enumerate(("validation", "test")):
        for number in range(10):
            key = 100 * place + number
            bright = 0.3 if number == 0 else 0.6 + number / 40
            put_film(folder / split / "Bright" / f"person{key}_virus_1.png", bright, key)
            dull = folder / split / "Dull" / f"IM-{key:04}-0001.jpeg"
            put_film(dull, 0.1 + number / 40, key + 50)
    return folder


@dataclass(frozen=True)
class Done:
    stdout: str
    stderr: str


def medimgd(*arguments: str | Path, check: int) -> Done:
    """Call the command in this process: TensorFlow is loaded once for all tests."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == check, done.output
    return Done(done.stdout, done.stderr)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, as reports go there unless told otherwise."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def test_report_holds_what_the_network_says_of_each_film(package, data, tmp_path):
    # When the test split is evaluated by the command in a process of its own,
    done = subprocess.run(
        [sys.executable, "-m", "daemon", "evaluate", package.folder, data, "--seed", "5",
         "--rounds", "200"],
        capture_output=True, text=True, timeout=120, check=True, cwd=tmp_path,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip

    # then nine of ten bright films are found, and every score is the one computed by hand.
    out = tmp_path / "evaluation-tiny-1.0.0-test"
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    (label,) = report["labels"]
    assert label["figures"]["sensitivity"]["value"] == 0.9
    assert label["figures"]["specificity"]["value"] == 1.0
    assert report["method"]["seed"] == 5
    assert report["model"]["runtime"].startswith("keras 3")
    recipe = load_package(package.folder).recipe
    lines = (out / "scores.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert len(lines) == 20
    for line in lines:
        name, _, _, _, score, _ = line.split(",")
        tensor = image_values_to_tensor(read_film(data / name), recipe)
        assert float(score) == pytest.approx(float(package.expected(tensor)[0]), abs=1e-5)
    assert (out / "report.html").stat().st_size > 50_000
    assert "20 images of 20 patients: 20 scored, 0 refused" in done.stdout


def test_threshold_and_calibration_come_from_validation_and_json_repeats(package, data, tmp_path):
    asked = ("evaluate", package.folder, data, "--split", "validation", "--rounds", "100",
             "--choose-threshold", "sensitivity=1", "--fit-calibration", "--json")  # fmt: skip

    first = medimgd(*asked, "--out", tmp_path / "one", check=ExitCode.OK)
    second = medimgd(*asked, "--out", tmp_path / "two", check=ExitCode.OK)

    assert first.stdout == second.stdout
    label = json.loads(first.stdout)["labels"][0]
    # The dimmest bright film scores 0.17, the brightest dull one 0.13 or so.
    assert label["chosen"]["sensitivity"] == 1.0
    assert label["chosen"]["threshold"] < 0.2
    assert "calibration.json" in {path.name for path in (tmp_path / "one").iterdir()}


def test_limits_of_the_data_are_those_it_was_trained_with(package, tmp_path):
    # Given small films, of which few show anything,
    data = tmp_path / "small"
    for number in range(40):
        name = "Bright" if number == 0 else "Dull"
        put_film(data / "test" / name / f"person{number}_virus_1.png", 0.2, number, edge=48)

    # when they are evaluated with the usual limits, then the gate refuses them,
    asked = ("evaluate", package.folder, data, "--rounds", "100", "--json")
    refused = medimgd(*asked, check=ExitCode.FAILED)
    assert "tiny" in refused.stderr
    assert "balance" in refused.stderr

    # and with limits of their own they pass, with nothing allowed, and the report says so.
    limits = ("--smallest-edge", "48", "--smallest-class", "0.02", "--out", tmp_path / "out")
    done = medimgd(*asked, *limits, check=ExitCode.OK)
    gate = json.loads(done.stdout)["data"]["gate"]
    assert gate["allowed"] == []
    assert gate["limits"] == {"smallest_edge_pixels": 48, "smallest_class_share": 0.02}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "lower limits than usual: no edge below 48 pixels, no class below 2 %." in page


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (
            ("--choose-threshold", "youden"),
            ExitCode.FAILED,
            "on validation only, the split is test",
        ),
        (("--choose-threshold", "best"), ExitCode.FAILED, "must be youden, sensitivity=0.95"),
        (("--split", "train"), ExitCode.FAILED, "no split train; there is validation, test"),
        (("--split", "holdout"), ExitCode.FAILED, "must be one of train, validation, test"),
        (("--allow", "everything"), ExitCode.FAILED, "no check named everything"),
        (("--class", "Bright"), ExitCode.USAGE, "must be CLASS=LABEL"),
    ],
)
def test_question_that_cannot_be_answered_says_why(
    package, data, tmp_path, arguments, status, words
):
    done = medimgd("evaluate", package.folder, data, *arguments, check=status)

    assert words in " ".join(done.stderr.split())
    assert list((tmp_path / "work").iterdir()) == []


def test_installed_package_is_found_by_its_name(data, tmp_path):
    bundled = next(Path(model.__file__).parent.glob("packages/cxr-pneumonia-*"))

    done = medimgd("evaluate", bundled.name, data, check=ExitCode.FAILED)

    assert "no image has the label Pneumonia" in done.stderr


def test_unknown_package_is_not_found(data, tmp_path):
    done = medimgd("evaluate", "no-such-model", data, check=ExitCode.NOT_FOUND)

    assert "there is no folder no-such-model" in done.stderr


@pytest.fixture
def leaking(data: Path, tmp_path: Path) -> Path:
    target = tmp_path / "leaking"
    shutil.copytree(data, target)
    shutil.copy(
        target / "test" / "Bright" / "person101_virus_1.png",
        target / "validation" / "Bright" / "person101_virus_1.png",
    )
    return target


def test_leak_stops_check_and_evaluation_until_it_is_named(package, leaking, tmp_path):
    done = medimgd("data", "check", leaking, check=ExitCode.FAILED)
    assert "patients: 1 found, FAILED. To do: keep all images of a patient" in done.stdout
    assert "duplicates: 1 found, FAILED" in done.stdout
    assert "have no known patient" not in done.stdout

    stopped = medimgd("evaluate", package.folder, leaking, check=ExitCode.FAILED)
    assert "patient person101 is in test and validation" in stopped.stderr

    allowed = ("--allow", "duplicates", "--allow", "patients")
    put_film(leaking / "test" / "Bright" / "film.png", 0.8, 991)
    said = medimgd("data", "check", leaking, *allowed, check=ExitCode.OK).stdout
    assert "patients: 1 of " in said
    found = medimgd("data", "check", leaking, *allowed, "--json", check=ExitCode.OK)
    report = json.loads(found.stdout)
    assert (report["passed"], report["allowed"]) == (True, ["duplicates", "patients"])
    assert {finding["check"] for finding in report["findings"]} == {"duplicates", "patients"}


def test_limits_of_the_command_are_those_of_the_gate_and_of_evaluation():
    group = typer.main.get_command(app)
    data_check = group.commands["data"].commands["check"]  # type: ignore[attr-defined]
    defaults = {parameter.name: parameter.default for parameter in data_check.params}

    assert defaults["smallest_edge"] == GateLimits().smallest_edge_pixels
    assert defaults["smallest_class"] == GateLimits().smallest_class_share
    assert (evaluating.ROUNDS, evaluating.GAP_LIMIT) == (ROUNDS, GAP_LIMIT)


def test_help_loads_neither_network_nor_plotting_libraries(tmp_path):
    code = (
        "import sys\nfrom daemon.cli.application import app\n"
        "heavy = {'tensorflow', 'keras', 'sklearn', 'matplotlib', 'scipy', 'pydicom'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip

    assert done.stdout.strip() == "[]"
