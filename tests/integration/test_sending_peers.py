"""Sending to storescp, Orthanc and our own receiver; peers that refuse, hang or are down."""

from __future__ import annotations

import gc
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind
from typer.testing import CliRunner

from daemon.cli.application import app
from dicom_io import sending
from dicom_io.association import Destination, open_association
from dicom_io.errors import AssociationFailed
from dicom_io.query import holds_instance
from dicom_io.receiving.folder_sink import FolderSink
from dicom_io.receiving.instances import STORED, StoreAnswer, StoreRequest
from dicom_io.receiving.server import StorageServer
from dicom_io.sending import (
    CONTEXT_REFUSED,
    OUT_OF_STEP,
    OutgoingInstance,
    echo,
    send,
    send_paths,
)
from dicom_io.statuses import StoreStatusValues
from tests.sinks import GatheringSink

STORESCP_TAKING_ONLY_MR = """
[[TransferSyntaxes]]
[Explicit]
TransferSyntax1 = LittleEndianExplicit
[[PresentationContexts]]
[OnlyMR]
PresentationContext1 = MRImageStorage\\Explicit
[[Profiles]]
[Default]
PresentationContexts = OnlyMR
"""


class Keeper(GatheringSink):
    """Keeps the data sets in the order they came and answers as told."""

    def __init__(self, *answers: StoreAnswer) -> None:
        self.received: list[tuple[str, str, bytes]] = []
        self._answers = list(answers)

    def store(self, request: StoreRequest, data_set: bytes) -> StoreAnswer:
        self.received.append((request.association_id, request.sop_instance_uid, data_set))
        return self._answers.pop(0) if self._answers else STORED


@pytest.fixture
def receiver():
    """Start our own receiver over a sink and give the destination that reaches it."""
    servers: list[StorageServer] = []

    def start(sink) -> Destination:
        server = StorageServer(sink, ae_titles=["PACS"], port=0)
        server.start()
        servers.append(server)
        return destination_at(server.port)

    yield start
    for server in servers:
        server.stop(wait_seconds=1)


@pytest.fixture(autouse=True)
def no_thread_is_left_behind():
    before = threading.active_count()
    yield
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before, threading.enumerate()


@pytest.fixture
def ct_and_sr(testdata) -> list[OutgoingInstance]:
    folder = testdata / "single"
    return [outgoing(folder / "ct_image.dcm"), outgoing(folder / "sr_document.dcm")]


def destination_at(port: int, **changes) -> Destination:
    destination = Destination("pacs", "127.0.0.1", port, "PACS", calling_ae_title="MEDIMGD")
    return replace(
        destination,
        association_timeout_seconds=5,
        response_timeout_seconds=5,
        **changes,
    )


def outgoing(path: Path) -> OutgoingInstance:
    meta = read_file_meta_info(path)
    return OutgoingInstance(
        str(meta.MediaStorageSOPClassUID),
        str(meta.MediaStorageSOPInstanceUID),
        str(meta.TransferSyntaxUID),
        path.read_bytes(),
    )


def data_set_of(data: bytes) -> bytes:
    meta = dcmread(BytesIO(data), specific_tags=[]).file_meta
    return data[144 + meta.FileMetaInformationGroupLength :]


def test_data_sets_arrive_as_they_are_and_in_order_on_one_association(receiver, ct_and_sr):
    keeper = Keeper()
    destination = receiver(keeper)

    outcomes = send(destination, ct_and_sr)

    assert [outcome.status for outcome in outcomes] == [0, 0]
    assert all(outcome.is_delivered for outcome in outcomes)
    assert [uid for _, uid, _ in keeper.received] == [i.sop_instance_uid for i in ct_and_sr]
    assert [data for _, _, data in keeper.received] == [data_set_of(i.data) for i in ct_and_sr]
    assert len({association for association, _, _ in keeper.received}) == 1


def test_what_is_sent_never_touches_a_disk(receiver, ct_and_sr, tmp_path, monkeypatch):
    # given a temporary folder of our own, and a look at what the sender has open while it sends
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    seen: list[set[str]] = []

    class Watcher(Keeper):
        def store(self, request: StoreRequest, data_set: bytes) -> StoreAnswer:
            seen.append({name for name in _open_files() if "medimgd-send" in name})
            assert list(tmp_path.iterdir()) == []
            return super().store(request, data_set)

    keeper = Watcher()

    # when two instances are sent
    outcomes = send(receiver(keeper), ct_and_sr)

    # then they lay in memory alone, one at a time, and are gone
    assert [outcome.status for outcome in outcomes] == [0, 0]
    assert [data for _, _, data in keeper.received] == [data_set_of(i.data) for i in ct_and_sr]
    assert seen == [{"/memfd:medimgd-send (deleted)"}] * 2
    assert list(tmp_path.iterdir()) == []
    assert not [name for name in _open_files() if "medimgd-send" in name]


