"""Our reading and writing of C-STORE commands beside pydicom's and pynetdicom's own."""

from __future__ import annotations

import itertools
import struct
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.dimse_messages import C_ECHO_RQ, C_ECHO_RSP, C_STORE_RQ, C_STORE_RSP, DIMSEMessage
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.dsutils import decode, encode

from dicom_io.receiving.commands import (
    StoreCommand,
    announces_data_set,
    command_elements,
    echo_response,
    error_comment,
    read_echo_command,
    read_store_command,
    store_response,
)
from dicom_io.receiving.instances import StoreAnswer
from dicom_io.statuses import StoreStatusValues
from tests import upper_layer as ul

_COMPONENTS = st.one_of(st.just("0"), st.from_regex(r"[1-9][0-9]{0,9}", fullmatch=True))
UIDS = st.lists(_COMPONENTS, min_size=2, max_size=6).map(".".join).filter(lambda u: len(u) <= 64)
COMMENTS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters="\\"))
MESSAGE_IDS = st.integers(0, 0xFFFF)


def _pynetdicom_command(message: DIMSEMessage, primitive: C_STORE | C_ECHO) -> bytes:
    """Return the command set that pynetdicom would send."""
    message.primitive_to_message(primitive)
    encoded = encode(message.command_set, True, True)
    assert encoded is not None
    return encoded


@settings(deadline=None)
@given(
    uid=UIDS,
    class_uid=UIDS,
    message_id=MESSAGE_IDS,
    status=st.sampled_from(list(StoreStatusValues)),
    comment=COMMENTS,
)
def test_a_response_is_byte_for_byte_what_pynetdicom_sends(
    uid, class_uid, message_id, status, comment
):
    answer = StoreAnswer(status, comment)
    response = C_STORE()
    response.MessageIDBeingRespondedTo = message_id
    response.AffectedSOPClassUID = UID(class_uid)
    response.AffectedSOPInstanceUID = UID(uid)
    response.Status = int(status)
    if error_comment(answer):
        response.ErrorComment = error_comment(answer)

    ours = store_response(StoreCommand(message_id, class_uid, uid), answer)

    assert ours == _pynetdicom_command(C_STORE_RSP(), response)


@settings(deadline=None)
@given(uid=UIDS, class_uid=UIDS, message_id=MESSAGE_IDS, priority=st.sampled_from([0, 1, 2]))
def test_a_request_by_pynetdicom_is_read_as_it_was_meant(uid, class_uid, message_id, priority):
    request = C_STORE()
    request.MessageID = message_id
    request.AffectedSOPClassUID = UID(class_uid)
    request.AffectedSOPInstanceUID = UID(uid)
    request.Priority = priority
    request.DataSet = BytesIO(b"data")
    command = _pynetdicom_command(C_STORE_RQ(), request)

    assert read_store_command(command) == StoreCommand(message_id, class_uid, uid)
    assert announces_data_set(command)


@settings(deadline=None)
@given(uid=UIDS, originator=st.text("ABC12", min_size=1, max_size=16), move_id=MESSAGE_IDS)
def test_the_optional_elements_of_a_c_move_sub_operation_are_passed_over(uid, originator, move_id):
    request = C_STORE()
    request.MessageID = 1
    request.AffectedSOPClassUID = UID(ul.CT_IMAGE_STORAGE)
    request.AffectedSOPInstanceUID = UID(uid)
    request.Priority = 0
    request.MoveOriginatorApplicationEntityTitle = originator
    request.MoveOriginatorMessageID = move_id
    request.DataSet = BytesIO(b"data")

    read = read_store_command(_pynetdicom_command(C_STORE_RQ(), request))

    assert read == StoreCommand(1, ul.CT_IMAGE_STORAGE, uid)


ELEMENTS = st.fixed_dictionaries(
    {},
    optional={
        "AffectedSOPClassUID": UIDS,
        "CommandField": st.sampled_from([0x0001, 0x8001, 0x0020, 0x0030, 0x0FFF]),
        "MessageID": MESSAGE_IDS,
        "Priority": st.integers(0, 3),
        "CommandDataSetType": st.sampled_from([0x0000, 0x0001, 0x0101, 0x0102]),
        "AffectedSOPInstanceUID": UIDS,
        "MoveOriginatorMessageID": MESSAGE_IDS,
    },
)


@settings(max_examples=500)
@given(ELEMENTS)
def test_what_we_take_as_a_request_pynetdicom_takes_as_a_valid_one_too(elements):
    # given any choice of elements, written by pydicom
    ds = Dataset()
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    command = encode(ds, True, True) or b""

    # when both read it
    ours = read_store_command(command)
    theirs = decode(BytesIO(command), True, True)

    # then we serve exactly those that are complete C-STORE requests with a data set
    is_request = theirs.get("CommandField") == 1 and theirs.get("Priority") in (None, 0, 1, 2)
    is_complete = {
        "AffectedSOPClassUID", "MessageID", "CommandDataSetType", "AffectedSOPInstanceUID",
    } <= set(theirs.dir())  # fmt: skip
    expected = is_request and is_complete and theirs.CommandDataSetType != ul.NO_DATA_SET
    assert (ours is not None) == expected
    if ours is not None:
        assert ours == StoreCommand(
            theirs.MessageID, theirs.AffectedSOPClassUID, theirs.AffectedSOPInstanceUID
        )
    assert announces_data_set(command) == (theirs.get("CommandDataSetType", 0x101) != 0x101)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_an_exception(command):
    assert isinstance(read_store_command(command), StoreCommand | None)
    assert announces_data_set(command) in (True, False)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=20)), max_size=8))
