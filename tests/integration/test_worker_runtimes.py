"""The worker with packages of other runtimes: an ONNX network, and a server that comes and goes."""

from __future__ import annotations

import importlib.metadata
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from daemon import served_models
from daemon.config import Config, SiteSection
from daemon.doctor import examine
from daemon.model_settings import ModelsSection, RemoteSection
from daemon.runtimes import configured_predictor
from daemon.worker import ServedModels, Worker
from dicom_io.vocabulary import PresenceValues
from model.catalogue import read_catalogue
from model.errors import RemoteUnavailable
from model.runtimes.opening import open_predictor
from storage.database import Database, migrate, open_database
from storage.dossier import read_dossier
from storage.spool import Spool
from storage.states import JobState
from tests.inference_server import Misbehaviour, ServedNetwork, http_server
from tests.storage_hospital import STUDY, Hospital, make_tensor
from tests.tiny_models import BRIGHT, write_package
from tests.tiny_onnx import write_onnx_package
from tests.waiting import wait_until

OTHER = f"{STUDY}.9"


class Clinic:
    """A worker over a database, and studies that wait for it."""

    def __init__(self, config: Config, database: Database) -> None:
        self.database = database
        self.models = ServedModels(config, configured_predictor(config))
        self.worker = Worker(config, database, self.models, "worker-1")
        self._config = config
        self._hospital = Hospital(database, Spool(config.spool_folder, 0))

    def receive(self, study: str, brightness: float) -> None:
        (package,) = read_catalogue(self._config.models.folders, bundled=False).packages
        tensor = replace(
            make_tensor(package.preprocessing_digest, (f"{study}.1.1",)),
            values=np.full(package.recipe.shape, brightness, np.float32),
        )
        self._hospital.enqueue(study, models=(package.identity,), tensor=tensor)

    def states(self) -> dict[JobState, int]:
        """Return the state of every job with its attempts."""
        jobs = [job for study in (STUDY, OTHER) for job in read_dossier(self.database, study).jobs]
        return {job.state: job.attempts for job in jobs}

    def findings(self, study: str) -> list[PresenceValues]:
        dossier = read_dossier(self.database, study)
        return [each.presence for result in dossier.results for each in result.findings]


def config_of(folder: Path, **models: object) -> Config:
    return Config(
        site=SiteSection(data_folder=folder / "data"),
        models=ModelsSection(folders=(folder / "models",), bundled=False, **models),  # type: ignore[arg-type]
    )


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    path = config_of(tmp_path).database_path
    migrate(path)
    opened = open_database(path)
    yield opened
    opened.close()


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_worker_records_the_findings_of_a_package_of_another_runtime(tmp_path, database, runtime):
    # Given an installed package, and a bright and a dark study,
    write_onnx_package(tmp_path / "models" / "tiny-1.0.0", runtime=runtime)
    clinic = Clinic(config_of(tmp_path), database)
    clinic.models.refresh()
    clinic.receive(STUDY, 0.9)
    clinic.receive(OTHER, 0.1)

    # when the worker runs,
    assert clinic.worker.work()

    # then each has its finding, and the status names the library.
    assert clinic.findings(STUDY) == [PresenceValues.PRESENT]
    assert clinic.findings(OTHER) == [PresenceValues.ABSENT]
    assert clinic.models.out_of_order == {}
    library = {"onnx": "onnxruntime", "openvino": "openvino"}[runtime]
    assert str(clinic.models.detail()["runtime"]).startswith(library)


