"""Packing a model and letting a site admit it, with networks that really compute."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from daemon.catalogue import known_standings, serving
from daemon.cli.application import app
from daemon.config import load_config
from dicom_io.tensors import TensorRecipe, image_values_to_tensor, read_film
from model.manifest_writing import write_manifest
from model.package import load_package
from model.package_files import sha256_of
from storage.audit import list_audit
from storage.database import open_database
from tests.tiny_models import BRIGHT, DARK, save_network, write_package

SETTINGS = """
[site]
data_folder = "{folder}/data"
[models]
bundled = false
[models.admission]
required = true
evaluation_required = false
"""


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    paths = [folder / f"film{number}.png" for number in range(2)]
    for number, path in enumerate(paths):
        grey = np.random.default_rng(number).integers(0, 256, (40, 40), dtype=np.uint8)
        cv2.imwrite(str(path), grey)
    return paths


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A draft without digests beside its weights, as an engineer would write it."""
    folder = tmp_path_factory.mktemp("draft")
    tiny = write_package(folder)
    plain = tomllib.loads((tiny.folder / "manifest.toml").read_text())
    del plain["preprocessing_digest"], plain["weights"]["sha256"], plain["format"]
    (folder / "manifest.toml").unlink()
    return write_manifest(folder, plain).rename(folder / "draft.toml")


