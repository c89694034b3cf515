"""The door of the receiver: whom it lets in, and what those hear who stay outside.

Owns the judgement of connections and of requests for an association, the rejection and its report.
Must not know what an association is for once it is open.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import cast

from pynetdicom import evt
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from dicom_io.errors import IdentityUnchecked
from dicom_io.receiving.accepted import AcceptedAssociation
from dicom_io.receiving.access import AccessFaultValues, Peer, judge, judge_address
from dicom_io.receiving.instances import AssociationObserver
from dicom_io.receiving.limits import OpenAssociations, ReceiverLimits
from dicom_io.receiving.refusals import RefusalReport, RefusalReports
from dicom_io.receiving.user_identity import Authenticates, identify

LOGGER = logging.getLogger(__name__)

# Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 Table 9-21).
_CALLED_AE_TITLE_NOT_RECOGNISED = (1, 1, 7)
_CALLING_AE_TITLE_NOT_RECOGNISED = (1, 1, 3)
_USER_NOT_ADMITTED = (1, 2, 1)
"""ACSE related, no reason given: what PS3.7 D.3.3.7 asks for when an identity is refused."""
_TEMPORARY_CONGESTION = (2, 3, 1)
_LOCAL_LIMIT_EXCEEDED = (2, 3, 2)


class Door:
    """Judges who may come in; called by the listener's thread and by those of associations.

    Parameters
    ----------
    ae_titles : sequence of str
        The called AE titles we answer to.
    peers : sequence of Peer
        Who may call; empty means this machine only.
    limits : ReceiverLimits
        How many connections may wait without an association.
    places : OpenAssociations
        Where whoever is let in takes a place.
    is_congested : callable
        Says why nobody who may bring instances is let in at the moment; "" when all is well.
    authenticates : callable, optional
        Knows the users; without it nobody is asked.
    observer : AssociationObserver
        Told of those refused, a minute apart where they are alike.
    """

    def __init__(
        self,
        *,
        ae_titles: Sequence[str],
        peers: Sequence[Peer],
        limits: ReceiverLimits,
        places: OpenAssociations,
        is_congested: Callable[[], str],
        authenticates: Authenticates | None,
        observer: AssociationObserver,
    ) -> None:
        self._ae_titles = tuple(ae_titles)
        self._peers = tuple(peers)
        self._limits = limits
        self._places = places
        self._is_congested = is_congested
        self._authenticates = authenticates
        self._observer = observer
        self._refusals = RefusalReports(self._tell)
        self.is_closing = False
        """Nobody is let in any more: the receiver is stopping."""

    def admits_connection(self, address: str, waiting: int, waiting_from_there: int) -> bool:
        """Tell whether a connection may wait for its request; a refused one is reported."""
        reason = judge_address(self._peers, address).reason
        if not reason and (
            waiting >= self._limits.maximum_waiting
            or waiting_from_there >= self._limits.maximum_waiting_per_address
        ):
            reason = (
                "too many connections wait without an association: find out what opens them, "
                "or raise maximum_associations"
            )
        if reason:
            self.report(address, reason)
        return not reason

    def report(self, address: str, reason: str) -> None:
        """Report a connection that ended before anybody could judge its request."""
        self._refusals.add(RefusalReport("", "", address, reason))

    def judge_request(self, event: evt.Event) -> None:
        """Let the association of a request in, or reject it."""
        assoc = cast("AcceptedAssociation", event.assoc)
        request = cast("A_ASSOCIATE", assoc.requestor.primitive)
        assoc.is_requested = True
        assoc.calling_ae_title = str(request.calling_ae_title).strip()
        assoc.called_ae_title = str(request.called_ae_title).strip()
        try:
            refusal = self._refusal(assoc)
        except Exception:
            # pynetdicom logs what a handler raises and goes on to accept the association.
            LOGGER.exception(
                "a request for an association could not be judged",
                extra={"action": "request not judged", "association_id": assoc.association_id},
            )
            refusal = _TEMPORARY_CONGESTION, "it could not be judged, see the receiver's log"
        if refusal is not None:
            self._refuse(assoc, *refusal)

    def _refusal(self, assoc: AcceptedAssociation) -> tuple[tuple[int, int, int], str] | None:
        verdict = judge(
            self._peers,
            assoc.calling_ae_title,
            assoc.called_ae_title,
            assoc.address,
            self._ae_titles,
        )
        if not verdict.admitted:
            if verdict.fault is AccessFaultValues.CALLED_AE_TITLE:
                return _CALLED_AE_TITLE_NOT_RECOGNISED, verdict.reason
            return _CALLING_AE_TITLE_NOT_RECOGNISED, verdict.reason
        if self.is_closing:
            return _TEMPORARY_CONGESTION, "the receiver is stopping: send again later"
        congestion = self._is_congested() if _may_store(assoc) else ""
        if congestion:
            return _TEMPORARY_CONGESTION, f"{congestion}: send again later"
        try:
            identification = identify(assoc.requestor.user_identity, self._authenticates)
        except IdentityUnchecked as error:
            return _TEMPORARY_CONGESTION, str(error)
        if identification.refusal:
            return _USER_NOT_ADMITTED, identification.refusal
        no_place = self._places.enter(
            assoc.association_id,
            assoc.address,
            str(verdict.rule or ""),
            verdict.rule.maximum_associations or None if verdict.rule else None,
        )
        if no_place:
            return _LOCAL_LIMIT_EXCEEDED, no_place
        assoc.is_admitted = True
        if identification.answer is not None:
            assoc.acceptor.add_negotiation_item(identification.answer)
        return None

    def _refuse(
        self, assoc: AcceptedAssociation, rejection: tuple[int, int, int], reason: str
    ) -> None:
        # First of all: pynetdicom accepts whom a handler that raises has not rejected.
        assoc.acse.send_reject(*rejection)
        try:
            self._refusals.add(
                RefusalReport(assoc.calling_ae_title, assoc.called_ae_title, assoc.address, reason)
            )
        finally:
            # Waits until the rejection has left; ending the thread at once would cut it off.
            assoc.kill()

    def _tell(self, report: RefusalReport) -> None:
        what = "a connection"
        if report.calling_ae_title or report.called_ae_title:
            what = f"an association as {report.calling_ae_title!r} to {report.called_ae_title!r}"
        LOGGER.warning(
            "refused %s from %s: %s",
            what,
            report.address,
            report.reason,
            extra={"action": "association refused"},
        )
        self._observer.on_refused(
            report.calling_ae_title, report.called_ae_title, report.address, report.reason
        )


def _may_store(assoc: AcceptedAssociation) -> bool:
    request = cast("A_ASSOCIATE", assoc.requestor.primitive)
    proposed = request.presentation_context_definition_list
    return any(context.abstract_syntax != Verification for context in proposed)
