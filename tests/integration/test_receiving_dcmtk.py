"""DCMTK's senders push real instances to the Storage SCP; every byte must arrive."""

from __future__ import annotations

import errno
import socket
import threading
import time
from pathlib import Path

import pytest
from pdu_client import PduClient
from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_io.errors import InstanceUnavailable, ReceiverNotStarted
from dicom_io.receiving.access import Peer
from dicom_io.receiving.folder_sink import FolderSink
from dicom_io.receiving.instances import AssociationObserver, StoreAnswer, StoreRequest
from dicom_io.receiving.limits import ReceiverLimits
from dicom_io.receiving.server import StorageServer
from dicom_io.statuses import StoreStatusValues
from tests.sinks import GatheringSink
from tests.upper_layer import Context, associate_request

AE_TITLE = "MEDIMGD"
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
PRIVATE_TRANSFER_SYNTAX = "1.3.6.1.4.1.99999.2.5"
PRIVATE_SOP_CLASS = "1.3.6.1.4.1.99999.1.77"

# How storescu is told to propose the transfer syntax of each file; it converts whenever it may.
STORESCU_PROPOSALS = {
    "ct_implicit_le": "-xi",
    "ct_explicit_le": "-xe",
    "ct_explicit_be": "-xb",
    "ct_deflated": "-xd",
    "ct_rle": "-xr",
    "ct_jpeg_baseline_50": "-xy",
    "ct_jpeg_extended_51": "-xx",
    "ct_jpeg_lossless_70": "-xs",
    "ct_jpegls_80": "-xt",
    "ct_jpegls_near_81": "-xu",
    "ct_j2k_lossless_90": "-xv",
    "ct_j2k_91": "-xw",
}


class Recorder(AssociationObserver):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, str, str, str]] = []
        self.closed: list[str] = []
        self.refused: list[tuple[str, str, str, str]] = []

    def on_opened(self, association_id, calling_ae_title, called_ae_title, address) -> None:
        self.opened.append((association_id, calling_ae_title, called_ae_title, address))

    def on_closed(self, association_id, end) -> None:
        self.closed.append(association_id)

    def on_refused(self, calling_ae_title, called_ae_title, address, reason) -> None:
        self.refused.append((calling_ae_title, called_ae_title, address, reason))


class AnswerSink(GatheringSink):
    """Answers every instance alike."""

    def __init__(self, answer: StoreAnswer | Exception) -> None:
        self.answer = answer

    def store(self, request: StoreRequest, data_set: bytes) -> StoreAnswer:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def sink(tmp_path) -> FolderSink:
    return FolderSink(tmp_path / "received")


@pytest.fixture
def observer() -> Recorder:
    return Recorder()


@pytest.fixture
def serve(sink, observer):
    """Start receivers with any options; all are stopped at the end."""
    servers: list[StorageServer] = []

    def start(**options) -> StorageServer:
        options.setdefault("sink", sink)
        options.setdefault("observer", observer)
        options.setdefault("port", 0)
        server = StorageServer(**options)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop(wait_seconds=1)


@pytest.fixture
def push(run_dcmtk):
    """Send with a DCMTK tool to a receiver under its right AE title."""

    def run(tool: str, server, *arguments: object, called: str = AE_TITLE):
        options = [a for a in arguments if not isinstance(a, Path)]
        paths = [a for a in arguments if isinstance(a, Path)]
        return run_dcmtk(tool, "-aec", called, *options, "127.0.0.1", server.port, *paths)

    return run


@pytest.fixture
def connect():
    """Open connections to a receiver that speak the protocol byte by byte."""
    clients: list[PduClient] = []

    def open_connection(
        server: StorageServer, host: str = "127.0.0.1", source: str | None = None
    ) -> PduClient:
        clients.append(PduClient(server.port, host, source))
        return clients[-1]

    yield open_connection
    for client in clients:
        client.close()


def data_set_bytes(path: Path) -> bytes:
    """Return what follows preamble, prefix and group 0002 of a DICOM file."""
    group_length = read_file_meta_info(path).FileMetaInformationGroupLength
    # 128 preamble + 4 prefix + 12 for the group length element itself.
    return path.read_bytes()[128 + 4 + 12 + group_length :]


