"""Requests on the wire: our receiver answers as a server of pynetdicom does."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass

import pynetdicom.timer
import pytest
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES
from pynetdicom.sop_class import Verification

from dicom_io.receiving import negotiation
from dicom_io.receiving.folder_sink import FolderSink
from dicom_io.receiving.instances import AssociationEndValues, AssociationObserver
from dicom_io.receiving.limits import MAXIMUM_PDU_BYTES, ReceiverLimits
from dicom_io.receiving.server import StorageServer
from dicom_io.vocabulary import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from tests import upper_layer as ul
from tests.associate_requests import UNKNOWN_ITEM, request_of, request_with_role, usual_request
from tests.integration.pdu_client import PduClient
from tests.waiting import wait_until

SEED = 20261123


@dataclass(frozen=True)
class Ports:
    """Where our receiver listens, and where pynetdicom's own server does."""

    ours: int
    pynetdicoms: int

    def answers(self, request: bytes) -> bytes:
        """Return what both answer, which must be the same."""
        ours, theirs = (_answer(port, request) for port in (self.ours, self.pynetdicoms))
        assert ours == theirs, request.hex()
        return ours


def _answer(port: int, request: bytes) -> bytes:
    """Send a request, return the PDU that answers it (nothing, if none does), and abort."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        answer = bytearray()
        with suppress(ConnectionError):
            while len(answer) < 6 or len(answer) < 6 + int.from_bytes(answer[2:6], "big"):
                more = connection.recv(1 << 16)
                if not more:
                    break
                answer += more
            connection.sendall(ul.ABORT_REQUEST)
        return bytes(answer)


@pytest.fixture(scope="module")
def ports(tmp_path_factory) -> Iterator[Ports]:
    ae = AE("MEDIMGD")
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_pdu_size = MAXIMUM_PDU_BYTES
    ae.require_called_aet = True
    # It counts those that are ending.
    ae.maximum_associations = 1000
    ae.add_supported_context(Verification, ALL_TRANSFER_SYNTAXES)
    theirs = ae.start_server(("127.0.0.1", 0), block=False)
    sink = FolderSink(tmp_path_factory.mktemp("received"))
    try:
        with StorageServer(sink, port=0) as ours:
            yield Ports(ours.port, theirs.server_address[1])
            assert wait_until(lambda: ours.open_associations == 0)
    finally:
        theirs.shutdown()


@pytest.mark.parametrize("count", [1, 2, 30, 128])
def test_usual_requests_are_answered_alike(ports, count):
    rng = random.Random(SEED)
    for _ in range(3):
        answer = ports.answers(usual_request(count, rng))

        assert answer[0] == ul.ASSOCIATE_AC


@pytest.mark.parametrize("roles", [(1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("sop_class_uid", [ul.CT_IMAGE_STORAGE, ul.VERIFICATION])
def test_roles_are_answered_alike(ports, sop_class_uid, roles):
    answer = ports.answers(request_with_role(sop_class_uid, *roles))

    assert answer[0] == ul.ASSOCIATE_AC


@pytest.mark.parametrize("missing", [1, 5, 9])
def test_a_request_that_cannot_be_read_is_aborted_alike(ports, missing):
    whole = usual_request(2, random.Random(SEED))
    request = whole[:2] + (len(whole) - 6 - missing).to_bytes(4, "big") + whole[6:-missing]

    answer = ports.answers(request)

    assert answer[0] == ul.ABORT


def test_another_called_title_and_another_protocol_version_are_rejected_alike(ports):
    request = usual_request(3, random.Random(SEED))
    another_title = request.replace(b"MEDIMGD ", b"SOMEONE ")
    another_version = request[:6] + b"\0\2" + request[8:]

    assert ports.answers(another_title) == ul.pdu(ul.ASSOCIATE_RJ, b"\0\1\1\7")
    assert ports.answers(another_version) == ul.pdu(ul.ASSOCIATE_RJ, b"\0\1\2\2")


def test_what_the_standard_lets_pass_is_accepted_where_pynetdicoms_own_server_gives_up(ports):
    contexts = [(1, ul.CT_IMAGE_STORAGE, [ul.IMPLICIT_VR_LITTLE_ENDIAN])]
    plain = request_of(contexts)
    another_version_too = plain[:6] + b"\0\3" + plain[8:]
    with_news = request_of(contexts, more=UNKNOWN_ITEM, more_information=UNKNOWN_ITEM)
    with_incomplete_context = request_of([*contexts, (3, ul.CT_IMAGE_STORAGE, [])])

    expected = ports.answers(plain)

    assert expected[0] == ul.ASSOCIATE_AC
    assert _answer(ports.ours, another_version_too) == expected
    assert _answer(ports.ours, with_news) == expected
    assert _answer(ports.ours, with_incomplete_context)[0] == ul.ASSOCIATE_AC


class Refusals(AssociationObserver):
    """Writes down from where, and why, requests are refused."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def on_refused(self, calling_ae_title, called_ae_title, address, reason) -> None:
        self.told.append((address, reason))


