"""What the index keeps of an instance, from its first bytes, without a parser and its lock.

Owns the one walk fast enough for every received instance. It must not interpret anything that
could be read two ways: it answers what ``header.read_header`` would, or None.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from functools import lru_cache

from pydicom.datadict import dictionary_VR
from pydicom.uid import ImplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

from dicom_io.errors import InvalidUID
from dicom_io.reading import EncodedDataSet
from dicom_io.vocabulary import InstanceHeader, checked_uid

__all__ = ["scan_header"]

MAX_SCANNED_VALUE_BYTES = 1024
"""A longer value is cut or left out by the full parser; no legal one of those wanted comes near."""

MAX_SCANNED_DEPTH = 8
"""Sequences of undefined length nested deeper are left to the full parser, which has its limit."""

_SPECIFIC_CHARACTER_SET = 0x00080005
_SOP_CLASS_UID = 0x00080016
_SOP_INSTANCE_UID = 0x00080018
_STUDY_DATE = 0x00080020
_STUDY_TIME = 0x00080030
_ACCESSION_NUMBER = 0x00080050
_MODALITY = 0x00080060
_STUDY_DESCRIPTION = 0x00081030
_SERIES_DESCRIPTION = 0x0008103E
_PATIENT_NAME = 0x00100010
_PATIENT_ID = 0x00100020
_BODY_PART_EXAMINED = 0x00180015
_CONTRIBUTING_EQUIPMENT_SEQUENCE = 0x0018A001
_STUDY_INSTANCE_UID = 0x0020000D
_SERIES_INSTANCE_UID = 0x0020000E
_SERIES_NUMBER = 0x00200011
_INSTANCE_NUMBER = 0x00200013
_NUMBER_OF_FRAMES = 0x00280008
_ROWS = 0x00280010
_COLUMNS = 0x00280011

_WANTED = {
    _SPECIFIC_CHARACTER_SET: b"CS",
    _SOP_CLASS_UID: b"UI",
    _SOP_INSTANCE_UID: b"UI",
    _STUDY_DATE: b"DA",
    _STUDY_TIME: b"TM",
    _ACCESSION_NUMBER: b"SH",
    _MODALITY: b"CS",
    _STUDY_DESCRIPTION: b"LO",
    _SERIES_DESCRIPTION: b"LO",
    _PATIENT_NAME: b"PN",
    _PATIENT_ID: b"LO",
    _BODY_PART_EXAMINED: b"CS",
    _CONTRIBUTING_EQUIPMENT_SEQUENCE: b"SQ",
    _STUDY_INSTANCE_UID: b"UI",
    _SERIES_INSTANCE_UID: b"UI",
    _SERIES_NUMBER: b"IS",
    _INSTANCE_NUMBER: b"IS",
    _NUMBER_OF_FRAMES: b"IS",
    _ROWS: b"US",
    _COLUMNS: b"US",
}
"""The value representation that PS3.6 gives each element the header is made of."""

_BEFORE_FIRST_TAG = 0x0007FFFF
"""Groups 0000 to 0006 belong to commands, file meta information and directories."""

_PLAIN_CHARACTER_SETS = frozenset(
    {
        b"",
        b"ISO_IR 6",
        b"ISO_IR 100",
        b"ISO_IR 101",
        b"ISO_IR 109",
        b"ISO_IR 110",
        b"ISO_IR 126",
        b"ISO_IR 127",
        b"ISO_IR 138",
        b"ISO_IR 144",
        b"ISO_IR 148",
        b"ISO_IR 166",
        b"ISO_IR 192",
        b"ISO 2022 IR 6",
        b"ISO 2022 IR 100",
        b"GB18030",
        b"GBK",
    }
)
"""Those in which bytes below 0x80 are ASCII; not ISO_IR 13, whose 5C and 7E are yen and overline.

