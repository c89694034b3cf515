"""One accepted association: pynetdicom negotiates and ends it, the data plane serves it.

Owns the order of these in the association's one thread, which waits in the kernel. Must not know
who is admitted or where instances go.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, cast

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE, DimseServiceType
from pynetdicom.pdu_primitives import P_DATA

from dicom_io.network import close
from dicom_io.receiving.commands import StoreCommand
from dicom_io.receiving.data_plane import DataPlane, ProtocolFault
from dicom_io.receiving.instances import AssociationEndValues
from dicom_io.receiving.negotiation import AcceptingStateMachine, Negotiation
from dicom_io.receiving.peer_stream import PeerGone, PeerSilent, PeerStream, ReadingEnded
from dicom_io.receiving.storing import StoreInProgress
from dicom_io.receiving.upper_layer import CONNECTION_CLOSED, INVALID_PDU
from dicom_io.receiving.upper_layer_provider import UpperLayerProvider
from dicom_io.statuses import StoreStatusValues

LOGGER = logging.getLogger(__name__)


BeginStore = Callable[["AcceptedAssociation", StoreCommand, str], StoreInProgress]
"""Starts the instance of a request in a transfer syntax."""


class AcceptedAssociation(Association):
    """An association a peer opened with us; its thread tells the listener when it ends.

    Instances come from `make` alone, which turns the plain ones that pynetdicom creates into
    these.
    """

    association_id: str
    calling_ae_title: str
    called_ae_title: str
    address: str
    is_requested: bool
    """An A-ASSOCIATE-RQ has arrived."""
    is_admitted: bool
    """It holds one of the places for open associations."""
    is_announced: bool
    """The observer was told that this association is open."""
    is_aborted_here: bool
    """By us; the log says why."""
    is_lost: bool
    """The connection ended first."""
    on_ended: Callable[[AcceptedAssociation], None]
    on_turned_away: Callable[[AcceptedAssociation, str], None]
    """Told why a connection ends before anybody could judge its request."""
    secures: Callable[[AcceptedAssociation], bool]
    """Puts TLS on the connection where that is configured; False when it is to be closed."""
    begin_store: BeginStore | None
    """None leaves C-STORE to pynetdicom as well."""
    silence_seconds: float
    stream: PeerStream | None
    """The connection while it is served."""
    provider: UpperLayerProvider
    """What pynetdicom calls `dul`."""

    @classmethod
    def make(
        cls,
        assoc: Association,
        association_id: str,
        address: str,
        begin_store: BeginStore | None,
        silence_seconds: float,
    ) -> AcceptedAssociation:
        """Turn pynetdicom's association into one of ours; it names no hook for the class."""
        assoc.__class__ = cls
        accepted = cast("AcceptedAssociation", assoc)
        accepted.association_id = association_id
        accepted.calling_ae_title = accepted.called_ae_title = ""
        accepted.address = address
        accepted.is_requested = accepted.is_admitted = accepted.is_announced = False
        accepted.is_aborted_here = accepted.is_lost = False
        accepted.begin_store = begin_store
        accepted.stream = None
        accepted.silence_seconds = silence_seconds
        accepted.acse = Negotiation(accepted)
        accepted.dul.state_machine = AcceptingStateMachine(accepted.dul)
        accepted.dul.__class__ = UpperLayerProvider
        accepted.provider = cast("UpperLayerProvider", accepted.dul)
        # Without the data plane all goes pynetdicom's way, which takes two threads.
        accepted.provider.prepare(
            is_threadless=begin_store is not None, on_fault=accepted.tell_fault
        )
        return accepted

    def run(self) -> None:
        """Serve the association to its end, however it ends."""
        try:
            if self.secures(self):
                if self.provider.is_threadless:
                    self.provider.open_bell()
                    # pynetdicom takes this for its thread, and starts none.
                    self._started_dul = True
                super().run()
        except Exception as error:  # noqa: BLE001 - the thread's loop: nobody else hears of it
            self._tell_abort(f"unexpected {type(error).__name__}")
            self.abort(block=False)
            self.kill()
        finally:
            # Only this thread announces the end: release, abort, loss and timeout all pass here.
            self.force_end()
            if self.provider.is_threadless:
                self.provider.close_bell()
            self.on_ended(self)

    @property
    def end(self) -> AssociationEndValues:
        """How the association ended, once it has."""
        if self.is_released:
            return AssociationEndValues.RELEASED
        if self.is_aborted_here or self._sent_abort:
            return AssociationEndValues.ABORTED
        if self.is_aborted and not self.is_lost:
            return AssociationEndValues.ABORTED_BY_PEER
        return AssociationEndValues.LOST

    def allow_silence(self, seconds: float | None) -> None:
        """Let the peer pause this long in the middle of a PDU from now on."""
        wrapper = self.dul.socket
        if wrapper is not None and wrapper.socket is not None:
            wrapper.socket.settimeout(seconds)

    def wake_if_never_requested(self) -> None:
        """Stop waiting for a request from a peer that has already hung up."""
        if not self.is_requested:
            # The waiting thread reads None as "timed out" and cleans up now instead of then.
            self.dul.to_user_queue.put(cast("Any", None))

    def force_end(self) -> None:
        """Let the threads of this association run out and close its socket."""
        self._kill = True
        self.dul.kill_dul()
        wrapper = self.dul.socket
        if wrapper is not None and wrapper.socket is not None:
            close(wrapper.socket)

    def kill(self) -> None:
        """End the association's threads; pynetdicom calls it last on every way out."""
        super().kill()
        # What is queued must leave, a rejection above all; ending the thread would cut it off.
        if self.provider.is_threadless and threading.current_thread() is self:
            self.provider.finish()

    def value(self, context_id: int, control: int, fragment: bytes, *, is_whole: bool) -> None:
        """Give pynetdicom a value that the data plane does not serve, and serve its message."""
        primitive = P_DATA()
        primitive.presentation_data_value_list = [
            # The setter takes lists alone, whatever its type says.
            cast("tuple[int, bytes]", [context_id, bytes([control]) + fragment])
        ]
        try:
            self.dimse.receive_primitive(primitive)
        except Exception as error:
            # pynetdicom lets its parser's faults through; they are the peer's.
            raise ProtocolFault(f"a message cannot be read ({type(error).__name__})") from error
        if is_whole:
            self._serve_queued_message()

    def _serve_queued_message(self) -> None:
        if not self._reactor_checkpoint.is_set():
            return  # Another thread asked the peer something; this is its answer.
        context_id, message = self.dimse.get_msg(block=False)
        if message:
            self._serve_request(message, cast("int", context_id))
            self._send_pending()

    def _send_pending(self) -> None:
        if self.provider.to_provider_queue.queue and self.stream is not None:
            with self.stream.sending():
                self.provider.send_pending()

    def _run_reactor(self) -> None:
        if self.provider.is_threadless:
            self._serve()
            self.provider.serve_queued()
            if self.acse.is_release_requested():
                self._release()
                return
        if self.is_aborted:
            self.kill()
            return
        super()._run_reactor()

    def _release(self) -> None:
        """Answer a request for release, without the millisecond that pynetdicom sleeps before."""
        self.acse.send_release(is_response=True)
        self.is_released = True
        self.is_established = False
        evt.trigger(self, evt.EVT_RELEASED, {})
        self.kill()

    def _serve(self) -> None:
        """Serve until something happens that ends the association."""
        wrapper = self.dul.socket
        if wrapper is None or wrapper.socket is None:
            return
        # Whoever wants to send a request of its own may do so: this thread steals no answers.
        self._is_paused = True
        self.stream = stream = PeerStream(wrapper.socket, self.silence_seconds, self._goes_on)
        plane = DataPlane(
            stream,
            context_ids=self._accepted_cx,
            begin_store=self._begin_store,
            ordinary=self,
            maximum_pdu_bytes=self.acceptor.maximum_length or 0,
            peer_maximum_pdu_bytes=self.requestor.maximum_length or 0,
        )
        try:
            self._serve_pdus(plane)
        except PeerSilent:
            self._tell_abort(f"nothing came for {self.silence_seconds:.0f} s")
            self.abort(block=False)
        except ProtocolFault as fault:
            self._tell_abort(f"it broke the upper layer protocol: {fault}")
            self.dul.event_queue.put(INVALID_PDU)
        except PeerGone:
            self.is_lost = True
            self.dul.event_queue.put(CONNECTION_CLOSED)
        except ReadingEnded:
            pass  # Whoever wants that ends the association.
        except Exception as error:  # noqa: BLE001 - the association's loop: only it may end
            self._tell_abort(f"unexpected {type(error).__name__}")
            self.abort(block=False)
        finally:
            plane.discard()
            stream.give_back()
            # pynetdicom leaves the closing to whoever holds the socket last: that must not be we.
            self.stream = None

    def tell_fault(self, fault: str) -> None:
        """Report what ends this association and is the peer's doing."""
        if self.is_requested:
            self._tell_abort(fault)
        else:
            self.on_turned_away(
                self, f"{fault}: find out what calls this port, and how it is set up"
            )

    def _tell_abort(self, reason: str) -> None:
        self.is_aborted_here = True
        LOGGER.warning(
            "the association of %r (%s) is aborted: %s",
            self.calling_ae_title,
            self.address,
            reason,
            extra={"action": "association aborted", "association_id": self.association_id},
        )

    def _serve_pdus(self, plane: DataPlane) -> None:
        while self._goes_on():
            pdu = plane.serve_pdu()
            if pdu is not None:
                self.provider.receive(pdu)
                return

    def _goes_on(self) -> bool:
        if self._kill:
            return False
        self._send_pending()
        return self.provider.is_undisturbed

    def _begin_store(self, command: StoreCommand, context_id: int) -> StoreInProgress:
        assert self.begin_store is not None  # noqa: S101 - asked before serving
        context = self._accepted_cx[context_id]
        return self.begin_store(self, command, str(context.transfer_syntax[0]))

    def _serve_request(self, msg: DimseServiceType, context_id: int) -> None:
        # pynetdicom drops an incomplete request without an answer and the sender would wait.
        if _is_incomplete_store_request(msg):
            self.dimse.send_msg(_refusal_of_incomplete(cast("C_STORE", msg)), context_id)
            return
        super()._serve_request(msg, context_id)


def _is_incomplete_store_request(msg: DimseServiceType) -> bool:
    return isinstance(msg, C_STORE) and msg.MessageID is not None and not msg.is_valid_request


def _refusal_of_incomplete(request: C_STORE) -> C_STORE:
    answer = C_STORE()
    answer.MessageIDBeingRespondedTo = request.MessageID
    answer.AffectedSOPClassUID = request.AffectedSOPClassUID
    answer.AffectedSOPInstanceUID = request.AffectedSOPInstanceUID
    answer.Status = int(StoreStatusValues.CANNOT_UNDERSTAND)
    # The attribute is a plain None in pynetdicom's class, without a declared type.
    setattr(answer, "ErrorComment", "C-STORE request without UIDs")  # noqa: B010
    return answer
