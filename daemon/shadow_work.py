"""The shadow's part of the worker: runs shadows while no study waits for an answer.

Owns what a worker does with ``storage.shadows``. Writes no result, no document and no delivery.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime

import numpy as np

from daemon.config import Config
from daemon.logs import ACTION, COUNT, MODEL, REASON, STUDY
from daemon.role import now_utc
from dicom_io.errors import MedimgdError
from dicom_io.wording import number_of
from model.errors import ModelError, RemoteUnavailable, UnusableOutput
from model.findings import judge
from model.package import ModelPackage
from model.runtimes.port import Predictor
from storage.database import Database
from storage.errors import LeaseLost
from storage.shadows import (
    ClaimedRun,
    claim_runs,
    end_run,
    finish_run,
    give_back_runs,
    put_back_run,
    reclaim_runs,
    renew_runs,
    waiting_shadows,
)
from storage.states import ShadowState

_logger = logging.getLogger(__name__)

MOST_AT_ONCE = 4
"""A study that arrives meanwhile waits for a shadow's batch to end: it is kept short."""
PAUSE_SECONDS = 60.0
"""A device without memory for a shadow is left to those that serve."""


class ShadowWorker:
    """Runs a few shadow runs at a time.

    Parameters
    ----------
    config : Config
        Batch size and lease.
    database : Database
        Open for writing.
    find : callable
        Returns a loaded package and its predictor by ``name@version``, or None.
    owner : str
        In whose name runs are leased.
    """

    def __init__(
        self,
        config: Config,
        database: Database,
        find: Callable[[str], tuple[ModelPackage, Predictor] | None],
        owner: str,
    ) -> None:
        self._config = config
        self._database = database
        self._find = find
        self._owner = owner
        self._in_hand: tuple[ClaimedRun, ...] = ()
        self._holding = threading.Lock()

    def reclaim(self) -> None:
        """Take back what a dead predecessor in this slot held."""
        reclaim_runs(self._database, now_utc(), owner=self._owner)

    def give_back(self) -> None:
        """Return what is in hand; called at the end of the process."""
        give_back_runs(self._database, self._owner, now_utc())

    def renew(self, now: datetime) -> None:
        """Extend the leases of the runs in hand; the heartbeat calls this."""
        with self._holding:
            runs = [claimed.run for claimed in self._in_hand]
        if runs:
            renew_runs(self._database, runs, now, self._config.worker.lease_seconds)

    def work(self) -> bool:
        """Run one small batch; False when nothing waits for a loaded shadow."""
        section = self._config.worker
        for name, version in waiting_shadows(self._database, now_utc()):
            served = self._find(f"{name}@{version}")
            if served is None:
                continue
            claimed = claim_runs(
                self._database, self._owner, name, version,
                min(MOST_AT_ONCE, section.maximum_batch), now_utc(), section.lease_seconds,
            )  # fmt: skip
            if claimed:
                self._hold(claimed)
                try:
                    self._run(*served, claimed)
                finally:
                    self._hold(())
                return True
        return False

    def _hold(self, claimed: tuple[ClaimedRun, ...]) -> None:
        with self._holding:
            self._in_hand = claimed

    def _run(
        self, package: ModelPackage, predictor: Predictor, claimed: Sequence[ClaimedRun]
    ) -> None:
        analysed = 0
        for one in claimed:
            try:
                analysed += self._run_one(package, predictor, one)
            except LeaseLost as error:
                _logger.info("%s", error, extra={ACTION: "shadow_lease_lost"})
        if analysed:
            _logger.info(
                "shadow %s analysed %s", package.at_version, number_of(analysed, "input"),
                extra={ACTION: "shadow_analysed", MODEL: package.at_version, COUNT: analysed},
            )  # fmt: skip

    def _run_one(self, package: ModelPackage, predictor: Predictor, claimed: ClaimedRun) -> bool:
        """Let a shadow say what it says about one input; False when it could not."""
        run = claimed.run
        if not _is_made_for(claimed, package):
            said = "the package was replaced under the same version since the study was prepared"
            end_run(self._database, run, ShadowState.FAILED, said, now_utc())
            return False
        try:
            scores = predictor.predict(np.stack([claimed.tensor.values]))
        except UnusableOutput as error:
            end_run(self._database, run, ShadowState.REFUSED, str(error), now_utc())
        except ModelError as error:
            self._fail(claimed, error)
            return False
        else:
            finish_run(self._database, run, judge(scores[0], package.labels), now_utc())
        return True

    def _fail(self, claimed: ClaimedRun, error: MedimgdError) -> None:
        run = claimed.run
        if error.retryable:
            put_back_run(
                self._database, run, str(error), now_utc(), pause_seconds=PAUSE_SECONDS,
                was_tried=not isinstance(error, RemoteUnavailable),
            )  # fmt: skip
        else:
            end_run(self._database, run, ShadowState.FAILED, str(error), now_utc())
        _logger.warning(
            "shadow %s: %s", run.model.at_version, error,
            extra={ACTION: "shadow_failed", MODEL: run.model.at_version,
                   STUDY: run.study_instance_uid, REASON: type(error).__name__},
        )  # fmt: skip


def _is_made_for(claimed: ClaimedRun, package: ModelPackage) -> bool:
    model = claimed.run.model
    return (
        model.weights_sha256 == package.identity.weights_sha256
        and model.preprocessing_digest == package.preprocessing_digest
    )
