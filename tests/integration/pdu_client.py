"""A peer that writes the upper layer protocol byte by byte, so that it can also get it wrong."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from tests.upper_layer import (
    ABORT_REQUEST,
    ASSOCIATE_AC,
    IMPLICIT_VR_LITTLE_ENDIAN,
    LAST_COMMAND,
    LAST_DATA,
    RELEASE_REQUEST,
    RELEASE_RP,
    VERIFICATION,
    Context,
    associate_request,
    elements_of,
    p_data,
    pdv,
    status_of,
    store_request,
)

_CONTEXT_ID = 1


class PduClient:
    """One connection to a receiver; every PDU is written out here, none by a library."""

    def __init__(
        self,
        port: int,
        host: str = "127.0.0.1",
        source: str | None = None,
        *,
        timeout_seconds: float = 10,
        receive_buffer_bytes: int | None = None,
    ) -> None:
        kind = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.socket(kind, socket.SOCK_STREAM)
        try:
            self.socket.settimeout(timeout_seconds)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if receive_buffer_bytes is not None:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            if source is not None:
                self.socket.bind((source, 0))
            self.socket.connect((host, port))
        except OSError:
            self.socket.close()
            raise

    def associate(
        self,
        sop_class_uid: str = VERIFICATION,
        transfer_syntax_uid: str = IMPLICIT_VR_LITTLE_ENDIAN,
        called: str = "MEDIMGD",
        calling: str = "RAW",
    ) -> None:
        """Open an association with one presentation context, which must be accepted."""
        context = Context(_CONTEXT_ID, sop_class_uid, (transfer_syntax_uid,))
        answer = self.propose([context], called=called, calling=calling)
        assert b"\x21\x00" in answer, "the answer names no presentation context"

    def propose(
        self,
        contexts: Sequence[Context],
        *,
        called: str = "MEDIMGD",
        calling: str = "RAW",
        maximum_pdu_bytes: int = 16384,
    ) -> bytes:
        """Open an association with any presentation contexts and return the A-ASSOCIATE-AC."""
        self.socket.sendall(
            associate_request(
                contexts, called=called, calling=calling, maximum_pdu_bytes=maximum_pdu_bytes
            )
        )
        answer = self.read_pdu()
        assert answer[0] == ASSOCIATE_AC, "an A-ASSOCIATE-AC was expected"
        return answer

    def store(
        self, sop_class_uid: str, sop_instance_uid: str | None, data_set: bytes | None
    ) -> tuple[int, str]:
        """Send a C-STORE request and return the status and Error Comment of its response.

        What is None is left out of the request.
        """
        command = store_request(
            sop_instance_uid, sop_class_uid=sop_class_uid, has_data_set=data_set is not None
        )
        self.socket.sendall(p_data(pdv(_CONTEXT_ID, LAST_COMMAND, command)))
        if data_set is not None:
            self.socket.sendall(p_data(pdv(_CONTEXT_ID, LAST_DATA, data_set)))
        answer = self.read_pdu()[12:]
        return status_of(answer), elements_of(answer).get(0x0902, b"").decode("ascii").strip()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def release(self) -> None:
        """End the association politely."""
        self.socket.sendall(RELEASE_REQUEST)
        assert self.read_pdu()[0] == RELEASE_RP, "an A-RELEASE-RP was expected"

    def abort(self) -> None:
        """End the association rudely and close."""
        self.socket.sendall(ABORT_REQUEST)
        self.close()

    def close(self) -> None:
        """Close the connection, whatever state the association is in."""
        self.socket.close()

    def half_close(self) -> None:
        """Say that nothing more will be sent, and go on listening."""
        self.socket.shutdown(socket.SHUT_WR)

    def read_pdu(self) -> bytes:
        """Return the next PDU, head included."""
        head = self._exactly(6)
        return head + self._exactly(int.from_bytes(head[2:], "big"))

    def read_to_end(self) -> bytes:
        """Return everything up to the end of the connection, however it ends."""
        data = b""
        try:
            while more := self.socket.recv(65536):
                data += more
        except ConnectionError:
            pass
        return data

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            assert more, "the connection ended too early"
            data += more
        return data
