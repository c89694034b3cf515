"""The head of a DICOM file: preamble, prefix and file meta information.

Owns the few bytes that turn a received data set into a file. Never touches the data set: the file
minus this head is, byte for byte, what the sender sent.
"""

from __future__ import annotations

import struct

from dicom_io.receiving.instances import StoreRequest
from dicom_io.vocabulary import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

_PREAMBLE_AND_PREFIX = bytes(128) + b"DICM"
_FILE_META_INFORMATION_VERSION = b"\x00\x01"
_SHORT_ELEMENT = struct.Struct("<HH2sH")
_LONG_ELEMENT = struct.Struct("<HH2sHL")
_AE_TITLE_MAX_LENGTH = 16


def file_prefix(request: StoreRequest) -> bytes:
    """Return what precedes the data set in a file: preamble, ``DICM`` and group 0002.

    Group 0002 is always Explicit VR Little Endian, whatever the data set is. Source Application
    Entity Title is the calling AE title and is left out when that is empty.

    References
    ----------
    PS3.10 section 7.1, Table 7.1-1.
    """
    group = b"".join(
        (
            _LONG_ELEMENT.pack(0x0002, 0x0001, b"OB", 0, len(_FILE_META_INFORMATION_VERSION)),
            _FILE_META_INFORMATION_VERSION,
            _uid(0x0002, request.sop_class_uid),
            _uid(0x0003, request.sop_instance_uid),
            _uid(0x0010, request.transfer_syntax_uid),
            _uid(0x0012, IMPLEMENTATION_CLASS_UID),
            _text(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
            _source(request.calling_ae_title),
        )
    )
    group_length = _element(0x0000, b"UL", struct.pack("<L", len(group)))
    return _PREAMBLE_AND_PREFIX + group_length + group


def _source(calling_ae_title: str) -> bytes:
    title = calling_ae_title.strip()[:_AE_TITLE_MAX_LENGTH]
    return _text(0x0016, b"AE", title) if title else b""


def _uid(element: int, uid: str) -> bytes:
    value = uid.encode("ascii")
    return _element(element, b"UI", value + b"\0" * (len(value) % 2))


def _text(element: int, vr: bytes, text: str) -> bytes:
    # A title outside ASCII breaks PS3.5 6.2; the file must stay readable all the same.
    value = text.encode("ascii", errors="replace")
    return _element(element, vr, value + b" " * (len(value) % 2))


def _element(element: int, vr: bytes, value: bytes) -> bytes:
    return _SHORT_ELEMENT.pack(0x0002, element, vr, len(value)) + value
