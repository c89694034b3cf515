"""TLS and user identity at the receiver's door, tried by DCMTK, openssl and bare sockets."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from pdu_client import PduClient

from dicom_io import tls
from dicom_io.errors import IdentityUnchecked
from dicom_io.receiving.accepted import AcceptedAssociation
from dicom_io.receiving.access import Peer
from dicom_io.receiving.folder_sink import FolderSink
from dicom_io.receiving.instances import AssociationObserver
from dicom_io.receiving.limits import ReceiverLimits
from dicom_io.receiving.server import StorageServer
from dicom_io.tls import RenewedContext, TLSFiles, client_context, server_context
from tests.certificates import Authority, Identity, openssl

AE_TITLE = "MEDIMGD"
PASSCODE = "open sesame"


class Recorder(AssociationObserver):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.refused: list[tuple[str, str]] = []

    def on_opened(self, association_id, calling_ae_title, called_ae_title, address) -> None:
        self.opened.append(calling_ae_title)

    def on_refused(self, calling_ae_title, called_ae_title, address, reason) -> None:
        self.refused.append((address, reason))

    def refusal(self) -> str:
        """Wait for the one refusal and return its reason."""
        assert wait_until(lambda: self.refused), "nothing was refused"
        ((address, reason),) = self.refused
        assert address == "127.0.0.1"
        return reason


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def receiver(authority) -> Identity:
    return authority.sign("receiver")


@pytest.fixture(scope="module")
def modality(authority) -> Identity:
    return authority.sign("ct1")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> tuple[Authority, Identity]:
    other = Authority(tmp_path_factory.mktemp("stranger"), "Another CA")
    return other, other.sign("ct1")


@pytest.fixture(scope="module")
def files(authority, receiver) -> TLSFiles:
    return TLSFiles(receiver.certificate, receiver.key, authority.certificate, True)


@pytest.fixture
def sink(tmp_path) -> FolderSink:
    return FolderSink(tmp_path / "received")


@pytest.fixture
def observer() -> Recorder:
    return Recorder()


@pytest.fixture
def serve(sink, observer, files):
    """Start receivers with TLS and any options; all are stopped at the end."""
    servers: list[StorageServer] = []

    def start(**options) -> StorageServer:
        options.setdefault("ssl_context", server_context(files))
        server = StorageServer(options.pop("sink", sink), observer=observer, port=0, **options)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop(wait_seconds=1)


@pytest.fixture
def push(run_dcmtk, modality, authority):
    """Send with a DCMTK tool that speaks TLS as `modality`, or as told."""

    def run(tool: str, server, *arguments: object, identity=modality, trusts=authority, tls=True):
        options = [a for a in arguments if not isinstance(a, Path)]
        paths = [a for a in arguments if isinstance(a, Path)]
        if tls:
            options += ["+tls", identity.key, identity.certificate, "+cf", trusts.certificate]
        return run_dcmtk(tool, "-v", "-aec", AE_TITLE, *options, "127.0.0.1", server.port, *paths)

    return run


@pytest.fixture
def connect():
    """Open bare connections; all are closed at the end."""
    clients: list[PduClient] = []

    def open_connection(server: StorageServer) -> PduClient:
        clients.append(PduClient(server.port))
        return clients[-1]

    yield open_connection
    for client in clients:
        client.close()


def wait_until(condition, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def association_threads() -> int:
    return sum(isinstance(thread, AcceptedAssociation) for thread in threading.enumerate())


def hangs_up(connection: socket.socket) -> bool:
    """Wait for the peer to end the connection."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def client_hello(context: ssl.SSLContext) -> bytes:
    outgoing = ssl.MemoryBIO()
    hello = context.wrap_bio(ssl.MemoryBIO(), outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    return outgoing.read()


def tried_by_openssl(server: StorageServer, modality: Identity, *options: str, given="Q\n") -> str:
    return openssl(
        "s_client", "-connect", f"127.0.0.1:{server.port}", "-cert", modality.certificate,
        "-key", modality.key, *options, check=False, given=given,
    )  # fmt: skip


def test_a_series_arrives_over_tls_as_it_does_without(
    serve, push, sink, observer, tmp_path, unpacked
):
    # given the same series sent to a receiver without TLS
    plain_sink = FolderSink(tmp_path / "plain")
    series = [p for p in sorted(unpacked("ct-chest-60").rglob("*")) if p.is_file()][:20]
    assert (
        push("storescu", serve(sink=plain_sink, ssl_context=None), *series, tls=False).returncode
        == 0
    )

    # when it is sent with TLS
    result = push("storescu", serve(), *series)

    # then the same files are there, byte for byte
    assert result.returncode == 0, result.stderr
    received = {path.name: path.read_bytes() for path in sink.paths()}
    assert len(received) == 20
    assert received == {path.name: path.read_bytes() for path in plain_sink.paths()}
    assert observer.refused == []


@pytest.mark.parametrize(("option", "version"), [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")])
def test_the_versions_of_bcp_195_are_spoken(serve, modality, option, version):
    said = tried_by_openssl(serve(), modality, option)

    assert f"New, {version}, Cipher is" in said
    assert "Compression: NONE" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-tls1_1", "-cipher", "ALL:@SECLEVEL=0"), "no TLS 1.2 or 1.3"),
        (("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256"), "no cipher suite that BCP 195"),
        (("-tls1_2", "-cipher", "AES128-GCM-SHA256"), "no cipher suite that BCP 195"),
        (("-tls1_2", "-cipher", "aNULL:@SECLEVEL=0"), "no cipher suite that BCP 195"),
    ],
)
def test_what_bcp_195_forbids_is_refused_in_words(serve, modality, observer, options, words):
    said = tried_by_openssl(serve(), modality, *options)

    assert "Cipher is (NONE)" in said
    assert words in observer.refusal()


def test_nothing_is_negotiated_anew_nor_resumed(serve, modality, tmp_path):
    server = serve()
    session = tmp_path / "session.pem"

    assert "no renegotiation" in tried_by_openssl(server, modality, "-tls1_2", given="R\n").lower()
    first = tried_by_openssl(server, modality, "-tls1_2", "-sess_out", str(session))
    assert "New, TLSv1.2" in first
    again = tried_by_openssl(server, modality, "-tls1_2", "-sess_in", str(session))
    assert "Reused" not in again


def test_tls_1_3_hands_out_no_tickets_for_the_next_time(serve, connect, authority, files):
    client = connect(serve())
    client.socket = client_context(authority.certificate, files).wrap_socket(client.socket)
    client.socket.settimeout(0.5)

    with pytest.raises(TimeoutError):
        client.socket.recv(1)

    assert client.socket.version() == "TLSv1.3"
    assert client.socket.session is None or not client.socket.session.has_ticket


def test_a_sender_without_tls_is_told_to_the_administrator(serve, push, observer, caplog):
    result = push("echoscu", serve(), tls=False)

    assert result.returncode != 0
    assert "speaks DICOM without TLS" in observer.refusal()
    (line,) = [r for r in caplog.records if "without TLS" in r.getMessage()]
    assert "127.0.0.1" in line.getMessage()
    assert "switch TLS on at the sender" in line.getMessage()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x80" * 300, b"SSH-2.0-x\r\n"])
def test_a_scanner_is_hung_up_on_and_reported(serve, connect, observer, said):
    client = connect(serve())

    client.socket.sendall(said)

    assert hangs_up(client.socket)
    assert "neither TLS nor DICOM" in observer.refusal()


def test_garbage_that_begins_like_tls_is_refused(serve, connect, observer):
    client = connect(serve())

    client.socket.sendall(b"\x16\x03\x01\x00\x20" + bytes(range(64)))

    assert hangs_up(client.socket)
    assert "TLS handshake" in observer.refusal()


def test_a_sender_without_certificate_is_refused(serve, observer, authority, run_dcmtk):
    server = serve()

    result = run_dcmtk("echoscu", "+tla", "+cf", authority.certificate, "127.0.0.1", server.port)

    assert result.returncode != 0
    assert "shows no client certificate" in observer.refusal()


def test_a_certificate_of_another_authority_is_refused(serve, push, observer, stranger):
    result = push("echoscu", serve(), identity=stranger[1])

    assert result.returncode != 0
    assert "client certificate is not accepted (unable to get local issuer" in observer.refusal()


def test_an_expired_client_certificate_is_refused(serve, push, observer, authority):
    old = authority.sign("old", begins=timedelta(days=-9), lasts=timedelta(days=5))

    result = push("echoscu", serve(), identity=old)

    assert result.returncode != 0
    assert "not accepted (certificate has expired)" in observer.refusal()


def test_a_sender_that_does_not_trust_us_is_told_so(serve, push, observer, stranger):
    result = push("echoscu", serve(), trusts=stranger[0])

    assert result.returncode != 0
    assert "does not accept our certificate" in observer.refusal()


def test_a_single_certificate_may_be_trusted_by_itself(
    serve, push, observer, authority, receiver, modality
):
    only_ct1 = TLSFiles(receiver.certificate, receiver.key, modality.certificate, True)
    server = serve(ssl_context=server_context(only_ct1))

    assert push("echoscu", server).returncode == 0
    assert push("echoscu", server, identity=authority.sign("ct2")).returncode != 0
    assert "not accepted" in observer.refusal()


def test_without_client_certificates_anybody_may_speak_tls(serve, push, receiver, stranger):
    server = serve(ssl_context=server_context(TLSFiles(receiver.certificate, receiver.key)))

    assert push("echoscu", server, identity=stranger[1]).returncode == 0


def test_rules_hold_behind_tls_as_well(serve, push, observer):
    server = serve(peers=[Peer.from_text("CT2", "127.0.0.0/8")])

    assert push("echoscu", server, "-aet", "CT1").returncode != 0
    assert '{ ae_title = "CT1", network = "127.0.0.1/32" }' in observer.refusal()
    assert push("echoscu", server, "-aet", "CT2").returncode == 0


def test_hanging_handshakes_hold_up_nobody_and_are_ended(serve, push, connect, observer, authority):
    # given peers that stop before, and in the middle of, the handshake
    server = serve(limits=ReceiverLimits(request_timeout_seconds=3))
    hello = client_hello(client_context(authority.certificate))
    clients = [connect(server) for _ in range(20)]
    for client in clients[10:]:
        client.socket.sendall(hello[:40])
    assert wait_until(lambda: association_threads() == 20)

    # when others send meanwhile, then they are served at once
    started = time.monotonic()
    assert push("echoscu", server).returncode == 0
    assert time.monotonic() - started < 2
    assert association_threads() >= 20

    # and the hanging ones are ended, with nothing left of them
    assert all(hangs_up(client.socket) for client in clients)
    assert wait_until(lambda: association_threads() == 0)
    assert "did not finish the TLS handshake in time" in observer.refusal()


def test_a_handshake_that_drips_is_ended_in_time(serve, connect, observer, authority):
    server = serve(limits=ReceiverLimits(request_timeout_seconds=1))
    client = connect(server)
    hello = client_hello(client_context(authority.certificate))

    started = time.monotonic()
    for byte in hello:
        if observer.refused or time.monotonic() - started > 8:
            break
        client.socket.sendall(bytes([byte]))
        time.sleep(0.1)

    assert time.monotonic() - started < 4
    assert "did not finish the TLS handshake in time" in observer.refusal()


def test_waiting_handshakes_are_bounded(serve, connect, observer):
    server = serve(limits=ReceiverLimits(maximum_associations=1))

    for _ in range(60):
        connect(server)

    assert wait_until(lambda: observer.refused)
    assert association_threads() <= 33
    assert "too many connections wait" in observer.refusal()


def test_stopping_waits_for_no_handshake(serve, connect):
    server = serve()
    connect(server)
    connect(server).socket.sendall(b"\x16\x03")
    assert wait_until(lambda: association_threads() == 2)

    started = time.monotonic()
    server.stop(wait_seconds=1)

    assert time.monotonic() - started < 4
    assert wait_until(lambda: association_threads() == 0)


def test_a_probe_of_the_port_is_no_refusal(serve, connect, push, observer):
    server = serve()

    connect(server).close()

    assert wait_until(lambda: association_threads() == 0)
    assert push("echoscu", server).returncode == 0
    assert observer.refused == []


def test_silence_after_the_handshake_is_ended(serve, connect, authority, modality):
    server = serve(limits=ReceiverLimits(request_timeout_seconds=1))
    context = client_context(authority.certificate, TLSFiles(modality.certificate, modality.key))

    client = connect(server)
    client.socket = context.wrap_socket(client.socket)
    client.socket.settimeout(5)

    assert hangs_up(client.socket)
    assert wait_until(lambda: association_threads() == 0)


def test_a_renewed_certificate_serves_the_next_connection(
    serve, push, authority, tmp_path, monkeypatch
):
    # given a receiver in service
    monkeypatch.setattr(tls, "LOOK_EVERY_SECONDS", 0.0)
    mine = TLSFiles(tmp_path / "c.pem", tmp_path / "k.pem")
    first, second = authority.sign("first"), authority.sign("second")
    install(mine, first)
    server = serve(ssl_context=RenewedContext(mine))
    assert ssl.get_server_certificate(("127.0.0.1", server.port)) == first.certificate.read_text()

    # when its certificate is replaced, then the next connection sees the new one
    install(mine, second)
    assert ssl.get_server_certificate(("127.0.0.1", server.port)) == second.certificate.read_text()
    assert push("echoscu", server).returncode == 0


def install(files: TLSFiles, identity: Identity) -> None:
    files.key_file.write_bytes(identity.key.read_bytes())
    files.certificate_file.write_bytes(identity.certificate.read_bytes())


def knows_anna(name: str, passcode: str) -> bool:
    return (name, passcode) == ("anna", PASSCODE)


@pytest.mark.parametrize("answer", [(), ("-rsp",)])
def test_a_user_with_the_right_passcode_may_send(serve, push, sink, observer, testdata, answer):
    server = serve(authenticates=knows_anna)
    image = testdata / "single" / "ct_image.dcm"

    result = push("storescu", server, "-usr", "anna", "-pwd", PASSCODE, *answer, image)

    assert result.returncode == 0, result.stderr
    assert len(sink.paths()) == 1
    assert observer.refused == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-usr", "anna", "-pwd", "open says me"), "user 'anna' came with a passcode"),
        (("-usr", "anna"), "user 'anna' came without a passcode"),
        (("-usr", "bert", "-pwd", PASSCODE), '{ name = "bert", password_hash = "..." }'),
        ((), "it names no user"),
    ],
)
def test_others_are_rejected_for_good_and_no_passcode_is_told(
    serve, push, sink, observer, testdata, caplog, options, words
):
    server = serve(authenticates=knows_anna)

    result = push("storescu", server, *options, testdata / "single" / "ct_image.dcm")

    assert result.returncode != 0
    assert "Rejected Permanent" in result.stderr
    assert sink.paths() == []
    assert words in observer.refusal()
    assert "says me" not in caplog.text
    assert "sesame" not in caplog.text


