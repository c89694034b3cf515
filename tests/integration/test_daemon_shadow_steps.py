"""The shadow's part of preparer and worker: after everything else, and in nobody's way."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from daemon.catalogue import Shadow, digests_of, serving
from daemon.config import Config, SiteSection
from daemon.model_settings import ModelsSection
from daemon.role import now_utc
from daemon.shadow_preparing import ShadowPreparer, with_shadows
from daemon.shadow_work import ShadowWorker
from daemon.worker import ServedModels, Worker
from model.catalogue import read_catalogue
from model.errors import DeviceOutOfMemory, RemoteUnavailable, RuntimeFault, UnusableOutput
from model.package import ModelPackage
from model.runtimes.port import PredictorDescription
from storage.database import Database, migrate, open_database
from storage.dossier import read_dossier
from storage.shadow_preparation import await_worker, claim_study_for_shadow
from storage.shadow_runs import ShadowModel, runs_of_study
from storage.spool import Spool
from storage.standings import Decision, admit_version, list_standings, shadow_version
from storage.states import JobState, ShadowState
from tests.storage_hospital import NOON, STUDY, Hospital, make_tensor
from tests.tiny_models import write_package

OTHER = f"{STUDY}.9"


class StubPredictor:
    """Notes what it is asked, and answers or fails as told."""

    fault: Exception | None = None

    def __init__(self, package: ModelPackage, calls: list[str]) -> None:
        self.package, self.calls, self.device = package, calls, "stub"

    def load(self) -> None:
        """Do nothing."""

    def warm_up(self) -> float:
        return 0.0

    def predict(self, batch: np.ndarray) -> np.ndarray:
        self.calls.append(self.package.at_version)
        if self.fault is not None:
            raise self.fault
        return np.full((len(batch), 1), 0.9, np.float32)

    @property
    def description(self) -> PredictorDescription:
        return PredictorDescription(self.package.at_version, "stub", "stub", "float32", 1)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    for version in ("1.0.0", "2.0.0"):
        write_package(tmp_path / "models" / f"tiny-{version}", version=version, weights=b"x")
    return Config(
        site=SiteSection(data_folder=tmp_path / "data"),
        models=ModelsSection(folders=(tmp_path / "models",), bundled=False),
    )


@pytest.fixture
def database(config: Config) -> Iterator[Database]:
    migrate(config.database_path)
    opened = open_database(config.database_path)
    yield opened
    opened.close()


@pytest.fixture
def hospital(config: Config, database: Database) -> Hospital:
    return Hospital(database, Spool(config.spool_folder, 0))


@pytest.fixture
def packages(config: Config, database: Database) -> list[ModelPackage]:
    """The active version and its shadow."""
    found = list(read_catalogue(config.models.folders, bundled=False).packages)
    admit_version(database, digests_of(found[0]), Decision(NOON, "test"))
    shadow_version(database, digests_of(found[1]), Decision(NOON, "test"))
    return found


class Workers:
    """A worker and its shadow's part, as ``run_worker`` puts them together."""

    def __init__(self, config: Config, database: Database) -> None:
        self.calls: list[str] = []
        self.models = ServedModels(
            config, lambda package: StubPredictor(package, self.calls), database
        )
        self.models.refresh()
        self.active = Worker(config, database, self.models, "worker-1")
        self.shadow = ShadowWorker(config, database, self.models.find, "worker-1")

    def step(self) -> bool:
        return self.active.work() or self.shadow.work()


def enqueue(hospital: Hospital, package: ModelPackage, study: str = STUDY) -> None:
    tensor = make_tensor(package.preprocessing_digest, (f"{study}.1.1",))
    values = np.zeros(package.recipe.shape, np.float32)
    hospital.enqueue(study, models=(package.identity,), tensor=replace(tensor, values=values))


def let_wait(database: Database, package: ModelPackage) -> None:
    """Let the shadow's run on the one study wait for a worker."""
    identity = package.identity
    model = ShadowModel(
        identity.name, identity.version, identity.weights_sha256, package.preprocessing_digest
    )
    task = claim_study_for_shadow(
        database, model, "preparer-1", since=NOON, now=now_utc(), lease_seconds=60
    )
    assert task is not None
    tensor = make_tensor(package.preprocessing_digest)
    values = np.zeros(package.recipe.shape, np.float32)
    await_worker(database, task.run, f"{STUDY}.1", replace(tensor, values=values), now_utc())