def _open_files() -> Iterator[str]:
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # The one that listed the folder.
            yield str(descriptor.readlink())


def test_storescp_accepts_a_report_and_an_image(storescp_peer, ct_and_sr):
    outcomes = send(destination_at(storescp_peer.port), ct_and_sr)

    assert [outcome.status for outcome in outcomes] == [0, 0]
    stored = {read_file_meta_info(p).MediaStorageSOPInstanceUID for p in storescp_peer.paths()}
    assert stored == {instance.sop_instance_uid for instance in ct_and_sr}


def test_orthanc_accepts_and_then_says_what_it_holds(orthanc_peer, ct_and_sr):
    destination = destination_at(orthanc_peer.port)
    ds = dcmread(BytesIO(ct_and_sr[0].data))
    place = (ds.StudyInstanceUID, ds.SeriesInstanceUID)

    assert holds_instance(destination, *place, ds.SOPInstanceUID) is False
    outcomes = send(destination, ct_and_sr)

    assert [outcome.status for outcome in outcomes] == [0, 0]
    assert len(orthanc_peer.get("/instances")) == 2
    assert holds_instance(destination, *place, ds.SOPInstanceUID) is True
    assert holds_instance(destination, *place, "1.2.3") is False


def test_dcmqrscp_accepts_and_then_says_what_it_holds(dcmqrscp_peer, ct_and_sr):
    destination = destination_at(dcmqrscp_peer.port)
    ds = dcmread(BytesIO(ct_and_sr[0].data))
    place = (ds.StudyInstanceUID, ds.SeriesInstanceUID)

    outcomes = send(destination, ct_and_sr)

    assert [outcome.status for outcome in outcomes] == [0, 0]
    assert holds_instance(destination, *place, ds.SOPInstanceUID) is True
    assert holds_instance(destination, *place, "1.2.3") is False


def test_a_peer_without_query_service_cannot_say_what_it_holds(storescp_peer):
    assert holds_instance(destination_at(storescp_peer.port), "1.2", "1.2.3", "1.2.3.4") is None


def test_a_peer_that_fails_the_query_cannot_say_what_it_holds():
    ae = AE("PACS")
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    handlers = [(evt.EVT_C_FIND, lambda _: iter([(0xC001, None)]))]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)

    answer = holds_instance(destination_at(server.server_address[1]), "1.2", "1.2.3", "1.2.3.4")

    server.shutdown()
    assert answer is None


def test_every_transfer_syntax_is_sent_verbatim(receiver, testdata):
    keeper = Keeper()
    destination = receiver(keeper)
    folder = testdata / "transfer-syntaxes"

    outcomes = list(send_paths(destination, [folder]))

    assert len(outcomes) == 13
    assert {outcome.outcome.status for outcome in outcomes} == {0}
    expected = [data_set_of(outcome.path.read_bytes()) for outcome in outcomes]
    assert [data for _, _, data in keeper.received] == expected


def test_a_real_series_goes_to_orthanc_file_by_file(orthanc_peer, unpacked):
    destination = destination_at(orthanc_peer.port)

    outcomes = list(send_paths(destination, [unpacked("ct-chest-60")]))

    assert len(outcomes) == 60
    assert all(outcome.outcome.is_delivered for outcome in outcomes)
    assert len(orthanc_peer.get("/instances")) == 60


def test_more_kinds_than_one_association_holds_are_split(receiver, testdata, tmp_path):
    keeper = Keeper()
    destination = receiver(keeper)
    write_kinds(130, testdata, tmp_path)

    outcomes = list(send_paths(destination, [tmp_path]))

    assert [outcome.outcome.status for outcome in outcomes] == [0] * 130
    assert len({association for association, _, _ in keeper.received}) == 2


def write_kinds(count: int, testdata: Path, folder: Path) -> None:
    """Write a file of each of so many SOP classes."""
    for number in range(count):
        ds = dcmread(testdata / "single" / "ct_image.dcm")
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = f"1.3.6.1.4.1.99999.{number}"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = f"1.2.3.{number}"
        ds.save_as(folder / f"{number:03}.dcm")


def test_an_association_that_fails_after_another_hides_nothing_of_what_was_stored(
    receiver, testdata, tmp_path, monkeypatch
):
    destination = receiver(Keeper())
    write_kinds(130, testdata, tmp_path)
    opened: list[object] = []

    def once(*arguments):
        opened.append(arguments)
        if len(opened) > 1:
            raise AssociationFailed("it went away")
        return open_association(*arguments)

    monkeypatch.setattr(sending, "open_association", once)
    done = CliRunner().invoke(
        app, ["send", str(tmp_path), "--to", f"127.0.0.1:{destination.port}", "--called", "PACS"]
    )

    assert done.exit_code == 6
    assert "128 instances stored" in done.stdout
    assert f"{tmp_path}/129.dcm: not sent: it went away" in done.stderr


