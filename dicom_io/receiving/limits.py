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

SPARE_CONNECTIONS = 32
"""Connections beyond the limit of associations: room to reject a peer instead of hanging up."""


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
    maximum_associations_per_address: int = 0
    """Open at the same time from one address, so that one peer cannot shut out the others; 0
    becomes three quarters of `maximum_associations`, at least 1."""

    def __post_init__(self) -> None:
        if self.maximum_associations_per_address <= 0:
            object.__setattr__(
                self,
                "maximum_associations_per_address",
                _three_quarters(self.maximum_associations),
            )

    @property
    def maximum_waiting(self) -> int:
        """Connections that may wait, not asking for an association yet or being turned away."""
        return self.maximum_associations + SPARE_CONNECTIONS

    @property
    def maximum_waiting_per_address(self) -> int:
        """As `maximum_waiting`, from one address."""
        return _three_quarters(self.maximum_waiting)


def _three_quarters(limit: int) -> int:
    return max(1, limit * 3 // 4)


class OpenAssociations:
    """The associations that are open now, never more than the limits."""

    def __init__(self, limits: ReceiverLimits) -> None:
        self._limits = limits
        self._addresses: dict[str, str] = {}
        self._changed = threading.Condition()

    def __len__(self) -> int:
        with self._changed:
            return len(self._addresses)

    def enter(self, association_id: str, address: str) -> str:
        """Take a place for this association; the answer says why there is none, else is empty."""
        limits = self._limits
        with self._changed:
            if len(self._addresses) >= limits.maximum_associations:
                return (
                    f"{limits.maximum_associations} associations are open, the most allowed: "
                    "send again later, or raise maximum_associations"
                )
            from_there = sum(other == address for other in self._addresses.values())
            if from_there >= limits.maximum_associations_per_address:
                return (
                    f"{from_there} associations are open from {address}, the most allowed for one "
                    "address: send again later, or raise maximum_associations"
                )
            self._addresses[association_id] = address
            return ""

    def leave(self, association_id: str) -> None:
        """Give the place back; without effect when it was never taken."""
        with self._changed:
            self._addresses.pop(association_id, None)
            self._changed.notify_all()

    def wait_until_none(self, seconds: float) -> bool:
        """Wait for the last association to end; False when some are still open then."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._addresses, timeout=seconds)
