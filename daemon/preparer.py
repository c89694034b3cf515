"""The preparer process: decides which model reads what of a complete study, and makes tensors.

Owns the step from a complete study to jobs, refusals or ``unmatched``. The decision itself is
``model.selection``, the pixels are ``dicom_io.tensors``, the rows are ``storage.preparation``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from daemon.catalogue import serving
from daemon.config import Config
from daemon.logs import ACTION, MODEL, REASON, SECONDS, STUDY
from daemon.role import RoleProcess, now_utc, where
from daemon.shadow_preparing import ShadowPreparer, with_shadows
from dicom_io.errors import CannotDecode, MedimgdError, Refusal, UnreadableInstance
from dicom_io.header import read_attributes
from dicom_io.tensors import build_tensor
from model.package import ModelPackage
from model.selection import (
    Candidate,
    OutcomeValues,
    Selection,
    StudyInstance,
    select,
    wanted_keywords,
)
from storage.database import Database
from storage.enqueueing import NewJob, NewRefusal
from storage.errors import LeaseLost
from storage.preparation import (
    NewDecision,
    Preparation,
    PreparationTask,
    claim_study_for_preparation,
    fail_preparation,
    finish_preparation,
    give_back_preparations,
    reclaim_preparations,
    renew_preparation,
)
from storage.shadows import reclaim_runs
from storage.spool import Spool
from storage.standings import list_standings
from storage.states import StudyState

_logger = logging.getLogger(__name__)

IDLE_SECONDS = 0.25


@dataclass
class Decisions:
    """What the packages decided about one study, gathered while it is prepared."""

    decisions: list[NewDecision] = field(default_factory=list)
    jobs: list[NewJob] = field(default_factory=list)
    refusals: list[NewRefusal] = field(default_factory=list)

    def preparation(self, model_count: int) -> Preparation:
        """Return what is written: where the study goes and why."""
        if self.jobs:
            names = ", ".join(job.model.at_version for job in self.jobs)
            outcome, reason = StudyState.ROUTED, f"analysed by {names}"
        elif self.refusals:
            first = self.refusals[0]
            outcome = StudyState.REFUSED
            reason = f"{first.model.at_version} refuses: {first.message}"
        elif model_count:
            outcome = StudyState.UNMATCHED
            reason = f"none of {model_count} installed models reads this study"
        else:
            outcome, reason = StudyState.UNMATCHED, "no usable model is installed"
        return Preparation(outcome, reason, self.decisions, self.jobs, self.refusals)


class Preparer:
    """Prepares one study at a time.

    Parameters
    ----------
    config : Config
        Which models are installed, and how long a lease lasts.
    database : Database
        Open for writing.
    spool : Spool
        Where the instances lie.
    owner : str
        In whose name studies are leased.
    """

    def __init__(self, config: Config, database: Database, spool: Spool, owner: str) -> None:
        self._config = config
        self._database = database
        self._spool = spool
        self._owner = owner
        self._in_hand: PreparationTask | None = None
        self._holding = threading.Lock()

    def prepare_next(self) -> bool:
        """Prepare the study that waits longest; False when there is none."""
        section = self._config.study
        task = claim_study_for_preparation(
            self._database, self._owner, now_utc(), section.lease_seconds,
            max_attempts=section.maximum_attempts,
        )  # fmt: skip
        if task is None:
            return False
        with self._holding:
            self._in_hand = task
        try:
            self._prepare(task)
        finally:
            with self._holding:
                self._in_hand = None
        return True

    def renew(self, now: datetime) -> None:
        """Extend the lease of the study in hand; the heartbeat calls this."""
        with self._holding:
            task = self._in_hand
        if task is None:
            return
        try:
            renew_preparation(self._database, task, now, self._config.study.lease_seconds)
        except LeaseLost:
            # Finishing will find out as well and write nothing.
            _logger.info("lease lost", extra={ACTION: "lease_lost", STUDY: task.study_instance_uid})

    def _prepare(self, task: PreparationTask) -> None:
        started = time.monotonic()
        uid = task.study_instance_uid
        try:
            packages = serving(self._config, list_standings(self._database)).packages
            preparation = self._decide(task, packages).preparation(len(packages))
            finish_preparation(self._database, task, preparation, now_utc())
        except LeaseLost as error:
            _logger.info("%s", error, extra={ACTION: "lease_lost", STUDY: uid})
            return
        except MedimgdError as error:
            if error.retryable:
                self._leave_for_later(task, error)
            else:
                self._fail(task, str(error), type(error).__name__)
            return
        except Exception as error:  # noqa: BLE001 - one study must never stop the others
            self._fail(task, f"unexpected {type(error).__name__} in {where(error)}",
                       type(error).__name__)  # fmt: skip
            return
        _logger.info(
            "study %s: %s", preparation.outcome, preparation.reason,
            extra={ACTION: "study_prepared", STUDY: uid,
                   SECONDS: round(time.monotonic() - started, 3)},
        )  # fmt: skip

    def _leave_for_later(self, task: PreparationTask, error: MedimgdError) -> None:
        """Let the lease run out: a disk that is away for a moment must not cost three attempts."""
        _logger.warning(
            "preparation waits for %.0f s: %s", self._config.study.lease_seconds, error,
            extra={ACTION: "preparation_waits", STUDY: task.study_instance_uid,
                   REASON: type(error).__name__},
        )  # fmt: skip

    def _fail(self, task: PreparationTask, reason: str, kind: str) -> None:
        state = fail_preparation(
            self._database, task, reason, now_utc(),
            max_attempts=self._config.study.maximum_attempts,
        )  # fmt: skip
        _logger.error(
            "preparation failed, the study is %s: %s", state, reason,
            extra={ACTION: "preparation_failed", STUDY: task.study_instance_uid, REASON: kind},
        )  # fmt: skip

    def _decide(self, task: PreparationTask, packages: Iterable[ModelPackage]) -> Decisions:
        packages = tuple(packages)
        paths = {
            instance.sop_instance_uid: self._spool.absolute(instance.path)
            for series in task.series
            for instance in series.instances
        }
        instances = _image_instances(task, paths, wanted_keywords(packages))
        gathered = Decisions()
        for package in packages:
            self._ask(package, select(package, instances), task, paths, gathered)
        return gathered

    def _ask(
        self,
        package: ModelPackage,
        selection: Selection,
        task: PreparationTask,
        paths: dict[str, Path],
        gathered: Decisions,
    ) -> None:
        """Turn one package's decision into a job, a refusal, or neither."""
        chosen = selection.chosen
        refusal: MedimgdError | None = None
        if selection.outcome is OutcomeValues.OUTSIDE_CONTRACT:
            refusal = selection.refusal()
        elif chosen is not None:
            try:
                gathered.jobs.append(self._job(package, chosen, task, paths))
            except (Refusal, UnreadableInstance) as error:
                refusal = error
        if refusal is not None and chosen is not None:
            gathered.refusals.append(_refusal(package, chosen, task, refusal))
            _logger.warning(
                "%s refuses: %s", package.at_version, refusal,
                extra={ACTION: "model_refuses", STUDY: task.study_instance_uid,
                       MODEL: package.at_version},
            )  # fmt: skip
        gathered.decisions.append(_decision(package, selection, refusal))

    def _job(
        self,
        package: ModelPackage,
        chosen: Candidate,
        task: PreparationTask,
        paths: dict[str, Path],
    ) -> NewJob:
        tensor = build_tensor([paths[uid] for uid in chosen.sop_instance_uids], package.recipe)
        return NewJob(
            package.identity, chosen.series_instance_uid, task.instance_set_digest, tensor
        )


