"""The data plane beside pynetdicom's path: same bytes in, same files and answers out."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_context

from dicom_io.receiving.folder_sink import FolderSink
from dicom_io.receiving.limits import ReceiverLimits
from dicom_io.receiving.server import StorageServer
from dicom_io.statuses import StoreStatusValues
from tests import upper_layer as ul
from tests.sessions import Replayed, Session, Step, mutated, recording, refragmented, replay
from tests.upper_layer import COMMAND, DATA, LAST_COMMAND, LAST_DATA, Context, pdv
from tests.waiting import wait_until

MUTATIONS = int(os.environ.get("MEDIMGD_DIFFERENTIAL_MUTATIONS", "200"))
"""How many mutated sessions are compared; a longer run sets the environment variable."""

SEED = 20260101
AT_ONCE = 8
HASTE = {"quiet_seconds": 0.7}
"""How a mutated session is played first; a pause this long is taken for waiting for ever."""
PATIENCE = {"quiet_seconds": 4.0, "pause_seconds": 0.03}
"""How it is played again if it seems to differ. pynetdicom reads ahead in a thread of its own, so
what it answers before it finds a fault depends on when that comes; one PDU at a time does not."""

ABORTED = ul.pdu(ul.ABORT, b"\0\0\x02\0")
"""A-ABORT by the service provider, reason not specified: what pynetdicom says to any breach."""


@dataclass
class Receiver:
    """A receiver and where it keeps what it received."""

    server: StorageServer
    sink: FolderSink

    def take_files(self) -> dict[str, bytes]:
        """Return what is there once nobody sends any more, whole or half, and remove it."""
        assert wait_until(lambda: self.server.open_associations == 0, seconds=20)
        files = {path.name.split(".part")[0]: path.read_bytes() for path in self._paths()}
        for path in self._paths():
            path.unlink()
        return files

    def _paths(self) -> list[Path]:
        return sorted(self.sink.folder.iterdir())


@dataclass
class Both:
    """The same receiver twice: with the data plane, and all through pynetdicom."""

    plane: Receiver
    reference: Receiver

    def assert_alike(self, session: Session, **options) -> tuple[Replayed, dict[str, bytes]]:
        """Play a session to both and return what both did, which must be the same."""
        ours, theirs = (
            (replay(each.server.port, session, **options), each.take_files())
            for each in (self.plane, self.reference)
        )
        assert ours == theirs
        return ours


def _receivers(folder: Path, **limits) -> Iterator[Both]:
    both = []
    for streams in (True, False):
        sink = FolderSink(folder / ("plane" if streams else "reference"))
        server = StorageServer(
            sink,
            port=0,
            streams=streams,
            limits=ReceiverLimits(network_timeout_seconds=20, **limits),
        )
        server.start()
        both.append(Receiver(server, sink))
    try:
        yield Both(*both)
    finally:
        for each in both:
            each.server.stop(wait_seconds=1)


@pytest.fixture
def both(tmp_path) -> Iterator[Both]:
    yield from _receivers(tmp_path)


@pytest.fixture(params=[0, 512], ids=["any PDU", "PDUs of 512"])
def both_unusual(tmp_path, request) -> Iterator[Both]:
    """Both receivers with an unusual maximum PDU length, which senders do not keep to here."""
    yield from _receivers(tmp_path, maximum_pdu_bytes=request.param)


@pytest.fixture
def recorded(both, run_dcmtk):
    """Record one session of a DCMTK sender with a receiver."""

    def record(tool: str, *arguments: object) -> Session:
        with recording(both.plane.server.port) as recorder:
            options = [a for a in arguments if not isinstance(a, Path)]
            paths = [a for a in arguments if isinstance(a, Path)]
            result = run_dcmtk(
                tool, "-aec", "MEDIMGD", *options, "127.0.0.1", recorder.port, *paths
            )
            assert result.returncode == 0, result.stderr
            session = recorder.session()
        assert both.plane.take_files()
        return session

    return record


@pytest.fixture(scope="module")
def slices(unpacked) -> list[Path]:
    return sorted(unpacked("ct-chest-60").rglob("*.dcm"))[:4]


SENDERS = {
    "storescu": ("storescu", "-xe"),
    "storescu, PDUs of 4096": ("storescu", "-xe", "--max-send-pdu", "4096"),
    "storescu, PDUs of 130 KiB": ("storescu", "-xe", "--max-send-pdu", "131072"),
    "dcmsend": ("dcmsend",),
    "dcmsend, PDUs of 16 KiB": ("dcmsend", "--max-send-pdu", "16384"),
}


@pytest.mark.parametrize("name", SENDERS)
def test_sessions_of_dcmtk_are_answered_alike(both, recorded, slices, name):
    session = recorded(*SENDERS[name], *slices)

    replayed, files = both.assert_alike(session)

    assert len(files) == len(slices)
    statuses = [ul.status_of(c) for c in ul.commands_of(replayed.pdus[1:-1])]
    assert statuses == [StoreStatusValues.SUCCESS] * len(slices)
    assert replayed.pdus[-1][0] == ul.RELEASE_RP


@pytest.mark.parametrize("seed", range(4))
def test_sessions_cut_into_odd_but_legal_fragments_are_answered_alike(both, recorded, slices, seed):
    session = recorded("storescu", "-xe", *slices[:1])
    _, whole = both.assert_alike(session)

    rng = random.Random(seed)
    _, files = both.assert_alike(refragmented(session, rng, longest=rng.choice((40_000, 4_000))))

    assert files == whole


@pytest.mark.parametrize("segment_bytes", [1, 3, 1460])
def test_the_segments_of_the_network_make_no_difference(both, segment_bytes):
    session = small_session(random.Random(1))

    _, whole = both.assert_alike(session)
    _, files = both.assert_alike(session, segment_bytes=segment_bytes)

    assert files == whole
    assert len(files) == 3


def test_a_session_of_pynetdicoms_sender_is_answered_alike(both, slices, testdata):
    objects = [dcmread(path) for path in [slices[0], testdata / "single" / "ct_image.dcm"]]
    ae = AE()
    ae.requested_contexts = [
        build_context(ds.SOPClassUID, [ds.file_meta.TransferSyntaxUID]) for ds in objects
    ]
    with recording(both.plane.server.port) as recorder:
        assoc = ae.associate("127.0.0.1", recorder.port, ae_title="MEDIMGD")
        assert assoc.is_established
        statuses = [assoc.send_c_store(ds).Status for ds in objects]
        assoc.release()
        session = recorder.session()
    both.plane.take_files()

    _, files = both.assert_alike(session)

    assert statuses == [StoreStatusValues.SUCCESS] * 2
    assert len(files) == 2


CONTEXTS = (
    Context(1, ul.CT_IMAGE_STORAGE, (ImplicitVRLittleEndian,)),
    Context(3, ul.CT_IMAGE_STORAGE, (ExplicitVRLittleEndian,)),
    Context(5, ul.VERIFICATION, (ImplicitVRLittleEndian,)),
)


def opened(*steps: Step, maximum_pdu_bytes: int = 16384) -> Session:
    """Return a session that opens an association, takes these steps and releases."""
    request = ul.associate_request(CONTEXTS, maximum_pdu_bytes=maximum_pdu_bytes)
    return (Step(request, 1), *steps, Step(ul.RELEASE_REQUEST, 1))


def said(*values: bytes, answers: int = 1) -> Step:
    """Return a step of one PDU for each value."""
    return Step(b"".join(ul.p_data(value) for value in values), answers)


def stored(uid: str, data_set: bytes, context_id: int = 1, fragment_bytes: int = 300) -> Step:
    return said(*ul.message(context_id, ul.store_request(uid), data_set, fragment_bytes))


def echoed(context_id: int = 5) -> Step:
    return said(pdv(context_id, LAST_COMMAND, ul.echo_request()))


def small_session(rng: random.Random) -> Session:
    """Return three short instances and an echo, whose bytes depend on the seed alone."""
    return opened(
        stored("1.2.1", rng.randbytes(500)),
        echoed(),
        stored("1.2.2", rng.randbytes(64), context_id=3),
        stored("1.2.3", rng.randbytes(701), fragment_bytes=100),
    )


WITHOUT_UID = ul.store_request(None)
BAD_UID = ul.store_request("1.2..3")

LEGAL = {
    "nothing but an association": opened(),
    "an echo": opened(echoed(), echoed(), echoed()),
    "an empty data set": opened(stored("1.2.3", b""), stored("1.2.4", b"x")),
    "the same instance twice": opened(stored("1.2.3", b"one"), stored("1.2.3", b"two")),
    "a request without data set": opened(
        said(pdv(1, LAST_COMMAND, ul.store_request(has_data_set=False))), stored("1.2.4", b"x")
    ),
    "a request without instance UID": opened(
        said(*ul.message(1, WITHOUT_UID, b"data")), stored("1.2.4", b"x")
    ),
    "an instance UID that is none": opened(
        said(*ul.message(1, BAD_UID, b"data")), stored("1.2.4", b"x")
    ),
    "command and data set in one PDU": opened(
        Step(ul.p_data(*ul.message(3, ul.store_request(), b"data set", 5)), 1)
    ),
    "last flags on empty fragments": opened(
        said(
            pdv(1, COMMAND, ul.store_request()),
            pdv(1, LAST_COMMAND, b""),
            pdv(1, DATA, b"data"),
            pdv(1, LAST_DATA, b""),
        )
    ),
    "reserved bits": opened(
        said(pdv(1, 0xFC | LAST_COMMAND, ul.store_request()), pdv(1, 0xA8 | LAST_DATA, b"data"))
    ),
    "a peer that aborts within a command": (
        *opened()[:1],
        Step(ul.p_data(pdv(1, COMMAND, ul.store_request()[:30])) + ul.ABORT_REQUEST, 0),
    ),
    "a peer that aborts within a data set": (
        *opened(stored("1.2.1", b"data"))[:-1],
        Step(said(*ul.message(1, ul.store_request(), b"data", 200)[:-1]).sent, 0),
        Step(ul.p_data(pdv(1, DATA, b"half")) + ul.ABORT_REQUEST, 0),
    ),
    "a peer that closes within a data set": (
        *opened(stored("1.2.1", b"data"))[:-1],
        Step(ul.p_data(pdv(1, LAST_COMMAND, ul.store_request()), pdv(1, DATA, b"half")), 0),
    ),
    "a peer that closes within a PDU": (
        *opened(stored("1.2.1", b"data"))[:-1],
        Step(stored("1.2.2", bytes(1000)).sent[:-1], 0),
    ),
    "a release within a data set": (
        *opened(stored("1.2.1", b"data"))[:-1],
        Step(ul.p_data(pdv(1, LAST_COMMAND, ul.store_request()), pdv(1, DATA, b"half")), 0),
        Step(ul.RELEASE_REQUEST, 1),
    ),
}


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("name", LEGAL)
def test_what_the_standard_allows_is_answered_alike(both, name):
    replayed, _ = both.assert_alike(LEGAL[name])

    assert replayed.pdus[0][0] == ul.ASSOCIATE_AC
    assert replayed.left == b""


def _with_elements(elements: list[tuple[int, bytes]]) -> Session:
    return opened(said(*ul.message(1, ul.command_set(elements), b"data")), stored("1.2.4", b"x"))


ELEMENTS = [each for each in ul.elements_of(ul.store_request("1.2.3")).items() if each[0]]
TOLERATED = {
    "a request without priority": _with_elements([e for e in ELEMENTS if e[0] != 0x0700]),
    "a request whose elements are out of order": _with_elements(ELEMENTS[::-1]),
}


@pytest.mark.parametrize("name", TOLERATED)
def test_what_both_put_up_with_is_stored_alike(both, name):
    _, files = both.assert_alike(TOLERATED[name])

    assert sorted(files) == ["1.2.3.dcm", "1.2.4.dcm"]


@pytest.mark.parametrize("maximum", [0, 7, 16, 50, 300])
def test_answers_are_cut_alike_for_peers_that_take_short_pdus(both, maximum):
    session = opened(
        Step(stored("1.2.3", b"").sent, _pdus_of_an_answer(both, maximum)),
        maximum_pdu_bytes=maximum,
    )

    replayed, _ = both.assert_alike(session, quiet_seconds=5)

    (answer,) = ul.commands_of(pdu for pdu in replayed.pdus if pdu[0] == ul.P_DATA_TF)
    assert ul.status_of(answer) == StoreStatusValues.CANNOT_UNDERSTAND


def _pdus_of_an_answer(both: Both, maximum: int) -> int:
    session = opened(stored("1.2.3", b""), maximum_pdu_bytes=0)
    (_, answer, _) = replay(both.plane.server.port, session).pdus
    both.plane.take_files()
    return -(-(len(answer) - 12) // (maximum - 6)) if maximum else 1


def test_unusual_maximum_lengths_make_no_difference(both_unusual):
    session = small_session(random.Random(2))

    _, files = both_unusual.assert_alike(session)
    _, again = both_unusual.assert_alike(refragmented(session, random.Random(3), longest=60))

    assert len(files) == 3
    assert again == files


UNREADABLE = {
    "an unknown PDU type": ul.pdu(0x09, b"1234"),
    "a PDU of type 0": ul.pdu(0, b""),
    "a second A-ASSOCIATE-RQ": ul.associate_request(CONTEXTS),
    "an A-RELEASE-RP": ul.pdu(ul.RELEASE_RP, bytes(4)),
    "an A-ASSOCIATE-RJ": ul.pdu(ul.ASSOCIATE_RJ, b"\0\1\1\1"),
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: pacs\r\n\r\n",
    "a data set without a command": ul.p_data(pdv(1, LAST_DATA, b"data")),
    "a value that is longer than its PDU": ul.p_data(pdv(1, LAST_COMMAND, b"abc", length=50)),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_pdu_ends_the_association_alike(both, name):
    stored_before = opened(stored("1.2.1", b"data"))[:-1]

    replayed, files = both.assert_alike((*stored_before, Step(UNREADABLE[name], 1)))

    assert replayed.pdus[-1][0] == ul.ABORT
    assert len(files) == 1


def test_an_a_release_rq_that_is_too_short_releases_alike(both):
    stored_before = opened(stored("1.2.1", b"data"))[:-1]

    replayed, files = both.assert_alike((*stored_before, Step(ul.pdu(ul.RELEASE_RQ, b"\0"), 1)))

    assert replayed.pdus[-1][0] == ul.RELEASE_RP
    assert len(files) == 1


@dataclass(frozen=True)
class Stricter:
    """What the plane answers with an abort though pynetdicom lets it pass."""

    step: Step
    reason: str


TWO_MIXED = [
    pdv(1, LAST_COMMAND, ul.store_request("1.2.8")),
    pdv(1, DATA, b"one"),
    pdv(3, LAST_COMMAND, ul.store_request("1.2.9")),
    pdv(3, LAST_DATA, b"two"),
    pdv(1, LAST_DATA, b"three"),
]

STRICTER = {
    "two instances interleaved on two contexts": Stricter(
        said(*TWO_MIXED),
        "PS3.7 6.3.1 and PS3.8 E.1: the fragments of one message follow each other; pynetdicom "
        "stores a mixture of both under one UID",
    ),
    "a data set on another context than its command": Stricter(
        said(pdv(1, LAST_COMMAND, ul.store_request("1.2.8")), pdv(3, LAST_DATA, b"data")),
        "PS3.8 E.1: all fragments of a message travel on one presentation context, which names "
        "their transfer syntax",
    ),
    "a command on a context that was never negotiated": Stricter(
        said(*ul.message(99, ul.store_request("1.2.8"), b"data")),
        "PS3.8 9.3.5: a presentation context ID is one negotiated for the association; nothing "
        "else says how the data set is encoded",
    ),
    "a command before the data set of the last one": Stricter(
        said(
            pdv(1, LAST_COMMAND, ul.store_request("1.2.8")),
            pdv(1, LAST_COMMAND, ul.store_request("1.2.9")),
            pdv(1, LAST_DATA, b"data"),
        ),
        "PS3.7 6.3.1: the announced data set follows its command before another message begins; "
        "pynetdicom answers one of two requests and never the other",
    ),
    "fragments of one command on two contexts": Stricter(
        said(
            pdv(3, COMMAND, ul.store_request("1.2.8")[:20]),
            pdv(1, LAST_COMMAND, ul.store_request("1.2.8")[20:]),
            pdv(1, LAST_DATA, b"data"),
        ),
        "PS3.8 E.1: all fragments of a message travel on one presentation context",
    ),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", STRICTER)
def test_where_pynetdicom_lets_a_breach_pass_the_plane_aborts_and_keeps_what_it_had(both, name):
    session = (*opened(stored("1.2.1", b"data"))[:-1], STRICTER[name].step)

    ours = replay(both.plane.server.port, session, quiet_seconds=2)
    theirs = replay(both.reference.server.port, session, quiet_seconds=2)

    assert ours.pdus[-1] == ABORTED
    assert len(ours.pdus) == 3
    assert ours.was_closed
    assert list(both.plane.take_files()) == ["1.2.1.dcm"]
    same = ours == theirs and list(both.reference.take_files()) == ["1.2.1.dcm"]
    assert not same, "no difference is left: this belongs to what is answered alike"


Effect = tuple[tuple[bytes, ...], dict[str, bytes]]
"""The PDUs a receiver answered, and its files."""


@dataclass
class Comparison:
    """What became of the mutated sessions."""

    alike: int = 0
    stricter: int = 0
    wrong: list[str] = field(default_factory=list)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_mutated_sessions_are_answered_alike_or_more_strictly(tmp_path_factory, capsys, caplog):
    caplog.set_level("CRITICAL")
    lanes = [_receivers(tmp_path_factory.mktemp("lane")) for _ in range(AT_ONCE)]
    pairs = [next(lane) for lane in lanes]
    found = Comparison()
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for lane in [
                pool.submit(_compare_mutations, both, range(n, MUTATIONS, AT_ONCE), found)
                for n, both in enumerate(pairs)
            ]:
                lane.result()
    finally:
        for lane in lanes:
            next(lane, None)

    with capsys.disabled():
        print(
            f"\n{MUTATIONS} mutated sessions, seed {SEED}: {found.alike} answered alike, "
            f"{found.stricter} aborted earlier"
        )
    assert not found.wrong, "\n".join(found.wrong)
    assert found.alike > MUTATIONS * 0.7, "too few are alike for the comparison to mean anything"


def _compare_mutations(both: Both, numbers: range, found: Comparison) -> None:
    for number in numbers:
        rng = random.Random(SEED + number)
        session = small_session(rng)
        if rng.random() < 0.5:
            session = refragmented(session, rng, longest=200)
        _judge(both, mutated(session, rng), number, found)


def _judge(both: Both, session: Session, number: int, found: Comparison) -> None:
    """Compare one session; whoever seems to differ is asked again with more patience."""
    for manner in (HASTE, PATIENCE):
        ours, theirs = (_effect(each, session, manner) for each in (both.plane, both.reference))
        if ours == theirs:
            found.alike += 1
            return
        if manner is PATIENCE and _is_stricter(ours, theirs):
            found.stricter += 1
            return
    found.wrong.append(f"{number}: {_shown(ours)} and {_shown(theirs)}")


def _effect(receiver: Receiver, session: Session, manner: dict) -> Effect:
    """Play a session; after its first A-ABORT a receiver only waits to be hung up on."""
    said = replay(receiver.server.port, session, **manner).pdus
    kinds = [pdu[0] for pdu in said]
    end = kinds.index(ul.ABORT) + 1 if ul.ABORT in kinds else len(said)
    return said[:end], receiver.take_files()


def _is_stricter(ours: Effect, theirs: Effect) -> bool:
    """Tell whether the plane did what the reference did up to a point, and aborted there."""
    said, files = ours
    before = said[:-1]
    return (
        said[-1:] == (ABORTED,)
        and before == theirs[0][: len(before)]
        and all(theirs[1].get(name) == content for name, content in files.items())
    )


def _shown(done: Effect) -> str:
    kinds = " ".join(pdu.hex() if pdu[0] == ul.ABORT else str(pdu[0]) for pdu in done[0])
    return f"PDUs {kinds}, files { {name: len(content) for name, content in done[1].items()} }"
