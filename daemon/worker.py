"""The worker process: claims jobs, runs the network, records findings.

Owns the only process that imports TensorFlow. Reads tensors and writes findings; it never sees a
DICOM file, and what it holds when it dies goes back to the queue.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np

from daemon.catalogue import Serving, serving
from daemon.config import Config
from daemon.explaining import with_explanations
from daemon.logs import ACTION, COUNT, JOB, MODEL, REASON, SECONDS, STUDY
from daemon.role import RoleProcess, now_utc
from daemon.runtimes import PredictorMaker, configured_predictor
from daemon.shadow_work import ShadowWorker
from dicom_io.errors import MedimgdError, RefusalReason
from model.errors import DeviceOutOfMemory, ModelError, RemoteUnavailable, UnusableOutput
from model.explain import explained_findings
from model.findings import judge
from model.package import ModelPackage
from model.runtimes.port import FloatArray, Predictor
from storage.claims import claim_batch, give_back, reclaim_expired, renew
from storage.database import Database
from storage.endings import Analysed, fail_attempt, finish_batch, refuse_job
from storage.jobs import ClaimedJob, WaitingModel, waiting_models
from storage.standings import list_standings

_logger = logging.getLogger(__name__)

IDLE_SECONDS = 0.1
OUT_OF_MEMORY_PAUSE_SECONDS = 30.0
"""Another program may hold the device; what does not fit now may fit later."""

ABSENT_SERVER_PAUSE_SECONDS = 30.0
"""A server that computes a model is asked again after this long; analyses wait meanwhile."""

PAUSE_FOR_EACH_SECOND_OF_SILENCE = 9.0
"""Waiting for a silent server may take a tenth of the time that other models need."""


class ServedModels:
    """The packages this worker serves: loaded and warm, or out of order with the reason.

    Parameters
    ----------
    config : Config
        Where packages are.
    make_predictor : callable
        Makes what computes a package.
    database : Database, optional
        For what a person decided about versions; without one every package serves by itself.
    """

    def __init__(
        self, config: Config, make_predictor: PredictorMaker, database: Database | None = None
    ) -> None:
        self._config = config
        self._make_predictor = make_predictor
        self._database = database
        self._serving: Serving | None = None
        self._predictors: dict[str, tuple[ModelPackage, Predictor]] = {}
        self._absent: dict[str, tuple[ModelPackage, float]] = {}
        """Packages whose server does not answer, and when it is asked again."""
        self.out_of_order: dict[str, str] = {}
        self.unserved: frozenset[str] = frozenset()
        """Models that jobs wait for and that cannot serve; their jobs stay in the queue."""

    def refresh(self) -> bool:
        """Load what was added and drop what was removed; True when anything changed."""
        standings = () if self._database is None else list_standings(self._database)
        now_serving = serving(self._config, standings)
        if now_serving is self._serving:
            return self._ask_again()
        self._serving = now_serving
        wanted = (*now_serving.packages, *(each.package for each in now_serving.shadows))
        kept = (*wanted, *now_serving.finishing)
        self._predictors = {
            name: (package, predictor)
            for name, (package, predictor) in self._predictors.items()
            if package in kept
        }
        self._absent.clear()
        self.out_of_order = dict(now_serving.out_of_order)
        for title, fault in self.out_of_order.items():
            _log_out_of_order(title, fault)
        for package in wanted:
            if package.at_version not in self._predictors:
                self._load(package)
        return True

    def load_to_finish(self, at_version: str) -> None:
        """Load a version that serves no more, for the analyses that still wait for it."""
        if self._serving is None or at_version in {*self._predictors, *self.out_of_order}:
            return
        for package in self._serving.finishing:
            if package.at_version == at_version:
                self._load(package)

    def set_aside(self, package: ModelPackage, error: ModelError, seconds: float) -> None:
        """Take a package out of service; one whose server is absent is tried again later.

        Parameters
        ----------
        package : ModelPackage
        error : ModelError
            What is wrong with it.
        seconds : float
            How long that took to find out.
        """
        name, fault = package.at_version, str(error)
        self._predictors.pop(name, None)
        if isinstance(error, RemoteUnavailable):
            pause = max(ABSENT_SERVER_PAUSE_SECONDS, seconds * PAUSE_FOR_EACH_SECOND_OF_SILENCE)
            self._absent[name] = (package, time.monotonic() + pause)
        if self.out_of_order.get(name) != fault:
            self.out_of_order[name] = fault
            _log_out_of_order(name, fault)

    def _ask_again(self) -> bool:
        """Try the packages whose servers were absent; True when any was tried."""
        now = time.monotonic()
        due = [package for package, again_at in self._absent.values() if again_at <= now]
        for package in due:
            del self._absent[package.at_version]
            self._load(package)
        return bool(due)

    def _load(self, package: ModelPackage) -> None:
        started = time.monotonic()
        try:
            predictor = self._make_predictor(package)
            predictor.load()
            seconds = predictor.warm_up()
        except ModelError as error:
            self.set_aside(package, error, time.monotonic() - started)
            return
        self.out_of_order.pop(package.at_version, None)
        self._predictors[package.at_version] = (package, predictor)
        _logger.info(
            "%s is warm on %s", package.at_version, predictor.device,
            extra={ACTION: "model_ready", MODEL: package.at_version, SECONDS: round(seconds, 3)},
        )  # fmt: skip

    def find(self, at_version: str) -> tuple[ModelPackage, Predictor] | None:
        """Return a loaded package, or None when it is out of order or not installed."""
        return self._predictors.get(at_version)

    def detail(self) -> Mapping[str, object]:
        """Return what ``medimgd status`` shows of this worker."""
        described = [predictor.description for _, predictor in self._predictors.values()]
        shadows = () if self._serving is None else self._serving.shadows
        in_shadow = {each.package.at_version for each in shadows} & set(self._predictors)
        return {
            "device": described[0].device if described else "",
            "runtime": described[0].runtime if described else "",
            "models": sorted(set(self._predictors) - in_shadow),
            "shadows": sorted(in_shadow),
            "out_of_order": self.out_of_order,
            "unserved": sorted(self.unserved),
        }


def _log_out_of_order(title: str, fault: str) -> None:
    _logger.error(
        "model %s is out of order: %s", title, fault,
        extra={ACTION: "model_out_of_order", MODEL: title},
    )  # fmt: skip


class Worker:
    """Runs batches of jobs, across studies, one model at a time.

    Parameters
    ----------
    config : Config
        Batch size, lease and attempts.
    database : Database
        Open for writing.
    models : ServedModels
        Loaded predictors.
    owner : str
        In whose name jobs are leased.
    """

    def __init__(
        self, config: Config, database: Database, models: ServedModels, owner: str
    ) -> None:
        self._config = config
        self._database = database
        self._models = models
        self._owner = owner
        self._in_hand: tuple[ClaimedJob, ...] = ()
        self._holding = threading.Lock()

    def work(self) -> bool:
        """Run one batch of the model that waits longest; False when nothing waits."""
        waiting_ones = waiting_models(self._database, now_utc())
        for waiting in waiting_ones:
            self._models.load_to_finish(f"{waiting.model_name}@{waiting.model_version}")
        self._note_unserved(waiting_ones)
        for waiting in waiting_ones:
            if self._models.find(f"{waiting.model_name}@{waiting.model_version}") is None:
                continue
            jobs = claim_batch(
                self._database, self._owner, waiting.model_name, waiting.model_version,
                self._config.worker.maximum_batch, now_utc(), self._config.worker.lease_seconds,
            )  # fmt: skip
            if jobs:
                self._hold(jobs)
                try:
                    self._run(jobs)
                finally:
                    self._hold(())
                return True
        return False

    def _note_unserved(self, waiting_ones: Sequence[WaitingModel]) -> None:
        """Say once that jobs wait for a model that cannot serve; they are never given up for it."""
        names = {f"{each.model_name}@{each.model_version}" for each in waiting_ones}
        unserved = frozenset(name for name in names if self._models.find(name) is None)
        for name in unserved - self._models.unserved:
            _logger.error(
                "analyses wait for %s, which is out of order or not installed", name,
                extra={ACTION: "model_unserved", MODEL: name},
            )  # fmt: skip
        self._models.unserved = unserved

    def renew(self, now: datetime) -> None:
        """Extend the leases of the jobs in hand; the heartbeat calls this."""
        with self._holding:
            jobs = self._in_hand
        if jobs:
            renew(self._database, jobs, now, self._config.worker.lease_seconds)

    def _hold(self, jobs: tuple[ClaimedJob, ...]) -> None:
        with self._holding:
            self._in_hand = jobs

    def _run(self, jobs: tuple[ClaimedJob, ...]) -> None:
        served = self._models.find(jobs[0].model.at_version)
        assert served is not None  # noqa: S101 - looked up before the claim, by this thread
        package, predictor = served
        by_shape: dict[tuple[int, ...], list[ClaimedJob]] = defaultdict(list)
        for job in jobs:
            if _is_made_for(job, package):
                by_shape[job.tensor.values.shape].append(job)
            else:
                self._fail(job, _OTHER_PACKAGE.format(package.at_version), retryable=False)
        for alike in by_shape.values():
            if self._models.find(package.at_version) is None:
                break  # its server went away with the batch before; all jobs are given back
            self._predict(package, predictor, alike)

    def _predict(
        self, package: ModelPackage, predictor: Predictor, jobs: Sequence[ClaimedJob]
    ) -> None:
        started_at = now_utc()
        started = time.monotonic()
        try:
            scores = predictor.predict(np.stack([job.tensor.values for job in jobs]))
        except DeviceOutOfMemory as error:
            for job in jobs:
                self._fail(job, str(error), retryable=True)
            return
        except RemoteUnavailable as error:
            # Nothing is wrong with the jobs: they wait, however long, and no attempt is counted.
            self._models.set_aside(package, error, time.monotonic() - started)
            give_back(self._database, self._owner, now_utc())
            return
        except ModelError as error:
            self._predict_apart(package, predictor, jobs, error)
            return
        self._finish(package, predictor, jobs, scores, started_at)
        _logger.info(
            "%s analysed %d inputs", package.at_version, len(jobs),
            extra={ACTION: "analysed", MODEL: package.at_version, COUNT: len(jobs),
                   SECONDS: round(time.monotonic() - started, 3)},
        )  # fmt: skip

    def _predict_apart(
        self,
        package: ModelPackage,
        predictor: Predictor,
        jobs: Sequence[ClaimedJob],
        error: ModelError,
    ) -> None:
        """Find out which input of a batch the model cannot answer for."""
        if len(jobs) > 1:
            for job in jobs:
                self._predict(package, predictor, [job])
        elif isinstance(error, UnusableOutput):
            refuse_job(
                self._database, jobs[0], RefusalReason.SOFTWARE_FAILURE, str(error),
                analysis_started_at=now_utc(), now=now_utc(),
            )  # fmt: skip
        else:
            self._fail(jobs[0], str(error), retryable=error.retryable)

    def _finish(
        self,
        package: ModelPackage,
        predictor: Predictor,
        jobs: Sequence[ClaimedJob],
        scores: FloatArray,
        started_at: datetime,
    ) -> None:
        judged = [
            Analysed(job, judge(row, package.labels), started_at)
            for job, row in zip(jobs, scores, strict=True)
        ]
        # What needs no explanation does not wait for one.
        self._record(package, [each for each in judged if not explained_findings(each.findings)])
        positive = [each for each in judged if explained_findings(each.findings)]
        self._record(package, with_explanations(package, predictor, positive))

    def _record(self, package: ModelPackage, batch: Sequence[Analysed]) -> None:
        if not batch:
            return
        states = finish_batch(self._database, batch, now_utc())
        for analysed, state in zip(batch, states, strict=True):
            _logger.info(
                "job %s", state or "given to another worker",
                extra={ACTION: "job_finished", JOB: analysed.job.id, MODEL: package.at_version,
                       STUDY: analysed.job.study_instance_uid},
            )  # fmt: skip

    def _fail(self, job: ClaimedJob, reason: str, *, retryable: bool) -> None:
        try:
            state = fail_attempt(
                self._database, job, reason, retryable=retryable, now=now_utc(),
                max_attempts=self._config.worker.maximum_attempts,
                retry_after_seconds=OUT_OF_MEMORY_PAUSE_SECONDS if retryable else 0.0,
            )  # fmt: skip
        except MedimgdError as error:
            _logger.warning("%s", error, extra={ACTION: "lease_lost", JOB: job.id})
            return
        _logger.error(
            "job %d is %s: %s", job.id, state, reason,
            extra={ACTION: "job_failed", JOB: job.id, STUDY: job.study_instance_uid,
                   MODEL: job.model.at_version, REASON: reason},
        )  # fmt: skip


_OTHER_PACKAGE = (
    "{} was replaced under the same version since this study was prepared; "
    "'medimgd retry STUDY --again' prepares it anew. Give a changed model a new version"
)


def _is_made_for(job: ClaimedJob, package: ModelPackage) -> bool:
    """True when the tensor was made for these weights by these steps."""
    return (
        job.model == package.identity
        and job.tensor.preprocessing_digest == package.preprocessing_digest
    )


def run_worker(
    config: Config, database: Database, slot: str, make_predictor: PredictorMaker | None = None
) -> None:
    """Analyse until a stop is asked for; what is in hand then is given back."""
    # A predecessor in this slot is dead: its jobs wait again at once, with the crash counted.
    for job in reclaim_expired(database, now_utc(), owner=slot):
        _logger.warning(
            "job %d comes back from a worker that died; it is %s", job.id, job.state,
            extra={ACTION: "job_reclaimed", JOB: job.id, STUDY: job.study_instance_uid},
        )  # fmt: skip
    models = ServedModels(config, make_predictor or configured_predictor(config), database)
    worker = Worker(config, database, models, slot)
    shadows = ShadowWorker(config, database, models.find, slot)
    shadows.reclaim()

    def renew_all(now: datetime) -> None:
        worker.renew(now)
        shadows.renew(now)

    role = RoleProcess(config, database, "worker", slot, renew_all)
    role.begin({"state": "loading models"})

    def step() -> bool:
        unserved = models.unserved
        changed = models.refresh()
        # A shadow computes only while no study waits for an answer.
        busy = worker.work() or shadows.work()
        if changed or models.unserved != unserved:
            role.describe(models.detail())
            role.beat()
        return busy

    role.repeat(step, IDLE_SECONDS)
    give_back(database, slot, now_utc())
    shadows.give_back()
    role.end()
