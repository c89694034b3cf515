"""The steps of the processes, one by one: what one bad thing must not do to the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from daemon import courier as courier_process
from daemon import setbacks
from daemon.catalogue import serving_of, state_of
from daemon.composing import Composer
from daemon.config import Config, DestinationSection, SiteSection
from daemon.courier import Courier
from daemon.doctor import examine
from daemon.indexing import Closed, IndexWriter, Opened
from daemon.model_settings import ModelsSection
from daemon.preparer import Preparer
from daemon.role import now_utc
from daemon.setbacks import FAILURES_BEFORE_GIVING_UP
from daemon.status import read_status
from daemon.worker import ServedModels, Worker
from dicom_io.errors import InstanceUnavailable, RefusalReason
from dicom_io.results.request import DocumentRole, EncodedDocument, SRClassValues
from dicom_io.sending import OutgoingInstance, SendOutcome
from model.catalogue import read_catalogue
from model.errors import RuntimeFault, UnusableOutput
from model.package import ModelPackage
from model.runtimes.port import PredictorDescription
from storage.arrivals import Arrival
from storage.completion import complete_now
from storage.database import Database, migrate, open_database
from storage.destinations import destination_state, learn_sr_sop_class
from storage.door import list_refused_instances
from storage.dossier import read_dossier
from storage.endings import Analysed, finish_job
from storage.installation import read_installation
from storage.preparation import give_back_preparations, reclaim_preparations
from storage.processes import register_process
from storage.results import store_documents
from storage.retry import retry_study
from storage.spool import Spool
from storage.states import DeliveryState, JobState, ResultState, StudyState
from tests.storage_hospital import NOON, PNEUMONIA, STUDY, Hospital, make_tensor
from tests.tiny_models import write_package
from tests.worklist_material import CXR, Ward, absent

OTHER = f"{STUDY}.9"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    models = tmp_path / "models"
    write_package(models / "tiny-1.0.0", weights=b"never loaded")
    return Config(
        site=SiteSection(data_folder=tmp_path / "data"),
        models=ModelsSection(folders=(models,), bundled=False),
        destinations=(DestinationSection(name="pacs", host="127.0.0.1", port=9, ae_title="P"),),
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


class StubPredictor:
    """Answers from a list of scores, or fails as told."""

    def __init__(self, package: ModelPackage) -> None:
        self.package = package
        self.device = "stub"
        self.load_fault: Exception | None = None
        self.batches: list[int] = []

    def load(self) -> None:
        if self.load_fault is not None:
            raise self.load_fault

    def warm_up(self) -> float:
        return 0.0

    def predict(self, batch: np.ndarray) -> np.ndarray:
        self.batches.append(len(batch))
        if float(batch.max()) > 1:
            raise UnusableOutput("one prediction holds NaN")
        return np.full((len(batch), 1), 0.9, np.float32)

    @property
    def description(self) -> PredictorDescription:
        return PredictorDescription("tiny@1.0.0", "stub", "stub", "float32", 1)


def worker_of(config: Config, database: Database, fault: Exception | None = None):
    made: list[StubPredictor] = []

    def make(package: ModelPackage) -> StubPredictor:
        predictor = StubPredictor(package)
        predictor.load_fault = fault
        made.append(predictor)
        return predictor

    models = ServedModels(config, make)
    models.refresh()
    return Worker(config, database, models, "worker-1"), models, made


def package_of(config: Config) -> ModelPackage:
    (package,) = read_catalogue(config.models.folders, bundled=False).packages
    return package


def enqueue(
    hospital: Hospital, package: ModelPackage, study: str = STUDY, **changes: object
) -> int:
    shape = (*package.recipe.shape,)
    tensor = replace(
        make_tensor(package.preprocessing_digest, (f"{study}.1.1",)),
        values=np.zeros(shape, np.float32),
        **changes.pop("tensor", {}),
    )
    model = changes.pop("model", package.identity)
    return hospital.enqueue(study, models=(model,), tensor=tensor)


def states(database: Database, *studies: str) -> list[JobState]:
    return [job.state for study in studies for job in read_dossier(database, study).jobs]


def test_a_batch_crosses_studies(config: Config, database: Database, hospital: Hospital) -> None:
    worker, _, (predictor,) = worker_of(config, database)
    for study in (STUDY, OTHER):
        enqueue(hospital, package_of(config), study)

    assert worker.work()

    assert predictor.batches == [2]
    assert states(database, STUDY, OTHER) == [JobState.DONE, JobState.DONE]


def test_one_unanswerable_input_is_refused_alone(
    config: Config, database: Database, hospital: Hospital
) -> None:
    worker, _, _ = worker_of(config, database)
    package = package_of(config)
    bad = np.full(package.recipe.shape, 2.0, np.float32)
    enqueue(hospital, package, STUDY, tensor={})
    hospital.enqueue(
        OTHER, models=(package.identity,),
        tensor=replace(make_tensor(package.preprocessing_digest, (f"{OTHER}.1.1",)), values=bad),
    )  # fmt: skip

    worker.work()

    assert states(database, STUDY, OTHER) == [JobState.DONE, JobState.REFUSED]
    (result,) = read_dossier(database, OTHER).results
    assert result.findings == ()


def test_jobs_wait_while_their_model_is_out_of_order(
    config: Config, database: Database, hospital: Hospital
) -> None:
    worker, models, _ = worker_of(config, database, RuntimeFault("weights are truncated"))
    enqueue(hospital, package_of(config))

    assert not worker.work()

    assert states(database, STUDY) == [JobState.WAITING]
    assert models.detail()["unserved"] == ["tiny@1.0.0"]
    assert "truncated" in str(models.detail()["out_of_order"])


def test_job_made_for_other_weights_is_never_answered_by_these(
    config: Config, database: Database, hospital: Hospital
) -> None:
    worker, _, (predictor,) = worker_of(config, database)
    package = package_of(config)
    enqueue(hospital, package, STUDY)
    enqueue(hospital, package, OTHER, model=replace(package.identity, weights_sha256="ef" * 32))

    worker.work()

    assert states(database, STUDY, OTHER) == [JobState.DONE, JobState.FAILED]
    assert predictor.batches == [1]
    assert "--again" in read_dossier(database, OTHER).jobs[0].reason


def test_catalogue_is_not_read_again_while_nothing_changes(
    config: Config, database: Database, tmp_path: Path
) -> None:
    _, models, made = worker_of(config, database)

    assert [models.refresh() for _ in range(3)] == [False, False, False]

    write_package(tmp_path / "models" / "more-1.0.0", name="more", weights=b"x")
    assert models.refresh()
    assert [each.package.at_version for each in made] == ["tiny@1.0.0", "more@1.0.0"]


def test_of_several_versions_the_highest_serves(tmp_path: Path) -> None:
    for version in ("1.9.0", "1.10.0", "1.10.0-rc1"):
        write_package(tmp_path / f"tiny-{version}", version=version, weights=b"x")
    catalogue = read_catalogue([tmp_path], bundled=False)

    now = serving_of(catalogue, ())

    assert [each.at_version for each in now.packages] == ["tiny@1.10.0"]
    assert {item.title: state_of(item, now) for item in catalogue.installed} == {
        "tiny@1.9.0": "older", "tiny@1.10.0": "ready", "tiny@1.10.0-rc1": "older",
    }  # fmt: skip


class BrokenFor:
    """A composer that cannot compose one study's result, and composes nothing for the others."""

    def __init__(self, *studies: str, fault: Exception | None = None) -> None:
        self.studies = set(studies)
        self.fault = fault or MemoryError()
        self.asked: list[str] = []

    def compose(self, result, sr_class: SRClassValues):
        self.asked.append(result.study_instance_uid)
        if result.study_instance_uid in self.studies:
            raise self.fault
        return ()


