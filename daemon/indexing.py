"""The receiver's index writer: what the associations report, written to the database in batches.

Owns one queue and one thread, so that receiving never waits for the database. The spool is the
truth: whatever is still queued when the process dies is found again by re-indexing.
"""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass
from itertools import groupby

from daemon.logs import ACTION, COUNT, REASON, STUDY
from daemon.role import now_utc, where
from dicom_io.errors import MedimgdError
from storage.arrivals import Arrival
from storage.associations import close_association, open_association
from storage.database import Database
from storage.door import record_refused_instance
from storage.recording import record_instances

_logger = logging.getLogger(__name__)

MOST_PER_BATCH = 256
MOST_QUEUED = 20_000
"""Beyond this many unwritten reports senders are told to come back later (A700)."""
RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Opened:
    """An association was accepted."""

    association_id: str
    calling_ae_title: str
    called_ae_title: str
    address: str


@dataclass(frozen=True, slots=True)
class Closed:
    """An association ended; everything it stored was reported before."""

    association_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Something was turned away at the door."""

    reason: str
    calling_ae_title: str
    called_ae_title: str
    address: str
    status: int | None = None
    sop_class_uid: str = ""
    sop_instance_uid: str = ""


Report = Opened | Closed | Refused | Arrival


class IndexWriter:
    """Writes reports in the order they were made.

    Parameters
    ----------
    database : Database
        Open for writing.
    slot : str
        The receiver's slot, in whose name associations are kept.
    """

    def __init__(self, database: Database, slot: str) -> None:
        self._database = database
        self._slot = slot
        self._reports: queue.SimpleQueue[Report | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_until_closed, name="index-writer")
        self._thread.start()

    @property
    def is_overloaded(self) -> bool:
        """True when so much is unwritten, or nothing is written, that senders should wait."""
        return self._reports.qsize() >= MOST_QUEUED or not self.is_alive

    def put(self, report: Report) -> None:
        """Queue one report; never blocks."""
        self._reports.put(report)

    @property
    def is_alive(self) -> bool:
        """False when the writing thread has ended; nothing may be acknowledged then."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Write what is queued, then stop."""
        self._reports.put(None)
        self._thread.join()

    def _write_until_closed(self) -> None:
        is_open = True
        while is_open:
            batch, is_open = self._next_batch()
            # Order matters: an association is closed after its last instance is recorded.
            for kind, reports in groupby(batch, key=type):
                if kind is Arrival:
                    self._write_persistently(list(reports))
                else:
                    for report in reports:
                        self._write_persistently([report])

    def _next_batch(self) -> tuple[list[Report], bool]:
        batch: list[Report] = []
        report = self._reports.get()
        while report is not None:
            batch.append(report)
            if len(batch) >= MOST_PER_BATCH:
                return batch, True
            try:
                report = self._reports.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _write_persistently(self, reports: list[Report]) -> None:
        """Write; repeat while the database is busy; leave out what it will never take."""
        pause = threading.Event()
        failures = 0
        while not self._written(reports, first_failure=failures == 0):
            failures += 1
            pause.wait(RETRY_SECONDS)
        if failures:
            _logger.info("the index goes on", extra={ACTION: "index_recovered"})

    def _written(self, reports: list[Report], *, first_failure: bool) -> bool:
        """Try once; False when the same reports should be tried again."""
        try:
            self._write(reports)
        except MedimgdError as error:
            if error.retryable:
                if first_failure:
                    _logger.warning("the index waits: %s", error, extra={ACTION: "index_waits"})
                return False
            self._leave_out(reports, str(error), error)
        except Exception as error:  # noqa: BLE001 - a process loop: one report must not end it
            self._leave_out(reports, f"unexpected {type(error).__name__} in {where(error)}", error)
        return True

    def _leave_out(self, reports: list[Report], what: str, error: Exception) -> None:
        """Find the report the database will never take, say so, and write the others."""
        if len(reports) > 1:
            for report in reports:
                self._write_persistently([report])
            return
        _logger.error(
            "one report cannot be indexed; its file, if any, stays in the spool: %s", what,
            extra={ACTION: "index_failed", REASON: type(error).__name__},
        )  # fmt: skip
        (report,) = reports
        if isinstance(report, Arrival):
            header = report.stored.header
            refused = Refused(
                f"stored and acknowledged, but it cannot be indexed: {what}", "", "", "",
                None, header.sop_class_uid, header.sop_instance_uid,
            )  # fmt: skip
            self._write_persistently([refused])

    def _write(self, reports: list[Report]) -> None:
        arrivals = [report for report in reports if isinstance(report, Arrival)]
        if arrivals:
            self._record(arrivals)
        else:
            self._write_single(reports[0])

    def _record(self, arrivals: list[Arrival]) -> None:
        recorded = record_instances(self._database, arrivals, now_utc())
        _logger.info(
            "indexed %d instances (%d new, %d known, %d in conflict)",
            len(arrivals), recorded.new, recorded.identical, recorded.conflicts,
            extra={ACTION: "indexed", COUNT: len(arrivals)},
        )  # fmt: skip
        for study_instance_uid in recorded.reopened:
            _logger.info(
                "late instances: the study is received again",
                extra={ACTION: "study_reopened", STUDY: study_instance_uid},
            )

    def _write_single(self, report: Report) -> None:
        match report:
            case Opened():
                open_association(
                    self._database, report.association_id, slot=self._slot, now=now_utc(),
                    calling_ae_title=report.calling_ae_title,
                    called_ae_title=report.called_ae_title, address=report.address,
                )  # fmt: skip
            case Closed():
                close_association(self._database, report.association_id, now_utc())
            case Refused():
                record_refused_instance(
                    self._database, now_utc(), reason=report.reason, status=report.status,
                    calling_ae_title=report.calling_ae_title,
                    called_ae_title=report.called_ae_title, address=report.address,
                    sop_class_uid=report.sop_class_uid,
                    sop_instance_uid=report.sop_instance_uid,
                )  # fmt: skip