def _titled(calling: bytes, version: bytes = b"\0\1") -> bytes:
    plain = usual_request(1, random.Random(SEED))
    return plain[:6] + version + plain[8:26] + calling.ljust(16) + plain[42:]


UNREADABLE = {
    "no title": (_titled(b""), "calling AE title must have 1 to 16 characters"),
    "a title of NULs": (_titled(bytes(16)), "calling AE title must have 1 to 16 characters"),
    "a title in Latin-1": (_titled(b"M\xdcLLER"), "received 'M\xdcLLER'"),
    "a short request": (ul.pdu(ul.ASSOCIATE_RQ, bytes(20)), "cannot be read"),
    "an even context ID": (
        request_of([(2, ul.VERIFICATION, [ul.IMPLICIT_VR_LITTLE_ENDIAN])]),
        "cannot be served (ValueError)",
    ),
    "another version": (_titled(b"CT1", b"\0\2"), "version of the upper layer"),
    "no DICOM": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "is no PDU of DICOM"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_request_that_cannot_be_read_is_reported_with_its_address(tmp_path, caplog, name):
    request, words = UNREADABLE[name]
    refusals = Refusals()
    with StorageServer(FolderSink(tmp_path), port=0, observer=refusals) as server:
        answer = _answer(server.port, request)

        assert answer[:1] in (bytes([ul.ABORT]), bytes([ul.ASSOCIATE_RJ]))
        assert wait_until(lambda: refusals.told)

    ((address, reason),) = refusals.told
    assert address == "127.0.0.1"
    assert words in reason
    warnings = [each for each in caplog.records if each.name.startswith("dicom_io")]
    assert [each.action for each in warnings if each.levelname == "WARNING"] == [
        "association refused"
    ]


def test_a_message_that_cannot_be_read_is_logged_with_its_peer(tmp_path, caplog):
    request = usual_request(1, random.Random(SEED))
    with (
        StorageServer(FolderSink(tmp_path), port=0) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection,
    ):
        connection.sendall(request)
        assert connection.recv(1 << 16)[0] == ul.ASSOCIATE_AC
        connection.sendall(_titled(b""))
        assert connection.recv(1 << 16)[0] == ul.ABORT

    (warning,) = [each for each in caplog.records if each.levelname == "WARNING"]
    assert "'SENDER' (127.0.0.1)" in warning.getMessage()


def test_a_negotiation_that_fails_ends_with_an_abort_and_is_logged(tmp_path, caplog, monkeypatch):
    def fails(*_: object) -> None:
        raise LookupError

    monkeypatch.setattr(negotiation, "negotiate", fails)
    with StorageServer(FolderSink(tmp_path), port=0) as server:
        answer = _answer(server.port, usual_request(2, random.Random(SEED)))

        assert answer[0] == ul.ABORT
        assert wait_until(lambda: server.open_associations == 0)
    (warning,) = [each for each in caplog.records if each.levelname == "WARNING"]
    assert "'SENDER' (127.0.0.1)" in warning.getMessage()
    assert "unexpected LookupError" in warning.getMessage()


def test_a_request_that_ends_after_the_timeout_is_answered_as_any_other(tmp_path):
    limits = ReceiverLimits(request_timeout_seconds=2)
    ours = ul.associate_request([ul.Context(1)])
    another_title = ul.associate_request([ul.Context(1)], called="SOMEONE")
    with (
        StorageServer(FolderSink(tmp_path), port=0, limits=limits) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as admitted,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as refused,
    ):
        time.sleep(1.5)
        admitted.sendall(ours[:100])
        refused.sendall(another_title[:100])
        time.sleep(1)
        admitted.sendall(ours[100:])
        refused.sendall(another_title[100:])

        assert refused.recv(1 << 16) == ul.pdu(ul.ASSOCIATE_RJ, b"\0\1\1\7")
        assert admitted.recv(1 << 16)[0] == ul.ASSOCIATE_AC
        admitted.sendall(ul.RELEASE_REQUEST)
        assert admitted.recv(1 << 16) == ul.pdu(ul.RELEASE_RP, bytes(4))


class StandingClock:
    """The wall clock, set back again and again: it never gets on."""

    def time(self) -> float:
        return 0.0


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("is_set_back", [False, True])
def test_a_peer_that_says_nothing_is_hung_up_on_and_leaves_no_thread(
    tmp_path, monkeypatch, is_set_back, streams
):
    limits = ReceiverLimits(request_timeout_seconds=0.5)
    if is_set_back:
        monkeypatch.setattr(pynetdicom.timer, "time", StandingClock())
    with StorageServer(FolderSink(tmp_path), port=0, limits=limits, streams=streams) as server:
        # Threads of tests before this one may end meanwhile.
        before = set(threading.enumerate())

        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            assert wait_until(lambda: set(threading.enumerate()) - before)
            assert connection.recv(1) == b""

        assert wait_until(lambda: set(threading.enumerate()) <= before)


class Ends(AssociationObserver):
    """Writes down how associations ended."""

    def __init__(self) -> None:
        self.told: list[AssociationEndValues] = []

    def on_closed(self, association_id, end) -> None:
        self.told.append(end)


WAYS_TO_END = {
    "release": (PduClient.release, AssociationEndValues.RELEASED),
    "abort": (PduClient.abort, AssociationEndValues.ABORTED_BY_PEER),
    "hang up": (PduClient.close, AssociationEndValues.LOST),
    "break the protocol": (
        lambda client: client.send(ul.p_data(ul.pdv(1, ul.LAST_DATA, b"no command"))),
        AssociationEndValues.ABORTED,
    ),
    "fall silent": (lambda client: None, AssociationEndValues.ABORTED),
}


@pytest.mark.parametrize("way", WAYS_TO_END)
def test_observer_hears_how_an_association_ended(tmp_path, way):
    act, expected = WAYS_TO_END[way]
    ends = Ends()
    limits = ReceiverLimits(network_timeout_seconds=1)
    server = StorageServer(FolderSink(tmp_path), port=0, observer=ends, limits=limits)
    with server, closing(PduClient(server.port)) as client:
        client.associate()
        act(client)

        assert wait_until(lambda: ends.told)

    assert ends.told == [expected]


def test_observer_hears_that_a_receiver_that_stops_ended_an_association(tmp_path):
    ends = Ends()
    server = StorageServer(FolderSink(tmp_path), port=0, observer=ends)
    server.start()
    with closing(PduClient(server.port)) as client:
        client.associate()
        server.stop(wait_seconds=0.1)

    assert ends.told == [AssociationEndValues.ABORTED]
