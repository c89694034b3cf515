"""The receiver's index writer: what the associations report, written to the database in batches.

Owns one queue and one thread, so that receiving never waits for the database. The spool is the
truth: whatever is still queued when the process dies is found again by re-indexing.
"""

from __future__ import annotations

import logging
import queue
import threading

from daemon.logs import ACTION, COUNT, REASON, STUDY
from daemon.role import now_utc, where
from dicom_io.errors import MedimgdError
from storage.arrivals import Arrival
from storage.database import Database
from storage.errors import SpoolFailure
from storage.reception import Bringing, Closed, Opened, Refused, Report, record_reports

__all__ = ["Bringing", "Closed", "IndexWriter", "Opened", "Refused", "Report"]

_logger = logging.getLogger(__name__)

LINGER_SECONDS = 0.1
"""How long the first report of a batch waits for others. One transaction costs about a millisecond
of CPU time, a sync of the disk and a turn at the lock that all processes share; an instance within
a batch costs a thirtieth of that. A study becomes complete later by this at most."""
MOST_PER_BATCH = 512
"""More gain nothing, and the write lock should be free again soon."""
MOST_QUEUED = 20_000
"""Beyond this many unwritten reports senders are told to come back later (A700)."""
RETRY_SECONDS = 1.0
MOST_FILE_TRIES = 60
"""How often a file that cannot be read is tried again. The fault may pass, but the index of all
studies waits meanwhile: where it stays, the file is left to the next start."""


class IndexWriter:
    """Writes reports in batches, in the order they were made.

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
        self._is_closing = False
        self._is_enough = threading.Event()
        self._untold = 0
        self._thread = threading.Thread(target=self._write_until_closed, name="index-writer")
        self._thread.start()

    @property
    def is_overloaded(self) -> bool:
        """True when so much is unwritten, or nothing is written, that senders should wait."""
        return self._reports.qsize() >= MOST_QUEUED or not self.is_alive

    def put(self, report: Report) -> None:
        """Queue one report; never blocks.

        While so much is unwritten that senders are told to wait, nothing is kept of telling them:
        they try again and again, and the queue would grow by what should relieve it.
        """
        if isinstance(report, Refused) and self.is_overloaded:
            self._untold += 1
            return
        self._reports.put(report)
        if self._is_full_or_closing:
            self._is_enough.set()

    @property
    def is_alive(self) -> bool:
        """False when the writing thread has ended; nothing may be acknowledged then."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Write what is queued, then stop."""
        self._is_closing = True
        self._reports.put(None)
        self._is_enough.set()
        self._thread.join()

    def _write_until_closed(self) -> None:
        is_open = True
        while is_open:
            batch, is_open = self._next_batch()
            if batch:
                self._write_persistently(batch)

    @property
    def _is_full_or_closing(self) -> bool:
        return self._is_closing or self._reports.qsize() >= MOST_PER_BATCH

    def _next_batch(self) -> tuple[list[Report], bool]:
        """Wait for a report and for what comes soon after; False when no more will come."""
        report = self._reports.get()
        if report is not None and not self._is_full_or_closing:
            # Away from the queue: there, each report would wake this thread and take the
            # interpreter from the association that receives.
            self._is_enough.wait(LINGER_SECONDS)
            self._is_enough.clear()
        batch: list[Report] = []
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
        """Write; repeat while database or disk may recover; leave out what cannot be written."""
        pause = threading.Event()
        failures = 0
        while not self._written(reports, failures):
            failures += 1
            pause.wait(RETRY_SECONDS)
        if failures:
            _logger.info("the index goes on", extra={ACTION: "index_recovered"})
        untold, self._untold = self._untold, 0
        if untold:
            _logger.warning(
                "while the index was behind, %d refusals were logged and not recorded", untold,
                extra={ACTION: "refusals_unrecorded", COUNT: untold},
            )  # fmt: skip

    def _written(self, reports: list[Report], failures: int) -> bool:
        """Try once more; False when the same reports should be tried again."""
        try:
            self._write(reports)
        except MedimgdError as error:
            is_lasting = isinstance(error, SpoolFailure) and failures >= MOST_FILE_TRIES
            if error.retryable and not is_lasting:
                if failures == 0:
                    _logger.warning("the index waits: %s", error, extra={ACTION: "index_waits"})
                return False
            self._leave_out(reports, str(error), error)
        except Exception as error:  # noqa: BLE001 - a process loop: one report must not end it
            self._leave_out(reports, f"unexpected {type(error).__name__} in {where(error)}", error)
        return True

    def _leave_out(self, reports: list[Report], what: str, error: Exception) -> None:
        """Find the report that cannot be written, say so, and write the others."""
        if len(reports) > 1:
            # Halves, so that one bad report in hundreds costs few transactions. Order is kept: an
            # association ends after its last instance.
            middle = len(reports) // 2
            self._write_persistently(reports[:middle])
            self._write_persistently(reports[middle:])
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
        recorded = record_reports(self._database, reports, self._slot, now_utc())
        arrived = recorded.new + recorded.identical + recorded.conflicts
        if arrived:
            _logger.info(
                "indexed %d instances (%d new, %d known, %d in conflict)",
                arrived, recorded.new, recorded.identical, recorded.conflicts,
                extra={ACTION: "indexed", COUNT: arrived},
            )  # fmt: skip
        for study_instance_uid in recorded.reopened:
            _logger.info(
                "late instances: the study is received again",
                extra={ACTION: "study_reopened", STUDY: study_instance_uid},
            )