def test_files_that_are_no_instances_are_named_and_the_rest_is_sent(receiver, testdata, tmp_path):
    keeper = Keeper()
    destination = receiver(keeper)
    note = tmp_path / "note.txt"
    note.write_text("not an image")
    absent = tmp_path / "absent.dcm"

    outcomes = list(send_paths(destination, [note, absent, testdata / "single" / "ct_image.dcm"]))

    assert [outcome.outcome.status for outcome in outcomes] == [None, None, 0]
    assert outcomes[0].path == note
    assert "not a DICOM file" in outcomes[0].outcome.comment
    assert "No such file" in outcomes[1].outcome.comment


def test_a_file_that_vanishes_before_its_turn_is_named_and_ends_the_association(
    receiver, testdata, tmp_path
):
    paths = [tmp_path / f"{number}.dcm" for number in range(3)]
    for path in paths:
        shutil.copy(testdata / "single" / "ct_image.dcm", path)

    class Thief(Keeper):
        def store(self, request: StoreRequest, data_set: bytes) -> StoreAnswer:
            paths[1].unlink()
            return super().store(request, data_set)

    outcomes = [outcome.outcome for outcome in send_paths(receiver(Thief()), paths)]

    assert [outcome.status for outcome in outcomes] == [0, None, None]
    assert "cannot be read here, try again later: No such file" in outcomes[1].comment
    assert "not tried" in outcomes[2].comment


def test_a_refused_context_is_told_apart_and_the_rest_is_sent(
    start_storescp, testdata, tmp_path, ct_and_sr
):
    configuration = tmp_path / "storescp.cfg"
    configuration.write_text(STORESCP_TAKING_ONLY_MR)
    peer = start_storescp("-xf", configuration, "Default")
    ds = dcmread(testdata / "single" / "ct_image.dcm")
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    ds.save_as(tmp_path / "mr.dcm")

    outcomes = send(destination_at(peer.port), [*ct_and_sr, outgoing(tmp_path / "mr.dcm")])

    assert [outcome.context_refused for outcome in outcomes] == [True, True, False]
    assert [outcome.status for outcome in outcomes] == [None, None, 0]
    assert outcomes[0].comment == CONTEXT_REFUSED
    assert len(peer.paths()) == 1


def test_a_peer_refusing_every_context_is_no_connection_problem(
    start_storescp, tmp_path, ct_and_sr
):
    configuration = tmp_path / "storescp.cfg"
    configuration.write_text(STORESCP_TAKING_ONLY_MR)
    peer = start_storescp("-xf", configuration, "Default")

    outcomes = send(destination_at(peer.port), ct_and_sr)

    assert [outcome.context_refused for outcome in outcomes] == [True, True]


def test_statuses_are_kept_verbatim_with_their_comments(receiver, ct_and_sr):
    keeper = Keeper(
        StoreAnswer(StoreStatusValues.OUT_OF_RESOURCES, "disk full"),
        StoreAnswer(0xB007, "something is odd"),
    )
    destination = receiver(keeper)

    outcomes = send(destination, ct_and_sr)

    assert [(o.status, o.comment) for o in outcomes] == [
        (0xA700, "disk full"),
        (0xB007, "something is odd"),
    ]
    assert [outcome.is_delivered for outcome in outcomes] == [False, True]


def response_to(message_id: int, request: C_STORE) -> C_STORE:
    answer = C_STORE()
    answer.MessageIDBeingRespondedTo = message_id
    answer.AffectedSOPClassUID = request.AffectedSOPClassUID
    answer.AffectedSOPInstanceUID = request.AffectedSOPInstanceUID
    answer.Status = 0x0000
    return answer


# pynetdicom's server leaves the socket of what its peer aborted to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("answered_as", [0, 7], ids=["twice", "as another message"])
def test_an_answer_to_another_message_is_no_answer(ct_and_sr, answered_as):
    """Answer the first instance twice, or under a wrong Message ID, and refuse the second."""

    def store(event) -> int:
        if event.message_id == 1:
            answer = response_to(answered_as or 1, event.request)
            event.assoc.dimse.send_msg(answer, event.context.context_id)
            return 0x0000
        return 0xA700

    ae = AE("PACS")
    for instance in ct_and_sr:
        ae.add_supported_context(instance.sop_class_uid, instance.transfer_syntax_uid)
    handlers = [(evt.EVT_C_STORE, store)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)

    outcomes = send(destination_at(server.server_address[1]), ct_and_sr)

    server.shutdown()
    gc.collect()
    delivered = [True, False] if not answered_as else [False, False]
    assert [outcome.is_delivered for outcome in outcomes] == delivered
    assert OUT_OF_STEP in {outcome.comment for outcome in outcomes}


