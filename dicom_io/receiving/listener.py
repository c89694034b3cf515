"""The listening socket and the life of one accepted association, over pynetdicom's server classes.

Owns sockets, their options and the promise that every association's end is noticed exactly once.
Must not know who is admitted or what is stored: the server passes that in as event handlers.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from socketserver import BaseServer
from typing import Any, cast

from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE, DimseServiceType
from pynetdicom.events import EventHandlerType
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationServer, RequestHandler

from dicom_io.network import close, disable_nagle
from dicom_io.statuses import StoreStatusValues

LOGGER = logging.getLogger(__name__)

BACKLOG = 128
"""Connections the kernel holds for us while all threads are busy."""

_POLL_SECONDS = 0.2
_FAREWELL_SECONDS = 1.0
"""Enough for an A-ABORT to leave and a peer to close, not so long that stopping seems hung."""


class AcceptedAssociation(Association):
    """An association a peer opened with us; its thread tells the listener when it ends.

    Instances come from `AssociationListener` alone, which turns the plain ones that pynetdicom
    creates into these.
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

    def run(self) -> None:
        """Serve the association to its end, however it ends."""
        try:
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

    def _serve_request(self, msg: DimseServiceType, context_id: int) -> None:
        # pynetdicom drops an incomplete request without an answer and the sender would wait.
        if _is_incomplete_store_request(msg):
            self.dimse.send_msg(_refusal_of_incomplete(cast("C_STORE", msg)), context_id)
            return
        super()._serve_request(msg, context_id)


class _ConnectionHandler(RequestHandler):
    """Turns one accepted connection into a running association."""

    server: AssociationListener

    def handle(self) -> None:
        assoc = self._create_association()
        self.server.adopt(assoc)
        try:
            assoc.start()
        except RuntimeError:  # No thread can be started.
            self.server.disown(assoc)
            raise

    def _create_association(self) -> AcceptedAssociation:
        assoc = super()._create_association()
        # pynetdicom names no hook for the class of an accepted association.
        assoc.__class__ = AcceptedAssociation
        accepted = cast("AcceptedAssociation", assoc)
        accepted.association_id = uuid.uuid4().hex
        accepted.calling_ae_title = accepted.called_ae_title = ""
        accepted.address = str(self.client_address[0])
        accepted.is_requested = accepted.is_admitted = accepted.is_announced = False
        return accepted


class AssociationListener(AssociationServer):
    """Accepts connections on one port and keeps account of the associations they became.

    Parameters
    ----------
    ae : ApplicationEntity
        Carries timeouts, maximum PDU and implementation identity.
    address : tuple of (str, int)
        Port 0 takes any free port.
    ae_title, contexts, ssl_context, evt_handlers
        As pynetdicom's own server takes them.
    reuse_port : bool
        Let several listeners, in this or other processes, share the port (Linux).
    admits : callable
        Told the source address of each connection and how many others wait, in all and from the
        same address; False closes it before any thread is made. Must be quick.
    on_ended : callable
        Called once for every connection that became an association thread, requested or not.

    Raises
    ------
    OSError
        If the port cannot be taken.
    """

    request_queue_size = BACKLOG

    def __init__(
        self,
        ae: ApplicationEntity,
        address: tuple[str, int],
        ae_title: str,
        contexts: list[PresentationContext],
        ssl_context: ssl.SSLContext | None = None,
        evt_handlers: list[EventHandlerType] | None = None,
        *,
        reuse_port: bool,
        admits: Callable[[str, int, int], bool],
        on_ended: Callable[[AcceptedAssociation], None],
    ) -> None:
        self._reuse_port = reuse_port
        self._admits = admits
        self._on_ended = on_ended
        self._live: set[AcceptedAssociation] = set()
        self._live_lock = threading.Lock()
        super().__init__(
            ae, address, ae_title, contexts, ssl_context, evt_handlers, _ConnectionHandler
        )
        self._thread = threading.Thread(target=self._serve, name="dicom-listener", daemon=True)

    def start(self) -> None:
        """Begin accepting connections in a thread."""
        self._thread.start()

    def stop_listening(self) -> None:
        """Accept no more connections and free the port; open associations go on."""
        BaseServer.shutdown(self)
        self.server_close()
        self._thread.join()

    def end_associations(self) -> None:
        """Abort what is still open, politely first, then by closing the connections."""
        remaining = self._living()
        for assoc in remaining:
            if assoc.is_established:
                assoc.abort(block=False)
        _join_all(remaining, _FAREWELL_SECONDS)
        remaining = self._living()
        for assoc in remaining:
            assoc.force_end()
            assoc.wake_if_never_requested()
        _join_all(remaining, _FAREWELL_SECONDS)

    def adopt(self, assoc: AcceptedAssociation) -> None:
        """Keep account of an association that is about to start."""
        assoc.on_ended = self._forget
        with self._live_lock:
            self._live.add(assoc)

    def disown(self, assoc: AcceptedAssociation) -> None:
        """Forget an association that never started."""
        with self._live_lock:
            self._live.discard(assoc)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Decide on a connection before anything is spent on it."""
        address = str(client_address[0])
        waiting = [assoc.address for assoc in self._living() if not assoc.is_admitted]
        try:
            return self._admits(address, len(waiting), waiting.count(address))
        except Exception:  # noqa: BLE001 - one strange connection must not end the listener
            self.handle_error(request, client_address)
            return False

    def server_bind(self) -> None:
        """Bind the listening socket, sharing the port when asked to."""
        if self._reuse_port:
            cast("socket.socket", self.socket).setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection and set the options pynetdicom leaves alone."""
        connection, address = super().get_request()
        disable_nagle(connection)
        # Without this, a peer that stops in the middle of a PDU holds its threads for ever.
        connection.settimeout(self.ae.acse_timeout)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log a connection that could not become an association; the listener goes on."""
        LOGGER.exception(
            "a connection from %s could not be served",
            client_address[0],
            extra={"action": "connection failed"},
        )

    def _serve(self) -> None:
        self.serve_forever(poll_interval=_POLL_SECONDS)

    def _forget(self, assoc: AcceptedAssociation) -> None:
        with self._live_lock:
            self._live.discard(assoc)
        self._on_ended(assoc)

    def _living(self) -> list[AcceptedAssociation]:
        with self._live_lock:
            return list(self._live)


def _join_all(threads: Iterable[threading.Thread], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


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
