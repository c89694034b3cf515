"""The C-STORE data plane over a stream in memory: every fragmentation, and every breach of it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_io.receiving.commands import echo_response
from dicom_io.receiving.data_plane import (
    COMMAND_MAX_BYTES,
    ORDINARY_MAX_BYTES,
    OTHER_PDU_MAX_BYTES,
    WINDOW_BYTES,
    DataPlane,
    ProtocolFault,
    p_data,
)
from dicom_io.receiving.instances import STORED, StoreAnswer, StoreRequest
from dicom_io.receiving.storing import StoreInProgress
from dicom_io.statuses import StoreStatusValues
from tests import upper_layer as ul
from tests.upper_layer import COMMAND, DATA, LAST_COMMAND, LAST_DATA, cut, pdv

DATA_SET = bytes(range(256)) * 5


class Ended(Exception):
    """The bytes of the stream are used up."""


@dataclass
class MemoryStream:
    """Bytes to read, and what was sent."""

    incoming: bytes
    sent: list[bytes] = field(default_factory=list)
    at: int = 0

    def read(self, view: memoryview) -> None:
        if self.at + len(view) > len(self.incoming):
            raise Ended
        view[:] = self.incoming[self.at : self.at + len(view)]
        self.at += len(view)

    def send(self, data: bytes) -> None:
        self.sent.append(bytes(data))


class MemorySink:
    """Keeps each finished data set; what came in several writes must read as one."""

    def __init__(self, answer: StoreAnswer = STORED) -> None:
        self.answer = answer
        self.stored: list[tuple[str, bytes]] = []
        self.open = 0
        self.longest_write = 0

    def begin(self, request: StoreRequest) -> MemoryInstance:
        self.open += 1
        return MemoryInstance(self, request.sop_instance_uid)


class MemoryInstance:
    """One data set on its way into the list."""

    def __init__(self, sink: MemorySink, uid: str) -> None:
        self.sink, self.uid, self.data, self.is_open = sink, uid, b"", True

    def write(self, fragment: memoryview) -> None:
        assert self.is_open
        self.sink.longest_write = max(self.sink.longest_write, len(fragment))
        self.data += fragment

    def finish(self) -> StoreAnswer:
        self.sink.stored.append((self.uid, self.data))
        return self.sink.answer

    def discard(self) -> None:
        self.sink.open -= self.is_open
        self.is_open = False


class OrdinaryMessages:
    """Puts together what is passed on, as pynetdicom would."""

    def __init__(self) -> None:
        self.values: list[tuple[int, int, bytes, bool]] = []

    def value(self, context_id: int, control: int, fragment: bytes, *, is_whole: bool) -> None:
        self.values.append((context_id, control, fragment, is_whole))

    def part(self, control: int) -> bytes:
        return b"".join(value[2] for value in self.values if value[1] & 1 == control & 1)


class Plane:
    """A data plane with memory all around it."""

    def __init__(
        self,
        incoming: bytes,
        *,
        context_ids: tuple[int, ...] = (1, 3),
        maximum_pdu_bytes: int = 16384,
        peer_maximum_pdu_bytes: int = 16384,
        answer: StoreAnswer = STORED,
    ) -> None:
        self.sink = MemorySink(answer)
        self.stream = MemoryStream(incoming)
        self.ordinary = OrdinaryMessages()
        self.contexts: list[int] = []
        self.plane = DataPlane(
            self.stream,
            context_ids=context_ids,
            begin_store=self._begin,
            ordinary=self.ordinary,
            maximum_pdu_bytes=maximum_pdu_bytes,
            peer_maximum_pdu_bytes=peer_maximum_pdu_bytes,
        )

    def _begin(self, command, context_id: int) -> StoreInProgress:
        self.contexts.append(context_id)
        request = StoreRequest(
            "a", "RAW", "MEDIMGD", "127.0.0.1", command.sop_class_uid, command.sop_instance_uid, ""
        )
        return StoreInProgress(self.sink, request)

    def serve(self) -> list[bytes]:
        """Serve to the end of the bytes; return the PDUs that are not for the plane."""
        others = []
        try:
            while True:
                pdu = self.plane.serve_pdu()
                if pdu is not None:
                    others.append(pdu)
        except Ended:
            return others
        finally:
            self.plane.discard()

    def assert_aborted(self, words: str) -> None:
        """Serve, and expect the association to be aborted for a reason in these words."""
        with pytest.raises(ProtocolFault, match=words):
            self.serve()
        assert self.sink.open == 0, "an unfinished instance was left open"

    @property
    def statuses(self) -> list[int]:
        return [ul.status_of(command) for command in ul.commands_of(self.stream.sent)]


def store(uid: str = "1.2.3", data_set: bytes = DATA_SET, context_id: int = 1, **more) -> bytes:
    """Return one C-STORE, a PDU for its command and one for its data set."""
    return ul.p_data(pdv(context_id, LAST_COMMAND, ul.store_request(uid, **more))) + ul.p_data(
        pdv(context_id, LAST_DATA, data_set)
    )


def pieces(context_id: int, control: int, parts: list[bytes]) -> list[bytes]:
    """Return values for these parts, the last one flagged as such."""
    last = len(parts) - 1
    return [pdv(context_id, control | 2 * (i == last), part) for i, part in enumerate(parts)]


FRAGMENTATIONS = {
    "two whole PDUs": lambda c, d: [
        ul.p_data(pdv(1, LAST_COMMAND, c)),
        ul.p_data(pdv(1, LAST_DATA, d)),
    ],
    "command and data in one PDU": lambda c, d: [
        ul.p_data(pdv(1, LAST_COMMAND, c), pdv(1, LAST_DATA, d))
    ],
    "command over values of one PDU": lambda c, d: [
        ul.p_data(*pieces(1, COMMAND, cut(c, [5, 1, 50]))),
        ul.p_data(pdv(1, LAST_DATA, d)),
    ],
    "command over PDUs": lambda c, d: [
        *(ul.p_data(value) for value in pieces(1, COMMAND, cut(c, [1] * 200))),
        ul.p_data(pdv(1, LAST_DATA, d)),
    ],
    "the end of the command with the whole data set": lambda c, d: [
        ul.p_data(pdv(1, COMMAND, c[:7])),
        ul.p_data(pdv(1, LAST_COMMAND, c[7:]), *pieces(1, DATA, cut(d, [100, 300]))),
    ],
    "several values in a PDU": lambda c, d: [
        ul.p_data(pdv(1, LAST_COMMAND, c)),
        ul.p_data(*pieces(1, DATA, cut(d, [1, 2, 3, 4, 5, 600]))),
    ],
    "odd sizes": lambda c, d: [
        ul.p_data(pdv(1, LAST_COMMAND, c)),
        *(ul.p_data(value) for value in pieces(1, DATA, cut(d, [7, 1, 333]))),
    ],
    "one byte at a time": lambda c, d: [
        ul.p_data(value)
        for value in pieces(1, COMMAND, cut(c, [1] * 500)) + pieces(1, DATA, cut(d, [1] * 2000))
    ],
    "empty fragments everywhere": lambda c, d: [
        ul.p_data(*pieces(1, COMMAND, [b"", c[:9], b"", c[9:], b""])),
        ul.p_data(*pieces(1, DATA, [b"", b"", d[:11], b"", d[11:], b""])),
    ],
    "an empty PDU between any two": lambda c, d: [
        ul.p_data(),
        ul.p_data(pdv(1, COMMAND, c[:9])),
        ul.p_data(),
        ul.p_data(pdv(1, LAST_COMMAND, c[9:])),
        ul.p_data(),
        ul.p_data(pdv(1, DATA, d[:9])),
        ul.p_data(),
        ul.p_data(pdv(1, LAST_DATA, d[9:])),
    ],
    "the last flag on an empty fragment": lambda c, d: [
        ul.p_data(pdv(1, COMMAND, c), pdv(1, LAST_COMMAND, b"")),
        ul.p_data(pdv(1, DATA, d)),
        ul.p_data(pdv(1, LAST_DATA, b"")),
    ],
    "reserved bits of the control byte set": lambda c, d: [
        ul.p_data(pdv(1, 0xFC | COMMAND, c[:8]), pdv(1, 0xA4 | LAST_COMMAND, c[8:])),
        ul.p_data(pdv(1, 0xFC, d[:8]), pdv(1, 0x54 | LAST_DATA, d[8:])),
    ],
    "the reserved byte of the PDU set": lambda c, d: [
        ul.p_data(pdv(1, LAST_COMMAND, c))[:1] + b"\xff" + ul.p_data(pdv(1, LAST_COMMAND, c))[2:],
        ul.p_data(pdv(1, LAST_DATA, d)),
    ],
}


@pytest.mark.parametrize("maximum_pdu_bytes", [16384, 0, 64, 7, 1], ids=lambda n: f"window {n}")
@pytest.mark.parametrize("how", FRAGMENTATIONS)
def test_every_fragmentation_stores_the_same_bytes_and_is_answered_once(how, maximum_pdu_bytes):
    session = b"".join(FRAGMENTATIONS[how](ul.store_request(), DATA_SET))

    served = Plane(session, maximum_pdu_bytes=maximum_pdu_bytes)
    others = served.serve()

    assert served.sink.stored == [("1.2.3", DATA_SET)]
    assert served.statuses == [StoreStatusValues.SUCCESS]
    assert served.sink.open == 0
    assert others == []
    assert served.ordinary.values == []


def test_two_messages_in_one_pdu_are_two_messages():
    first, second = ul.store_request("1.2.1"), ul.store_request("1.2.2", message_id=8)
    session = ul.p_data(
        pdv(1, LAST_COMMAND, first),
        pdv(1, LAST_DATA, b"one"),
        pdv(3, LAST_COMMAND, second),
        pdv(3, LAST_DATA, b"two"),
    )

    served = Plane(session)
    served.serve()

    assert served.sink.stored == [("1.2.1", b"one"), ("1.2.2", b"two")]
    assert served.contexts == [1, 3]
    answers = [ul.elements_of(command) for command in ul.commands_of(served.stream.sent)]
    assert [answer[0x0120] for answer in answers] == [ul.us(7), ul.us(8)]
    assert [pdu[10] for pdu in served.stream.sent] == [1, 3], "answers belong on their contexts"


@pytest.mark.parametrize("maximum_pdu_bytes", [0, 512], ids=["any", "512"])
def test_a_pdu_longer_than_offered_is_streamed_with_a_bounded_window(maximum_pdu_bytes):
    data_set = DATA_SET * 400
    assert len(data_set) > 3 * WINDOW_BYTES

    served = Plane(store(data_set=data_set), maximum_pdu_bytes=maximum_pdu_bytes)
    served.serve()

    assert served.sink.stored == [("1.2.3", data_set)]
    assert served.sink.longest_write <= (maximum_pdu_bytes or WINDOW_BYTES)


def test_a_message_without_end_is_discarded_when_the_peer_is_gone():
    session = store() + ul.p_data(pdv(1, LAST_COMMAND, ul.store_request("1.2.4")))

    served = Plane(session + ul.p_data(pdv(1, DATA, b"half")))
    served.serve()

    assert [uid for uid, _ in served.sink.stored] == ["1.2.3"]
    assert served.sink.open == 0


def test_a_data_set_of_no_byte_is_answered_and_the_association_goes_on():
    served = Plane(store("1.2.4", b"") + store("1.2.5"))
    served.serve()

    assert served.statuses == [StoreStatusValues.CANNOT_UNDERSTAND, StoreStatusValues.SUCCESS]
    assert served.sink.stored == [("1.2.5", DATA_SET)]


@pytest.mark.parametrize("context_id", [0, 2, 5, 255])
@pytest.mark.parametrize("control", [COMMAND, LAST_COMMAND, DATA, LAST_DATA])
def test_a_context_that_was_not_accepted_is_a_fault(context_id, control):
    Plane(ul.p_data(pdv(context_id, control, ul.store_request()))).assert_aborted(
        f"presentation context {context_id} was not accepted"
    )


BREACHES = {
    "data before any command": ([pdv(1, LAST_DATA, b"x")], "without its command"),
    "an empty data fragment before any command": ([pdv(1, DATA, b"")], "without its command"),
    "data within a command": (
        [pdv(1, COMMAND, ul.store_request()[:20]), pdv(1, DATA, b"x")],
        "without its command",
    ),
    "data after the last of a data set": (
        [pdv(1, LAST_COMMAND, ul.store_request()), pdv(1, LAST_DATA, b"x"), pdv(1, DATA, b"y")],
        "without its command",
    ),
    "data on another context": (
        [pdv(1, LAST_COMMAND, ul.store_request()), pdv(3, LAST_DATA, b"x")],
        "without its command",
    ),
    "data on another context in the middle": (
        [pdv(1, LAST_COMMAND, ul.store_request()), pdv(1, DATA, b"x"), pdv(3, DATA, b"y")],
        "without its command",
    ),
    "a command before the data set of the last": (
        [pdv(1, LAST_COMMAND, ul.store_request()), pdv(1, LAST_COMMAND, ul.echo_request())],
        "a command within another message",
    ),
    "a command within a data set": (
        [
            pdv(1, LAST_COMMAND, ul.store_request()),
            pdv(1, DATA, b"x"),
            pdv(1, COMMAND, ul.echo_request()),
        ],
        "a command within another message",
    ),
    "a command on another context within a data set": (
        [
            pdv(1, LAST_COMMAND, ul.store_request()),
            pdv(1, DATA, b"x"),
            pdv(3, LAST_COMMAND, ul.echo_request()),
        ],
        "a command within another message",
    ),
    "a command that changes its context": (
        [pdv(1, COMMAND, ul.store_request()[:20]), pdv(3, LAST_COMMAND, ul.store_request()[20:])],
        "a command within another message",
    ),
    "a command that changes its context after an empty fragment": (
        [pdv(1, COMMAND, b""), pdv(3, LAST_COMMAND, ul.store_request()), pdv(3, LAST_DATA, b"x")],
        "a command within another message",
    ),
}


@pytest.mark.parametrize("window", [16384, 7], ids=lambda n: f"window {n}")
@pytest.mark.parametrize("in_one_pdu", [True, False], ids=["in one PDU", "a PDU each"])
@pytest.mark.parametrize("breach", BREACHES)
def test_what_breaks_the_order_of_a_message_is_a_fault(breach, in_one_pdu, window):
    values, words = BREACHES[breach]
    session = ul.p_data(*values) if in_one_pdu else b"".join(ul.p_data(v) for v in values)

    served = Plane(store() + session, maximum_pdu_bytes=window)
    served.assert_aborted(words)

    assert served.sink.stored[0] == ("1.2.3", DATA_SET), "what was acknowledged stays"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\x00", id="half a length"),
        pytest.param(b"\x00\x00\x00\x02\x01", id="no control byte"),
        pytest.param(pdv(1, LAST_DATA, b"xy", length=0), id="length 0"),
        pytest.param(pdv(1, LAST_DATA, b"xy", length=1), id="length 1"),
        pytest.param(pdv(1, LAST_DATA, b"xy", length=5), id="one byte too long"),
        pytest.param(pdv(1, LAST_DATA, b"xy", length=3), id="one byte too short"),
        pytest.param(pdv(1, LAST_DATA, b"xy", length=0xFFFFFFFF), id="4 GiB"),
        pytest.param(pdv(1, LAST_DATA, b"xy", length=0x80000000), id="2 GiB"),
        pytest.param(pdv(1, LAST_DATA, b"xy") + b"\0\0\0", id="a stump at the end"),
    ],
)
@pytest.mark.parametrize("window", [16384, 1], ids=lambda n: f"window {n}")
def test_values_that_do_not_fill_their_pdu_are_a_fault(body, window):
    command = ul.p_data(pdv(1, LAST_COMMAND, ul.store_request()))

    served = Plane(command + ul.pdu(ul.P_DATA_TF, body) + bytes(100), maximum_pdu_bytes=window)
    served.assert_aborted("presentation data value")


def test_a_damaged_pdu_that_fits_the_window_has_no_effect_at_all():
    whole = pdv(1, LAST_COMMAND, ul.store_request()) + pdv(1, LAST_DATA, DATA_SET)

    served = Plane(ul.pdu(ul.P_DATA_TF, whole + b"\0"))
    served.assert_aborted("presentation data value")

    assert served.sink.stored == []
    assert served.stream.sent == []


def test_a_p_data_of_4_gib_is_read_in_pieces_until_the_peer_is_gone():
    head = ul.pdu(ul.P_DATA_TF, b"", length=0xFFFFFFFF)
    command = ul.store_request()
    value = pdv(1, LAST_COMMAND, command)
    rest = 0xFFFFFFFF - len(value)

    served = Plane(
        head + value + pdv(1, LAST_DATA, b"", length=rest - 4) + bytes(3 * WINDOW_BYTES),
        maximum_pdu_bytes=0,
    )
    served.serve()

    assert served.sink.stored == []
    assert served.sink.longest_write == WINDOW_BYTES
    assert served.sink.open == 0


def test_a_command_may_be_long_and_not_without_end():
    part = pdv(1, COMMAND, bytes(COMMAND_MAX_BYTES // 4))
    longest = Plane(b"".join([ul.p_data(part)] * 4))
    longest.serve()

    Plane(b"".join([ul.p_data(part)] * 4) + ul.p_data(pdv(1, COMMAND, b"x"))).assert_aborted(
        "a command set without end"
    )


def test_empty_command_fragments_without_end_take_no_memory():
    served = Plane(ul.p_data(pdv(1, COMMAND, b"")) * 10_000 + store())
    served.serve()

    assert served.sink.stored == [("1.2.3", DATA_SET)]


OTHER_COMMANDS = {
    "C-ECHO request that announces a data set": ul.command_set(
        [
            (0x0002, ul.padded_uid(ul.VERIFICATION)),
            (0x0100, ul.us(ul.C_ECHO_RQ)),
            (0x0110, ul.us(1)),
            (0x0800, ul.us(1)),
        ]
    ),
    "C-STORE response": ul.store_request(field=ul.C_STORE_RSP),
    "C-STORE request without UID": ul.store_request(None),
    "C-FIND request": ul.store_request(field=0x0020),
}


def test_an_echo_is_answered_at_once_on_its_own_context():
    served = Plane(ul.p_data(*pieces(3, COMMAND, cut(ul.echo_request(5), [3, 30]))) + store())
    served.serve()

    assert served.ordinary.values == []
    assert served.statuses == [StoreStatusValues.SUCCESS] * 2
    assert served.stream.sent[0] == p_data(3, echo_response(5), 0)[0]


def test_an_echo_that_is_not_as_it_should_be_goes_the_ordinary_way():
    strange = ul.command_set([(0x0100, ul.us(ul.C_ECHO_RQ)), (0x0800, ul.us(ul.NO_DATA_SET))])
    served = Plane(ul.p_data(*pieces(3, COMMAND, cut(strange, [3, 30]))) + store())
    served.serve()

    assert served.ordinary.values == [(3, LAST_COMMAND, strange, True)]
    assert served.statuses == [StoreStatusValues.SUCCESS]


@pytest.mark.parametrize("name", OTHER_COMMANDS)
def test_other_messages_go_the_ordinary_way_with_their_data_sets(name):
    command = OTHER_COMMANDS[name]
    session = ul.p_data(pdv(1, LAST_COMMAND, command)) + ul.p_data(
        *pieces(1, DATA, cut(DATA_SET, [1, 0, 100]))
    )

    served = Plane(session + store())
    served.serve()

    assert served.ordinary.part(COMMAND) == command
    assert served.ordinary.part(DATA) == DATA_SET
    assert [value[3] for value in served.ordinary.values] == [False] * 4 + [True]
    assert [value[1] & 2 for value in served.ordinary.values] == [2, 0, 0, 0, 2]
    assert served.sink.stored == [("1.2.3", DATA_SET)]


@pytest.mark.parametrize("command", [b"", b"\xff", bytes(8), bytes(7), b"\x08\x00" * 40])
def test_a_command_set_that_is_none_goes_the_ordinary_way(command):
    served = Plane(ul.p_data(pdv(1, LAST_COMMAND, command)))
    served.serve()

    assert served.ordinary.values == [(1, LAST_COMMAND, command, True)]


def test_an_ordinary_message_is_bounded():
    command = ul.p_data(pdv(1, LAST_COMMAND, ul.store_request(field=0x0130)))
    part = ul.p_data(pdv(1, DATA, bytes(1024 * 1024)))

    Plane(command + part * (ORDINARY_MAX_BYTES // (1024 * 1024)), maximum_pdu_bytes=0).serve()
    Plane(
        command + part * (ORDINARY_MAX_BYTES // (1024 * 1024)) + ul.p_data(pdv(1, LAST_DATA, b"x")),
        maximum_pdu_bytes=0,
    ).assert_aborted("a message outside C-STORE")


def test_the_bound_of_ordinary_messages_is_of_each_and_not_of_all():
    one = ul.p_data(pdv(1, LAST_COMMAND, ul.store_request(field=0x0130))) + ul.p_data(
        pdv(1, LAST_DATA, bytes(ORDINARY_MAX_BYTES // 2))
    )

    served = Plane(one * 4, maximum_pdu_bytes=0)
    served.serve()

    assert sum(value[3] for value in served.ordinary.values) == 4


@pytest.mark.parametrize("kind", [1, 2, 3, 5, 6, 7])
def test_any_other_pdu_is_given_back_whole_also_in_the_middle_of_an_instance(kind):
    pdu = ul.pdu(kind, b"four")
    half = ul.p_data(pdv(1, LAST_COMMAND, ul.store_request()), pdv(1, DATA, b"half"))

    served = Plane(half + pdu)

    assert served.serve() == [pdu]
    assert served.sink.open == 0
    assert served.sink.stored == []


@pytest.mark.parametrize("kind", [0, 8, 0x50, 255])
def test_a_pdu_of_no_type_is_a_fault_before_a_byte_of_it_is_read(kind):
    served = Plane(store() + ul.pdu(kind, b"", length=1000))
    served.assert_aborted(f"no PDU of type {kind:02X}H")

    assert served.sink.stored == [("1.2.3", DATA_SET)]


@pytest.mark.parametrize("length", [OTHER_PDU_MAX_BYTES + 1, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("kind", [1, 5, 7])
def test_another_pdu_is_bounded_before_a_byte_of_it_is_read(kind, length):
    served = Plane(ul.pdu(kind, bytes(64), length=length))
    served.assert_aborted("longer than any can be")

    assert served.stream.at == 6


@pytest.mark.parametrize("maximum", [0, 1, 6, 7, 8, 16, 17, 100, 16384])
def test_responses_fit_the_pdu_the_peer_takes(maximum):
    comment = "x" * 64
    refused = StoreAnswer(StoreStatusValues.CANNOT_UNDERSTAND, comment)

    served = Plane(store(), peer_maximum_pdu_bytes=maximum, answer=refused)
    served.serve()

    (command,) = ul.commands_of(served.stream.sent)
    assert ul.elements_of(command)[0x0902].decode() == comment
    # A value has six bytes of its own and, to get anywhere, at least one of the command.
    assert all(len(pdu) - 6 <= max(maximum, 7) for pdu in served.stream.sent) or maximum == 0
    fragments = [value for pdu in served.stream.sent for value in ul.values_of(pdu)]
    assert all(context_id == 1 and fragment for context_id, _, fragment in fragments)
    assert [control for _, control, _ in fragments][:-1] == [COMMAND] * (len(fragments) - 1)
    if maximum in (0, 16384):
        assert len(served.stream.sent) == 1


@given(command=st.binary(min_size=1, max_size=300), maximum=st.integers(0, 400))
def test_what_p_data_cuts_reads_as_one(command, maximum):
    pdus = p_data(5, command, maximum)

    assert ul.commands_of(pdus) == [command]
    assert ul.split_pdus(b"".join(pdus)) == (pdus, b"")
    assert all(len(pdu) - 6 <= max(maximum, 7) for pdu in pdus) or not maximum


# One fragmentation of a session: for each part its cuts, and how many values share a PDU.
MESSAGES = st.lists(
    st.one_of(
        st.tuples(st.just("store"), st.sampled_from([1, 3]), st.binary(max_size=300)),
        st.tuples(st.just("echo"), st.sampled_from([1, 3]), st.none()),
        st.tuples(st.just("action"), st.just(3), st.binary(min_size=1, max_size=50)),
    ),
    max_size=5,
)
SIZES = st.lists(st.one_of(st.integers(0, 12), st.integers(0, 400)), max_size=12)


def _command_of(kind: str, number: int) -> bytes:
    if kind == "store":
        return ul.store_request(f"1.2.{number}", message_id=number)
    return ul.echo_request(number) if kind == "echo" else ul.store_request(field=0x0130)


def _fragmented(draw: st.DataObject, messages) -> bytes:
    values = []
    for number, (kind, context_id, data_set) in enumerate(messages, start=1):
        parts = [(COMMAND, _command_of(kind, number))]
        parts += [] if data_set is None else [(DATA, data_set)]
        for control, whole in parts:
            reserved = draw.draw(st.integers(0, 63)) << 2
            values += pieces(context_id, control | reserved, cut(whole, draw.draw(SIZES)))
    shares = draw.draw(st.lists(st.integers(0, 4), min_size=len(values), max_size=len(values)))
    bounds = [0, *accumulate(shares)]
    pdus = [ul.p_data(*values[a:b]) for a, b in pairwise(bounds)]
    return b"".join(pdus) + b"".join(ul.p_data(value) for value in values[bounds[-1] :])


def _outcome(served: Plane) -> tuple:
    served.serve()
    messages: list[tuple[int, bytes, bytes]] = []
    for context_id, control, fragment, _ in served.ordinary.values:
        if control & 1:
            messages.append((context_id, fragment, b""))
        else:
            messages[-1] = (context_id, messages[-1][1], messages[-1][2] + fragment)
    return served.sink.stored, served.stream.sent, messages, served.sink.open


@settings(max_examples=400, deadline=None)
@given(
    messages=MESSAGES,
    draw=st.data(),
    window=st.sampled_from([0, 1, 5, 64, 16384]),
    peer=st.sampled_from([0, 1, 7, 50, 16384]),
)
def test_any_fragmentation_of_the_same_messages_has_the_same_effect(messages, draw, window, peer):
    plain = b"".join(
        ul.p_data(value)
        for number, (kind, context_id, data_set) in enumerate(messages, start=1)
        for value in ul.message(context_id, _command_of(kind, number), data_set)
    )

    expected = _outcome(Plane(plain, peer_maximum_pdu_bytes=peer))
    actual = _outcome(
        Plane(_fragmented(draw, messages), maximum_pdu_bytes=window, peer_maximum_pdu_bytes=peer)
    )

    assert actual == expected
    assert expected[3] == 0


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    window=st.sampled_from([1, 64, 16384]),
)
def test_whatever_bytes_come_only_faults_are_raised_and_nothing_stays_open(data, window):
    session = bytearray(store("1.2.1") + store("1.2.2", b"abc") + ul.p_data(pdv(1, 3, b"")))
    for _ in range(data.draw(st.integers(1, 6))):
        session[data.draw(st.integers(0, len(session) - 1))] = data.draw(st.integers(0, 255))

    served = Plane(bytes(session), maximum_pdu_bytes=window)
    with suppress(ProtocolFault):
        served.serve()

    assert served.sink.open == 0
    assert len(served.statuses) <= 3
