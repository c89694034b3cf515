"""The shadow's part of the preparer: shows studies to shadows once the active models have them.

Owns what a preparer does with ``storage.shadow_preparation``. A study is shown to a shadow only
after its own preparation is committed, and while no other study waits: whatever a shadow does, no
study is prepared later, otherwise or not at all because of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial

from daemon.asking import SpooledStudy
from daemon.catalogue import Shadow
from daemon.config import Config
from daemon.leased_study import Fault, LeasedStudy
from daemon.logs import ACTION, MODEL, REASON, STUDY
from daemon.role import now_utc
from model.package import ModelPackage
from storage.database import Database
from storage.shadow_preparation import (
    ShadowTask,
    await_worker,
    claim_study_for_shadow,
    end_preparation,
)
from storage.shadow_runs import ShadowModel
from storage.shadows import renew_runs
from storage.spool import Spool
from storage.states import ShadowState

_logger = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 1.0
LOOK_BACK = timedelta(minutes=10)
"""Studies prepared longer ago were seen by an earlier look, unless the clock was set."""
WHOLE_LOOK_EVERY_SECONDS = 300.0


class ShadowPreparer:
    """Prepares one study for one shadow at a time.

    Parameters
    ----------
    config : Config
        How long a lease lasts.
    database : Database
        Open for writing.
    spool : Spool
        Where the instances lie.
    owner : str
        In whose name runs are leased.
    """

    def __init__(self, config: Config, database: Database, spool: Spool, owner: str) -> None:
        self._config = config
        self._database = database
        self._spool = spool
        self._owner = owner
        self._in_hand = LeasedStudy[ShadowTask](
            self._renew, lambda task: task.study.study_instance_uid
        )
        self._look_next = 0.0
        self._whole_look_next = 0.0

    def prepare_next(self, shadows: Sequence[Shadow]) -> bool:
        """Show one study to one shadow; False when none of them lacks any."""
        if not shadows or time.monotonic() < self._look_next:
            return False
        for shadow in shadows:
            task = self._claim(shadow)
            if task is not None:
                package = shadow.package
                self._in_hand.work(
                    task, partial(self._prepare, package), partial(self._fail, package)
                )
                return True
        self._look_next = time.monotonic() + LOOK_EVERY_SECONDS
        if time.monotonic() >= self._whole_look_next:
            self._whole_look_next = time.monotonic() + WHOLE_LOOK_EVERY_SECONDS
        return False

    def renew(self, now: datetime) -> None:
        """Extend the lease of the run in hand; the heartbeat calls this."""
        self._in_hand.renew(now)

    def _renew(self, task: ShadowTask, now: datetime) -> None:
        renew_runs(self._database, [task.run], now, self._config.study.lease_seconds)

    def _claim(self, shadow: Shadow) -> ShadowTask | None:
        since = shadow.standing.state_since
        now = now_utc()
        if time.monotonic() < self._whole_look_next:
            since = max(since, now - LOOK_BACK)
        return claim_study_for_shadow(
            self._database, _model(shadow.package), self._owner, since=since, now=now,
            lease_seconds=self._config.study.lease_seconds,
        )  # fmt: skip

    def _prepare(self, package: ModelPackage, task: ShadowTask) -> None:
        answer = SpooledStudy(self._spool, task.series, [package]).ask(package)
        series = answer.chosen.series_instance_uid if answer.chosen else ""
        if answer.refusal is not None:
            self._end(task, ShadowState.REFUSED, str(answer.refusal), series)
        elif answer.tensor is None:
            self._end(task, ShadowState.UNMATCHED, "it reads nothing of this study")
        else:
            await_worker(self._database, task.run, series, answer.tensor, now_utc())

    def _end(self, task: ShadowTask, state: ShadowState, reason: str, series: str = "") -> None:
        end_preparation(
            self._database, task.run, state, reason, now_utc(), series_instance_uid=series
        )

    def _fail(self, package: ModelPackage, task: ShadowTask, fault: Fault) -> None:
        """End the run, for whatever reason: a study is not kept for a shadow."""
        _logger.warning(
            "shadow %s not prepared: %s", package.at_version, fault.reason,
            extra={ACTION: "shadow_preparation_failed", MODEL: package.at_version,
                   STUDY: task.study.study_instance_uid, REASON: fault.kind},
        )  # fmt: skip
        self._end(task, ShadowState.FAILED, fault.reason)


def with_shadows(
    prepare_active: Callable[[], bool],
    shadows: ShadowPreparer,
    present: Callable[[], Sequence[Shadow]],
) -> Callable[[], bool]:
    """Return a step that turns to shadows only when no study waits for its own preparation."""

    def step() -> bool:
        return prepare_active() or shadows.prepare_next(present())

    return step


def _model(package: ModelPackage) -> ShadowModel:
    identity = package.identity
    return ShadowModel(
        identity.name, identity.version, identity.weights_sha256, package.preprocessing_digest
    )