def test_studies_wait_while_a_server_is_away_and_no_attempt_is_counted(
    tmp_path, database, monkeypatch, caplog
):
    # Given a package that a server computes, and the site's settings say where,
    monkeypatch.setattr(served_models, "ANOTHER_TRY_SECONDS", 0.0)
    monkeypatch.setattr(served_models, "PAUSE_FOR_EACH_SECOND", 0.0)
    network = ServedNetwork(
        lambda values: (
            BRIGHT.weight * values.reshape(len(values), -1).mean(1, keepdims=True) + BRIGHT.bias
        ),
        (16, 16, 1),
        1,
    )
    write_package(
        tmp_path / "models" / "tiny-1.0.0",
        weights=b"",
        changes={
            "weights": {"runtime": "remote", "sha256": "b" * 64, "file": None},
            "remote": {"model": "tiny"},
        },
    )
    with http_server(network) as server:
        config = config_of(tmp_path, remote=(RemoteSection(model="tiny", url=server.url),))
        clinic = Clinic(config, database)
        clinic.models.refresh()
        clinic.receive(STUDY, 0.9)
        clinic.receive(OTHER, 0.1)

        # when the server is busy for longer than a job has attempts,
        server.misbehave = lambda _: Misbehaviour(503, b'{"error": "loading"}')
        for _ in range(2 * config.worker.maximum_attempts):
            clinic.worker.work()
            clinic.models.refresh()

        # then both wait, nothing is counted, and it is said once what is wrong,
        assert clinic.states() == {JobState.WAITING: 0}
        assert "answers 503 (loading)" in clinic.models.out_of_order["tiny@1.0.0"]
        said = [each for each in caplog.records if "503" in each.getMessage()]
        assert len(said) <= 2
        # and they are analysed as soon as it is back.
        server.misbehave = lambda _: None
        assert wait_until(clinic.models.refresh)
        assert clinic.models.out_of_order == {}
        assert clinic.worker.work()
        assert clinic.findings(STUDY) == [PresenceValues.PRESENT]
        assert clinic.findings(OTHER) == [PresenceValues.ABSENT]
        # No identifier of the studies was sent.
        sent = b"".join(each.body + str(each.headers).encode() for each in server.requests)
        assert STUDY.encode() not in sent
        clinic.models._loaded.clear()


def test_package_without_its_library_is_out_of_order_with_what_to_install(
    tmp_path, database, monkeypatch
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    write_onnx_package(tmp_path / "models" / "tiny-1.0.0")
    clinic = Clinic(config_of(tmp_path), database)

    clinic.models.refresh()

    assert "pip install 'medimgd[onnx]'" in clinic.models.out_of_order["tiny@1.0.0"]
    clinic.receive(STUDY, 0.9)
    clinic.receive(OTHER, 0.9)
    assert not clinic.worker.work()
    assert clinic.states() == {JobState.WAITING: 0}


def test_settings_reach_the_runtime(tmp_path):
    model = write_onnx_package(tmp_path / "p")
    config = Config(worker={"threads": 1, "device": "cpu"})
    (package,) = read_catalogue([model.folder.parent], bundled=False).packages

    predictor = configured_predictor(config)(package)

    assert (predictor._threads, predictor._wanted_device) == (1, "cpu")
    assert open_predictor(package)._threads is None


def test_doctor_names_each_runtime_with_its_version_and_what_a_package_lacks(
    tmp_path, database, monkeypatch
):
    # Given a package for a runtime, and an installation without its library,
    write_onnx_package(tmp_path / "models" / "tiny-1.0.0", runtime="openvino")
    config = config_of(tmp_path)
    healthy = {each.subject: each for each in examine(config)}
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("openvino", "onnxruntime"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    told = {each.subject: each for each in examine(config)}

    # then the missing one is a fault with what to install, and one nobody needs is not.
    assert healthy["runtime openvino"].detail == f"openvino {real('openvino')}"
    assert "tensorflow" in healthy["runtime keras"].detail
    assert "gRPC" in healthy["runtime remote"].detail
    assert not told["runtime openvino"].ok
    assert "pip install 'medimgd[openvino]'" in told["runtime openvino"].detail
    assert told["runtime onnx"].ok


def test_silent_server_takes_a_tenth_of_the_time_at_most(tmp_path, database):
    # Given a worker, and a server that let it wait for long,
    write_onnx_package(tmp_path / "models" / "tiny-1.0.0")
    clinic = Clinic(config_of(tmp_path), database)
    clinic.models.refresh()
    package, _ = clinic.models.find("tiny@1.0.0")
    pauses = []

    for seconds in (0.1, 30.0):
        clinic.models.set_aside(package, RemoteUnavailable("silent"), seconds)
        pauses.append(clinic.models._tried_later["tiny@1.0.0"][1] - time.monotonic())

    # then it is asked again the later, the longer that took.
    assert pauses == [pytest.approx(30, abs=1), pytest.approx(270, abs=1)]