def _image_instances(
    task: PreparationTask, paths: dict[str, Path], keywords: frozenset[str]
) -> list[StudyInstance]:
    """Return every instance that has an image, with the attributes the packages ask for."""
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


def _refusal(
    package: ModelPackage, chosen: Candidate, task: PreparationTask, error: MedimgdError
) -> NewRefusal:
    reason = error.reason if isinstance(error, Refusal) else CannotDecode.reason
    return NewRefusal(
        package.identity,
        chosen.series_instance_uid,
        task.instance_set_digest,
        reason,
        str(error),
        chosen.sop_instance_uids,
        package.preprocessing_digest,
    )


def _decision(
    package: ModelPackage, selection: Selection, refusal: MedimgdError | None
) -> NewDecision:
    evaluation = selection.as_mapping()
    if refusal is not None:
        evaluation["refusal"] = str(refusal)
    return NewDecision(
        package.identity.name,
        package.identity.version,
        selection.chosen.series_instance_uid if selection.chosen else None,
        selection.chosen is not None and refusal is None,
        evaluation,
    )


def run_preparer(config: Config, database: Database, slot: str) -> None:
    """Prepare studies until a stop is asked for."""
    # A predecessor in this slot is dead: what it held is free again at once.
    reclaim_preparations(
        database, now_utc(), owner=slot, max_attempts=config.study.maximum_attempts
    )
    preparer = Preparer(config, database, Spool(config.spool_folder, 0, slot=slot), slot)
    shadows = ShadowPreparer(config, database, Spool(config.spool_folder, 0, slot=slot), slot)
    # What a dead predecessor prepared for a shadow is taken over by whoever looks next.
    reclaim_runs(database, now_utc(), owner=slot)

    def renew_all(now: datetime) -> None:
        preparer.renew(now)
        shadows.renew(now)

    step = with_shadows(
        preparer.prepare_next, shadows, lambda: serving(config, list_standings(database)).shadows
    )
    role = RoleProcess(config, database, "preparer", slot, renew_all)
    role.begin()
    role.repeat(step, IDLE_SECONDS)
    give_back_preparations(database, slot)
    role.end()
