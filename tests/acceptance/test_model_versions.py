"""Two versions of a model on live studies: one is heard, the other runs in its shadow."""

from __future__ import annotations

import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from daemon.catalogue import digests_of
from dicom_io.tensors import build_tensor
from model.package import load_package
from storage.database import migrate, open_database
from storage.processes import list_processes
from storage.shadow_runs import runs_of_study
from storage.standings import Decision, admit_version, shadow_version
from storage.states import JobState, ShadowState, StudyState
from tests.acceptance.installation import Installation, recording_archive
from tests.storage_hospital import NOON
from tests.tiny_models import BRIGHT, TinyLabel, TinyModel, write_package

ACTIVE, SHADOW = "ct-tiny@1.0.0", "ct-tiny@2.0.0"
# Says the opposite of the active version about every image.
CONTRARY = TinyLabel("Bright", -8.0, 4.0, BRIGHT.code)


def ct_package(folder: Path, version: str, label: TinyLabel) -> TinyModel:
    return write_package(
        folder / f"ct-tiny-{version}", name="ct-tiny", version=version, kind="volume", slices=8,
        rows=32, columns=32, intensity={"kind": "window", "centre": 40, "width": 400},
        labels=(label,), where={"attribute": "Modality", "equals": "CT"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("versions")
    ct_package(folder, "1.0.0", BRIGHT)
    ct_package(folder, "2.0.0", CONTRARY)
    return folder


def decide(site: Installation, models: Path) -> None:
    """Admit the first version and let the second run beside it, before anything is started."""
    migrate(site.config.database_path)
    database = open_database(site.config.database_path)
    packages = [load_package(models / f"ct-tiny-{version}") for version in ("1.0.0", "2.0.0")]
    admit_version(database, digests_of(packages[0]), Decision(NOON, "test"))
    shadow_version(database, digests_of(packages[1]), Decision(NOON, "test"))
    database.close()


def test_a_shadow_runs_beside_what_serves_and_is_heard_by_nobody(
    installation: Callable[..., Installation], models: Path, unpacked
) -> None:
    slices = sorted((unpacked("ct-chest-60") / "ct-chest-60").glob("*.dcm"))[20:36]
    uid = str(pydicom.dcmread(slices[0], stop_before_pixels=True).StudyInstanceUID)
    with recording_archive() as (sink, archive):
        site = installation([archive], models=models)
        decide(site, models)
        site.start()
        site.send(*slices)
        dossier = site.wait_until_over(uid, len(slices))
        run = site.wait(lambda: ended_run(site, uid), "the shadow to answer")
        metrics = page_of(site, "/metrics")
        pages = [page_of(site, path) for path in ("/", f"/studies/{uid}", "/api/studies",
                                                  f"/api/studies/{uid}")]  # fmt: skip
        site.stop()

    # The shadow saw the same volume and said the opposite.
    tensor = build_tensor(slices, load_package(models / "ct-tiny-1.0.0").recipe)
    score = 1 / (1 + np.exp(4 - 8 * tensor.values.mean()))
    (finding,) = run.findings
    assert run.state is ShadowState.DONE
    assert finding.probability == pytest.approx(1 - score, abs=1e-4)

    # What was kept, shown, counted and sent is the active version's alone.
    assert [job.model.at_version for job in dossier.jobs] == [ACTIVE]
    assert [result.model.at_version for result in dossier.results] == [ACTIVE]
    assert [each.model_version for each in dossier.decisions] == ["1.0.0"]
    assert len(sink.files()) == len(dossier.documents) == 2
    for data in sink.files():
        assert b"2.0.0" not in data
    assert all("ct-tiny@2.0.0" not in page for page in pages)
    assert SHADOW not in metrics
    assert 'medimgd_results{state="composed"} 1.0' in metrics
    assert 'medimgd_jobs{state="done"} 1.0' in metrics

    # Compared, they disagree about the one study both saw.
    found = site.run_json("models", "compare", ACTIVE, SHADOW, "--since", "1d")
    (label,) = found["labels"]
    assert (found["both"], label["studies"], label["agreement"]) == (1, 1, 0.0)
    assert [one["study_instance_uid"] for one in label["discordant"]] == [uid]
    assert label["largest_difference"] == pytest.approx(abs(1 - 2 * score), abs=1e-4)
    shown = site.run("models", "compare", ACTIVE, SHADOW).stdout
    assert uid in shown
    assert {each["model"]: each["state"] for each in site.run_json("models", "list")} == {
        ACTIVE: "admitted", SHADOW: "shadow",
    }  # fmt: skip


def ended_run(site: Installation, uid: str):
    runs = site.read(lambda database: runs_of_study(database, uid), ())
    ended = [run for run in runs if run.state not in (ShadowState.PREPARING, ShadowState.WAITING,
                                                       ShadowState.RUNNING)]  # fmt: skip
    return ended[0] if ended else None


def page_of(site: Installation, path: str) -> str:
    (web,) = [each for each in site.read(list_processes, ()) if each.role == "web"]
    port = web.detail["port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read().decode()


def test_a_version_retired_while_studies_wait_for_it_refuses_them(
    installation: Callable[..., Installation], models: Path, tmp_path: Path, unpacked
) -> None:
    folder = tmp_path / "models"
    shutil.copytree(models / "ct-tiny-1.0.0", folder / "ct-tiny-1.0.0")
    slices = sorted((unpacked("ct-chest-60") / "ct-chest-60").glob("*.dcm"))[20:36]
    uid = str(pydicom.dcmread(slices[0], stop_before_pixels=True).StudyInstanceUID)
    site = installation([], models=folder)
    # Without a worker the analysis waits.
    site.start("receiver", "scheduler", "preparer", "courier")
    site.send(*slices)
    site.wait(lambda: waits(site, uid), "the analysis to wait")

    retired = site.run_json("models", "retire", ACTIVE, "--reason", "misreads our scanner")
    dossier = site.wait_until_over(uid, len(slices))
    again = site.run("models", "retire", ACTIVE, check=1)
    site.stop()

    assert len(retired["refused_job_ids"]) == 1
    assert "is retired already" in again.stderr
    (job,) = dossier.jobs
    assert (dossier.study.state, job.state) == (StudyState.ROUTED, JobState.REFUSED)
    (line,) = site.run_json("studies")
    assert line["flag"] == "NOT ANALYSED"
    assert line["finding"] == "model withdrawn"
    assert "misreads our scanner" in line["statements"][0]["detail"]


def waits(site: Installation, uid: str) -> bool:
    dossier = site.dossier(uid)
    return dossier is not None and [job.state for job in dossier.jobs] == [JobState.WAITING]