def sop_instance_uid(path: Path) -> str:
    return str(read_file_meta_info(path).MediaStorageSOPInstanceUID)


def wait_until(condition, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def started_threads() -> int:
    return sum(1 for thread in threading.enumerate() if "dicom-listener" not in thread.name)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_real_ct_series_arrives_as_dcmtks_own_receiver_gets_it(
    serve, push, sink, observer, unpacked, storescp_peer
):
    server = serve()
    series = unpacked("ct-chest-60")
    # dcmsend writes its own sequence lengths, so the judge of its bytes is a receiver that
    # writes down what comes, bit by bit.
    assert push("dcmsend", storescp_peer, "+sd", "+r", series).returncode == 0

    result = push("dcmsend", server, "+sd", "+r", series)

    assert result.returncode == 0, result.stderr
    received = {path.stem: data_set_bytes(path) for path in sink.paths()}
    assert len(received) == 60
    assert received == {sop_instance_uid(p): data_set_bytes(p) for p in storescp_peer.paths()}
    assert wait_until(lambda: observer.closed)
    assert [opened[0] for opened in observer.opened] == observer.closed
    assert observer.opened[0][1:] == ("DCMSEND", AE_TITLE, "127.0.0.1")


def test_dcmsend_delivers_each_transfer_syntax_it_keeps(serve, push, sink, testdata):
    server = serve()
    sources = sorted((testdata / "transfer-syntaxes").glob("*.dcm"))
    assert len(sources) == 13

    # dcmsend makes these two explicit little endian by itself; storescu keeps them (below).
    converted = {"ct_explicit_be", "ct_implicit_le"}
    for source in [path for path in sources if path.stem not in converted]:
        result = push("dcmsend", server, "-dn", "-nuc", source)

        assert result.returncode == 0, f"{source.name}: {result.stderr}"
        (received,) = sink.paths()
        meta = read_file_meta_info(received)
        assert meta.TransferSyntaxUID == read_file_meta_info(source).TransferSyntaxUID, source.name
        assert dcmread(received).PixelData == dcmread(source).PixelData, source.name
        received.unlink()


@pytest.mark.parametrize("name", sorted(STORESCU_PROPOSALS))
def test_storescu_delivers_in_the_transfer_syntax_it_proposes(serve, push, sink, testdata, name):
    server = serve()
    source = testdata / "transfer-syntaxes" / f"{name}.dcm"

    result = push("storescu", server, STORESCU_PROPOSALS[name], "-R", source)

    assert result.returncode == 0, result.stderr
    (received,) = sink.paths()
    expected = read_file_meta_info(source).TransferSyntaxUID
    assert read_file_meta_info(received).TransferSyntaxUID == expected
    assert dcmread(received).PixelData == dcmread(source).PixelData


def test_combined_proposals_are_answered_with_the_first_one(serve, push, sink, testdata):
    server = serve()
    source = testdata / "transfer-syntaxes" / "ct_explicit_le.dcm"

    result = push("storescu", server, "-xe", "+C", source)

    assert result.returncode == 0, result.stderr
    (received,) = sink.paths()
    assert read_file_meta_info(received).TransferSyntaxUID == ExplicitVRLittleEndian


def test_file_names_the_sender_and_passes_for_a_dicom_file(serve, push, sink, testdata, run_dcmtk):
    server = serve()

    push("dcmsend", server, "-aet", "CT_ROOM_3", testdata / "single" / "ct_image.dcm")

    (received,) = sink.paths()
    assert read_file_meta_info(received).SourceApplicationEntityTitle == "CT_ROOM_3"
    dump = run_dcmtk("dcmdump", "-q", "+fo", received)
    assert dump.returncode == 0, dump.stderr


def test_a_private_sop_class_is_stored(serve, push, sink, testdata, tmp_path):
    server = serve()
    source = tmp_path / "private.dcm"
    ds = dcmread(testdata / "single" / "ct_image.dcm")
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = PRIVATE_SOP_CLASS
    ds.save_as(source)

    result = push("dcmsend", server, "-nuc", source)

    assert result.returncode == 0, result.stderr
    (received,) = sink.paths()
    assert read_file_meta_info(received).MediaStorageSOPClassUID == PRIVATE_SOP_CLASS


def test_an_unknown_transfer_syntax_is_stored_as_it_comes(serve, sink, connect):
    server = serve()
    client = connect(server)
    client.associate(CT_IMAGE_STORAGE, PRIVATE_TRANSFER_SYNTAX)

    status, _ = client.store(CT_IMAGE_STORAGE, "1.2.3", b"any bytes at all")

    assert status == StoreStatusValues.SUCCESS
    (received,) = sink.paths()
    assert data_set_bytes(received) == b"any bytes at all"
    assert read_file_meta_info(received).TransferSyntaxUID == PRIVATE_TRANSFER_SYNTAX
    client.release()


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("uid", ["../../escaped", "1.2..3", "1.2.3/4", "one"])
def test_an_instance_uid_that_is_none_is_refused_and_the_association_goes_on(
    serve, sink, uid, connect
):
    server = serve()
    client = connect(server)
    client.associate(CT_IMAGE_STORAGE, ImplicitVRLittleEndian)

    status, comment = client.store(CT_IMAGE_STORAGE, uid, b"data")

    assert status == StoreStatusValues.CANNOT_UNDERSTAND
    assert comment.startswith("SOPInstanceUID is not a UID")
    assert client.store(CT_IMAGE_STORAGE, "1.2.3", b"data")[0] == StoreStatusValues.SUCCESS
    assert [path.name for path in sink.paths()] == ["1.2.3.dcm"]
    client.release()


def test_a_request_without_data_set_is_refused_and_the_association_goes_on(serve, sink, connect):
    server = serve()
    client = connect(server)
    client.associate(CT_IMAGE_STORAGE, ImplicitVRLittleEndian)

    status, comment = client.store(CT_IMAGE_STORAGE, "1.2.3", None)

    assert status == StoreStatusValues.CANNOT_UNDERSTAND
    assert comment == "C-STORE request without data set"
    assert client.store(CT_IMAGE_STORAGE, "1.2.3", b"data")[0] == StoreStatusValues.SUCCESS
    client.release()


def test_a_request_without_instance_uid_is_refused_and_the_association_goes_on(
    serve, sink, connect
):
    server = serve()
    client = connect(server)
    client.associate(CT_IMAGE_STORAGE, ImplicitVRLittleEndian)

    status, comment = client.store(CT_IMAGE_STORAGE, None, b"data")

    assert status == StoreStatusValues.CANNOT_UNDERSTAND
    assert comment == "C-STORE request without UIDs"
    assert client.store(CT_IMAGE_STORAGE, "1.2.3", b"data")[0] == StoreStatusValues.SUCCESS


def test_a_receiver_on_ipv6_serves_and_judges_ipv6_peers(serve, sink, observer, connect):
    server = serve(address="::1", peers=[Peer.from_text("RAW", "::1/128")])
    client = connect(server, host="::1")
    client.associate(CT_IMAGE_STORAGE, ImplicitVRLittleEndian)

    assert client.store(CT_IMAGE_STORAGE, "1.2.3", b"data")[0] == StoreStatusValues.SUCCESS
    client.release()
    assert observer.opened[0][3] == "::1"


def test_four_senders_at_once_lose_nothing(serve, push, sink, observer, unpacked):
    server = serve()
    files = sorted(unpacked("ct-chest-60").rglob("*.dcm"))
    results = []
    senders = [
        threading.Thread(target=lambda part=part: results.append(push("dcmsend", server, *part)))
        for part in (files[0::4], files[1::4], files[2::4], files[3::4])
    ]

    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()

    assert [result.returncode for result in results] == [0] * 4
    assert len(sink.paths()) == 60
    assert wait_until(lambda: len(observer.closed) == 4)
    assert sorted(observer.closed) == sorted(opened[0] for opened in observer.opened)


def test_echo_is_answered(serve, push):
    server = serve()

    result = push("echoscu", server)

    assert result.returncode == 0, result.stderr


def test_a_wrong_called_ae_title_is_rejected_as_such(serve, push, sink, observer, testdata):
    server = serve()

    result = push("storescu", server, "-v", testdata / "single" / "ct_image.dcm", called="OTHER")

    assert result.returncode != 0
    assert "Called AE Title Not Recognized" in result.stderr
    assert sink.paths() == []
    assert observer.opened == []
    assert 'receiver.ae_title = "OTHER"' in observer.refused[0][3]


def test_who_is_barred_stays_so_when_nobody_can_be_told(serve, push, sink, testdata):
    class Deaf(Recorder):
        def on_refused(self, calling_ae_title, called_ae_title, address, reason) -> None:
            raise MemoryError

    server = serve(observer=Deaf())

    result = push("storescu", server, "-v", testdata / "single" / "ct_image.dcm", called="OTHER")

    assert "Called AE Title Not Recognized" in result.stderr
    assert sink.paths() == []


def test_a_wrong_calling_ae_title_is_rejected_with_the_rule_that_would_admit_it(
    serve, push, sink, observer, testdata, caplog
):
    server = serve(peers=[Peer.from_text("CT1", "127.0.0.0/8")])

    result = push("storescu", server, "-aet", "CT2", testdata / "single" / "ct_image.dcm")

    assert result.returncode != 0
    assert "Calling AE Title Not Recognized" in result.stderr
    assert sink.paths() == []
    remedy = 'add to receiver.peers { ae_title = "CT2", network = "127.0.0.1/32" }'
    assert remedy in observer.refused[0][3]
    assert remedy in caplog.text


def test_an_address_outside_the_network_of_its_title_is_rejected(
    serve, push, sink, observer, testdata
):
    rules = [Peer.from_text("CT1", "10.0.0.0/8"), Peer.from_text("MR1", "127.0.0.0/8")]
    server = serve(peers=rules)

    result = push("storescu", server, "-aet", "CT1", testdata / "single" / "ct_image.dcm")

    assert result.returncode != 0
    assert sink.paths() == []
    assert "'CT1' is known, but not from 127.0.0.1" in observer.refused[0][3]


def test_connections_from_outside_every_network_cost_no_thread_and_one_report(
    serve, observer, connect
):
    # given a receiver for another network
    server = serve(peers=[Peer.from_text("CT1", "10.0.0.0/8")])
    threads = started_threads()

    # when 150 connections are opened that say nothing
    clients = [connect(server) for _ in range(150)]

    # then all are closed at once, no thread was made for any, and one report says what to do
    assert all(_received(client.socket) == b"" for client in clients)
    assert started_threads() <= threads
    assert len(observer.refused) == 1
    assert observer.refused[0][:3] == ("", "", "127.0.0.1")
    remedy = 'add to receiver.peers a rule with its ae_title and network = "127.0.0.1/32"'
    assert remedy in observer.refused[0][3]


def test_silent_connections_are_bounded_and_shut_nobody_else_out(serve, observer, connect):
    # given room for 4 associations, so for 36 connections that wait, 27 of them from one address
    limits = ReceiverLimits(maximum_associations=4)
    server = serve(peers=[Peer.from_text("RAW", "127.0.0.0/8")], limits=limits)
    threads = started_threads()

    # when one address opens 60 connections and says nothing
    clients = [connect(server) for _ in range(60)]

    # then what exceeds its share is closed at once, and another address is served
    assert all(_received(client.socket) == b"" for client in clients[27:])
    assert started_threads() <= threads + 27
    assert len(observer.refused) == 1
    assert "too many connections wait without an association" in observer.refused[0][3]
    other = connect(server, source="127.0.0.2")
    other.associate()
    other.release()


def test_one_address_cannot_take_every_association(serve, observer, connect):
    server = serve(
        peers=[Peer.from_text("*", "127.0.0.0/8")], limits=ReceiverLimits(maximum_associations=4)
    )
    holders = [connect(server) for _ in range(3)]
    for holder in holders:
        holder.associate()

    # A fourth from the same address is told that a local limit is exceeded, transiently.
    with pytest.raises(AssertionError, match="A-ASSOCIATE-AC"):
        connect(server).associate()
    connect(server, source="127.0.0.2").associate()

    assert "3 associations are open from 127.0.0.1" in observer.refused[0][3]
    holders[0].release()
    assert wait_until(lambda: server.open_associations == 3)
    connect(server).associate()


def test_equal_refusals_are_reported_once_a_minute(serve, push, observer):
    server = serve()

    results = [push("echoscu", server, called="OTHER") for _ in range(3)]

    assert all(result.returncode != 0 for result in results)
    assert len(observer.refused) == 1
    push("echoscu", server, called="ANOTHER")
    assert len(observer.refused) == 2


def test_one_association_too_many_is_rejected_as_transient(
    serve, push, run_dcmtk, observer, connect
):
    server = serve(limits=ReceiverLimits(maximum_associations=1))
    holder = connect(server)
    holder.associate()

    result = push("echoscu", server, "-v")

    assert result.returncode != 0
    assert "Rejected Transient" in result.stderr
    assert "Local Limit Exceeded" in result.stderr
    assert "raise maximum_associations" in observer.refused[0][3]
    holder.close()
    assert wait_until(lambda: server.open_associations == 0)
    assert push("echoscu", server).returncode == 0


def test_an_association_aborted_by_the_sender_is_closed_once(serve, push, observer, testdata):
    server = serve()

    result = push("storescu", server, "--abort", testdata / "single" / "ct_image.dcm")

    assert result.returncode == 0, result.stderr
    assert wait_until(lambda: observer.closed)
    time.sleep(0.2)
    assert [opened[0] for opened in observer.opened] == observer.closed


def test_a_sender_cut_off_in_the_middle_leaves_nothing_behind(serve, sink, observer, connect):
    server = serve(limits=ReceiverLimits(network_timeout_seconds=5))
    client = connect(server)
    client.associate()
    threads = started_threads()

    # Half a P-DATA-TF: the header promises 1000 bytes, 10 follow, then the connection is lost.
    client.socket.sendall(b"\x04\x00\x00\x00\x03\xe8" + bytes(10))
    client.close()

    assert wait_until(lambda: observer.closed)
    assert len(observer.closed) == 1
    assert sink.paths() == []
    assert wait_until(lambda: started_threads() == threads - 1)


def test_a_silent_peer_is_closed_after_the_network_timeout(serve, observer, connect):
    server = serve(limits=ReceiverLimits(network_timeout_seconds=0.5))
    client = connect(server)
    client.associate()

    assert wait_until(lambda: observer.closed)
    assert len(observer.closed) == 1
    client.close()


def test_half_a_pdu_and_then_silence_is_closed_after_the_network_timeout(serve, observer, connect):
    server = serve(limits=ReceiverLimits(network_timeout_seconds=0.5))
    client = connect(server)
    client.associate()

    client.socket.sendall(b"\x04\x00\x00\x00\x03\xe8" + bytes(10))

    assert wait_until(lambda: observer.closed)
    assert len(observer.closed) == 1
    client.close()


def test_connect_and_close_probes_leak_no_thread_and_no_file(serve, push, observer):
    server = serve()
    assert push("echoscu", server).returncode == 0
    threads, files = started_threads(), open_files()

    for _ in range(100):
        socket.create_connection(("127.0.0.1", server.port)).close()

    assert wait_until(lambda: started_threads() <= threads and open_files() <= files)
    assert len(observer.opened) == 1
    assert push("echoscu", server).returncode == 0


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: pacs\r\n\r\n", id="http"),
        pytest.param(b"\x01\x00\x00\x00\x00\x04abcd", id="short-request"),
        pytest.param(b"\x04\x00\x00\x00\x00\x06\x00\x00\x00\x02\x01\x03", id="data-first"),
        pytest.param(b"\xff" * 64, id="unknown-pdu"),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_garbage_is_survived(serve, push, observer, garbage):
    server = serve(limits=ReceiverLimits(request_timeout_seconds=0.5))
    threads = started_threads()

    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(garbage)
        while _received(client):
            pass

    assert wait_until(lambda: started_threads() <= threads)
    assert push("echoscu", server).returncode == 0
    assert len(observer.opened) == 1


def test_the_sinks_status_and_comment_reach_the_sender(serve, push, testdata):
    answer = StoreAnswer(StoreStatusValues.OUT_OF_RESOURCES, "disk is full: " + "x" * 80)
    server = serve(sink=AnswerSink(answer))

    result = push("storescu", server, "-d", testdata / "single" / "ct_image.dcm")

    assert "0xa700" in result.stderr.lower() + result.stdout.lower()
    assert "disk is full: " + "x" * 50 in result.stderr + result.stdout
    assert "x" * 51 not in result.stderr + result.stdout


def test_a_failing_sink_is_answered_and_logged_without_the_exceptions_words(
    serve, push, testdata, caplog
):
    server = serve(sink=AnswerSink(ValueError("PatientName is MARKED^NAME")))

    result = push("storescu", server, "-d", testdata / "single" / "ct_image.dcm")

    assert "0xc001" in result.stderr.lower() + result.stdout.lower()
    assert "ValueError at" in caplog.text
    assert "MARKED" not in caplog.text + result.stderr + result.stdout


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "Input/output error"),
        MemoryError(),
        InstanceUnavailable("the spool's disk fails"),
    ],
    ids=["full disk", "failing disk", "no memory", "unavailable"],
)
def test_a_fault_of_the_machine_is_answered_as_transient(serve, push, testdata, fault):
    server = serve(sink=AnswerSink(fault))

    result = push("storescu", server, "-d", testdata / "single" / "ct_image.dcm")

    assert "0xa700" in result.stderr.lower() + result.stdout.lower()


