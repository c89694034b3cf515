"""The preparer process: decides which model reads what of a complete study, and makes tensors.

Owns the step from a complete study to jobs, refusals or ``unmatched``. A package is asked by
``daemon.asking``; the rows are ``storage.preparation``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from daemon.asking import Answer, SpooledStudy
from daemon.catalogue import serving
from daemon.config import Config
from daemon.leased_study import Fault, LeasedStudy
from daemon.logs import ACTION, MODEL, REASON, SECONDS, STUDY
from daemon.role import RoleProcess, now_utc
from daemon.shadow_preparing import ShadowPreparer, with_shadows
from dicom_io.errors import CannotDecode, MedimgdError, Refusal
from model.package import ModelPackage
from model.selection import Candidate
from storage.database import Database
from storage.enqueueing import NewJob, NewRefusal
from storage.preparation import (
    NewDecision,
    Preparation,
    PreparationTask,
    claim_study_for_preparation,
    fail_preparation,
    finish_preparation,
    give_back_preparations,
    put_off_preparation,
    reclaim_preparations,
    renew_preparation,
)
from storage.shadows import reclaim_runs
from storage.spool import Spool
from storage.standings import list_standings
from storage.states import StudyState

_logger = logging.getLogger(__name__)

IDLE_SECONDS = 0.25
PATIENCE_SECONDS = 24 * 3600.0
"""A study whose files cannot be read is tried for a day before a person is asked."""


@dataclass
class Decisions:
    """What the packages decided about one study, gathered while it is prepared."""

    decisions: list[NewDecision] = field(default_factory=list)
    jobs: list[NewJob] = field(default_factory=list)
    refusals: list[NewRefusal] = field(default_factory=list)

    def add(self, answer: Answer, instance_set_digest: str) -> None:
        """Take what one package said of the study: a job, a refusal, or neither."""
        chosen = answer.chosen
        if chosen is not None and answer.tensor is not None:
            series = chosen.series_instance_uid
            self.jobs.append(
                NewJob(answer.package.identity, series, instance_set_digest, answer.tensor)
            )
        if chosen is not None and answer.refusal is not None:
            self.refusals.append(_refusal(answer, chosen, answer.refusal, instance_set_digest))
        self.decisions.append(_decision(answer))

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
        self._in_hand = LeasedStudy[PreparationTask](
            self._renew, lambda task: task.study_instance_uid
        )

    def prepare_next(self) -> bool:
        """Prepare the study that waits longest; False when there is none."""
        section = self._config.study
        task = claim_study_for_preparation(
            self._database, self._owner, now_utc(), section.lease_seconds,
            max_attempts=section.maximum_attempts,
        )  # fmt: skip
        if task is not None:
            self._in_hand.work(task, self._prepare, self._fail)
        return task is not None

    def renew(self, now: datetime) -> None:
        """Extend the lease of the study in hand; the heartbeat calls this."""
        self._in_hand.renew(now)

    def _renew(self, task: PreparationTask, now: datetime) -> None:
        renew_preparation(self._database, task, now, self._config.study.lease_seconds)

    def _prepare(self, task: PreparationTask) -> None:
        started = time.monotonic()
        packages = serving(self._config, list_standings(self._database)).packages
        preparation = self._decide(task, packages).preparation(len(packages))
        finish_preparation(self._database, task, preparation, now_utc())
        _logger.info(
            "study %s: %s", preparation.outcome, preparation.reason,
            extra={ACTION: "study_prepared", STUDY: task.study_instance_uid,
                   SECONDS: round(time.monotonic() - started, 3)},
        )  # fmt: skip

    def _decide(self, task: PreparationTask, packages: Sequence[ModelPackage]) -> Decisions:
        study = SpooledStudy(self._spool, task.series, packages)
        gathered = Decisions()
        for package in packages:
            answer = study.ask(package)
            gathered.add(answer, task.instance_set_digest)
            if answer.refusal is not None:
                _logger.warning(
                    "%s refuses: %s", package.at_version, answer.refusal,
                    extra={ACTION: "model_refuses", STUDY: task.study_instance_uid,
                           MODEL: package.at_version},
                )  # fmt: skip
        return gathered

    def _fail(self, task: PreparationTask, fault: Fault) -> None:
        section = self._config.study
        if fault.retryable:
            # A disk that is away for a moment must not cost three attempts.
            state = put_off_preparation(
                self._database, task, fault.reason, now_utc(), section.lease_seconds,
                patience_seconds=PATIENCE_SECONDS, max_attempts=section.maximum_attempts,
            )  # fmt: skip
        else:
            state = fail_preparation(
                self._database, task, fault.reason, now_utc(),
                max_attempts=section.maximum_attempts,
            )  # fmt: skip
        waits = fault.retryable and state is StudyState.COMPLETE
        _logger.log(
            logging.WARNING if waits else logging.ERROR,
            "preparation failed, the study is %s: %s", state, fault.reason,
            extra={ACTION: "preparation_waits" if waits else "preparation_failed",
                   STUDY: task.study_instance_uid, REASON: fault.kind},
        )  # fmt: skip


def _refusal(answer: Answer, chosen: Candidate, error: MedimgdError, digest: str) -> NewRefusal:
    reason = error.reason if isinstance(error, Refusal) else CannotDecode.reason
    return NewRefusal(
        answer.package.identity,
        chosen.series_instance_uid,
        digest,
        reason,
        str(error),
        chosen.sop_instance_uids,
        answer.package.preprocessing_digest,
    )


def _decision(answer: Answer) -> NewDecision:
    evaluation = answer.selection.as_mapping()
    if answer.refusal is not None:
        evaluation["refusal"] = str(answer.refusal)
    return NewDecision(
        answer.package.identity.name,
        answer.package.identity.version,
        answer.chosen.series_instance_uid if answer.chosen else None,
        answer.tensor is not None,
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
