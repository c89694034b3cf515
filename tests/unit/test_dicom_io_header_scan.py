"""The fast scan of a header: exactly what the full parser reads, or no answer."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom.uid
import pytest
from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.uid import UID

from dicom_io import header_scan
from dicom_io.errors import InvalidUID, UnreadableInstance
from dicom_io.header import _HEADER_KEYWORDS, read_header
from dicom_io.header_scan import scan_header
from dicom_io.reading import open_data_set
from dicom_io.vocabulary import InstanceHeader

EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
HEAD_BYTES = 128 * 1024
ITEM = b"\xfe\xff\x00\xe0"
ITEM_END = b"\xfe\xff\x0d\xe0" + bytes(4)
SEQUENCE_END = b"\xfe\xff\xdd\xe0" + bytes(4)
UNDEFINED = 0xFFFFFFFF
LONG_VRS = (b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR", b"OV", b"SV")

Elements = dict[int, tuple[bytes, bytes]]
"""Value representation and value by tag."""


def part10_head(transfer_syntax_uid: str) -> bytes:
    """The shortest head of a file that the full parser accepts."""
    uid = transfer_syntax_uid.encode() + b"\0" * (len(transfer_syntax_uid) % 2)
    return bytes(128) + b"DICM" + struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid


def element(
    tag: int,
    vr: bytes,
    value: bytes,
    transfer_syntax_uid: str = EXPLICIT,
    length: int | None = None,
) -> bytes:
    length = len(value) if length is None else length
    group, number = tag >> 16, tag & 0xFFFF
    if transfer_syntax_uid == IMPLICIT:
        return struct.pack("<HHL", group, number, length) + value
    if vr in LONG_VRS:
        return struct.pack("<HH2sHL", group, number, vr, 0, length) + value
    return struct.pack("<HH2sH", group, number, vr, length) + value


def usual_elements() -> Elements:
    return {
        0x00080005: (b"CS", b"ISO_IR 100"),
        0x00080008: (b"CS", b"ORIGINAL\\PRIMARY "),
        0x00080016: (b"UI", b"1.2.840.10008.5.1.4.1.1.2\0"),
        0x00080018: (b"UI", b"1.2.3.1.1.7\0"),
        0x00080020: (b"DA", b"20240229"),
        0x00080030: (b"TM", b"101500"),
        0x00080050: (b"SH", b"A1"),
        0x00080060: (b"CS", b"CT"),
        0x00081030: (b"LO", b"Chest "),
        0x0008103E: (b"LO", b"lung"),
        0x00081140: (b"SQ", b""),
        0x00100010: (b"PN", b"Doe^Jane^^Dr"),
        0x00100020: (b"LO", b"P1"),
        0x00180015: (b"CS", b"CHEST "),
        0x00191010: (b"UN", b"private "),
        0x0020000D: (b"UI", b"1.2.3.1\0"),
        0x0020000E: (b"UI", b"1.2.3.1.1\0"),
        0x00200011: (b"IS", b"3 "),
        0x00200013: (b"IS", b"7 "),
        0x00280008: (b"IS", b"2 "),
        0x00280010: (b"US", b"\x02\0"),
        0x00280011: (b"US", b"\x03\0"),
        0x00280100: (b"US", b"\x10\0"),
        0x7FE00010: (b"OW", bytes(12)),
    }


def encoded(elements: Elements, transfer_syntax_uid: str = EXPLICIT) -> bytes:
    return b"".join(
        element(tag, vr, value, transfer_syntax_uid)
        for tag, (vr, value) in sorted(elements.items())
    )


def changed(**values: tuple[bytes, bytes] | None) -> bytes:
    """Encode the usual elements with some changed: ``changed(t00080060=(b"CS", b"MR"))``."""
    elements = usual_elements()
    for name, change in values.items():
        tag = int(name[1:], 16)
        if change is None:
            del elements[tag]
        else:
            elements[tag] = change
    return encoded(elements)


@pytest.fixture
def parsed(tmp_path: Path) -> Callable[..., InstanceHeader | None]:
    """Give the header the full parser reads, or None where it refuses."""
    path = tmp_path / "instance.dcm"

    def parse(data_set: bytes, transfer_syntax_uid: str = EXPLICIT) -> InstanceHeader | None:
        path.write_bytes(part10_head(transfer_syntax_uid) + data_set)
        try:
            return read_header(path)
        except (UnreadableInstance, InvalidUID):
            return None

    return parse


Parse = Callable[..., InstanceHeader | None]


def data_set_of(path: Path) -> tuple[bytes, str]:
    """The encoded data set of a file, inflated where it was deflated, and its transfer syntax."""
    with open_data_set(path) as found:
        return found.stream.read(), found.transfer_syntax_uid


def scan_of(path: Path) -> InstanceHeader | None:
    data_set, transfer_syntax_uid = data_set_of(path)
    is_whole = len(data_set) <= HEAD_BYTES
    return scan_header(data_set[:HEAD_BYTES], transfer_syntax_uid, is_whole=is_whole)


@pytest.mark.parametrize("archive", ["ct-chest-60", "mr-head-t1-60"])
def test_every_slice_of_a_real_series_is_answered_exactly(
    unpacked: Callable[[str], Path], archive: str
) -> None:
    slices = sorted(unpacked(archive).rglob("*.dcm"))

    assert len(slices) >= 60
    for path in slices:
        assert scan_of(path) == read_header(path)


def test_real_single_files_are_answered_exactly(testdata: Path) -> None:
    paths = sorted((testdata / "single").glob("*.dcm"))

    assert {path.stem for path in paths} >= {"ct_image", "dx_image", "sr_document"}
    for path in paths:
        assert scan_of(path) == read_header(path)


def test_every_transfer_syntax_is_answered_exactly_or_left_to_the_parser(testdata: Path) -> None:
    paths = sorted((testdata / "transfer-syntaxes").glob("*.dcm"))
    scans = {path: scan_of(path) for path in paths}

    assert len(paths) == 13
    left = {path.stem for path, scanned in scans.items() if scanned is None}
    assert left == {"ct_deflated", "ct_explicit_be"}
    assert all(scans[path] == read_header(path) for path in paths if path.stem not in left)


@pytest.mark.parametrize("transfer_syntax_uid", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_header_holds_what_the_index_keeps(
    parsed: Parse, kind: type, transfer_syntax_uid: str
) -> None:
    data_set = encoded(usual_elements(), transfer_syntax_uid)

    header = scan_header(kind(data_set), transfer_syntax_uid, is_whole=True)

    assert header is not None
    assert header == parsed(data_set, transfer_syntax_uid)
    assert header.patient_name == "Doe, Dr Jane"
    assert (header.series_number, header.instance_number) == (3, 7)
    assert (header.number_of_frames, header.rows, header.columns) == (2, 2, 3)
    assert (header.study_description, header.body_part_examined) == ("Chest", "CHEST")
    assert header.sop_instance_uid == "1.2.3.1.1.7"
    assert not header.is_own


def test_the_wanted_elements_are_those_the_full_parser_asks_for() -> None:
    tags = {pydicom.datadict.tag_for_keyword(keyword) for keyword in _HEADER_KEYWORDS}

    assert set(header_scan._WANTED) == tags | {0x00080005}
    assert {tag: dictionary_VR(tag).encode() for tag in header_scan._WANTED} == header_scan._WANTED
    assert max(header_scan._WANTED) == header_scan._COLUMNS


# --- what is answered ------------------------------------------------------------------------

ANSWERED = {
    "no character set": changed(t00080005=None),
    "an empty character set": changed(t00080005=(b"CS", b"")),
    "an empty number": changed(t00200011=(b"IS", b"")),
    "a blank number": changed(t00200011=(b"IS", b"  ")),
    "a signed number": changed(t00200011=(b"IS", b"-12 ")),
    "a number with a plus and blanks": changed(t00200011=(b"IS", b" +012 ")),
    "no frames": changed(t00280008=(b"IS", b"0 ")),
    "fewer than no frames": changed(t00280008=(b"IS", b"-5")),
    "empty rows": changed(t00280010=(b"US", b"")),
    "many rows": changed(t00280010=(b"US", b"\xff\xff")),
    "no image": changed(t00280008=None, t00280010=None, t00280011=None),
    "an empty name": changed(t00100010=(b"PN", b"")),
    "a name of separators": changed(t00100010=(b"PN", b"^^^^ ")),
    "a name of one word": changed(t00100010=(b"PN", b"Doe ")),
    "a name without family": changed(t00100010=(b"PN", b"^Jane")),
    "a name of too many components": changed(t00100010=(b"PN", b" a ^b^c^d^e^f^g")),
    "blanks before and behind": changed(t00081030=(b"LO", b"  Chest  CT  ")),
    "padding of both kinds": changed(t00081030=(b"LO", b"Chest \0 \0")),
    "only padding": changed(t00081030=(b"LO", b" \0")),
    "the longest text that is scanned": changed(t00081030=(b"LO", b"x" * 1023 + b" ")),
    "all of ASCII": changed(t00081030=(b"LO", bytes(set(range(0x20, 0x7F)) - {0x5C}))),
    "UID with leading zeros": changed(t0020000D=(b"UI", b"1.02.003")),
    "UID padded with blanks": changed(t0020000D=(b"UI", b"1.2.3   ")),
    "UID of 64 characters": changed(t0020000D=(b"UI", b"1." * 31 + b"12")),
    "pixels of undefined length": changed(t7FE00010=None)
    + element(0x7FE00010, b"OB", ITEM + bytes(4) + SEQUENCE_END, length=UNDEFINED),
    "trailing bytes": changed(t7FE00010=None) + bytes(5),
    "sequence of defined length, full of nonsense": changed(t00081140=(b"SQ", b"\xff" * 33)),
    "icon in a sequence": changed(
        t00081140=(b"SQ", ITEM + struct.pack("<L", 12) + element(0x7FE00010, b"OW", b""))
    ),
}


@pytest.mark.parametrize("case", ANSWERED)
def test_answers_as_the_full_parser_for(parsed: Parse, case: str) -> None:
    header = scan_header(ANSWERED[case], EXPLICIT, is_whole=True)

    assert header is not None
    assert header == parsed(ANSWERED[case])


def nested(*items: bytes, tag: int = 0x00081140, syntax: str = EXPLICIT) -> bytes:
    """Encode the usual elements with a sequence of undefined length before the patient."""
    elements = usual_elements()
    del elements[0x00081140]
    before = {key: found for key, found in elements.items() if key < tag}
    after = {key: found for key, found in elements.items() if key > tag}
    sequence = element(tag, b"SQ", b"".join(items) + SEQUENCE_END, syntax, UNDEFINED)
    return encoded(before, syntax) + sequence + encoded(after, syntax)


def item(*contents: bytes, length: int | None = None) -> bytes:
    joined = b"".join(contents)
    return ITEM + struct.pack("<L", len(joined) if length is None else length) + joined


def open_item(*contents: bytes) -> bytes:
    return item(*contents, ITEM_END, length=UNDEFINED)


def deep(levels: int, syntax: str) -> bytes:
    sequence = SEQUENCE_END
    for _ in range(levels):
        sequence = open_item(element(0x00081140, b"SQ", sequence, syntax, UNDEFINED)) + SEQUENCE_END
    return sequence[: -len(SEQUENCE_END)]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_sequences_of_undefined_length_are_walked(parsed: Parse, syntax: str) -> None:
    uid = element(0x00080016, b"UI", b"9.9\0", syntax)
    inner = element(0x0040A170, b"SQ", open_item(uid) + SEQUENCE_END, syntax, UNDEFINED)
    closed = element(0x0040A170, b"SQ", b"\xff" * 9, syntax)
    bodies = {
        "empty": nested(syntax=syntax),
        "empty items": nested(item(), open_item(), syntax=syntax),
        "items": nested(item(uid), open_item(uid), syntax=syntax),
        "nested": nested(open_item(inner, uid), item(inner), syntax=syntax),
        "nested of defined length": nested(item(closed), syntax=syntax),
        "deep": nested(deep(6, syntax), syntax=syntax),
        "character set": nested(
            item(element(0x00080005, b"CS", b"ISO_IR 192", syntax)), syntax=syntax
        ),
    }

    for name, data_set in bodies.items():
        header = scan_header(data_set, syntax, is_whole=True)
        assert header is not None, name
        assert header == parsed(data_set, syntax), name


def test_private_sequence_of_implicit_vr_is_recognised_by_its_items(parsed: Parse) -> None:
    data_set = nested(item(), tag=0x00091010, syntax=IMPLICIT)

    header = scan_header(data_set, IMPLICIT, is_whole=True)

    assert header is not None
    assert header == parsed(data_set, IMPLICIT)


@pytest.mark.parametrize("charset", sorted(header_scan._PLAIN_CHARACTER_SETS))
def test_ascii_reads_alike_in_every_plain_character_set(parsed: Parse, charset: bytes) -> None:
    every = bytes(set(range(0x20, 0x7F)) - {0x5C, 0x3D})
    data_set = changed(
        t00080005=(b"CS", charset), t00081030=(b"LO", every), t00100010=(b"PN", every)
    )

    header = scan_header(data_set, EXPLICIT, is_whole=True)

    assert header is not None
    assert header == parsed(data_set)
    assert header.study_description == every.decode().strip()


# --- what is left to the full parser ---------------------------------------------------------

LEFT = {
    "nothing": b"",
    "zeros": bytes(4096),
    "the command set": element(0x00000002, b"UI", b"1.2\0") + changed(),
    "more file meta information": element(0x00020012, b"UI", b"1.2\0") + changed(),
    "character set of Japanese katakana": changed(t00080005=(b"CS", b"ISO_IR 13 ")),
    "character sets with code extensions": changed(t00080005=(b"CS", b"\\ISO 2022 IR 87")),
    "an unknown character set": changed(t00080005=(b"CS", b"KLINGON 99")),
    "a character set of another kind": changed(t00080005=(b"LO", b"ISO_IR 100")),
    "a byte outside ASCII": changed(t00081030=(b"LO", b"Lunge\xe4 ")),
    "an escape sequence": changed(t00081030=(b"LO", b"a\x1b(Bb")),
    "a control character": changed(t00081030=(b"LO", b"a\r\nb")),
    "a NUL within": changed(t00081030=(b"LO", b"a\0b ")),
    "DEL": changed(t00081030=(b"LO", b"a\x7f")),
    "several values": changed(t00081030=(b"LO", b"a\\b ")),
    "several modalities": changed(t00080060=(b"CS", b"CT\\MR ")),
    "text that would be cut": changed(t00081030=(b"LO", b"x" * 1026)),
    "text the parser leaves out": changed(t00081030=(b"UT", b"x" * 70000)),
    "a name of several groups": changed(t00100010=(b"PN", b"Doe^Jane=Doe")),
    "an unexpected value representation": changed(t00080060=(b"LO", b"CT")),
    "an unknown value": changed(t00080060=(b"UN", b"CT")),
    "an unknown value representation": changed(t00080008=(b"ZZ", b"CT")),
    "no value representation": changed(t00080008=(b"\0\0", b"CT")),
    "a fraction": changed(t00200011=(b"IS", b"3.5 ")),
    "an exponent": changed(t00200011=(b"IS", b"1e3 ")),
    "an underscore": changed(t00200011=(b"IS", b"1_0 ")),
    "a tab": changed(t00200011=(b"IS", b"1\t")),
    "a number padded with NUL": changed(t00200011=(b"IS", b"1\0")),
    "a number beyond any database": changed(t00200011=(b"IS", b"2147483648")),
    "two numbers": changed(t00200011=(b"IS", b"1\\2 ")),
    "two rows": changed(t00280010=(b"US", b"\1\0\2\0")),
    "half of rows": changed(t00280010=(b"US", b"\1")),
    "signed rows": changed(t00280010=(b"SS", b"\1\0")),
    "contributing equipment": changed(t0018A001=(b"SQ", b"")),
    "an element twice": changed(t7FE00010=None, t00280100=None)
    + element(0x00280011, b"US", b"\x09\0"),
    "an element out of order": changed(t00280100=None, t7FE00010=None)
    + element(0x00080060, b"CS", b"MR"),
    "no study": changed(t0020000D=None),
    "no series": changed(t0020000E=None),
    "no instance": changed(t00080018=None),
    "no class": changed(t00080016=None),
    "an empty study": changed(t0020000D=(b"UI", b"")),
    "a UID with path characters": changed(t0020000D=(b"UI", b"../../etc/x")),
    "a UID of 65 characters": changed(t0020000D=(b"UI", b"1." * 32 + b"1")),
    "a UID ending with a dot": changed(t0020000D=(b"UI", b"1.2.")),
    "two UIDs": changed(t0020000D=(b"UI", b"1.2\\3.4 ")),
    "a value longer than the data set": changed(t7FE00010=None, t00280100=None)[:-1],
    "an unwanted value longer than the data set": changed(
        t7FE00010=None, t00280100=None, t00280011=None
    )
    + element(0x0028000A, b"US", b"\0\0", length=4),
    "a length cut short behind the last element": changed(t00280100=None, t7FE00010=None)
    + b"\xe0\x7f\x10\0OW\0\0\0\0",
    "other than a sequence of undefined length": element(
        0x00080008, b"UN", item() + SEQUENCE_END, length=UNDEFINED
    )
    + changed(t00080005=None, t00080008=None),
    "a sequence without end": element(0x00080006, b"SQ", item(), length=UNDEFINED)
    + changed(t00080005=None),
    "something else than an item": nested(b"\xff" * 16),
    "another element for an item": nested(b"\x08\0\x16\0" + bytes(4)),
    "an item overrun by its elements": nested(
        item(element(0x00080016, b"UI", b"1.2.3.4\0"), length=10)
    ),
    "an item longer than the data set": nested(item(length=5000)),
    "an item ended within": nested(item(ITEM_END)),
    "a delimiter with a length": nested(open_item().replace(ITEM_END, ITEM_END[:4] + b"OB\0\0")),
    "a character set within an item": nested(item(element(0x00080005, b"CS", b"ISO 2022 IR 87"))),
    "implicit elements within an item": nested(
        item(element(0x00080016, b"UI", b"1.2\0", IMPLICIT))
    ),
    "sequences nested deeply": nested(deep(9, EXPLICIT)),
    "sequences nested beyond any parser": nested(deep(3000, EXPLICIT)),
}


@pytest.mark.parametrize("case", LEFT)
@pytest.mark.parametrize("is_whole", [True, False])
def test_leaves_to_the_full_parser(case: str, is_whole: bool) -> None:
    assert scan_header(LEFT[case], EXPLICIT, is_whole=is_whole) is None


@pytest.mark.parametrize(
    "data_set",
    [
        pytest.param(changed(), id="explicit although said to be implicit"),
        pytest.param(
            element(0x00080008, b"CS", bytes(0x4141), IMPLICIT)
            + encoded({**usual_elements(), 0x00080005: (b"CS", b"")}, IMPLICIT)[8:].replace(
                element(0x00080008, b"CS", b"ORIGINAL\\PRIMARY ", IMPLICIT), b""
            ),
            id="a first length that looks like a value representation",
        ),
        pytest.param(nested(tag=0x00091010, syntax=IMPLICIT), id="private, empty, undefined"),
        pytest.param(
            nested(item(ITEM + bytes(4)), syntax=IMPLICIT), id="an item among the elements"
        ),
        pytest.param(nested(item(ITEM_END), syntax=IMPLICIT), id="an item ended within"),
        pytest.param(
            nested(item(), tag=0x00080090, syntax=IMPLICIT), id="a name of undefined length"
        ),
    ],
)
def test_leaves_to_the_full_parser_in_implicit_vr(data_set: bytes) -> None:
    assert scan_header(data_set, IMPLICIT, is_whole=True) is None


def test_implicit_elements_announced_as_explicit_are_left_to_the_full_parser() -> None:
    data_set = encoded(usual_elements(), IMPLICIT)

    assert scan_header(data_set, EXPLICIT, is_whole=True) is None


def test_a_file_that_ends_within_the_header_is_never_answered_where_the_parser_refuses(
    parsed: Parse,
) -> None:
    complete = nested(open_item(element(0x00080016, b"UI", b"9.9\0")))

    for size in range(len(complete)):
        header = scan_header(complete[:size], EXPLICIT, is_whole=True)
        assert header is None or header == parsed(complete[:size]), size


def test_a_head_is_answered_only_when_the_element_behind_columns_is_in_it(parsed: Parse) -> None:
    complete = encoded(usual_elements())
    needed = complete.index(b"\x28\0\x00\x01US") + 8
    expected = parsed(complete)

    answers = [
        scan_header(complete[:size], EXPLICIT, is_whole=False) for size in range(len(complete))
    ]

    assert answers[:needed] == [None] * needed
    assert answers[needed:] == [expected] * (len(complete) - needed)


@pytest.mark.parametrize(
    "transfer_syntax_uid",
    [
        "1.2.840.10008.1.2.2",
        "1.2.840.10008.1.2.1.99",
        "1.2.840.10008.1.2.4.95",
        "1.2.840.113619.5.2",
        "",
        "1.2.840.10008.1.2.1 ",
        "1.2.840.10008.1.2.1\0",
        "../1.2",
        "ä",
        "1" * 65,
    ],
)
def test_other_encodings_are_left_to_the_full_parser(transfer_syntax_uid: str) -> None:
    for data_set in (changed(), encoded(usual_elements(), IMPLICIT)):
        assert scan_header(data_set, transfer_syntax_uid, is_whole=True) is None


def known_transfer_syntaxes() -> Iterator[str]:
    for uid in vars(pydicom.uid).values():
        if isinstance(uid, UID) and uid.is_transfer_syntax:
            yield str(uid)


def test_no_known_transfer_syntax_is_answered_otherwise_than_the_full_parser(
    parsed: Parse,
) -> None:
    syntaxes = sorted({*known_transfer_syntaxes(), "1.2.3.4"})
    explicit, implicit = encoded(usual_elements()), encoded(usual_elements(), IMPLICIT)

    answered = 0
    for syntax in syntaxes:
        for data_set in (explicit, implicit):
            header = scan_header(data_set, syntax, is_whole=True)
            answered += header is not None
            assert header is None or header == parsed(data_set, syntax), syntax
    assert answered > 30


def test_plain_character_sets_are_known_to_the_full_parser() -> None:
    names = {name.decode() for name in header_scan._PLAIN_CHARACTER_SETS}

    assert names <= set(python_encoding)
    assert not names & {"ISO_IR 13", "ISO 2022 IR 13"}


# --- damage ----------------------------------------------------------------------------------


def mutated(rng: random.Random, data_set: bytes) -> bytes:
    """Damage a data set in a few places as networks, disks and attackers do."""
    damaged = bytearray(data_set)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(damaged))
        kind = rng.randrange(6)
        if kind == 0:
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            damaged[at] = rng.choice(b"\0\xff \\^=\x1b09AZ+-.")
        elif kind == 2:
            del damaged[at : at + rng.randrange(1, 12)]
        elif kind == 3:
            damaged[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 4:
            other = rng.randrange(len(damaged))
            damaged[at:at] = damaged[other : other + rng.randrange(1, 64)]
        else:
            del damaged[at:]
        if not damaged:
            return b"\0"
    return bytes(damaged)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_damaged_headers_are_answered_exactly_or_not_at_all(parsed: Parse, syntax: str) -> None:
    rng = random.Random(20240229)
    uid = element(0x00080016, b"UI", b"9.9\0", syntax)
    inner = element(0x0040A170, b"SQ", open_item(uid) + SEQUENCE_END, syntax, UNDEFINED)
    originals = (
        encoded(usual_elements(), syntax),
        nested(open_item(uid, inner), item(uid), syntax=syntax),
    )

    answered = 0
    for _ in range(6000):
        damaged = mutated(rng, rng.choice(originals))
        is_whole = rng.random() < 0.7
        head = damaged if is_whole else damaged[: rng.randrange(len(damaged)) + 1]
        header = scan_header(head, syntax, is_whole=is_whole)
        if header is not None:
            answered += 1
            assert header == parsed(damaged, syntax), damaged
    assert answered > 300


VALUES = (
    b"", b" ", b"  ", b"\0", b"1", b"7 ", b" 7", b"-3", b"+3", b"--3", b"0", b"00012", b"1.0 ",
    b"999999999", b"2147483647", b"1_0", b"\x31\x0a", b"1.2.3", b"1.2.3\0", b"1.2.3 ", b" 1.2.3",
    b"1..2", b"1.2.", b"a^b^c^d^e", b"a=b", b"^", b"=", b"a\\b", b"\\", b"a\x1b(Bb", b"\xe4\xf6",
    b"a\0b", b"a\0\0", b"\0a", b" a  b ", b"\x7f", b"\t", b"ISO_IR 192", b"ISO_IR 100 ", b"~{}|",
    b"\xff\xff", b"\x01\x00", b"\x01\x00\x02\x00", b"x" * 64, b"x" * 1025, b"\xc2\xa0", b"\x85\xa0",
)  # fmt: skip


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_odd_values_are_answered_exactly_or_not_at_all(parsed: Parse, syntax: str) -> None:
    rng = random.Random(7)
    plain = usual_elements()
    tags = [tag for tag in plain if tag in header_scan._WANTED]

    answered = 0
    for _ in range(3000):
        elements = dict(plain)
        for tag in rng.sample(tags, rng.choice((1, 1, 2))):
            vr, _ = elements[tag]
            if rng.random() < 0.1:
                vr = rng.choice((b"UN", b"LO", b"UI", b"IS", b"US", b"SQ", b"CS", b"OB"))
            elements[tag] = (vr, rng.choice(VALUES))
        data_set = encoded(elements, syntax)
        header = scan_header(data_set, syntax, is_whole=True)
        if header is not None:
            answered += 1
            assert header == parsed(data_set, syntax), data_set
    assert answered > 800


def test_noise_never_raises() -> None:
    rng = random.Random(3)

    for size in range(2000):
        noise = rng.randbytes(size % 97)
        for syntax in (EXPLICIT, IMPLICIT):
            start = encoded({0x00080008: (b"CS", b"")}, syntax)
            for data_set in (noise, start + noise):
                assert scan_header(data_set, syntax, is_whole=bool(size % 2)) is None