def test_no_patient_name_reaches_a_log(serve, push, testdata, tmp_path, caplog):
    caplog.set_level("DEBUG")
    server = serve()
    source = tmp_path / "marked.dcm"
    ds = dcmread(testdata / "single" / "ct_image.dcm")
    ds.PatientName = "MARKED^NAME"
    ds.save_as(source)

    assert push("dcmsend", server, source).returncode == 0

    assert "MARKED" not in caplog.text


def test_a_taken_port_is_reported_with_what_to_do(serve):
    server = serve()

    with pytest.raises(ReceiverNotStarted, match=rf"port {server.port}: Address already in use"):
        serve(port=server.port)


def test_two_receivers_share_a_port_when_asked_to(serve, push):
    first = serve(reuse_port=True)
    second = serve(reuse_port=True, port=first.port)

    assert second.port == first.port
    assert all(push("echoscu", first).returncode == 0 for _ in range(4))


def test_stopping_waits_for_an_open_association(serve, sink, observer, connect):
    server = serve()
    client = connect(server)
    client.associate()
    stopper = threading.Thread(target=server.stop, args=(10,))

    stopper.start()
    assert wait_until(lambda: not _accepts_connections(server.port))
    assert stopper.is_alive()
    client.release()
    stopper.join(5)

    assert not stopper.is_alive()
    assert len(observer.closed) == 1
    client.close()