def test_a_peer_that_breaks_off_keeps_what_it_answered(start_storescp, ct_and_sr):
    peer = start_storescp("+xa", "--abort-after")
    started = time.monotonic()

    outcomes = send(destination_at(peer.port), ct_and_sr)

    assert [outcome.status for outcome in outcomes] == [None, None]
    assert not any(outcome.context_refused for outcome in outcomes)
    assert "broke the association" in outcomes[0].comment
    assert "not tried" in outcomes[1].comment
    assert time.monotonic() - started < 4


def test_a_peer_that_never_answers_a_message_is_given_up(start_storescp, ct_and_sr):
    peer = start_storescp("+xa", "--sleep-during", "3")
    destination = replace(
        destination_at(peer.port), response_timeout_seconds=0.5, association_timeout_seconds=1
    )

    outcomes = send(destination, ct_and_sr)

    assert [outcome.status for outcome in outcomes] == [None, None]
    assert "no answer" in outcomes[0].comment


def test_a_port_that_takes_connections_and_never_speaks_is_given_up(ct_and_sr):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        destination = replace(
            destination_at(mute.getsockname()[1]), association_timeout_seconds=0.5
        )

        with pytest.raises(AssociationFailed, match="did not answer the request"):
            send(destination, ct_and_sr)


def test_a_peer_that_is_down_is_named_with_host_port_and_titles(free_port, ct_and_sr):
    with pytest.raises(AssociationFailed) as failure:
        send(destination_at(free_port), ct_and_sr)

    assert f"pacs (PACS at 127.0.0.1 port {free_port}): Connection refused" in str(failure.value)
    assert failure.value.retryable


def test_a_host_nobody_knows_is_named(ct_and_sr):
    destination = replace(destination_at(104), host="pacs.invalid")

    with pytest.raises(AssociationFailed, match=r"cannot connect to .*pacs\.invalid port 104"):
        send(destination, ct_and_sr)


def test_a_rejection_says_what_to_enter_where(receiver, ct_and_sr):
    destination = replace(receiver(Keeper()), ae_title="OTHER")

    with pytest.raises(AssociationFailed) as failure:
        send(destination, ct_and_sr)

    assert "Called AE title not recognised" in str(failure.value)
    assert "correct ae_title of this destination, 'OTHER'" in str(failure.value)


def test_echo_says_that_a_peer_answers(storescp_peer):
    outcome = echo(destination_at(storescp_peer.port))

    assert outcome.ok
    assert 0 < outcome.seconds < 5
    assert "PACS at 127.0.0.1" in outcome.detail


def test_echo_says_why_a_peer_does_not_answer(free_port):
    outcome = echo(destination_at(free_port))

    assert not outcome.ok
    assert "Connection refused" in outcome.detail


def test_a_folder_sink_plays_the_pacs(receiver, tmp_path, ct_and_sr, run_dcmtk):
    sink = FolderSink(tmp_path / "archive")
    destination = receiver(sink)

    send(destination, ct_and_sr)
    send(destination, ct_and_sr)

    names = sorted(f"{instance.sop_instance_uid}.dcm" for instance in ct_and_sr)
    assert [path.name for path in sink.paths()] == names
    assert {path.name for path in sink.folder.iterdir()} == set(names)
    assert run_dcmtk("dcmdump", "-q", "+fo", *sink.paths()).returncode == 0


def test_no_response_is_taken_away_from_the_thread_that_waits_for_it(
    receiver, ct_and_sr, monkeypatch
):
    # given a reactor thread of pynetdicom that dawdles each time it has passed its gate
    class SlowGate(threading.Event):
        def wait(self, timeout=None):
            passed = super().wait(timeout)
            time.sleep(0.004)
            return passed

    request = Association.request

    def slow_request(assoc):
        assoc._reactor_checkpoint = SlowGate()
        assoc._reactor_checkpoint.set()
        request(assoc)

    monkeypatch.setattr(Association, "request", slow_request)
    destination = replace(receiver(Keeper()), response_timeout_seconds=1)

    # when many instances are sent on one association, each after a moment's pause
    def unhurried():
        for _ in range(15):
            time.sleep(0.003)
            yield from ct_and_sr

    statuses = [outcome.status for outcome in send(destination, list(unhurried()))]

    # then the sender has seen the response to each
    assert statuses == [0] * len(statuses)
