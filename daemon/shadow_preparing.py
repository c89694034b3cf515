"""The shadow's part of the preparer: shows studies to shadows once the active models have them.

Owns what a preparer does with ``storage.shadow_preparation``. A study is shown to a shadow only
after its own preparation is committed, and while no other study waits: whatever a shadow does, no
study is prepared later, otherwise or not at all because of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from daemon.catalogue import Shadow
from daemon.config import Config
from daemon.logs import ACTION, MODEL, REASON, STUDY
from daemon.role import now_utc, where
from dicom_io.errors import MedimgdError, Refusal, UnreadableInstance
from dicom_io.header import read_attributes
from dicom_io.tensors import build_tensor
from model.package import ModelPackage
from model.selection import OutcomeValues, StudyInstance, select, wanted_keywords
from storage.database import Database
from storage.errors import LeaseLost
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
        self._in_hand: ShadowTask | None = None
        self._holding = threading.Lock()
        self._look_next = 0.0
        self._whole_look_next = 0.0

    def prepare_next(self, shadows: Sequence[Shadow]) -> bool:
        """Show one study to one shadow; False when none of them lacks any."""
        if not shadows or time.monotonic() < self._look_next:
            return False
        for shadow in shadows:
            task = self._claim(shadow)
            if task is not None:
                self._hold(task)
                try:
                    self._prepare(shadow.package, task)
                finally:
                    self._hold(None)
                return True
        self._look_next = time.monotonic() + LOOK_EVERY_SECONDS
        if time.monotonic() >= self._whole_look_next:
            self._whole_look_next = time.monotonic() + WHOLE_LOOK_EVERY_SECONDS
        return False

    def renew(self, now: datetime) -> None:
        """Extend the lease of the run in hand; the heartbeat calls this."""
        with self._holding:
            task = self._in_hand
        if task is not None:
            renew_runs(self._database, [task.run], now, self._config.study.lease_seconds)

    def _hold(self, task: ShadowTask | None) -> None:
        with self._holding:
            self._in_hand = task

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
        try:
            self._ask(package, task)
        except LeaseLost as error:
            _logger.info("%s", error, extra={ACTION: "shadow_lease_lost"})
        except MedimgdError as error:
            self._fail(package, task, str(error), type(error).__name__)
        except Exception as error:  # noqa: BLE001 - one study must never stop the others
            what = f"unexpected {type(error).__name__} in {where(error)}"
            self._fail(package, task, what, type(error).__name__)

    def _ask(self, package: ModelPackage, task: ShadowTask) -> None:
        paths = {
            instance.sop_instance_uid: self._spool.absolute(instance.path)
            for series in task.series
            for instance in series.instances
        }
        selection = select(package, _image_instances(task, paths, package))
        chosen = selection.chosen
        if chosen is None:
            self._end(task, ShadowState.UNMATCHED, "it reads nothing of this study")
            return
        series = chosen.series_instance_uid
        if selection.outcome is OutcomeValues.OUTSIDE_CONTRACT:
            self._end(task, ShadowState.REFUSED, str(selection.refusal()), series)
            return
        try:
            files = [paths[uid] for uid in chosen.sop_instance_uids]
            tensor = build_tensor(files, package.recipe)
        except (Refusal, UnreadableInstance) as error:
            self._end(task, ShadowState.REFUSED, str(error), series)
            return
        await_worker(self._database, task.run, series, tensor, now_utc())

    def _end(self, task: ShadowTask, state: ShadowState, reason: str, series: str = "") -> None:
        end_preparation(
            self._database, task.run, state, reason, now_utc(), series_instance_uid=series
        )

    def _fail(self, package: ModelPackage, task: ShadowTask, reason: str, kind: str) -> None:
        _logger.warning(
            "shadow %s not prepared: %s", package.at_version, reason,
            extra={ACTION: "shadow_preparation_failed", MODEL: package.at_version,
                   STUDY: task.study.study_instance_uid, REASON: kind},
        )  # fmt: skip
        try:
            self._end(task, ShadowState.FAILED, reason)
        except LeaseLost as error:
            _logger.info("%s", error, extra={ACTION: "shadow_lease_lost"})


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


def _image_instances(
    task: ShadowTask, paths: dict[str, Path], package: ModelPackage
) -> list[StudyInstance]:
    keywords = wanted_keywords([package])
    return [
        StudyInstance(
            instance.sop_instance_uid,
            series.series_instance_uid,
            read_attributes(paths[instance.sop_instance_uid], keywords),
        )
        for series in task.series
        for instance in series.instances
        if instance.rows > 0 and instance.columns > 0
    ]
