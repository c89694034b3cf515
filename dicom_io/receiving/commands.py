"""The command sets of C-STORE and C-ECHO, read and written without a data set library.

Owns the few elements of group 0000 that a Storage SCP needs for every instance and every probe.
Must not know how a command travels; own code, because pydicom spends more time on these 150 bytes
than the disk on an image.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dicom_io.receiving.instances import StoreAnswer
from dicom_io.statuses import StoreStatusValues

NO_DATA_SET = 0x0101
"""Command Data Set Type (0000,0800) of a message without data set (PS3.7 E.1-1)."""

_C_STORE_RQ = 0x0001
_C_STORE_RSP = 0x8001
_C_ECHO_RQ = 0x0030
_C_ECHO_RSP = 0x8030
_GROUP_LENGTH = 0x0000
_AFFECTED_SOP_CLASS_UID = 0x0002
_COMMAND_FIELD = 0x0100
_MESSAGE_ID = 0x0110
_RESPONDED_TO = 0x0120
_PRIORITY = 0x0700
_DATA_SET_TYPE = 0x0800
_STATUS = 0x0900
_ERROR_COMMENT = 0x0902
_AFFECTED_SOP_INSTANCE_UID = 0x1000
_ERROR_COMMENT_MAX_LENGTH = 64
_UID_MAX_LENGTH = 64

_VERIFICATION = "1.2.840.10008.1.1"

_ELEMENT = struct.Struct("<HHL")
_US = struct.Struct("<H")
_UL = struct.Struct("<L")


@dataclass(frozen=True, slots=True)
class StoreCommand:
    """A C-STORE-RQ that announces a data set; UIDs as sent, unchecked, without their padding."""

    message_id: int
    sop_class_uid: str
    sop_instance_uid: str


def read_store_command(command: bytes | bytearray) -> StoreCommand | None:
    """Return the request this command set makes; None when it is no plain C-STORE-RQ.

    None covers every other command as well as a C-STORE-RQ that lacks an element which is needed
    here, carries one in a form of its own, or announces no data set. Such messages need a full
    DIMSE service. A priority is not needed: instances are stored as they come.

    Parameters
    ----------
    command : bytes-like
        The whole command set, Implicit VR Little Endian.

    References
    ----------
    PS3.7 section 9.3.1.1, Table 9.3-1, and section 6.3.1.
    """
    elements = command_elements(command)
    if elements is None or elements.get(_COMMAND_FIELD) != _US.pack(_C_STORE_RQ):
        return None
    message_id, priority = elements.get(_MESSAGE_ID, b""), elements.get(_PRIORITY, _MEDIUM)
    sop_class = _uid(elements.get(_AFFECTED_SOP_CLASS_UID, b""))
    sop_instance = _uid(elements.get(_AFFECTED_SOP_INSTANCE_UID, b""))
    data_set_type = elements.get(_DATA_SET_TYPE, b"")
    if not (len(message_id) == len(data_set_type) == 2 and priority in _PRIORITIES):
        return None
    if not sop_class or not sop_instance or data_set_type == _US.pack(NO_DATA_SET):
        return None
    return StoreCommand(_US.unpack(message_id)[0], sop_class, sop_instance)


_MEDIUM = _US.pack(0)
_PRIORITIES = frozenset(_US.pack(priority) for priority in (0, 1, 2))


def read_echo_command(command: bytes | bytearray) -> int | None:
    """Return the message ID of a C-ECHO-RQ; None for every other command, and for strange ones.

    References
    ----------
    PS3.7 section 9.3.5.1, Table 9.3-12.
    """
    elements = command_elements(command)
    if elements is None or not _ECHO_ELEMENTS <= elements.keys() <= _ECHO_ELEMENTS_AND_LENGTH:
        return None
    message_id = elements[_MESSAGE_ID]
    is_echo = (
        elements[_COMMAND_FIELD] == _US.pack(_C_ECHO_RQ)
        and elements[_DATA_SET_TYPE] == _US.pack(NO_DATA_SET)
        and _uid(elements[_AFFECTED_SOP_CLASS_UID]) == _VERIFICATION
        and len(message_id) == _US.size
    )
    return _US.unpack(message_id)[0] if is_echo else None


_ECHO_ELEMENTS = {_AFFECTED_SOP_CLASS_UID, _COMMAND_FIELD, _MESSAGE_ID, _DATA_SET_TYPE}
_ECHO_ELEMENTS_AND_LENGTH = {_GROUP_LENGTH, *_ECHO_ELEMENTS}


def announces_data_set(command: bytes | bytearray) -> bool:
    """Tell whether a data set follows this command; False when the command cannot be read.

    Elements in another order than the standard's are read all the same, as a full DIMSE service
    does.
    """
    elements = command_elements(command, in_order=False)
    return elements is not None and elements.get(_DATA_SET_TYPE) not in (
        None,
        _US.pack(NO_DATA_SET),
    )


def command_elements(
    command: bytes | bytearray, *, in_order: bool = True
) -> dict[int, bytes] | None:
    """Return group 0000 as element number to value; None when it is damaged.

    `in_order` takes a disordered one for damaged too.
    """
    found: dict[int, bytes] = {}
    offset, end, last = 0, len(command), -1
    while offset < end:
        if end - offset < _ELEMENT.size:
            return None
        group, element, length = _ELEMENT.unpack_from(command, offset)
        offset += _ELEMENT.size
        if group != 0 or (in_order and element <= last) or length > end - offset:
            return None
        found[element] = bytes(command[offset : offset + length])
        offset += length
        last = element
    return found


def _uid(value: bytes) -> str:
    """Return a UID without padding, unchecked; empty when it is no text at all."""
    text = value.rstrip(b"\0 ")
    return text.decode("ascii") if text.isascii() and len(text) <= _UID_MAX_LENGTH else ""


def store_response(command: StoreCommand, answer: StoreAnswer) -> bytes:
    """Return the command set of the C-STORE-RSP (PS3.7 section 9.3.1.2)."""
    comment = error_comment(answer)
    group = b"".join(
        (
            _element(_AFFECTED_SOP_CLASS_UID, _padded_uid(command.sop_class_uid)),
            _element(_COMMAND_FIELD, _US.pack(_C_STORE_RSP)),
            _element(_RESPONDED_TO, _US.pack(command.message_id)),
            _element(_DATA_SET_TYPE, _US.pack(NO_DATA_SET)),
            _element(_STATUS, _US.pack(int(answer.status))),
            _element(_ERROR_COMMENT, _even(comment.encode("ascii"))) if comment else b"",
            _element(_AFFECTED_SOP_INSTANCE_UID, _padded_uid(command.sop_instance_uid)),
        )
    )
    return _element(_GROUP_LENGTH, _UL.pack(len(group))) + group


def echo_response(message_id: int) -> bytes:
    """Return the command set of the C-ECHO-RSP (PS3.7 section 9.3.5.2); it is always Success."""
    group = b"".join(
        (
            _element(_AFFECTED_SOP_CLASS_UID, _padded_uid(_VERIFICATION)),
            _element(_COMMAND_FIELD, _US.pack(_C_ECHO_RSP)),
            _element(_RESPONDED_TO, _US.pack(message_id)),
            _element(_DATA_SET_TYPE, _US.pack(NO_DATA_SET)),
            _element(_STATUS, _US.pack(int(StoreStatusValues.SUCCESS))),
        )
    )
    return _element(_GROUP_LENGTH, _UL.pack(len(group))) + group


def error_comment(answer: StoreAnswer) -> str:
    """Return why, as Error Comment (0000,0902) can say it: one line of 64 ASCII characters.

    Empty for Success, which has nothing to explain.
    """
    if answer.status == StoreStatusValues.SUCCESS:
        return ""
    plain = answer.comment.encode("ascii", errors="replace").decode("ascii").replace("\\", "/")
    shown = "".join(c if c.isprintable() else " " for c in plain)
    return shown[:_ERROR_COMMENT_MAX_LENGTH]


def _element(element: int, value: bytes) -> bytes:
    return _ELEMENT.pack(0, element, len(value)) + value


def _padded_uid(uid: str) -> bytes:
    value = uid.encode("ascii")
    return value + b"\0" * (len(value) % 2)


def _even(value: bytes) -> bytes:
    return value + b" " * (len(value) % 2)