AWAY = InstanceUnavailable("the spool's disk is away")


def test_one_result_that_cannot_be_composed_does_not_keep_the_others(
    config: Config, database: Database, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setbacks, "FIRST_PAUSE_SECONDS", 0.0)
    worker, _, _ = worker_of(config, database)
    for study in (STUDY, OTHER):
        enqueue(hospital, package_of(config), study)
    worker.work()
    composer = BrokenFor(STUDY)
    courier = Courier(config, database, composer)  # type: ignore[arg-type]

    for _ in range(FAILURES_BEFORE_GIVING_UP):
        courier.work()

    by_study = {study: read_dossier(database, study).results[0] for study in (STUDY, OTHER)}
    assert by_study[OTHER].state is ResultState.COMPOSED
    assert by_study[STUDY].state is ResultState.UNCOMPOSABLE
    assert "MemoryError" in by_study[STUDY].reason


def test_a_result_whose_files_are_away_is_composed_once_they_are_back_without_a_busy_wait(
    config: Config, database: Database, hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    hospital.analyse()
    composer = BrokenFor(STUDY, fault=AWAY)
    courier = Courier(config, database, composer)  # type: ignore[arg-type]

    assert [courier.work() for _ in range(5)] == [False] * 5

    assert composer.asked == [STUDY]
    assert [each.reason for each in caplog.records if each.levelname == "ERROR"] == [
        "InstanceUnavailable"
    ]
    composer.studies.clear()
    assert Courier(config, database, composer).work()  # type: ignore[arg-type]
    assert read_dossier(database, STUDY).results[0].state is ResultState.COMPOSED


def test_results_whose_files_are_away_keep_none_of_the_others(
    config: Config, database: Database, hospital: Hospital
) -> None:
    studies = [f"1.2.3.{number}" for number in range(17)]
    for study in studies:
        hospital.analyse(study)
    composer = BrokenFor(*studies[:-1], fault=AWAY)
    courier = Courier(config, database, composer)  # type: ignore[arg-type]

    assert [courier.work() for _ in range(2)] == [False, True]

    assert read_dossier(database, studies[-1]).results[0].state is ResultState.COMPOSED


def test_a_result_whose_files_stay_away_waits_for_a_person_in_the_end(
    config: Config, database: Database, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setbacks, "FIRST_PAUSE_SECONDS", 0.0)
    worker, _, _ = worker_of(config, database)
    enqueue(hospital, package_of(config))
    worker.work()
    for path in config.spool_folder.rglob("*.dcm"):
        path.unlink()
    composer = Composer(config, database, hospital.spool, read_installation(database))

    courier = Courier(config, database, composer)
    for _ in range(FAILURES_BEFORE_GIVING_UP):
        courier.work()
    assert read_dossier(database, STUDY).results[0].state is ResultState.AWAITING
    monkeypatch.setattr(setbacks, "PATIENCE_SECONDS", 0.0)
    courier.work()

    (result,) = read_dossier(database, STUDY).results
    assert result.state is ResultState.UNCOMPOSABLE
    assert "ENOENT" in result.reason
    assert not read_dossier(database, STUDY).deliveries
    # The operator's retry is not kept waiting by what went before.
    assert retry_study(database, STUDY, now_utc()).result_ids == (result.id,)
    courier.work()
    assert read_dossier(database, STUDY).results[0].state is ResultState.UNCOMPOSABLE


def test_a_version_that_could_not_be_composed_in_time_is_not_sent_after_the_next(
    config: Config, database: Database, hospital: Hospital
) -> None:
    hospital.analyse()
    Courier(config, database, BrokenFor(STUDY, fault=AWAY)).work()  # type: ignore[arg-type]
    hospital.arrive(2)
    complete_now(database, STUDY, NOON)
    hospital.prepare()
    (job,) = hospital.claim()
    finish_job(database, Analysed(job, (PNEUMONIA,), NOON), NOON)
    _, later = read_dossier(database, STUDY).results
    store_documents(database, later.id, (), (), NOON)

    Courier(config, database, OneReport()).work()  # type: ignore[arg-type]

    earlier, _ = read_dossier(database, STUDY).results
    assert (earlier.version_number, earlier.state) == (1, ResultState.WITHHELD)
    assert "a later version" in earlier.reason


def test_a_refusal_is_sent_where_an_archive_would_go_on_showing_a_negative(
    config: Config, database: Database
) -> None:
    """Refusals stay here by default; one that replaces a report that was composed does not."""
    ward = Ward(database)
    courier = Courier(config, database, OneReport())  # type: ignore[arg-type]
    seen = ward.positive("A", absent("Pneumonia"))
    courier.work()
    ward.receive("A", study=seen, first=2, images=1)
    never_seen = ward.receive("B")
    for study in (seen, never_seen):
        ward.route(study, refusals=[(CXR, RefusalReason.QUALITY, "blurred")])

    courier.work()

    negative, refusal = read_dossier(database, seen).results
    assert (negative.state, refusal.state) == (ResultState.COMPOSED, ResultState.COMPOSED)
    (alone,) = read_dossier(database, never_seen).results
    assert alone.state is ResultState.WITHHELD


def test_index_writer_leaves_out_what_the_database_never_takes_and_writes_the_rest(
    config: Config, database: Database, hospital: Hospital
) -> None:
    good, bad = hospital.store(1), hospital.store(2)
    bad = replace(bad, header=replace(bad.header, instance_number=2**80))
    index = IndexWriter(database, "receiver-1")

    index.put(Opened("a1", "MODALITY", "MEDIMGD", "127.0.0.1"))
    index.put(Arrival(bad, "a1"))
    index.put(Arrival(good, "a1"))
    index.put(Closed("a1"))
    index.close()

    dossier = read_dossier(database, STUDY)
    assert [i.sop_instance_uid for s in dossier.series for i in s.instances] == [f"{STUDY}.1.1"]
    assert dossier.associations[0].closed_at is not None
    assert any("cannot be indexed" in each.reason for each in list_refused_instances(database))


def test_a_disk_that_is_away_costs_a_study_neither_refusal_nor_hold(
    config: Config, database: Database, hospital: Hospital
) -> None:
    hospital.arrive(1)
    complete_now(database, STUDY, now_utc())
    (path,) = config.spool_folder.rglob("*.dcm")
    away = path.rename(path.with_suffix(".away"))
    lease = timedelta(seconds=config.study.lease_seconds + 1)
    preparer = Preparer(config, database, hospital.spool, "preparer-1")

    for outage in range(1, config.study.maximum_attempts + 2):
        assert preparer.prepare_next()
        assert not preparer.prepare_next()
        # A preparer that ends meanwhile gives nothing back that it does not hold.
        assert give_back_preparations(database, "preparer-1") == 0
        assert reclaim_preparations(database, now_utc() + outage * lease) == ()

    study = read_dossier(database, STUDY).study
    assert (study.state, study.attempts) == (StudyState.COMPLETE, 0)
    assert "ENOENT" in study.reason
    away.rename(path)
    assert preparer.prepare_next()
    assert read_dossier(database, STUDY).study.state in (StudyState.ROUTED, StudyState.REFUSED)


def test_results_made_without_a_destination_are_offered_once_there_is_one(
    config: Config, database: Database, hospital: Hospital
) -> None:
    worker, _, _ = worker_of(config, database)
    enqueue(hospital, package_of(config))
    worker.work()
    nowhere = config.model_copy(update={"destinations": ()})
    Courier(nowhere, database, OneReport()).work()  # type: ignore[arg-type]
    assert read_dossier(database, STUDY).deliveries == ()
    (sentence,) = [s for s in read_status(nowhere, now_utc()).attention if "no destination" in s]
    assert sentence.startswith("1 result has no destination")

    Courier(config, database, OneReport()).work()  # type: ignore[arg-type]

    (delivery,) = read_dossier(database, STUDY).deliveries
    assert delivery.destination == "pacs"


def test_doctor_does_not_miss_a_receiver_that_admits_others_only(
    config: Config, database: Database
) -> None:
    register_process(
        database, "receiver-1", role="receiver", pid=os.getpid(), host=config.site.node_id,
        now=now_utc(), state="ready",
    )  # fmt: skip

    (found,) = [each for each in examine(config) if each.subject == "receiver"]

    assert found.ok
    assert "receiver.peers" in found.detail


class OneReport:
    """A composer of one small report for each result."""

    def compose(self, result, sr_class: SRClassValues):
        return (
            EncodedDocument(
                DocumentRole.REPORT, result.study_instance_uid, "2.25.8", str(sr_class),
                f"2.25.9.{result.id}", b"report",
            ),
        )  # fmt: skip


class AwayInAnotherClass(OneReport):
    """A composer whose files are away when a report is wanted in another class."""

    def compose_report(self, *_: object) -> EncodedDocument:
        raise AWAY


def test_a_report_that_cannot_be_made_now_does_not_close_its_archive_to_others(
    config: Config, database: Database, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an archive that wants another class of report, and a report whose files are away,
    def accept(_: object, objects: list[OutgoingInstance], **__: object) -> list[SendOutcome]:
        return [SendOutcome(each.sop_instance_uid, 0, "") for each in objects]

    monkeypatch.setattr(courier_process, "send", accept)
    learn_sr_sop_class(database, "pacs", SRClassValues.COMPREHENSIVE)
    hospital.analyse(STUDY)
    courier = Courier(config, database, AwayInAnotherClass())  # type: ignore[arg-type]
    assert courier.work()

    # when another result is composed, in the class the archive takes,
    hospital.analyse(OTHER)
    learn_sr_sop_class(database, "pacs", None)
    courier.work()

    # then that one arrives, and the first waits for its own next attempt.
    assert destination_state(database, "pacs").consecutive_failures == 0
    by_study = {study: read_dossier(database, study).deliveries[0] for study in (STUDY, OTHER)}
    assert by_study[OTHER].state is DeliveryState.SENT
    assert by_study[STUDY].state is DeliveryState.PENDING
    assert by_study[STUDY].last_comment.startswith("not sent: InstanceUnavailable")
    assert by_study[STUDY].next_attempt_at > now_utc()
