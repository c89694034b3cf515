"""The scheduler: judges completion, takes back what the dead held, and keeps retention.

Owns the clock of the installation: APScheduler calls these duties in the parent of ``medimgd run``,
or in a process of their own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType

from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler

from daemon.config import Config
from daemon.dangling_settings import dangling_settings
from daemon.in_hand import note_path, read_note
from daemon.logs import ACTION, COUNT, JOB, REASON, STUDY
from daemon.role import RoleProcess, now_utc, where
from dicom_io.errors import MedimgdError
from dicom_io.wording import number_of
from storage.claims import expired_leases, reclaim_expired
from storage.completion import (
    CompletionRules,
    DeadlineAction,
    complete_due_studies,
    put_forward,
)
from storage.database import Database
from storage.preparation import reclaim_preparations
from storage.retention import (
    forget_kept_documents,
    forget_old_traffic,
    purge_finished_studies,
)
from storage.shadows import reclaim_runs
from storage.spool import Spool
from storage.standings import refuse_jobs_of_retired
from storage.waits import ConfiguredWaits, end_impossible_waits

_logger = logging.getLogger(__name__)

COMPLETION_EVERY_SECONDS = 0.5
RECLAIM_EVERY_SECONDS = 5.0
WAITS_EVERY_SECONDS = 30.0
RETENTION_EVERY_SECONDS = 600.0
MOST_PURGED_AT_ONCE = 200
CLOCK_WATCH_SECONDS = 5.0
CLOCK_JUMP_SECONDS = 2.0
"""The wall clock may be steered by this much; more means that it was set."""


class ForwardJump:
    """By how much the wall clock was set forward since the last look, 0 for what is no jump.

    A look that ends with an error is made again, with the same jump.
    """

    def __init__(self) -> None:
        self._ahead = _wall_clock_ahead()

    def __enter__(self) -> float:
        self._now_ahead = _wall_clock_ahead()
        forward = self._now_ahead - self._ahead
        return forward if forward > CLOCK_JUMP_SECONDS else 0.0

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._ahead = self._now_ahead


class Scheduler:
    """The periodic duties of one installation.

    Parameters
    ----------
    config : Config
        Completion rules, attempts, retention.
    database : Database
        Open for writing.
    spool : Spool
        Where retention removes files.
    """

    def __init__(self, config: Config, database: Database, spool: Spool) -> None:
        self._config = config
        self._database = database
        self._spool = spool
        self._rules = CompletionRules(
            quiet_seconds=config.study.quiet_seconds,
            deadline_seconds=config.study.deadline_seconds,
            deadline_action=DeadlineAction(config.study.deadline_action),
        )
        self._clock = BackgroundScheduler(timezone="UTC")
        self._judged_by, self._reclaimed_by = ForwardJump(), ForwardJump()
        self._reclaims_from = 0.0
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin to call the duties, each never twice at once."""
        self.every(COMPLETION_EVERY_SECONDS, self.complete_studies, "completion")
        self.every(RECLAIM_EVERY_SECONDS, self.reclaim_leases, "leases")
        self.every(WAITS_EVERY_SECONDS, self.end_impossible_waits, "waits")
        self.every(RETENTION_EVERY_SECONDS, self.keep_retention, "retention")
        # Once, and beside the others: reading the packages it asks about may take seconds.
        self._clock.add_job(_surviving(self.tell_dangling_settings, "settings"), id="settings")
        self._clock.start()
        threading.Thread(target=self._watch_clock, name="clock-watch", daemon=True).start()

    def _watch_clock(self) -> None:
        """Call every duty at once after the wall clock was set.

        APScheduler waits for instants; when the clock is set back by an hour it would sleep for
        an hour, and no study would become complete.
        """
        offset = _wall_clock_ahead()
        while not self._ended.wait(CLOCK_WATCH_SECONDS):
            drift = _wall_clock_ahead() - offset
            if abs(drift) > CLOCK_JUMP_SECONDS:
                _logger.warning("the clock was set by %.0f s", drift, extra={ACTION: "clock_set"})
                for duty in self._clock.get_jobs():
                    with suppress(JobLookupError):  # One that is called once has just ended.
                        duty.modify(next_run_time=now_utc())
                offset += drift

    def every(self, seconds: float, duty: Callable[[], None], name: str) -> None:
        """Add a duty; its errors are logged and never end the others."""
        self._clock.add_job(
            _surviving(duty, name), "interval", seconds=seconds, id=name,
            max_instances=1, coalesce=True, misfire_grace_time=None,
        )  # fmt: skip

    def tell_dangling_settings(self) -> None:
        """Log which settings name a package or a folder that is not there."""
        for sentence in dangling_settings(self._config):
            _logger.warning("%s", sentence, extra={ACTION: "setting_names_nothing"})

    def stop(self) -> None:
        """End the duty under way and call no other."""
        self._ended.set()
        self._clock.shutdown(wait=True)

    def complete_studies(self) -> None:
        """Complete or hold the studies whose waiting is over."""
        self._put_forward()
        for judgement in complete_due_studies(self._database, self._rules, now_utc()):
            _logger.info(
                "study %s: %s", judgement.verdict, judgement.reason,
                extra={ACTION: "study_judged", STUDY: judgement.study_instance_uid,
                       REASON: judgement.reason},
            )  # fmt: skip

    def _put_forward(self) -> None:
        """Count no time as waited that passed on the wall clock alone.

        It is set forward when a machine with a slow clock has found its time server, and stands
        still while a virtual machine is suspended.
        """
        with self._judged_by as forward:
            if not forward:
                return
            waiting = put_forward(self._database, forward, now_utc())
            _logger.warning(
                "the clock was set forward by %.0f s: %d studies under reception wait on",
                forward, waiting, extra={ACTION: "clock_set_forward", COUNT: waiting},
            )  # fmt: skip

    def reclaim_leases(self) -> None:
        """Take back studies and jobs whose process fell silent."""
        with self._reclaimed_by as forward:
            if forward:
                # Every lease looks as if it had run out: whoever lives renews it meanwhile.
                self._reclaims_from = time.monotonic() + RECLAIM_EVERY_SECONDS
        if time.monotonic() < self._reclaims_from:
            return
        held = reclaim_preparations(
            self._database, now_utc(), max_attempts=self._config.study.maximum_attempts
        )
        for study in held:
            _logger.error(
                "study held: %s", study.reason,
                extra={ACTION: "study_held", STUDY: study.study_instance_uid},
            )  # fmt: skip
        now = now_utc()
        not_begun = self._not_begun(expired_leases(self._database, now))
        for job in reclaim_expired(self._database, now, not_begun=not_begun):
            _logger.warning(
                "job %d comes back from a silent worker; it is %s", job.id, job.state,
                extra={ACTION: "job_reclaimed", JOB: job.id, STUDY: job.study_instance_uid},
            )  # fmt: skip

        refused = refuse_jobs_of_retired(self._database, now_utc())
        if refused:
            _logger.warning(
                "%d analyses that waited for a retired model are refused", len(refused),
                extra={ACTION: "retired_refused", COUNT: len(refused)},
            )  # fmt: skip
        reclaim_runs(self._database, now_utc())

    def end_impossible_waits(self) -> None:
        """Let nothing wait until the clock, which was set back, has caught up."""
        configured = ConfiguredWaits(
            self._config.study.lease_seconds,
            self._config.worker.lease_seconds,
            self._config.results.longest_retry_seconds,
        )
        ended = end_impossible_waits(self._database, now_utc(), configured)
        if ended:
            _logger.warning(
                "the clock was set back: %d waits for a later time are over", ended,
                extra={ACTION: "waits_ended", COUNT: ended},
            )  # fmt: skip

    def _not_begun(self, leases: Mapping[int, str]) -> frozenset[int]:
        """Return the jobs that their silent workers only had read ahead, by the workers' notes."""
        folder = self._config.site.data_folder
        notes = {owner: read_note(note_path(folder, owner)) for owner in set(leases.values())}
        return frozenset(job for job, owner in leases.items() if job in notes[owner])

    def keep_retention(self) -> None:
        """Remove the pixels of studies that ended long ago, and the reports that outlived them."""
        days = self._config.retention.days
        try:
            purged = purge_finished_studies(
                self._database, self._spool, now_utc(), older_than_days=days,
                limit=MOST_PURGED_AT_ONCE,
            )  # fmt: skip
        finally:
            # Files that cannot be removed keep no rows.
            forget_kept_documents(self._database, now_utc(), older_than_days=days)
            forget_old_traffic(self._database, now_utc(), older_than_days=days)
        if purged:
            _logger.info(
                "retention removed the files of %s", number_of(len(purged), "study", "studies"),
                extra={ACTION: "retention", COUNT: len(purged)},
            )  # fmt: skip


def _wall_clock_ahead() -> float:
    """Return by how much the wall clock is ahead of the one that nobody sets."""
    return time.time() - time.monotonic()


def _surviving(duty: Callable[[], None], name: str) -> Callable[[], None]:
    """Return the duty with its errors logged: this is the scheduler's process loop."""

    def called() -> None:
        try:
            duty()
        except MedimgdError as error:
            _logger.error("%s: %s", name, error, extra={ACTION: "duty_failed"})
        except Exception as error:  # noqa: BLE001 - a process loop
            _logger.error(
                "%s: unexpected %s in %s", name, type(error).__name__, where(error),
                extra={ACTION: "duty_failed", REASON: type(error).__name__},
            )  # fmt: skip

    return called


def run_scheduler(config: Config, database: Database, slot: str) -> None:
    """Keep the duties until a stop is asked for."""
    scheduler = Scheduler(config, database, Spool(config.spool_folder, 0, slot=slot))
    role = RoleProcess(config, database, "scheduler", slot)
    role.begin()
    scheduler.start()
    while not role.wait(1.0):
        pass
    scheduler.stop()
    role.end()