@pytest.fixture(scope="module")
def packed(draft: Path, films: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with two probes, made by the command."""
    folder = tmp_path_factory.mktemp("packed")
    training = folder / "training.json"
    training.write_text(json.dumps({"source": "synthetic", "seed": 7, "note": None}))
    # An earlier version's manifest as the draft: its weights came from somewhere else.
    draft = draft.with_name("earlier.toml")
    draft.write_text(f"{draft.with_name('draft.toml').read_text()}\n[training]\nepochs = 90\n")
    out = folder / "tiny-1.0.0.zip"
    done = run(
        "pack", str(draft), "--out", str(out), "--training", str(training),
        *(part for film in films for part in ("--probe", str(film))),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "medimgd.toml"
    path.write_text(SETTINGS.format(folder=tmp_path))
    monkeypatch.setenv("MEDIMGD_CONFIG", str(path))
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", *arguments])


def run_json(*arguments: str) -> Any:
    done = run(*arguments, "--json")
    return json.loads(done.stdout), done.exit_code


def unzipped(packed: Path, folder: Path) -> Path:
    import zipfile  # noqa: PLC0415  only here

    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder)
    (found,) = folder.iterdir()
    return found


def test_a_packed_model_names_every_digest_and_what_its_probes_scored(
    packed: Path, films: list[Path], tmp_path: Path
) -> None:
    package = load_package(unzipped(packed, tmp_path))

    assert package.preprocessing_digest == package.recipe.digest
    assert package.identity.weights_sha256 == sha256_of(package.weights_path)
    assert dict(package.training) == {"source": "synthetic", "seed": 7}
    assert package.probes is not None
    # The network's answer is sigmoid(8 * mean - 4) of the film as bytes.
    for film, (score,) in zip(films, package.probes.scores, strict=True):
        tensor = image_values_to_tensor(read_film(film), package.recipe)
        mean = np.rint(tensor * 255).mean() / 255
        assert score == pytest.approx(1 / (1 + np.exp(4 - 8 * mean)), abs=1e-5)


def test_figures_are_those_of_the_report_whatever_the_draft_says(
    draft: Path, tmp_path: Path
) -> None:
    # Given an earlier version's manifest as the draft, with its figures, and a report,
    plain = tomllib.loads(draft.read_text())
    stale = {**plain, "metrics": {"split": "test: 9 images of 9 patients", "roc_auc": 0.99}}
    old = write_manifest(tmp_path, stale).rename(tmp_path / "draft.toml")
    weights = draft.parent / plain["weights"]["file"]
    label = plain["labels"][0]
    figure = {"value": 0.7, "low": 0.6, "high": 0.8}
    report = tmp_path / "report.json"
    report.write_text(json.dumps({
        "format": 1,
        "model": {
            "name": plain["name"], "version": "0.9.0", "weights_sha256": sha256_of(weights),
            "preprocessing_digest": TensorRecipe.from_mapping(plain["input"]).digest,
        },
        "data": {"split": "test", "gate": {"findings": []}},
        "outcomes": {"images": 100, "patients": 80, "refused": 0, "not_selected": 0},
        "labels": [{
            "name": label["name"], "threshold": label["threshold"],
            "undetermined_low": label["threshold"], "undetermined_high": label["threshold"],
            "figures": {"roc_auc": figure}, "subgroups": [],
        }],
    }))  # fmt: skip

    done = run(
        "pack", str(old), "--out", str(tmp_path / "out"), "--weights", str(weights),
        "--evaluation", str(report),
    )  # fmt: skip

    assert done.exit_code == 0, done.output
    assert dict(load_package(tmp_path / "out").metrics) == {
        "split": "test: 100 images of 80 patients", "roc_auc": figure,
    }  # fmt: skip


def test_a_package_is_admitted_from_its_file_and_serves(packed: Path, site: Path) -> None:
    found, code = run_json("admit", str(packed), "--reason", "first", "--by", "dr-house")

    config = load_config(site)
    now = serving(config, known_standings(config))
    assert (code, found["admitted"]) == (0, True)
    assert {each["name"] for each in found["criteria"]} == {
        "preprocessing", "trial", "probes", "evaluation",
    }  # fmt: skip
    assert [each.at_version for each in now.packages] == ["tiny@1.0.0"]
    again = run("admit", "tiny@1.0.0")
    assert (again.exit_code, "is admitted already" in again.stderr) == (1, True)


def test_other_weights_with_right_digests_do_not_reproduce_the_scores(
    packed: Path, site: Path, tmp_path: Path
) -> None:
    folder = unzipped(packed, tmp_path / "changed")
    plain = tomllib.loads((folder / "manifest.toml").read_text())
    recipe = TensorRecipe.from_mapping(plain["input"])
    save_network(folder / "weights.keras", recipe.shape, "logit", (DARK,))
    plain["weights"]["sha256"] = sha256_of(folder / "weights.keras")
    write_manifest(folder, plain)

    found, code = run_json("admit", str(folder))

    unmet = [each for each in found["criteria"] if not each["met"]]
    assert (code, [each["name"] for each in unmet]) == (1, ["trial", "probes"])
    assert "do not reproduce the scores" in unmet[0]["found"]
    # It was not installed, it does not serve, and the trail says why.
    config = load_config(site)
    assert serving(config, known_standings(config)).catalogue.installed == ()
    database = open_database(config.database_path, read_only=True)
    (entry,) = list_audit(database)
    database.close()
    assert entry.action == "model admission refused"
    assert any("wanted the recorded scores" in one for one in entry.detail["reasons"])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("intended_use", "", "intended_use: must say"),
        ("intended_use", None, "intended_use: must say"),
        ("limits", [], "limits: must name"),
        ("limits", [" "], "limits: must name"),
        ("preprocessing_digest", "ab" * 32, "trained on other pixels"),
        ("version", "../1", "version: must be stated"),
    ],
)
def test_a_draft_that_leaves_out_what_matters_is_not_packed(
    draft: Path, tmp_path: Path, field: str, value: object, said: str
) -> None:
    plain = tomllib.loads(draft.read_text())
    plain |= {field: value}
    changed = write_manifest(tmp_path, {k: v for k, v in plain.items() if v is not None})

    done = run("pack", str(changed), "--weights", str(draft.parent / "weights.keras"),
               "--out", str(tmp_path / "out"))  # fmt: skip

    assert done.exit_code == 1
    assert said in done.stderr
    assert not (tmp_path / "out").exists()
    assert [each.name for each in tmp_path.iterdir()] == ["manifest.toml"]


def test_a_package_whose_preprocessing_differs_from_the_codes_is_refused(
    packed: Path, site: Path, tmp_path: Path
) -> None:
    folder = unzipped(packed, tmp_path / "changed")
    plain = tomllib.loads((folder / "manifest.toml").read_text())
    write_manifest(folder, {**plain, "preprocessing_digest": "ab" * 32})

    done = run("admit", str(folder))

    assert done.exit_code == 1
    assert "this installation's steps for [input]" in done.stderr


def test_a_version_added_beside_another_waits_and_the_first_does_not(
    site: Path, tmp_path: Path
) -> None:
    site.write_text(site.read_text().replace("required = true", "required = false", 1))
    config = load_config(site)
    write_package(config.site_models_folder / "tiny-1.0.0", weights=b"never loaded")
    write_package(tmp_path / "next", version="2.0.0", labels=(BRIGHT,))

    done = run("add", str(tmp_path / "next"))

    now = serving(config, known_standings(config))
    assert done.exit_code == 0
    assert "does not serve yet" in done.output
    assert [each.at_version for each in now.packages] == ["tiny@1.0.0"]
    listed = {each["model"]: each["state"] for each in run_json("list")[0]}
    assert listed == {"tiny@1.0.0": "ready", "tiny@2.0.0": "installed"}

    # What serves is no shadow; what waits may be one, and is none after that.
    assert run("shadow", "tiny@1.0.0").exit_code == 1
    assert run("shadow", "tiny@2.0.0").exit_code == 0
    assert [each.package.at_version for each in serving(config, known_standings(config)).shadows]
    assert run("shadow", "tiny@2.0.0", "--end").exit_code == 0
    now = serving(config, known_standings(config))
    assert ([each.at_version for each in now.packages], now.shadows) == (["tiny@1.0.0"], ())
    assert run("admit", "tiny@9.9.9").exit_code == 4
