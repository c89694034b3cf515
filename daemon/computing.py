"""The worker: runs the network on what was read ahead, and hands on what it found.

Owns what becomes of a batch, whatever happens to it. Reads tensors and writes findings; it never
sees a DICOM file, and what it holds when it dies goes back to the queue.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime

import numpy as np

from daemon.config import Config
from daemon.explaining import explained_together, is_explained, with_explanations
from daemon.in_hand import InHand
from daemon.logs import ACTION, COUNT, JOB, MODEL, REASON, SECONDS, STUDY
from daemon.read_ahead import ReadAhead
from daemon.recording import Recorder
from daemon.role import now_utc
from daemon.served_models import ServedModels
from daemon.worker_figures import WorkerFigures
from dicom_io.errors import MedimgdError, RefusalReason
from dicom_io.wording import number_of
from model.errors import DeviceOutOfMemory, ModelError, RemoteUnavailable, UnusableOutput
from model.findings import judge
from model.package import ModelPackage
from model.runtimes.port import FloatArray, Predictor
from storage.claims import give_back, renew
from storage.database import Database
from storage.endings import Analysed, fail_attempt, refuse_job
from storage.jobs import ClaimedJob

_logger = logging.getLogger(__name__)

OUT_OF_MEMORY_PAUSE_SECONDS = 30.0
"""Another program may hold the device; what does not fit now may fit later."""

DRAIN_SECONDS = 5.0
"""How long the findings of earlier batches may take to be recorded before a hung worker ends."""

Guard = Callable[[str, float], AbstractContextManager[None]]


def _unwatched(what: str, seconds: float) -> AbstractContextManager[None]:
    del what, seconds
    return nullcontext()


class Worker:
    """Runs batches of jobs, across studies, one model at a time.

    Until ``start`` each batch is claimed, computed and recorded in one go.

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
    guard : callable, optional
        Given what is done and how long it may take, returns the block in which it is done.
    figures : WorkerFigures, optional
        Where batches and seconds are counted.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        models: ServedModels,
        owner: str,
        guard: Guard = _unwatched,
        figures: WorkerFigures | None = None,
    ) -> None:
        self._section = config.worker
        self._database = database
        self._models = models
        self._owner = owner
        self._guard = guard
        self.figures = figures or WorkerFigures()
        self.in_hand = InHand()
        self.ahead = ReadAhead(config, database, models, self.in_hand, owner, self.figures)
        self.recorder = Recorder(database, self.in_hand, self.figures)
        self._seen_shapes: set[tuple[str, tuple[int, ...]]] = set()
        self._largest_batch: dict[str, int] = {}
        """What fitted the device, of models for which a larger batch did not."""

    def start(self) -> None:
        """Claim ahead and record beside the computing from now on."""
        self.recorder.start()
        self.ahead.start()

    def stop(self) -> None:
        """Record what was computed, and give back what was not."""
        self.ahead.stop()
        self.recorder.stop()
        give_back(self._database, self._owner, now_utc())
        self.in_hand.drop(self.in_hand.all())

    def work(self, seconds: float = 0.0) -> bool:
        """Run one batch of the model whose turn it is; False when none comes within `seconds`."""
        wanted = self.ahead.take_wanted()
        if wanted:
            self._models.obtain(wanted)
        started = time.monotonic()
        jobs = self.ahead.take(seconds)
        self.figures.waited_seconds += time.monotonic() - started
        if not jobs:
            return bool(wanted)
        try:
            self._run(jobs)
        finally:
            # What ended in an unforeseen error is not renewed: its lease runs out, and counts.
            self.in_hand.drop(self.in_hand.computing())
        return True

    def renew(self, now: datetime) -> None:
        """Extend the leases of the jobs in hand; the heartbeat calls this."""
        jobs = self.in_hand.all()
        if jobs:
            renew(self._database, jobs, now, self._section.lease_seconds)

    def fail_hung(self, what: str, seconds: float) -> None:
        """Count an attempt for what the device does not come back from; give back the rest.

        Called in the watchdog's thread, as the last thing before the process ends.
        """
        self.recorder.drain(DRAIN_SECONDS)
        hung = self.in_hand.computing()
        for job in hung:
            said = f"{what} had not ended after {seconds:.0f} s; analysed alone next time"
            self._fail(job, said, retryable=True, suspect=True)
        others = [job.id for job in self.in_hand.all()]
        give_back(self._database, self._owner, now_utc(), others)

    def _run(self, jobs: Sequence[ClaimedJob]) -> None:
        at_version = jobs[0].model.at_version
        served = self._models.find(at_version)
        if served is None:  # unloaded or gone since these were claimed
            self._give_back(jobs)
            return
        package, predictor = served
        by_shape: dict[tuple[int, ...], list[ClaimedJob]] = defaultdict(list)
        for job in jobs:
            if _is_made_for(job, package):
                by_shape[job.tensor.values.shape].append(job)
            else:
                self._fail(job, _OTHER_PACKAGE.format(package.at_version), retryable=False)
        for shape, alike in by_shape.items():
            if self._models.find(package.at_version) is None:
                self._give_back(alike)  # its server went away with the batch before
                continue
            with self._guard(f"a batch of {at_version}", self._deadline(at_version, shape)):
                self._predict_in_parts(package, predictor, alike)
            self._seen_shapes.add((at_version, shape))

    def _deadline(self, at_version: str, shape: tuple[int, ...]) -> float:
        is_slow = self._models.stands_in(at_version)
        if is_slow or (at_version, shape) not in self._seen_shapes:
            return self._section.long_deadline_seconds
        return self._section.deadline_seconds

    def _predict_in_parts(
        self, package: ModelPackage, predictor: Predictor, jobs: Sequence[ClaimedJob]
    ) -> None:
        """Compute as many at once as the device was found to hold."""
        done = 0
        while done < len(jobs):
            size = self._largest_batch.get(package.at_version, len(jobs))
            self._predict(package, predictor, jobs[done : done + size])
            done += size

    def _predict(
        self, package: ModelPackage, predictor: Predictor, jobs: Sequence[ClaimedJob]
    ) -> None:
        started_at = now_utc()
        started = time.monotonic()
        try:
            scores = predictor.predict(np.stack([job.tensor.values for job in jobs]))
        except DeviceOutOfMemory as error:
            self._predict_halves(package, predictor, jobs, error)
            return
        except RemoteUnavailable as error:
            # Nothing is wrong with the jobs: they wait, however long, and no attempt is counted.
            self._models.set_aside(package, error, time.monotonic() - started)
            self._give_back(jobs)
            return
        except ModelError as error:
            self._predict_apart(package, predictor, jobs, error)
            return
        self._finish(package, predictor, jobs, scores, started_at)
        self._count(len(jobs), time.monotonic() - started)
        _logger.info(
            "%s analysed %s", package.at_version, number_of(len(jobs), "input"),
            extra={ACTION: "analysed", MODEL: package.at_version, COUNT: len(jobs),
                   SECONDS: round(time.monotonic() - started, 3)},
        )  # fmt: skip

    def _count(self, images: int, seconds: float) -> None:
        self.figures.batches += 1
        self.figures.images += images
        self.figures.places += self._section.maximum_batch
        self.figures.computed_seconds += seconds

    def _predict_halves(
        self,
        package: ModelPackage,
        predictor: Predictor,
        jobs: Sequence[ClaimedJob],
        error: DeviceOutOfMemory,
    ) -> None:
        """Try again with half as many at once, and fail only what does not fit alone."""
        if len(jobs) == 1:
            self._fail(jobs[0], str(error), retryable=True)
            return
        half = len(jobs) // 2
        self._largest_batch[package.at_version] = half
        _logger.warning(
            "%s: the device has no memory for %d inputs at once; using at most %d from now on",
            package.at_version, len(jobs), half,
            extra={ACTION: "batch_halved", MODEL: package.at_version, COUNT: half},
        )  # fmt: skip
        self._predict_in_parts(package, predictor, jobs)

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
            with self._ending(jobs[0]):
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
        self.recorder.put([each for each in judged if not is_explained(package, each.findings)])
        explained = [each for each in judged if is_explained(package, each.findings)]
        if not explained:
            return
        deadline = self._deadline(package.at_version, jobs[0].tensor.values.shape)
        for part in explained_together(package, predictor, explained):
            with self._guard(f"the explanation of what {package.at_version} found", deadline):
                self.recorder.put(with_explanations(package, predictor, part))

    def _give_back(self, jobs: Sequence[ClaimedJob]) -> None:
        give_back(self._database, self._owner, now_utc(), [job.id for job in jobs])
        self.in_hand.drop(jobs)

    def _fail(
        self, job: ClaimedJob, reason: str, *, retryable: bool, suspect: bool = False
    ) -> None:
        pause = OUT_OF_MEMORY_PAUSE_SECONDS if retryable and not suspect else 0.0
        with self._ending(job):
            state = fail_attempt(
                self._database, job, reason, retryable=retryable, now=now_utc(),
                max_attempts=self._section.maximum_attempts, retry_after_seconds=pause,
                suspect=suspect,
            )  # fmt: skip
            _logger.error(
                "job %d is %s: %s", job.id, state, reason,
                extra={ACTION: "job_failed", JOB: job.id, STUDY: job.study_instance_uid,
                       MODEL: job.model.at_version, REASON: reason},
            )  # fmt: skip

    @contextmanager
    def _ending(self, job: ClaimedJob) -> Iterator[None]:
        """Hold a job no more after the block, which ends it; the others of its batch go on.

        One that cannot be ended now is another's already, or comes back when its lease runs out.
        """
        try:
            yield
        except MedimgdError as error:
            _logger.warning(
                "job %d is not ended: %s", job.id, error,
                extra={ACTION: "lease_lost", JOB: job.id, REASON: type(error).__name__},
            )  # fmt: skip
        finally:
            self.in_hand.drop([job])


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
