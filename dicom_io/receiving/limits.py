"""How much the receiver takes on at once, and how long it waits for a peer.

Owns the figures and the count of open associations against their limit. Knows nothing of who the
peers are (access) or of how they are served (server).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

MAXIMUM_ASSOCIATIONS = 64
"""Enough for the modalities and the PACS of one hospital; each costs two threads."""

MAXIMUM_PDU_BYTES = 131_072
"""The largest PDU we offer to receive: also the most that DCMTK ever sends. Measured on loopback,
larger ones gain nothing and 16 KiB gives about half the speed."""

NETWORK_TIMEOUT_SECONDS = 120.0
"""A PACS forwarding a study may keep its association idle while it fetches the next instances."""

REQUEST_TIMEOUT_SECONDS = 30.0
"""From connection to A-ASSOCIATE-RQ; a peer that is alive sends it in milliseconds (ARTIM)."""


@dataclass(frozen=True, slots=True)
class ReceiverLimits:
    """What the receiver grants its peers."""

    maximum_associations: int = MAXIMUM_ASSOCIATIONS
    """Open at the same time; one more is rejected as transient, local limit exceeded."""
    maximum_pdu_bytes: int = MAXIMUM_PDU_BYTES
    """Largest PDU offered to the peers; 0 means any."""
    network_timeout_seconds: float = NETWORK_TIMEOUT_SECONDS
    """Silence after which an open association, or half a PDU, is given up."""
    request_timeout_seconds: float = REQUEST_TIMEOUT_SECONDS
    """Silence after which a connection without a request for an association is closed."""


class OpenAssociations:
    """The associations that are open now, never more than the limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._ids: set[str] = set()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        with self._changed:
            return len(self._ids)

    def enter(self, association_id: str) -> bool:
        """Take a place for this association; False when every place is taken."""
        with self._changed:
            if len(self._ids) >= self.limit:
                return False
            self._ids.add(association_id)
            return True

    def leave(self, association_id: str) -> None:
        """Give the place back; without effect when it was never taken."""
        with self._changed:
            self._ids.discard(association_id)
            self._changed.notify_all()

    def wait_until_none(self, seconds: float) -> bool:
        """Wait for the last association to end; False when some are still open then."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._ids, timeout=seconds)
