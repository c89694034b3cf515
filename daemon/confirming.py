"""Whether archives hold what they accepted: asked by C-FIND, some at a time, with growing pauses.

Owns the step from ``sent`` to ``confirmed`` and how an archive is addressed. Sends no object.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from daemon.config import Config, DestinationSection
from daemon.door import tls_call_to
from daemon.logs import ACTION, COUNT, DESTINATION
from daemon.role import now_utc
from dicom_io.association import Destination
from dicom_io.errors import AssociationFailed
from dicom_io.query import holds_instance
from storage.confirmation import (
    confirm_deliveries,
    record_confirmation_miss,
    unconfirmed_deliveries,
)
from storage.database import Database
from storage.deliveries import DeliveryRecord

_logger = logging.getLogger(__name__)

CONFIRM_AFTER_SECONDS = 2.0
"""A PACS may need a moment between its Success and its index."""
CONFIRM_EVERY_SECONDS = 10.0
MOST_CONFIRMED_AT_ONCE = 20
"""Of each destination in one turn: delivery goes first."""
ASK_AGAIN_SECONDS = 3600.0
"""Pause before an archive that does not answer C-FIND is asked again."""


def peer_of(section: DestinationSection, config: Config) -> Destination:
    """Return the address of a configured archive, with its timeouts and our AE title there."""
    return Destination(
        section.name, section.host, section.port, section.ae_title,
        section.calling_ae_title or config.receiver.ae_title,
        connect_timeout_seconds=min(section.timeout_seconds, 10.0),
        association_timeout_seconds=section.timeout_seconds,
        response_timeout_seconds=section.timeout_seconds,
        tls=tls_call_to(section, config),
    )  # fmt: skip


class Confirmer:
    """Asks every destination that may be asked for what it was sent.

    Parameters
    ----------
    config : Config
        Destinations, and which of them are asked.
    database : Database
        Open for writing.
    """

    def __init__(self, config: Config, database: Database) -> None:
        self._config = config
        self._database = database
        self._sections = {section.name: section for section in config.destinations}
        self._confirm_next = now_utc()
        self._ask_again_at: dict[str, datetime] = {}
        """Destinations that did not answer C-FIND, and when to try again."""

    def confirm_due(self, now: datetime) -> None:
        """Ask destinations that answer C-FIND whether they hold what they accepted."""
        if now < self._confirm_next:
            return
        self._confirm_next = now + timedelta(seconds=CONFIRM_EVERY_SECONDS)
        asked = {
            section.name
            for section in self._sections.values()
            if section.confirm and self._ask_again_at.get(section.name, now) <= now
        }
        due = unconfirmed_deliveries(
            self._database,
            sent_before=now - timedelta(seconds=CONFIRM_AFTER_SECONDS),
            destinations=asked, now=now, limit=MOST_CONFIRMED_AT_ONCE,
        )  # fmt: skip
        for delivery in due:
            if delivery.destination in asked and not self._confirm(delivery, now):
                asked.discard(delivery.destination)

    def _confirm(self, delivery: DeliveryRecord, now: datetime) -> bool:
        """Ask for one object; False when this destination should not be asked any more now."""
        section = self._sections[delivery.destination]
        try:
            held = holds_instance(
                peer_of(section, self._config), delivery.study_instance_uid,
                delivery.series_instance_uid, delivery.sop_instance_uid,
            )  # fmt: skip
        except AssociationFailed:
            return False
        if held is None:
            self._ask_again_at[section.name] = now + timedelta(seconds=ASK_AGAIN_SECONDS)
            _logger.info(
                "%s does not answer C-FIND: what it accepts stays unconfirmed", section.name,
                extra={ACTION: "cannot_confirm", DESTINATION: section.name},
            )  # fmt: skip
            return False
        if not held:
            record_confirmation_miss(self._database, [delivery.id], now)
            return True
        count = confirm_deliveries(
            self._database, section.name, [delivery.sop_instance_uid], now_utc()
        )
        _logger.info(
            "%s confirms that it holds the result", section.name,
            extra={ACTION: "confirmed", DESTINATION: section.name, COUNT: count},
        )  # fmt: skip
        return True
