"""A peer that writes the upper layer protocol byte by byte, so that it can also get it wrong."""

from __future__ import annotations

import socket
import struct

VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"

_CONTEXT_ID = 1
_NO_DATA_SET = 0x0101


class PduClient:
    """One connection to a receiver; every PDU is written out here, none by a library."""

    def __init__(self, port: int, host: str = "127.0.0.1", source: str | None = None) -> None:
        self.socket = socket.create_connection(
            (host, port), timeout=10, source_address=None if source is None else (source, 0)
        )

    def associate(
        self,
        sop_class_uid: str = VERIFICATION,
        transfer_syntax_uid: str = IMPLICIT_VR_LITTLE_ENDIAN,
        called: str = "MEDIMGD",
        calling: str = "RAW",
    ) -> None:
        """Open an association with one presentation context, which must be accepted."""
        self.socket.sendall(_associate_request(called, calling, sop_class_uid, transfer_syntax_uid))
        answer = self.read_pdu()
        assert answer[0] == 2, "an A-ASSOCIATE-AC was expected"
        assert b"\x21\x00" in answer, "the answer names no presentation context"

    def store(
        self, sop_class_uid: str, sop_instance_uid: str | None, data_set: bytes | None
    ) -> tuple[int, str]:
        """Send a C-STORE request and return the status and Error Comment of its response.

        What is None is left out of the request.
        """
        elements = [
            (0x0002, _padded_uid(sop_class_uid)),
            (0x0100, struct.pack("<H", 0x0001)),
            (0x0110, struct.pack("<H", 7)),
            (0x0700, struct.pack("<H", 0)),
            (0x0800, struct.pack("<H", _NO_DATA_SET if data_set is None else 1)),
        ]
        if sop_instance_uid is not None:
            elements.append((0x1000, _padded_uid(sop_instance_uid)))
        self.socket.sendall(_p_data(3, _command(elements)))
        if data_set is not None:
            self.socket.sendall(_p_data(2, data_set))
        answer = _elements(self.read_pdu()[12:])
        comment = answer.get(0x0902, b"").decode("ascii").strip()
        return struct.unpack("<H", answer[0x0900])[0], comment

    def release(self) -> None:
        """End the association politely."""
        self.socket.sendall(b"\x05\x00\x00\x00\x00\x04" + bytes(4))
        assert self.read_pdu()[0] == 6, "an A-RELEASE-RP was expected"

    def close(self) -> None:
        """Close the connection, whatever state the association is in."""
        self.socket.close()

    def read_pdu(self) -> bytes:
        """Return the next PDU, head included."""
        head = self._exactly(6)
        return head + self._exactly(int.from_bytes(head[2:], "big"))

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            assert more, "the connection ended too early"
            data += more
        return data


def _item(kind: int, value: bytes) -> bytes:
    return bytes([kind, 0]) + len(value).to_bytes(2, "big") + value


def _associate_request(called: str, calling: str, sop_class_uid: str, syntax_uid: str) -> bytes:
    syntaxes = _item(0x30, sop_class_uid.encode()) + _item(0x40, syntax_uid.encode())
    user = _item(0x51, (16384).to_bytes(4, "big")) + _item(0x52, b"1.2.3.4")
    body = (
        b"\x00\x01\x00\x00"
        + called.ljust(16).encode()
        + calling.ljust(16).encode()
        + bytes(32)
        + _item(0x10, b"1.2.840.10008.3.1.1.1")
        + _item(0x20, bytes([_CONTEXT_ID, 0, 0, 0]) + syntaxes)
        + _item(0x50, user)
    )
    return b"\x01\x00" + len(body).to_bytes(4, "big") + body


def _p_data(control_header: int, fragment: bytes) -> bytes:
    value = bytes([_CONTEXT_ID, control_header]) + fragment
    item = len(value).to_bytes(4, "big") + value
    return b"\x04\x00" + len(item).to_bytes(4, "big") + item


def _padded_uid(uid: str) -> bytes:
    value = uid.encode()
    return value + b"\0" * (len(value) % 2)


def _command(elements: list[tuple[int, bytes]]) -> bytes:
    group = b"".join(struct.pack("<HHL", 0, tag, len(value)) + value for tag, value in elements)
    return struct.pack("<HHLL", 0, 0, 4, len(group)) + group


def _elements(command: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    offset = 0
    while offset < len(command):
        _, tag, length = struct.unpack_from("<HHL", command, offset)
        found[tag] = command[offset + 8 : offset + 8 + length]
        offset += 8 + length
    return found
