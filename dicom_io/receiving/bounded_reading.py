"""PDUs outside the data plane, read with a bound to what one peer may make us hold or do.

Owns reading before an association is established and after it was ended. Must not know what the
PDUs mean; pynetdicom's own reading takes any length into memory, and parses and answers whatever
still comes after an abort.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from typing import Any

from pynetdicom.dul import DULServiceProvider

from dicom_io.receiving.data_plane import OTHER_PDU_MAX_BYTES
from dicom_io.receiving.negotiation import AssociateRequest, UnusableTitle
from dicom_io.receiving.upper_layer import (
    ARTIM_EXPIRED,
    AWAITING_CLOSE,
    CONNECTION_CLOSED,
    ESTABLISHED,
    INVALID_PDU,
    REQUESTED,
)

_HEAD_BYTES = 6
_ASSOCIATE_RQ = 0x01
_P_DATA_TF = 0x04
_PDU_TYPES = range(0x01, 0x08)
_READ_AT_ONCE = 64 * 1024
_DROPPED_AT_ONCE = 256 * 1024
_SHORTEST_WAIT_SECONDS = 0.001
_DROPPING_SECONDS = 5.0
"""How long a peer that does not stop sending is listened to after the end of its association, so
that it may read our A-ABORT before the connection is reset."""
_LOOK_UP_SECONDS = 0.25


class BoundedDUL(DULServiceProvider):
    """The upper layer provider, reading no PDU that is longer than any can be."""

    _dropping_until: float | None = None

    def receive(self, pdu: bytes) -> None:
        """Queue a PDU that has been read as a whole."""
        try:
            decoded, event = self._decoded(pdu)
        except UnusableTitle as error:
            self._refuse(str(error))
            return
        except Exception as error:  # noqa: BLE001 - the peer's bytes: whatever they provoke, they are invalid
            self._refuse(f"what it sent cannot be read ({type(error).__name__})")
            return
        self._recv_pdu.put(decoded)
        self.event_queue.put(event)

    def tell_fault(self, fault: str) -> None:
        """Report what ends the association and is the peer's doing."""
        raise NotImplementedError

    def _refuse(self, fault: str) -> None:
        self.event_queue.put(INVALID_PDU)
        self.tell_fault(fault)

    def _decoded(self, pdu: bytes) -> tuple[Any, str]:
        if pdu[0] != _ASSOCIATE_RQ:
            return self._decode_pdu(bytearray(pdu))
        request = AssociateRequest()
        request.decode(pdu)
        return request, REQUESTED

    def _is_transport_event(self) -> bool:
        # As pynetdicom's own, but for `select`, which knows no descriptor beyond 1023.
        wrapper = self.socket
        if wrapper is not None and self._has_data():
            self._read_pdu_data()
            return True
        if self.state_machine.current_state == AWAITING_CLOSE:
            if wrapper is not None:
                wrapper.close()
            return True
        return False

    def _has_data(self) -> bool:
        """Tell whether there is something to read, the end of the connection included."""
        wrapper = self.socket
        connection = None if wrapper is None else wrapper.socket
        if connection is None or connection.fileno() < 0:
            return False  # Whoever closed it has said so.
        if isinstance(connection, ssl.SSLSocket) and connection.pending():
            return True
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        return bool(poll.poll(0))

    def _read_pdu_data(self) -> None:
        wrapper = self.socket
        if wrapper is None or wrapper.socket is None:
            self.event_queue.put(CONNECTION_CLOSED)
        elif self.state_machine.current_state == AWAITING_CLOSE:
            self._drop(wrapper.socket)
        else:
            self._read_pdu(wrapper.socket)

    def _read_pdu(self, connection: socket.socket) -> None:
        patience = connection.gettimeout()
        deadline = None if patience is None else time.monotonic() + patience
        try:
            head = _exactly(connection, _HEAD_BYTES, deadline)
            length = int.from_bytes(head[2:], "big")
            if self._may_be(head[0], length):
                self.receive(head + _exactly(connection, length, deadline))
            else:
                self._refuse("what it sent is no PDU of DICOM")
            connection.settimeout(patience)
        except OSError:
            self.event_queue.put(CONNECTION_CLOSED)

    def _may_be(self, kind: int, length: int) -> bool:
        if kind == _P_DATA_TF and self.state_machine.current_state == ESTABLISHED:
            return True
        return kind in _PDU_TYPES and length <= OTHER_PDU_MAX_BYTES

    def _drop(self, connection: socket.socket) -> None:
        """Read past what comes after the end; PS3.8 9.2 only waits for the peer to close."""
        if self._dropping_until is None:
            self._dropping_until = time.monotonic() + _DROPPING_SECONDS
        try:
            connection.settimeout(_LOOK_UP_SECONDS)
            is_closed = not connection.recv(_DROPPED_AT_ONCE)
        except TimeoutError:
            is_closed = False
        except OSError:
            is_closed = True
        if is_closed:
            self.event_queue.put(CONNECTION_CLOSED)
        elif time.monotonic() > self._dropping_until:
            self.event_queue.put(ARTIM_EXPIRED)


def _exactly(connection: socket.socket, count: int, deadline: float | None) -> bytes:
    """Read that many bytes, or raise `OSError`; a byte now and then does not move the deadline."""
    data = bytearray()
    while len(data) < count:
        if deadline is not None:
            connection.settimeout(max(deadline - time.monotonic(), _SHORTEST_WAIT_SECONDS))
        piece = connection.recv(min(count - len(data), _READ_AT_ONCE))
        if not piece:
            raise ConnectionError("closed within a PDU")
        data += piece
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError("a PDU took too long")
    return bytes(data)
