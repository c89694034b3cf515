"""Reports on storage commitment that are owed: examined, sent on an association of our own.

Owns the later delivery; what is answered on the association of a request is ``daemon.committing``'s
business. Never keeps a study waiting: it runs beside the courier's work.
"""

from __future__ import annotations

import logging
from datetime import datetime

from daemon.config import Config
from daemon.logs import ACTION, COUNT, PEER, REASON, TRANSACTION
from daemon.requesters import remedy, requester_address
from daemon.role import now_utc, where
from dicom_io.commitment import CommitmentReport, FailedReference, ReportAnswer
from dicom_io.committing import send_report
from dicom_io.errors import AssociationFailed, MedimgdError
from dicom_io.statuses import FailureReasonValues, describe
from storage.clock import after
from storage.commitments import (
    CommitmentRecord,
    ReportPolicy,
    due_commitments,
    postpone_commitment,
    record_report,
)
from storage.database import Database
from storage.holdings import Examination, examine
from storage.spool import Spool
from storage.states import Actor, CommitmentState

_logger = logging.getLogger(__name__)

POLICY = ReportPolicy()
LOOK_AGAIN_SECONDS = 2.0
"""For an instance that lies in the spool and not in the index yet."""
SETTLED_AFTER_SECONDS = 900.0
"""A receiver that was killed indexes its spool again within minutes. What is not indexed then
cannot be, and is not committed to."""
AFTER_FAULT_SECONDS = 30.0
MOST_AT_ONCE = 20


def report_of(record: CommitmentRecord, found: Examination) -> CommitmentReport:
    """Return what is to be said; what could not be settled is not committed to."""
    request = record.request
    if record.is_duplicate:
        reason = FailureReasonValues.DUPLICATE_TRANSACTION
        failed = tuple(FailedReference(each, reason) for each in request.references)
        return CommitmentReport(request.transaction_uid, (), failed)
    unsettled = tuple(
        FailedReference(each, FailureReasonValues.PROCESSING_FAILURE) for each in found.unsettled
    )
    return CommitmentReport(request.transaction_uid, found.committed, found.failed + unsettled)


def log_outcome(record: CommitmentRecord, answer: ReportAnswer) -> None:
    """Say once that a requester was told, could not be told at first, or will never be.

    A requester's own words may name a patient and stay out of the log; `status` shows them.
    """
    why = answer.comment if answer.status is None else describe(answer.status)
    fields = {
        ACTION: f"commitment_{record.state}",
        TRANSACTION: record.request.transaction_uid,
        PEER: record.request.address,
        COUNT: record.committed_count or 0,
        REASON: why,
    }
    who = record.request.calling_ae_title
    if record.state is CommitmentState.REPORTED:
        _logger.info(
            "%s was told: %d instances committed, %d not",
            who, record.committed_count or 0, record.failed_count or 0, extra=fields,
        )  # fmt: skip
    elif record.state is CommitmentState.FAILED:
        _logger.error(
            "%s will not be told about its request for storage commitment and keeps its images: %s",
            who, why, extra=fields,
        )  # fmt: skip
    elif record.attempts == 1:
        _logger.warning(
            "%s could not be told about its request for storage commitment, it will be tried "
            "again: %s", who, why, extra=fields,
        )  # fmt: skip


class CommitmentReporter:
    """Tells requesters on new associations what they were promised an answer to.

    Parameters
    ----------
    config : Config
        Where requesters listen.
    database : Database
        Open for writing.
    spool : Spool
        Where the files are.
    """

    def __init__(self, config: Config, database: Database, spool: Spool) -> None:
        self._config = config
        self._database = database
        self._spool = spool

    def work(self) -> bool:
        """Report what is due; False when nothing was."""
        due = due_commitments(self._database, now_utc(), limit=MOST_AT_ONCE)
        away: dict[tuple[str, int], str] = {}
        for record in due:
            try:
                self._report(record, away)
            except Exception as error:  # noqa: BLE001 - a process loop: the other requests go on
                self._put_off(record, error)
        return bool(due)

    def _put_off(self, record: CommitmentRecord, error: Exception) -> None:
        what = str(error) if isinstance(error, MedimgdError) else type(error).__name__
        _logger.error(
            "a report on storage commitment has to wait (%s in %s)", what, where(error),
            extra={ACTION: "commitment_waits", TRANSACTION: record.request.transaction_uid},
        )  # fmt: skip
        postpone_commitment(self._database, record.id, after(now_utc(), AFTER_FAULT_SECONDS))

    def _report(self, record: CommitmentRecord, away: dict[tuple[str, int], str]) -> None:
        found = examine(self._database, self._spool, record.request.references)
        now = now_utc()
        if found.unsettled and _age(record, now) < SETTLED_AFTER_SECONDS:
            postpone_commitment(self._database, record.id, after(now, LOOK_AGAIN_SECONDS))
            return
        report = report_of(record, found)
        answer = self._told(record, report, away)
        now, courier = now_utc(), Actor.COURIER
        told = record_report(self._database, record.id, report, answer, courier, now, POLICY)
        log_outcome(told, answer)

    def _told(
        self,
        record: CommitmentRecord,
        report: CommitmentReport,
        away: dict[tuple[str, int], str],
    ) -> ReportAnswer:
        destination = requester_address(record.request, self._config)
        if destination is None:
            return ReportAnswer(None, remedy(record.request))
        place = destination.host, destination.port
        if place not in away:
            try:
                return send_report(destination, report)
            except AssociationFailed as error:
                away[place] = str(error)
        return ReportAnswer(None, away[place])


def _age(record: CommitmentRecord, now: datetime) -> float:
    return (now - record.requested_at).total_seconds()