def test_a_shadow_computes_only_when_no_study_waits_for_an_answer(
    config, database, hospital, packages
) -> None:
    workers = Workers(config, database)
    enqueue(hospital, packages[0])
    let_wait(database, packages[1])

    assert [workers.step(), workers.step(), workers.step()] == [True, True, False]

    assert workers.calls == ["tiny@1.0.0", "tiny@2.0.0"]
    (run,) = runs_of_study(database, STUDY)
    assert run.findings[0].probability == pytest.approx(0.9)
    assert workers.models.detail()["models"] == ["tiny@1.0.0"]
    assert workers.models.detail()["shadows"] == ["tiny@2.0.0"]


@pytest.mark.parametrize(
    ("fault", "state"),
    [
        (UnusableOutput("NaN"), ShadowState.REFUSED),
        (RuntimeFault("broken"), ShadowState.FAILED),
        (DeviceOutOfMemory("full"), ShadowState.WAITING),
    ],
)
def test_a_shadow_that_fails_leaves_the_study_as_it_is(
    config, database, hospital, packages, fault, state
) -> None:
    workers = Workers(config, database)
    enqueue(hospital, packages[0])
    workers.step()
    before = read_dossier(database, STUDY)
    let_wait(database, packages[1])
    workers.models.find("tiny@2.0.0")[1].fault = fault  # type: ignore[index]

    assert workers.step()

    assert runs_of_study(database, STUDY)[0].state is state
    assert read_dossier(database, STUDY) == before


def test_a_server_that_is_away_costs_a_shadow_no_attempt(
    config, database, hospital, packages, caplog
) -> None:
    caplog.set_level(logging.INFO)
    workers = Workers(config, database)
    enqueue(hospital, packages[0])
    workers.step()
    let_wait(database, packages[1])
    workers.models.find("tiny@2.0.0")[1].fault = RemoteUnavailable("away")  # type: ignore[index]

    assert workers.step()

    (run,) = runs_of_study(database, STUDY)
    assert (run.state, run.attempts, run.reason) == (ShadowState.WAITING, 0, "away")
    assert not workers.step(), "it waits a while"
    assert "shadow tiny@2.0.0: away" in caplog.text
    assert "shadow tiny@2.0.0 analysed" not in caplog.text


def test_a_superseded_version_is_loaded_again_for_what_waits_for_it(
    config, database, hospital, packages
) -> None:
    enqueue(hospital, packages[0])
    admit_version(database, digests_of(packages[1]), Decision(NOON, "test"))
    workers = Workers(config, database)
    assert workers.models.detail()["models"] == ["tiny@2.0.0"]

    assert workers.step()

    assert workers.calls == ["tiny@1.0.0"]
    (job,) = read_dossier(database, STUDY).jobs
    assert (job.state, job.model.version) == (JobState.DONE, "1.0.0")


def test_a_decision_is_taken_up_without_a_restart(config, database, packages) -> None:
    workers = Workers(config, database)
    assert not workers.models.refresh()

    admit_version(database, digests_of(packages[1]), Decision(NOON, "test"))

    assert workers.models.refresh()
    assert workers.models.detail()["shadows"] == []


def shadows_of(config: Config, database: Database) -> tuple[Shadow, ...]:
    return serving(config, list_standings(database)).shadows


def test_a_preparer_turns_to_shadows_only_when_no_study_waits(
    config, database, hospital, packages
) -> None:
    asked: list[str] = []
    studies = iter([True, True, False])

    class Noting(ShadowPreparer):
        def prepare_next(self, shadows) -> bool:
            asked.append("shadow")
            return False

    def prepare() -> bool:
        asked.append("study")
        return next(studies)

    noting = Noting(config, database, hospital.spool, "preparer-1")
    step = with_shadows(prepare, noting, lambda: shadows_of(config, database))

    assert [step(), step(), step()] == [True, True, False]
    assert asked == ["study", "study", "study", "shadow"]


def test_images_that_cannot_be_read_end_the_shadows_run_and_nothing_else(
    config, database, hospital, packages
) -> None:
    enqueue(hospital, packages[0])
    enqueue(hospital, packages[0], OTHER)
    for path in (config.spool_folder / "studies" / STUDY).rglob("*.dcm"):
        path.unlink()
    preparer = ShadowPreparer(config, database, hospital.spool, "preparer-1")
    before = [read_dossier(database, uid) for uid in (STUDY, OTHER)]

    steps = [preparer.prepare_next(shadows_of(config, database)) for _ in range(3)]

    assert steps == [True, True, False]
    states = {uid: runs_of_study(database, uid)[0].state for uid in (STUDY, OTHER)}
    assert states[STUDY] is ShadowState.FAILED
    # The other's pixels are no image a model could read.
    assert states[OTHER] in (ShadowState.REFUSED, ShadowState.WAITING)
    assert [read_dossier(database, uid) for uid in (STUDY, OTHER)] == before
