"""One accepted association: pynetdicom negotiates and ends it, the data plane serves it.

Owns the passing of the connection between pynetdicom's upper layer thread and the association's
own thread, which serves C-STORE alone and waits in the kernel. Must not know who is
admitted or where instances go.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE, DimseServiceType
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.pdu_primitives import P_DATA

from dicom_io.network import close
from dicom_io.receiving.bounded_reading import BoundedDUL
from dicom_io.receiving.commands import StoreCommand
from dicom_io.receiving.data_plane import DataPlane, ProtocolFault
from dicom_io.receiving.negotiation import AcceptingStateMachine, Negotiation
from dicom_io.receiving.peer_stream import PeerGone, PeerSilent, PeerStream, ReadingEnded
from dicom_io.receiving.storing import StoreInProgress
from dicom_io.receiving.upper_layer import CONNECTION_CLOSED, ESTABLISHED, INVALID_PDU
from dicom_io.statuses import StoreStatusValues

LOGGER = logging.getLogger(__name__)

_LOOK_UP_SECONDS = 0.25
"""How often the upper layer thread looks at its timers; everything else wakes it at once."""
_NO_BELL = -1
_LENDING_SECONDS = 5.0
"""The upper layer thread parks within a millisecond; if it does not, it has ended."""


BeginStore = Callable[["AcceptedAssociation", StoreCommand, str], StoreInProgress]
"""Starts the instance of a request in a transfer syntax."""


class LendingDUL(BoundedDUL):
    """The upper layer provider, which lends its connection while an association is established.

    Instances come from `AcceptedAssociation.make` alone.
    """

    may_lend: bool
    _parked: threading.Event
    _wanted_back: threading.Event
    _bell: int
    """An eventfd that wakes the upper layer thread out of its wait for the peer."""
    _bell_lock: threading.Lock

    def prepare_to_lend(self, *, may_lend: bool) -> None:
        """Set up what `__init__` would, on a provider that pynetdicom made."""
        self.may_lend = may_lend
        self._parked = threading.Event()
        self._wanted_back = threading.Event()
        self._bell_lock = threading.Lock()
        self._bell = _NO_BELL
        # pynetdicom sleeps this long whenever nothing happened; the wait below takes its place.
        self._run_loop_delay = 0.0

    @property
    def is_lent(self) -> bool:
        """True while another thread may use the connection and the state machine."""
        return self._parked.is_set() and not self._wanted_back.is_set()

    def borrow(self) -> bool:
        """Wait until the upper layer thread stands aside; False when it never will."""
        deadline = time.monotonic() + _LENDING_SECONDS
        while self.may_lend and self.is_alive() and time.monotonic() < deadline:
            if self._parked.wait(0.05):
                return self.is_lent
        return False

    def take_back(self) -> None:
        """Let the upper layer thread go on; for good, and harmless when it never stood aside."""
        self._wanted_back.set()
        self._ring()

    def send_pdu(self, primitive: Any) -> None:
        """Queue a primitive for the peer and wake the thread that sends it."""
        super().send_pdu(primitive)
        self._ring()

    def run(self) -> None:
        """Serve the upper layer; nothing is left open when it ends."""
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            super().run()
        except Exception as error:  # noqa: BLE001 - a thread's loop: the peer's bytes provoked it
            self._give_up(error)
        finally:
            with self._bell_lock:
                os.close(self._bell)
                self._bell = _NO_BELL

    def kill_dul(self) -> None:
        """End the upper layer thread, wherever it waits."""
        super().kill_dul()
        self.take_back()

    def send_pending(self) -> None:
        """Send what is queued for the peer; for the thread that has borrowed the connection."""
        while self.to_provider_queue.queue and self.is_lent and self._process_recv_primitive():
            self.state_machine.do_action(self.event_queue.get(block=False))

    @property
    def is_undisturbed(self) -> bool:
        """True while nothing has happened that pynetdicom's own loop must see."""
        return not self.event_queue.queue and self.state_machine.current_state == ESTABLISHED

    def _give_up(self, error: Exception) -> None:
        """Abort at once, bypassing the state machine, whose action failed."""
        LOGGER.warning(
            "a PDU could not be served (%s): the association is aborted",
            type(error).__name__,
            extra={"action": "association aborted"},
        )
        self._send(_provider_abort())
        self.assoc.is_aborted = True
        self.assoc.is_established = False
        # Whoever waits for the request or for a message must not wait for its timeout.
        self.to_user_queue.put(cast("Any", None))

    def _is_transport_event(self) -> bool:
        if self._should_park():
            self._parked.set()
            self._wanted_back.wait()
            self._idle_timer.restart()
            return False
        if self.event_queue.empty():
            self._wait()
        return bool(super()._is_transport_event())

    def _wait(self) -> None:
        """Wait until the peer sends, a primitive is queued, or a timer may have run out."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        wrapper = self.socket
        connection = None if wrapper is None else wrapper.socket
        if connection is not None and connection.fileno() >= 0:
            if isinstance(connection, ssl.SSLSocket) and connection.pending():
                return
            poll.register(connection, select.POLLIN)
        for descriptor, _ in poll.poll(_LOOK_UP_SECONDS * 1000):
            if descriptor == self._bell:
                os.eventfd_read(self._bell)

    def _ring(self) -> None:
        # Without the lock, the number could belong to an instance's file by the time of the write.
        with self._bell_lock:
            if self._bell != _NO_BELL:
                os.eventfd_write(self._bell, 1)

    def _should_park(self) -> bool:
        established = self.state_machine.current_state == ESTABLISHED
        return self.may_lend and established and not self._wanted_back.is_set()


def _provider_abort() -> A_ABORT_RQ:
    pdu = A_ABORT_RQ()
    pdu.source = 2
    pdu.reason_diagnostic = 0
    return pdu


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
    on_ended: Callable[[AcceptedAssociation], None]
    secures: Callable[[AcceptedAssociation], bool]
    """Puts TLS on the connection where that is configured; False when it is to be closed."""
    begin_store: BeginStore | None
    """None leaves C-STORE to pynetdicom as well."""
    silence_seconds: float

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
        accepted.begin_store = begin_store
        accepted.silence_seconds = silence_seconds
        accepted.acse = Negotiation(accepted)
        accepted.dul.state_machine = AcceptingStateMachine(accepted.dul)
        accepted.dul.__class__ = LendingDUL
        cast("LendingDUL", accepted.dul).prepare_to_lend(may_lend=begin_store is not None)
        return accepted

    @property
    def _lending(self) -> LendingDUL:
        return cast("LendingDUL", self.dul)

    def run(self) -> None:
        """Serve the association to its end, however it ends."""
        try:
            if self.secures(self):
                super().run()
        finally:
            # Only this thread announces the end: release, abort, loss and timeout all pass here.
            self.force_end()
            self.on_ended(self)

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
        """Let both threads of this association run out and close its socket."""
        self._kill = True
        self.dul.kill_dul()
        wrapper = self.dul.socket
        if wrapper is not None and wrapper.socket is not None:
            close(wrapper.socket)

    def abort(self, block: bool = True) -> None:
        """Abort the association, from any thread."""
        self._lending.take_back()
        super().abort(block)

    def kill(self) -> None:
        """End the association's threads; pynetdicom calls it last on every way out."""
        self._lending.take_back()
        super().kill()

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
            self._lending.send_pending()

    def _run_reactor(self) -> None:
        if self._lending.borrow():
            self._serve_borrowed()
        if self.is_aborted:
            self.kill()
            return
        super()._run_reactor()

    def _serve_borrowed(self) -> None:
        """Serve on the borrowed connection until something happens that ends the association."""
        wrapper = self.dul.socket
        if wrapper is None or wrapper.socket is None or self.begin_store is None:
            self._lending.take_back()
            return
        # Whoever wants to send a request of its own may do so: this thread steals no answers.
        self._is_paused = True
        stream = PeerStream(wrapper.socket, self.silence_seconds, self._goes_on)
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
            self.dul.event_queue.put(CONNECTION_CLOSED)
        except ReadingEnded:
            pass  # Whoever took the connection back ends the association.
        except Exception as error:  # noqa: BLE001 - the association's loop: only it may end
            self._tell_abort(f"unexpected {type(error).__name__}")
            self.abort(block=False)
        finally:
            plane.discard()
            stream.give_back()
            self._lending.take_back()

    def _tell_abort(self, reason: str) -> None:
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
                self._lending.receive(pdu)
                return

    def _goes_on(self) -> bool:
        lending = self._lending
        if self._kill or not lending.is_lent:
            return False
        try:
            lending.send_pending()
        except queue.Empty:
            return False
        return lending.is_undisturbed

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
