"""When a receiver asks its peers to come back later: a short disk, or too many studies that wait.

Owns the judgement and its hysteresis. It rejects nothing itself: the receiver asks at each request
for an association, and the spool answers A700 whatever is said here.
"""

from __future__ import annotations

import logging

from daemon.logs import ACTION, REASON
from daemon.receiver_settings import ReceiverSection
from daemon.settings import MEBIBYTE
from dicom_io.errors import MedimgdError
from storage.database import Database
from storage.errors import SpoolFailure
from storage.spool import Spool
from storage.studies import count_waiting_studies

_logger = logging.getLogger(__name__)

RESUME_MARGIN_BYTES = 64 * MEBIBYTE
"""Room above the watermark that ends an episode, so that one series does not begin the next."""
RESUME_SHARE = 0.9
"""Of ``receiver.maximum_waiting_studies``: fewer than this end an episode."""


class Backpressure:
    """Says why no new associations are taken, or nothing when all is well.

    Parameters
    ----------
    section : ReceiverSection
        The limits.
    database : Database
        Where studies wait.
    spool : Spool
        Whose disk it is.
    """

    def __init__(self, section: ReceiverSection, database: Database, spool: Spool) -> None:
        self._section = section
        self._database = database
        self._spool = spool
        self._reason = ""

    @property
    def reason(self) -> str:
        """Why, as of the last look; empty when associations are taken. Costs nothing."""
        return self._reason

    def look(self) -> bool:
        """Look at disk and queue; True when the answer changed. Called about once a second."""
        try:
            reason = self._short_disk() or self._long_queue()
        except MedimgdError as error:
            # A busy database says nothing about the queue: what was true a second ago still is.
            _logger.debug("the queue was not counted: %s", error)
            return False
        changed = reason != self._reason
        self._tell(reason)
        self._reason = reason
        return changed

    def _short_disk(self) -> str:
        margin = RESUME_MARGIN_BYTES if self._reason.startswith(_DISK) else 0
        try:
            if self._spool.has_room(margin):
                return ""
        except SpoolFailure as error:
            return f"{_DISK} cannot be measured ({error})"
        return f"{_DISK} has less than receiver.minimum_free_mib free"

    def _long_queue(self) -> str:
        limit = self._section.maximum_waiting_studies
        if not limit:
            return ""
        threshold = int(limit * RESUME_SHARE) if self._reason.startswith(_QUEUE) else limit
        if count_waiting_studies(self._database, at_most=threshold + 1) <= threshold:
            return ""
        return f"{_QUEUE} than receiver.maximum_waiting_studies ({limit}) wait for their analysis"

    def _tell(self, reason: str) -> None:
        if reason and not self._reason:
            _logger.warning(
                "new associations are asked to come back later: %s", reason,
                extra={ACTION: "congested", REASON: reason},
            )  # fmt: skip
        elif self._reason and not reason:
            _logger.info("associations are taken again", extra={ACTION: "congestion_over"})


_DISK = "the disk of the data folder"
_QUEUE = "more studies"