def test_elements_are_found_exactly_when_they_are_in_order(elements):
    command = b"".join(struct.pack("<HHL", 0, tag, len(v)) + v for tag, v in elements)
    tags = [tag for tag, _ in elements]
    in_order = all(a < b for a, b in itertools.pairwise(tags))

    assert command_elements(command) == (dict(elements) if in_order else None)


@settings(deadline=None)
@given(data=st.data())
def test_a_command_cut_anywhere_is_none(data):
    command = ul.store_request()
    end = data.draw(st.integers(0, len(command) - 1))

    assert read_store_command(command[:end]) is None


@pytest.mark.parametrize(
    ("replaced", "by"),
    [
        pytest.param(0x0100, b"\x01\x00\x00\x00", id="command field of four bytes"),
        pytest.param(0x0110, b"\x07", id="message ID of one byte"),
        pytest.param(0x0110, b"", id="empty message ID"),
        pytest.param(0x0700, b"\x03\x00", id="priority 3"),
        pytest.param(0x0700, b"", id="empty priority"),
        pytest.param(0x0800, b"", id="empty data set type"),
        pytest.param(0x0800, b"\x01\x01", id="no data set"),
        pytest.param(0x0002, b"", id="empty class UID"),
        pytest.param(0x1000, b"", id="empty instance UID"),
        pytest.param(0x1000, b"\0\0", id="instance UID of padding"),
        pytest.param(0x1000, b"1.2.\xe9\0", id="instance UID not ASCII"),
        pytest.param(0x1000, b"1" * 66, id="instance UID too long"),
    ],
)
def test_a_request_in_a_form_of_its_own_is_left_to_the_full_service(replaced, by):
    elements = ul.elements_of(ul.store_request())
    del elements[0]
    elements[replaced] = by

    assert read_store_command(ul.command_set(sorted(elements.items()))) is None


def test_a_request_without_priority_is_taken_for_it_means_nothing_to_us():
    elements = ul.elements_of(ul.store_request())
    del elements[0], elements[0x0700]

    read = read_store_command(ul.command_set(sorted(elements.items())))

    assert read == StoreCommand(7, ul.CT_IMAGE_STORAGE, "1.2.3")


@pytest.mark.parametrize("has_data_set", [True, False])
def test_a_data_set_is_announced_in_whatever_order_the_elements_come(has_data_set):
    elements = ul.elements_of(ul.store_request(has_data_set=has_data_set))
    backwards = ul.command_set(reversed([each for each in elements.items() if each[0]]))

    assert read_store_command(backwards) is None
    assert announces_data_set(backwards) == has_data_set


@pytest.mark.parametrize("padding", [b"", b"\0", b" ", b"\0\0\0", b" \0"])
def test_any_padding_of_a_uid_is_taken_off(padding):
    elements = ul.elements_of(ul.store_request())
    del elements[0]
    elements[0x1000] = b"1.2.3" + padding

    read = read_store_command(ul.command_set(sorted(elements.items())))

    assert read == StoreCommand(7, ul.CT_IMAGE_STORAGE, "1.2.3")


@settings(deadline=None)
@given(st.text())
def test_an_error_comment_is_one_line_of_64_ascii_characters(comment):
    shown = error_comment(StoreAnswer(StoreStatusValues.CANNOT_UNDERSTAND, comment))

    assert len(shown) == min(len(comment), 64)
    assert shown.isascii()
    assert shown.isprintable()
    assert "\\" not in shown


def test_success_has_no_comment():
    assert error_comment(StoreAnswer(StoreStatusValues.SUCCESS, "all went well")) == ""


@settings(deadline=None)
@given(message_id=MESSAGE_IDS)
def test_an_echo_is_read_and_answered_as_pynetdicom_does(message_id):
    request, response = C_ECHO(), C_ECHO()
    request.MessageID = response.MessageIDBeingRespondedTo = message_id
    request.AffectedSOPClassUID = response.AffectedSOPClassUID = UID(ul.VERIFICATION)
    response.Status = 0x0000

    assert read_echo_command(_pynetdicom_command(C_ECHO_RQ(), request)) == message_id
    assert echo_response(message_id) == _pynetdicom_command(C_ECHO_RSP(), response)


ECHO = {
    0x0002: ul.padded_uid(ul.VERIFICATION),
    0x0100: ul.us(ul.C_ECHO_RQ),
    0x0110: ul.us(9),
    0x0800: ul.us(ul.NO_DATA_SET),
}
NO_ECHO = {
    "no class": {0x0002: None},
    "another class": {0x0002: ul.padded_uid(ul.CT_IMAGE_STORAGE)},
    "another command": {0x0100: ul.us(ul.C_STORE_RQ)},
    "no message ID": {0x0110: None},
    "a message ID of three bytes": {0x0110: b"abc"},
    "a data set": {0x0800: ul.us(1)},
    "one element more": {0x1000: b"1.2."},
}


@pytest.mark.parametrize("name", NO_ECHO)
def test_what_is_no_plain_echo_is_left_to_others(name):
    elements = sorted((ECHO | NO_ECHO[name]).items())
    changed = ul.command_set([(tag, value) for tag, value in elements if value is not None])

    assert read_echo_command(ul.command_set(ECHO.items())) == 9
    assert read_echo_command(changed) is None
    assert read_echo_command(changed[:-1]) is None
