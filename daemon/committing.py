"""The receiver's desk for storage commitment: requests kept, and reported while they wait at it.

Owns the first attempt, on the association that the request came on. What cannot be said there is
left to the courier (``daemon.reporting``), which finds it in the database.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass, field

from daemon.config import Config
from daemon.logs import ACTION, ASSOCIATION, COUNT, PEER, REASON, TRANSACTION
from daemon.reporting import POLICY, log_outcome, report_of
from daemon.requesters import remedy, requester_address
from daemon.role import now_utc, where
from dicom_io.commitment import CommitmentReport, CommitmentRequest, ReportAnswer
from dicom_io.errors import MedimgdError
from dicom_io.receiving.commitment import ReportChannel
from storage.clock import after
from storage.commitments import (
    CommitmentRecord,
    accept_commitment,
    postpone_commitment,
    record_report,
)
from storage.database import Database
from storage.errors import SpoolFull
from storage.holdings import examine
from storage.spool import Spool
from storage.states import Actor

_logger = logging.getLogger(__name__)

GRACE_SECONDS = 0.5
"""A requester that releases after our answer wants its report on a new association; it does so
within milliseconds. One that stays waits for it here."""
SETTLE_SECONDS = 5.0
"""The index follows the spool within a second; what takes longer is the courier's to wait for."""
ANSWER_SECONDS = 8.0
"""For the answer to a report; afterwards another association is tried, where one can be."""
HANDOVER_SECONDS = 15.0
"""The courier leaves a request alone for so long: longer than all of the above together."""

_TURN_SECONDS = 0.1
_MOST_AT_DESK = 1000
"""Requests waiting here at once; more are left to the courier at once."""


@dataclass(slots=True)
class _Waiting:
    """One request at the desk, and how far it has come."""

    record: CommitmentRecord
    channel: ReportChannel
    came_at: float
    due_at: float
    sent_at: float | None = None
    report: CommitmentReport | None = None
    answer: ReportAnswer | None = field(default=None)
    """Set by the association's thread."""

    def on_answer(self, answer: ReportAnswer) -> None:
        self.answer = answer


class CommitmentDesk:
    """Keeps requests, and reports to requesters that stay on their association.

    One thread serves all requests and waits for nobody: a requester that ignores its report, or
    vanishes, costs an entry in a list.

    Parameters
    ----------
    config : Config
        Where requesters listen, for the hint in the log.
    database : Database
        Open for writing.
    spool : Spool
        Where the files are.
    """

    def __init__(self, config: Config, database: Database, spool: Spool) -> None:
        self._config = config
        self._database = database
        self._spool = spool
        self._new: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._waiting: list[_Waiting] = []
        self._thread = threading.Thread(target=self._serve, name="commitment-desk", daemon=True)
        self._thread.start()

    def accept(self, request: CommitmentRequest, channel: ReportChannel) -> None:
        """Keep a request in the database; called by the association's thread.

        Raises
        ------
        StorageError
            Nothing was kept; `SpoolFull` while C-STORE is answered A700 as well, because a request
            may be as large as an image.
        """
        if not self._spool.has_room():
            raise SpoolFull("too little disk is free to keep the request: ask again later")
        now = now_utc()
        record = accept_commitment(
            self._database, request, now, first_attempt_at=after(now, HANDOVER_SECONDS)
        )
        _logger.info(
            "%s asks for storage commitment", request.calling_ae_title,
            extra={ACTION: "commitment_requested", TRANSACTION: request.transaction_uid,
                   ASSOCIATION: request.association_id, PEER: request.address,
                   COUNT: len(request.references)},
        )  # fmt: skip
        came_at = time.monotonic()
        self._new.put(_Waiting(record, channel, came_at, came_at + GRACE_SECONDS))

    def close(self) -> None:
        """Leave everything that waits to the courier, and stop."""
        self._new.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while self._take_new():
            self._waiting = [each for each in self._waiting if not self._is_over(each)]
        for each in self._waiting:
            each.channel.withdraw()

    def _take_new(self) -> bool:
        """Wait for a request, or a turn while some wait; False when the desk closes."""
        try:
            came = self._new.get(timeout=_TURN_SECONDS if self._waiting else None)
        except queue.Empty:
            return True
        if came is None:
            return False
        if len(self._waiting) < _MOST_AT_DESK:
            self._waiting.append(came)
        return True

    def _is_over(self, waiting: _Waiting) -> bool:
        """Do what can be done now; True when the request has left the desk."""
        try:
            return self._turn(waiting, time.monotonic())
        except Exception as error:  # noqa: BLE001 - a process loop: the other requests go on
            what = str(error) if isinstance(error, MedimgdError) else type(error).__name__
            _logger.error(
                "a request for storage commitment is left to the courier (%s in %s)",
                what, where(error),
                extra={ACTION: "commitment_left", REASON: type(error).__name__,
                       TRANSACTION: waiting.record.request.transaction_uid},
            )  # fmt: skip
            waiting.channel.withdraw()
            return True

    def _turn(self, waiting: _Waiting, now: float) -> bool:
        if waiting.answer is not None:
            self._record(waiting, waiting.answer)
            return True
        if not waiting.channel.is_open:
            self._hand_over(waiting)
            return True
        if waiting.sent_at is not None:
            is_late = now - waiting.sent_at >= ANSWER_SECONDS
            return is_late and self._is_reachable(waiting) and self._give_up(waiting)
        return now >= waiting.due_at and self._report(waiting, now)

    def _report(self, waiting: _Waiting, now: float) -> bool:
        record = waiting.record
        found = examine(self._database, self._spool, record.request.references)
        if found.unsettled:
            if now - waiting.came_at >= SETTLE_SECONDS and self._is_reachable(waiting):
                self._hand_over(waiting)
                return True
            waiting.due_at = now + 2 * _TURN_SECONDS
            return False
        waiting.report = report_of(record, found)
        if waiting.channel.send(waiting.report, waiting.on_answer):
            waiting.sent_at = now
        return False

    def _record(self, waiting: _Waiting, answer: ReportAnswer) -> None:
        now, receiver = now_utc(), Actor.RECEIVER
        record = record_report(
            self._database, waiting.record.id, waiting.report, answer, receiver, now, POLICY
        )
        log_outcome(record, answer)

    def _give_up(self, waiting: _Waiting) -> bool:
        waiting.channel.withdraw()
        silence = f"no answer on the association of the request for {ANSWER_SECONDS:.0f} s"
        self._record(waiting, ReportAnswer(None, silence))
        return True

    def _is_reachable(self, waiting: _Waiting) -> bool:
        """True when the courier can report; otherwise this association is the only chance."""
        return requester_address(waiting.record.request, self._config) is not None

    def _hand_over(self, waiting: _Waiting) -> None:
        """Let the courier report at once, and say now when it will not know where to."""
        waiting.channel.withdraw()
        request = waiting.record.request
        if not self._is_reachable(waiting):
            _logger.warning(
                "%s ended its association before it could be told about its storage commitment: %s",
                request.calling_ae_title, remedy(request),
                extra={ACTION: "requester_unknown", TRANSACTION: request.transaction_uid,
                       PEER: request.address},
            )  # fmt: skip
        postpone_commitment(self._database, waiting.record.id, now_utc())
