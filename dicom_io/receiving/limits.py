"""How much the receiver takes on at once, and how long it waits for a peer.

Owns the figures and the count of open associations against their limit. Knows nothing of who the
peers are (access) or of how they are served (server).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from dicom_io.receiving.shared_places import Holder, SharedPlaces, Tally
from dicom_io.wording import number_of

LOGGER = logging.getLogger(__name__)

MAXIMUM_ASSOCIATIONS = 64
"""Enough for the modalities and the PACS of one hospital; each costs a thread."""

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
    """The associations that are open now, never more than the limits.

    Parameters
    ----------
    limits : ReceiverLimits
        Held over this process and all that share `places`.
    places : SharedPlaces, optional
        Where the receiver processes of this host tell each other; without it the process is
        alone.
    """

    def __init__(self, limits: ReceiverLimits, places: SharedPlaces | None = None) -> None:
        self._limits = limits
        self._places = places
        self._holders: dict[str, Holder] = {}
        self._changed = threading.Condition()
        self._is_alone = places is None

    def __len__(self) -> int:
        """Return how many this process serves."""
        with self._changed:
            return len(self._holders)

    def enter(
        self, association_id: str, address: str, rule: str = "", rule_limit: int | None = None
    ) -> str:
        """Take a place for this association; the answer says why there is none, else is empty.

        Parameters
        ----------
        association_id, address : str
            Which, and from where.
        rule : str
            The rule that admitted it, as the configuration writes it.
        rule_limit : int, optional
            How many that rule admits at once; None when it does not say.
        """
        holder = Holder(address, "" if rule_limit is None else rule)
        with self._changed, self._exclusively():
            reason = self._objection(self._tally(holder), holder, rule_limit)
            if not reason:
                self._holders[association_id] = holder
                self._publish()
            return reason

    def leave(self, association_id: str) -> None:
        """Give the place back; without effect when it was never taken."""
        with self._changed:
            if self._holders.pop(association_id, None) is not None:
                with self._exclusively():
                    self._publish()
            self._changed.notify_all()

    def wait_until_none(self, seconds: float) -> bool:
        """Wait for the last association to end; False when some are still open then."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._holders, timeout=seconds)

    def _objection(self, held: Tally, holder: Holder, rule_limit: int | None) -> str:
        limits = self._limits
        if held.in_all >= limits.maximum_associations:
            return (
                f"{_open(limits.maximum_associations)}, the most allowed: "
                "send again later, or raise maximum_associations"
            )
        if held.from_address >= limits.maximum_associations_per_address:
            return (
                f"{_open(held.from_address)} from {holder.address}, the most "
                "allowed for one address: send again later, or raise "
                "maximum_associations_per_address"
            )
        if rule_limit is not None and held.by_rule >= rule_limit:
            return (
                f"{_open(held.by_rule)} by the rule {holder.rule}, the most it "
                "allows: send again later, or raise its maximum_associations"
            )
        return ""

    def _tally(self, holder: Holder) -> Tally:
        others = Tally()
        if self._places is not None and not self._is_alone:
            try:
                others = self._places.tally_of_others(holder)
            except OSError as error:
                self._go_on_alone(error)
        own = self._holders.values()
        return Tally(
            others.in_all + len(own),
            others.from_address + sum(each.address == holder.address for each in own),
            others.by_rule + sum(each.rule == holder.rule for each in own),
        )

    def _publish(self) -> None:
        if self._places is not None and not self._is_alone:
            try:
                self._places.publish(self._holders.values())
            except OSError as error:
                self._go_on_alone(error)

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self._places is not None and not self._is_alone:
                try:
                    stack.enter_context(self._places.exclusively())
                except OSError as error:
                    self._go_on_alone(error)
            yield

    def _go_on_alone(self, error: OSError) -> None:
        """Count this process only: a broken disk must not turn every peer away."""
        self._is_alone = True
        LOGGER.error(
            "the places for associations can no longer be shared with other receivers (%s): "
            "this one holds its limits alone until it starts anew",
            error.strerror or error,
            extra={"action": "places not shared"},
        )


def _open(count: int) -> str:
    return number_of(count, "association is open", "associations are open")