@pytest.mark.parametrize(
    ("option", "name"), [("-kt", "Kerberos"), ("--saml", "SAML"), ("--jwt", "JSON Web Token")]
)
def test_tokens_are_refused_by_name(serve, push, observer, tmp_path, testdata, option, name):
    token = tmp_path / "token"
    token.write_text("token")
    server = serve(authenticates=knows_anna)

    result = push("storescu", server, option, str(token), testdata / "single" / "ct_image.dcm")

    assert "Rejected Permanent" in result.stderr
    assert name in observer.refusal()


def test_a_receiver_without_users_passes_identities_over(serve, push, testdata, sink):
    image = testdata / "single" / "ct_image.dcm"

    result = push("storescu", serve(), "-usr", "anna", "-pwd", "anything", image)

    assert result.returncode == 0, result.stderr
    assert len(sink.paths()) == 1


def test_a_check_that_cannot_be_made_is_a_transient_rejection(serve, push, observer, testdata):
    def busy(name: str, passcode: str) -> bool:
        raise IdentityUnchecked("too many users wait: send again later")

    server = serve(authenticates=busy)
    image = testdata / "single" / "ct_image.dcm"

    result = push("storescu", server, "-usr", "anna", "-pwd", PASSCODE, image)

    assert "Rejected Transient" in result.stderr
    assert "send again later" in observer.refusal()


def test_a_check_that_breaks_admits_nobody(serve, push, sink, observer, testdata, caplog):
    def broken(name: str, passcode: str) -> bool:
        raise ZeroDivisionError

    server = serve(authenticates=broken)
    image = testdata / "single" / "ct_image.dcm"

    result = push("storescu", server, "-usr", "anna", "-pwd", PASSCODE, image)

    assert "Rejected Transient" in result.stderr
    assert sink.paths() == []
    assert "could not be judged" in observer.refusal()
    assert "ZeroDivisionError" in caplog.text
    assert PASSCODE not in caplog.text
