"""The listening socket and the account of accepted associations, over pynetdicom's server classes.

Owns sockets, their options and the promise that every association's end is noticed exactly once.
Must not know who is admitted or what is stored: the server passes that in as event handlers.
"""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import BaseServer
from typing import Any, cast

from pynetdicom.ae import ApplicationEntity
from pynetdicom.events import EventHandlerType
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationServer, RequestHandler

from dicom_io.network import disable_nagle
from dicom_io.receiving.accepted import AcceptedAssociation, BeginStore
from dicom_io.receiving.handover import Handover
from dicom_io.tls import HANDSHAKE_TIMEOUT_SECONDS, HandshakeFailed, secure, shake_hands

LOGGER = logging.getLogger(__name__)

BACKLOG = 512
"""Connections the kernel holds for us while all threads are busy. One more is not answered, and
its peer tries again after a whole second; 500 are accepted in about that time."""

_POLL_SECONDS = 0.2
_OUT_OF_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE))
_FAREWELL_SECONDS = 1.0
"""Enough for an A-ABORT to leave and a peer to close, not so long that stopping seems hung."""


class _SharedContexts(list[PresentationContext]):
    """Supported contexts that every association refers to: none of them is ever changed."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _SharedContexts:
        # pynetdicom copies them for each association, which takes longer than negotiating.
        return self


class _HandedOver(OSError):
    """Tells the accepting loop that there is nothing to serve: another process has it."""


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
        return AcceptedAssociation.make(
            super()._create_association(),
            uuid.uuid4().hex,
            str(self.client_address[0]),
            self.server.begin_store,
            self.server.silence_seconds,
        )


class AssociationListener(AssociationServer):
    """Accepts connections on one port and keeps account of the associations they became.

    Parameters
    ----------
    ae : ApplicationEntity
        Carries timeouts, maximum PDU and implementation identity.
    address : tuple of (str, int)
        Port 0 takes any free port.
    ae_title, contexts, evt_handlers
        As pynetdicom's own server takes them.
    ssl_context : None
        Not used: pynetdicom would make the handshake in the thread that accepts connections, where
        one silent peer keeps all others out.
    tls : callable, optional
        Gives the context for one connection; each handshake is made in the thread of its own
        association. None for connections without TLS.
    on_turned_away : callable
        Told the source address and the reason of each connection that ended before its request
        could be judged: the handshake failed, or what came is no request.
    reuse_port : bool
        Let several listeners, in this or other processes, share the port (Linux).
    handover : Handover, optional
        Evens out what the listeners of one port have to do.
    admits : callable
        Told the source address of each connection and how many others wait, in all and from the
        same address; False closes it before any thread is made. Must be quick.
    on_ended : callable
        Called once for every connection that became an association thread, requested or not.
    begin_store : callable, optional
        Starts the instance of a C-STORE request; None leaves C-STORE to pynetdicom.
    silence_seconds : float
        The longest an established association may be silent.

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
        on_turned_away: Callable[[str, str], None],
        on_ended: Callable[[AcceptedAssociation], None],
        begin_store: BeginStore | None,
        silence_seconds: float,
        tls: Callable[[], ssl.SSLContext] | None = None,
        handover: Handover | None = None,
    ) -> None:
        if ssl_context is not None:
            raise ValueError("ssl_context must be None: give the context through tls")
        self._tls = tls
        self._on_turned_away = on_turned_away
        self.begin_store = begin_store
        self.silence_seconds = silence_seconds
        self._reuse_port = reuse_port
        self._handover = handover
        self._admits = admits
        self._on_ended = on_ended
        self._live: set[AcceptedAssociation] = set()
        self._live_lock = threading.Lock()
        self._lets_wait = False
        shared = _SharedContexts(contexts)
        super().__init__(
            ae, address, ae_title, shared, ssl_context, evt_handlers, _ConnectionHandler
        )
        self._thread = threading.Thread(target=self._serve, name="dicom-listener", daemon=True)

    def start(self) -> None:
        """Begin accepting connections in a thread."""
        if self._handover is not None:
            self._handover.start(self.take)
        self._thread.start()

    def stop_listening(self) -> None:
        """Accept no more connections and free the port; open associations go on.

        What the kernel has accepted for us goes to another listener of the port, if there is one.
        """
        if self._handover is not None:
            self._handover.leave()
        BaseServer.shutdown(self)
        self._hand_over_backlog()
        self.server_close()
        self._thread.join()
        if self._handover is not None:
            self._handover.stop()

    def _hand_over_backlog(self) -> None:
        listening = cast("socket.socket", self.socket)
        listening.setblocking(False)
        # However that ends, by want of descriptors too: what is left is closed with the socket.
        with suppress(OSError):
            while self._handover is not None:
                connection, _ = listening.accept()
                if not self._handover.give_away(connection, len(self._live)):
                    connection.close()

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
        assoc.on_turned_away = self._turn_away
        assoc.secures = self._secure
        with self._live_lock:
            self._live.add(assoc)
        self.service_actions()

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
        try:
            connection, address = super().get_request()
        except OSError as error:
            if error.errno in _OUT_OF_DESCRIPTORS:
                self._let_wait(error)
            raise
        self._lets_wait = False
        if self._handover is not None and self._handover.give_away(connection, len(self._live)):
            raise _HandedOver
        self._set_options(connection)
        return connection, address

    def _let_wait(self, error: OSError) -> None:
        """Leave the next connection with the kernel for a while, which has it ready at once."""
        if not self._lets_wait:
            self._lets_wait = True
            LOGGER.error(
                "connections have to wait: %s. Raise the limit of open files (LimitNOFILE)",
                error.strerror,
                extra={"action": "connections wait"},
            )
        time.sleep(_POLL_SECONDS)

    def take(self, connection: socket.socket) -> None:
        """Serve a connection that another listener of this port accepted."""
        try:
            address = connection.getpeername()
            self._set_options(connection)
            if self.verify_request(connection, address):
                self.process_request(connection, address)
            else:
                self.shutdown_request(connection)
        except Exception:  # noqa: BLE001 - as the listener's own loop does for what it accepts
            self.handle_error(connection, ("another receiver",))
            self.shutdown_request(connection)

    def service_actions(self) -> None:
        """Tell the other listeners of this port how many connections are served here."""
        if self._handover is not None:
            self._handover.announce(len(self._live))

    def _set_options(self, connection: socket.socket) -> None:
        disable_nagle(connection)
        # Without this, a peer that stops in the middle of a PDU holds its thread for ever.
        connection.settimeout(self.ae.acse_timeout)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log a connection that could not become an association; the listener goes on."""
        LOGGER.exception(
            "a connection from %s could not be served",
            client_address[0],
            extra={"action": "connection failed"},
        )

    def _serve(self) -> None:
        self.serve_forever(poll_interval=_POLL_SECONDS)

    def _secure(self, assoc: AcceptedAssociation) -> bool:
        wrapper = assoc.dul.socket
        if self._tls is None or wrapper is None or wrapper.socket is None:
            return self._tls is None
        seconds = min(HANDSHAKE_TIMEOUT_SECONDS, self.ae.acse_timeout or HANDSHAKE_TIMEOUT_SECONDS)
        until = time.monotonic() + seconds
        try:
            secured = secure(wrapper.socket, self._tls(), seconds)
            if secured is None:
                return False
            # In its place before the handshake, so that force_end can end that as well.
            wrapper.socket = secured
            shake_hands(secured, max(until - time.monotonic(), 0.1))
        except HandshakeFailed as error:
            self._turn_away(assoc, str(error))
            return False
        secured.settimeout(self.ae.acse_timeout)
        return True

    def _turn_away(self, assoc: AcceptedAssociation, reason: str) -> None:
        self._on_turned_away(assoc.address, reason)

    def _forget(self, assoc: AcceptedAssociation) -> None:
        with self._live_lock:
            self._live.discard(assoc)
        self.service_actions()
        self._on_ended(assoc)

    def _living(self) -> list[AcceptedAssociation]:
        with self._live_lock:
            return list(self._live)


def _join_all(threads: Iterable[threading.Thread], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
