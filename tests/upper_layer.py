"""The DICOM upper layer protocol as plain bytes, so that tests can also get it wrong on purpose.

Owns the layout of PDUs, presentation data values and command sets. Checks nothing and knows no
socket and no library: whatever a test asks for is written.

References
----------
PS3.8 section 9.3 and Annex E, PS3.7 section 6.3.1 and Annex E.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

VERIFICATION = "1.2.840.10008.1.1"
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA_TF, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)

DATA, COMMAND, LAST_DATA, LAST_COMMAND = range(4)
"""The message control header: bit 0 a command, bit 1 the last fragment (PS3.8 E.2)."""

C_STORE_RQ, C_STORE_RSP, C_ECHO_RQ = 0x0001, 0x8001, 0x0030
NO_DATA_SET = 0x0101

_APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    """Return one PDU; `length` may lie."""
    return struct.pack(">BBL", kind, 0, len(body) if length is None else length) + body


RELEASE_REQUEST = pdu(RELEASE_RQ, bytes(4))
ABORT_REQUEST = pdu(ABORT, bytes(4))


def pdv(context_id: int, control: int, fragment: bytes, length: int | None = None) -> bytes:
    """Return one presentation data value; `length` may lie."""
    value = bytes([context_id, control]) + bytes(fragment)
    return struct.pack(">L", len(value) if length is None else length) + value


def p_data(*values: bytes) -> bytes:
    """Return one P-DATA-TF PDU of these values."""
    return pdu(P_DATA_TF, b"".join(values))


@dataclass(frozen=True)
class Context:
    """A presentation context as proposed."""

    id: int
    abstract_syntax: str = CT_IMAGE_STORAGE
    transfer_syntaxes: Sequence[str] = (IMPLICIT_VR_LITTLE_ENDIAN,)


def associate_request(
    contexts: Iterable[Context],
    *,
    called: str = "MEDIMGD",
    calling: str = "RAW",
    maximum_pdu_bytes: int = 16384,
) -> bytes:
    """Return an A-ASSOCIATE-RQ."""
    user = _item(0x51, maximum_pdu_bytes.to_bytes(4, "big")) + _item(0x52, b"1.2.3.4")
    body = (
        b"\x00\x01\x00\x00"
        + called.ljust(16).encode()
        + calling.ljust(16).encode()
        + bytes(32)
        + _item(0x10, _APPLICATION_CONTEXT)
        + b"".join(_proposed(context) for context in contexts)
        + _item(0x50, user)
    )
    return pdu(ASSOCIATE_RQ, body)


def _proposed(context: Context) -> bytes:
    syntaxes = _item(0x30, context.abstract_syntax.encode()) + b"".join(
        _item(0x40, syntax.encode()) for syntax in context.transfer_syntaxes
    )
    return _item(0x20, bytes([context.id, 0, 0, 0]) + syntaxes)


def _item(kind: int, value: bytes) -> bytes:
    return bytes([kind, 0]) + len(value).to_bytes(2, "big") + value


def padded_uid(uid: str) -> bytes:
    """Return a UID with the padding of its value representation."""
    value = uid.encode()
    return value + b"\0" * (len(value) % 2)


def us(value: int) -> bytes:
    """Return an unsigned short."""
    return struct.pack("<H", value)


def command_set(elements: Iterable[tuple[int, bytes]]) -> bytes:
    """Return a command set of these elements of group 0000, group length added."""
    group = b"".join(struct.pack("<HHL", 0, tag, len(value)) + value for tag, value in elements)
    return struct.pack("<HHLL", 0, 0, 4, len(group)) + group


def store_request(
    sop_instance_uid: str | None = "1.2.3",
    *,
    sop_class_uid: str = CT_IMAGE_STORAGE,
    message_id: int = 7,
    has_data_set: bool = True,
    field: int = C_STORE_RQ,
) -> bytes:
    """Return the command set of a C-STORE request; a UID that is None is left out."""
    elements = [
        (0x0002, padded_uid(sop_class_uid)),
        (0x0100, us(field)),
        (0x0110, us(message_id)),
        (0x0700, us(0)),
        (0x0800, us(1 if has_data_set else NO_DATA_SET)),
    ]
    if sop_instance_uid is not None:
        elements.append((0x1000, padded_uid(sop_instance_uid)))
    return command_set(elements)


def echo_request(message_id: int = 9) -> bytes:
    """Return the command set of a C-ECHO request."""
    return command_set(
        [
            (0x0002, padded_uid(VERIFICATION)),
            (0x0100, us(C_ECHO_RQ)),
            (0x0110, us(message_id)),
            (0x0800, us(NO_DATA_SET)),
        ]
    )


def elements_of(command: bytes) -> dict[int, bytes]:
    """Return the elements of a command set by their element number."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset < len(command):
        _, tag, length = struct.unpack_from("<HHL", command, offset)
        found[tag] = bytes(command[offset + 8 : offset + 8 + length])
        offset += 8 + length
    return found


def status_of(command: bytes) -> int:
    """Return the Status (0000,0900) of a response."""
    return int.from_bytes(elements_of(command)[0x0900], "little")


def split_pdus(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the whole PDUs `data` begins with, and what is left."""
    pdus, at = [], 0
    while len(data) - at >= 6:
        end = at + 6 + int.from_bytes(data[at + 2 : at + 6], "big")
        if end > len(data):
            break
        pdus.append(data[at:end])
        at = end
    return pdus, data[at:]


def values_of(pdu_bytes: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield context, control and fragment of each value of a P-DATA-TF PDU."""
    at = 6
    while at < len(pdu_bytes):
        length = int.from_bytes(pdu_bytes[at : at + 4], "big")
        yield pdu_bytes[at + 4], pdu_bytes[at + 5], pdu_bytes[at + 6 : at + 4 + length]
        at += 4 + length


def commands_of(pdus: Iterable[bytes]) -> list[bytes]:
    """Return the command sets that P-DATA-TF PDUs without data sets carry, put together."""
    commands, unfinished = [], b""
    for each in pdus:
        for _, control, fragment in values_of(each):
            unfinished += fragment
            if control == LAST_COMMAND:
                commands.append(unfinished)
                unfinished = b""
    return commands


def cut(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    """Cut `data` into pieces of these sizes, the last one taking what is left; 0 is allowed."""
    pieces, at = [], 0
    for size in sizes:
        if at + size >= len(data):
            break
        pieces.append(data[at : at + size])
        at += size
    return [*pieces, data[at:]]


def message(
    context_id: int, command: bytes, data_set: bytes | None, fragment_bytes: int = 16000
) -> list[bytes]:
    """Return the values of one message, both parts cut into fragments of one size."""
    values = _part(context_id, COMMAND, command, fragment_bytes)
    if data_set is not None:
        values += _part(context_id, DATA, data_set, fragment_bytes)
    return values


def _part(context_id: int, control: int, data: bytes, fragment_bytes: int) -> list[bytes]:
    pieces = [data[at : at + fragment_bytes] for at in range(0, len(data), fragment_bytes)] or [b""]
    last = len(pieces) - 1
    return [pdv(context_id, control | (2 * (i == last)), p) for i, p in enumerate(pieces)]