def test_stopping_aborts_what_does_not_finish(serve, observer, connect):
    server = serve()
    client = connect(server)
    client.associate()

    server.stop(wait_seconds=0.2)

    assert len(observer.closed) == 1
    assert client.socket.recv(1) == b"\x07", "an A-ABORT was expected"
    client.close()


def _accepts_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _received(client: socket.socket) -> bytes:
    try:
        return client.recv(4096)
    except ConnectionError:
        return b""


def nobody(_name: str, _passcode: str) -> bool:
    """Know no user."""
    return False


@pytest.mark.parametrize(("users", "answer"), [(None, b"\x02"), (nobody, b"\x03")])
def test_a_user_identity_of_no_known_type_is_as_good_as_none(serve, connect, caplog, users, answer):
    # given a request whose last item gives an identity of a type that does not exist
    server = serve(authenticates=users)
    request = bytearray(associate_request([Context(1, CT_IMAGE_STORAGE, ("1.2.840.10008.1.2",))]))
    identity = b"\x58\x00\x00\x09" + b"\x09\x00\x00\x03abc\x00\x00"
    user_information = request.rindex(b"\x50\x00")
    length = int.from_bytes(request[user_information + 2 : user_information + 4], "big")
    request[user_information + 2 : user_information + 4] = (length + len(identity)).to_bytes(
        2, "big"
    )
    request += identity
    request[2:6] = (len(request) - 6).to_bytes(4, "big")

    # when it arrives
    client = connect(server)
    client.socket.sendall(request)

    # then it is accepted where nobody is asked for a user, and rejected where one must be named
    client.socket.settimeout(5)
    assert client.read_pdu()[:1] == answer
    assert "abc" not in caplog.text