Several at once are left to the full parser, because escape sequences switch between them.
"""

_SHORT_VRS = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_16)
_LONG_VRS = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_32)
_NO_VRS: frozenset[bytes] = frozenset()
_UNDEFINED_LENGTH = 0xFFFFFFFF
_ITEM = b"\xfe\xff\x00\xe0"
_ITEM_DELIMITER = b"\xfe\xff\x0d\xe0\0\0\0\0"
_SEQUENCE_DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"
_ITEM_GROUP = 0xFFFE

_explicit_element = struct.Struct("<HH2sH").unpack_from
_implicit_element = struct.Struct("<HHL").unpack_from
_long_length = struct.Struct("<L").unpack_from
_unsigned_short = struct.Struct("<H").unpack

_is_plain_text = re.compile(rb"[ -\[\]-~]*").fullmatch
_is_integer = re.compile(rb"[+-]?[0-9]{1,9}").fullmatch
_looks_explicit = re.compile(rb"[A-Z]{2}").match

_Element = tuple[int, bytes | None, int, int]
"""Tag, value representation (None when implicit), length, and where the value starts."""

_ElementAt = Callable[[bytes, int], _Element]


class _Unsure(Exception):
    """Only the full parser can tell; never leaves this module."""


def scan_header(
    head: bytes | bytearray | memoryview, transfer_syntax_uid: str, *, is_whole: bool
) -> InstanceHeader | None:
    """Return what ``read_header`` returns for a data set, or None when only it can tell.

    Never raises, whatever the bytes are. The answer depends on nothing behind the first element
    after Columns (0028,0011), which is why the size of the data set need not be known: what is
    declared before that element and lies beyond `head` is never answered for.

    None is returned for: encodings other than Implicit and Explicit VR Little Endian; elements out
    of order, twice, of an unknown or unexpected value representation, or longer than what there
    is; values with a backslash, a control character, a byte outside ASCII, or longer than
    ``MAX_SCANNED_VALUE_BYTES``; character sets with code extensions; numbers that are more than
    digits with a sign; a Contributing Equipment Sequence; UIDs that are missing or illegal.

    Parameters
    ----------
    head : bytes-like
        The first bytes of the encoded data set, without the head of a Part 10 file.
    transfer_syntax_uid : str
        How the data set is encoded; becomes the file's Transfer Syntax UID (0002,0010).
    is_whole : bool
        True when `head` is the entire data set.

    References
    ----------
    PS3.5 sections 6.2, 7.1, 7.5 and Annex A.
    """
    element_at = _element_reader(transfer_syntax_uid)
    if element_at is None:
        return None
    data = bytes(head)
    if element_at is _implicit_at and _looks_explicit(data, 4):
        return None  # the full parser believes the first element rather than the transfer syntax
    try:
        return _header_of(_values(data, element_at, is_whole), transfer_syntax_uid)
    except (_Unsure, InvalidUID, struct.error):
        return None


@lru_cache(maxsize=64)
def _element_reader(transfer_syntax_uid: str) -> _ElementAt | None:
    """Return how elements are read in a transfer syntax, None where they are not scanned."""
    try:
        checked_uid(transfer_syntax_uid, "TransferSyntaxUID (0002,0010)")
    except InvalidUID:
        return None
    encoding = EncodedDataSet(io.BytesIO(), transfer_syntax_uid, 0)
    if transfer_syntax_uid == ImplicitVRLittleEndian:
        return _implicit_at
    if encoding.is_implicit_vr or encoding.is_deflated or not encoding.is_little_endian:
        return None
    return _explicit_at


def _explicit_at(data: bytes, at: int) -> _Element:
    group, element, vr, length = _explicit_element(data, at)
    if vr in _SHORT_VRS:
        return group << 16 | element, vr, length, at + 8
    if vr in _LONG_VRS:
        return group << 16 | element, vr, _long_length(data, at + 8)[0], at + 12
    raise _Unsure


def _implicit_at(data: bytes, at: int) -> _Element:
    group, element, length = _implicit_element(data, at)
    return group << 16 | element, None, length, at + 8


def _values(data: bytes, element_at: _ElementAt, is_whole: bool) -> dict[int, bytes]:
    """Return the values of the wanted elements that are there.

    The element behind the last wanted one is looked at too: it shows that none comes twice, and
    the full parser refuses a file that ends within its length.
    """
    found: dict[int, bytes] = {}
    # Most elements are read in place: a call for each would take a third of the whole time.
    vrs_in_place = _SHORT_VRS if element_at is _explicit_at else _NO_VRS
    explicit_element, wanted, last_tag = _explicit_element, _WANTED, _COLUMNS
    previous = _BEFORE_FIRST_TAG
    at, last_start = 0, len(data) - 8
    while at <= last_start:
        group, element, vr, length = explicit_element(data, at)
        if vr in vrs_in_place:
            tag, start = group << 16 | element, at + 8
        else:
            tag, vr, length, start = element_at(data, at)
        if tag <= previous:
            raise _Unsure
        if tag > last_tag:
            return found
        if length == _UNDEFINED_LENGTH:
            at = _after_sequence(data, start, tag, vr, element_at, MAX_SCANNED_DEPTH)
        else:
            at = start + length
        if tag in wanted:
            found[tag] = _wanted(data[start:at], vr, wanted[tag])
        previous = tag
    if at > len(data) or not is_whole:
        raise _Unsure
    return found


def _wanted(value: bytes, vr: bytes | None, expected: bytes) -> bytes:
    is_expected = vr is None or vr == expected
    if not is_expected or expected == b"SQ" or len(value) > MAX_SCANNED_VALUE_BYTES:
        raise _Unsure
    return value


def _after_sequence(
    data: bytes, at: int, tag: int, vr: bytes | None, element_at: _ElementAt, depth: int
) -> int:
    """Return where a sequence of undefined length ends whose first item starts at `at`."""
    if depth == 0 or not _is_sequence(data, at, tag, vr):
        raise _Unsure
    while data[at : at + 8] != _SEQUENCE_DELIMITER:
        if data[at : at + 4] != _ITEM:
            raise _Unsure
        at = _after_item(data, at + 8, _long_length(data, at + 4)[0], element_at, depth)
    return at + 8


def _is_sequence(data: bytes, at: int, tag: int, vr: bytes | None) -> bool:
    """Tell what of undefined length is a sequence, as the full parser does without a VR."""
    if vr is not None:
        return vr == b"SQ"
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return data[at : at + 4] == _ITEM


def _after_item(data: bytes, at: int, length: int, element_at: _ElementAt, depth: int) -> int:
    """Return where an item ends; its elements must fill it exactly.

    Within a sequence of undefined length the full parser reads every element of every item,
    whatever the item says of its length.
    """
    is_undefined = length == _UNDEFINED_LENGTH
    end = len(data) if is_undefined else at + length
    while at < end:
        if is_undefined and data[at : at + 8] == _ITEM_DELIMITER:
            return at + 8
        tag, vr, value_length, start = element_at(data, at)
        if value_length == _UNDEFINED_LENGTH:
            at = _after_sequence(data, start, tag, vr, element_at, depth - 1)
        else:
            at = start + value_length
        if tag == _SPECIFIC_CHARACTER_SET:
            _check_character_set(_wanted(data[start:at], vr, b"CS"))
        if tag >> 16 == _ITEM_GROUP:
            raise _Unsure
    if at != end:
        raise _Unsure
    return at


def _header_of(found: dict[int, bytes], transfer_syntax_uid: str) -> InstanceHeader:
    """Make the header as ``header.read_header`` does: absent and empty values are alike."""

    def value(tag: int) -> bytes:
        return found.get(tag, b"")

    _check_character_set(value(_SPECIFIC_CHARACTER_SET))
    return InstanceHeader(
        study_instance_uid=checked_uid(_text(value(_STUDY_INSTANCE_UID)), "StudyInstanceUID"),
        series_instance_uid=checked_uid(_text(value(_SERIES_INSTANCE_UID)), "SeriesInstanceUID"),
        sop_instance_uid=checked_uid(_text(value(_SOP_INSTANCE_UID)), "SOPInstanceUID"),
        sop_class_uid=checked_uid(_text(value(_SOP_CLASS_UID)), "SOPClassUID"),
        transfer_syntax_uid=transfer_syntax_uid,
        modality=_text(value(_MODALITY)),
        study_date=_text(value(_STUDY_DATE)),
        study_time=_text(value(_STUDY_TIME)),
        study_description=_text(value(_STUDY_DESCRIPTION)),
        series_description=_text(value(_SERIES_DESCRIPTION)),
        series_number=_integer(value(_SERIES_NUMBER)),
        instance_number=_integer(value(_INSTANCE_NUMBER)),
        body_part_examined=_text(value(_BODY_PART_EXAMINED)),
        number_of_frames=max(_integer(value(_NUMBER_OF_FRAMES)) or 1, 1),
        rows=_unsigned(value(_ROWS)),
        columns=_unsigned(value(_COLUMNS)),
        is_own=False,
        patient_id=_text(value(_PATIENT_ID)),
        patient_name=_name(_text(value(_PATIENT_NAME))),
        accession_number=_text(value(_ACCESSION_NUMBER)),
    )


def _check_character_set(value: bytes) -> None:
    if value.rstrip(b" ") not in _PLAIN_CHARACTER_SETS:
        raise _Unsure


def _text(value: bytes) -> str:
    """Return a single value in plain ASCII without its padding."""
    stripped = value.rstrip(b"\0 ")
    if not _is_plain_text(stripped):
        raise _Unsure
    return stripped.decode("ascii").strip(" ")


def _name(value: str) -> str:
    """Return a name of one component group as ``attributes.readable_name`` shows it."""
    if "=" in value:
        raise _Unsure
    components = [component.strip(" ") for component in value.split("^")] + [""] * 4
    family, given, middle, prefix, suffix = components[:5]
    rest = " ".join(part for part in (prefix, given, middle, suffix) if part)
    return ", ".join(part for part in (family, rest) if part)


def _integer(value: bytes) -> int | None:
    stripped = value.strip(b" ")
    if not stripped:
        return None
    if not _is_integer(stripped):
        raise _Unsure
    return int(stripped)


def _unsigned(value: bytes) -> int:
    if not value:
        return 0
    number: int = _unsigned_short(value)[0]
    return number
