"""The configured door: TLS, users and rules in force, and what the doctor says of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from daemon.cli.application import app
from daemon.config import Config
from daemon.confirming import peer_of
from daemon.doctor import Diagnosis, examine
from daemon.exit_codes import ExitCode
from daemon.passwords import hash_password
from daemon.receiver import make_server
from daemon.role import now_utc
from dicom_io.errors import AssociationFailed
from dicom_io.receiving.folder_sink import FolderSink
from dicom_io.receiving.instances import AssociationObserver
from dicom_io.receiving.server import StorageServer
from dicom_io.sending import echo, send_paths
from storage.database import migrate, open_database
from storage.processes import register_process
from tests.certificates import Authority, Identity

MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def receiver(authority: Authority) -> Identity:
    return authority.sign("receiver")


@pytest.fixture
def make_config(tmp_path: Path, free_port: int) -> MakeConfig:
    def make(identity: Identity | None = None, **receiver: object) -> Config:
        files = {} if identity is None else _files(identity)
        tls = {**files, **receiver.pop("tls", {})}  # type: ignore[dict-item]
        section = {"port": free_port, "tls": tls, **receiver}
        return Config(site={"data_folder": tmp_path / "run"}, receiver=section)  # type: ignore[arg-type]

    return make


def _files(identity: Identity) -> dict[str, Path]:
    return {"certificate_file": identity.certificate, "key_file": identity.key}


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Config], StorageServer]]:
    """Start the door that a configuration describes."""
    servers: list[StorageServer] = []

    def start(config: Config) -> StorageServer:
        sink = FolderSink(tmp_path / "received")
        server = make_server(config.receiver, sink, AssociationObserver())  # type: ignore[arg-type]
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop(wait_seconds=1)


def diagnosed(config: Config) -> dict[str, Diagnosis]:
    """Return what the doctor says of the door; the decoders and models come after it."""
    found: dict[str, Diagnosis] = {}
    for diagnosis in examine(config):
        if diagnosis.subject.startswith("decoder"):
            break
        found[diagnosis.subject] = diagnosis
    return found


def destination(config: Config, **options: object) -> Config:
    entry = {
        "name": "pacs", "host": "127.0.0.1", "port": config.receiver.port, "ae_title": "MEDIMGD",
        "timeout_seconds": 5, **options,
    }  # fmt: skip
    return Config.model_validate({**config.model_dump(), "destinations": [entry]})


def test_the_doctor_calls_a_receiver_with_tls(make_config, serve, authority, receiver) -> None:
    config = make_config(receiver, tls={"ca_file": authority.certificate})
    serve(config)

    found = diagnosed(config)

    assert found["receiver"].detail.endswith("with TLS")
    assert "client certificates are required" in found["TLS"].detail
    assert all(each.ok and not each.warning for each in found.values()), found


def test_the_doctor_is_not_taken_in_by_another_certificate(
    make_config, serve, authority, receiver
) -> None:
    # given a receiver in service, and a configuration that names another certificate since
    serve(make_config(receiver))

    found = diagnosed(make_config(authority.sign("another")))

    assert not found["receiver"].ok
    assert "certificate is not accepted" in found["receiver"].detail


def test_the_doctor_makes_no_data_folder(make_config) -> None:
    # Whoever calls it first, root say, would own what the service has to write to.
    config = make_config()
    folder = config.site.data_folder

    found = diagnosed(config)

    assert not folder.exists()
    assert found["disk sync"].ok
    assert found["disk sync"].detail.startswith(f"{folder.parent.resolve()}: ")
    folder.touch()
    assert "Not a directory" in diagnosed(config)["disk"].detail


def test_the_doctor_tells_a_wrong_address_from_a_port_in_use(make_config) -> None:
    config = make_config()
    elsewhere = config.receiver.model_copy(update={"address": "192.0.2.1"})

    found = diagnosed(config.model_copy(update={"receiver": elsewhere}))["receiver"]

    assert not found.ok
    assert "Cannot assign requested address" in found.detail
    assert "set receiver.address to an address of this machine" in found.detail
    assert "stop what holds it" not in found.detail


def test_the_doctor_finds_a_receiver_on_the_free_port_that_it_took(make_config, serve) -> None:
    config = make_config()
    any_port = config.model_copy(
        update={"receiver": config.receiver.model_copy(update={"port": 0})}
    )
    found = diagnosed(any_port)["receiver"]
    assert (found.ok, found.warning) == (True, True)
    assert found.detail.startswith("none listens; receiver.port = 0 takes any free port")
    server = serve(any_port)
    migrate(config.database_path)
    database = open_database(config.database_path)
    register_process(
        database, "receiver-1", role="receiver", pid=os.getpid(), host=config.site.node_id,
        now=now_utc(), state="ready", detail={"address": "127.0.0.1", "port": server.port},
    )  # fmt: skip
    database.close()

    found = diagnosed(any_port)["receiver"]

    assert found.detail == f"answers C-ECHO on 127.0.0.1:{server.port}"


@pytest.mark.parametrize(("days", "ok", "warning"), [(29, True, True), (31, True, False)])
def test_the_doctor_warns_a_month_before_a_certificate_expires(
    make_config, authority, days: int, ok: bool, warning: bool
) -> None:
    soon = authority.sign(
        f"soon{days}", begins=timedelta(days=-100), lasts=timedelta(days=100 + days, hours=1)
    )

    found = diagnosed(make_config(soon))["receiver certificate"]

    assert (found.ok, found.warning) == (ok, warning)
    assert f"in {days} days" in found.detail


@pytest.mark.parametrize(
    ("name", "begins", "words"), [("late", -30, "expired on"), ("early", 9, "not valid before")]
)
def test_the_doctor_fails_a_certificate_that_is_not_valid_now(
    make_config, authority, name: str, begins: int, words: str
) -> None:
    bad = authority.sign(name, begins=timedelta(days=begins), lasts=timedelta(days=20))

    found = diagnosed(make_config(bad))

    assert not found["receiver certificate"].ok
    assert words in found["receiver certificate"].detail
    assert not found["TLS"].ok


def test_the_doctor_shows_every_trusted_certificate(make_config, receiver, tmp_path) -> None:
    old = Authority(tmp_path / "old", "Old CA").sign(
        "old", begins=timedelta(days=-9), lasts=timedelta(days=1)
    )

    found = diagnosed(make_config(receiver, tls={"ca_file": old.certificate}))

    assert not found["trusted certificate"].ok
    assert "CN=old" in found["trusted certificate"].detail


def test_the_doctor_says_what_is_wrong_with_files(make_config, authority, receiver) -> None:
    mixed = Identity(receiver.certificate, authority.sign("mixed").key)

    assert "does not belong" in diagnosed(make_config(mixed))["TLS"].detail
    absent = Identity(Path("absent.pem"), receiver.key)
    assert "cannot read absent.pem" in diagnosed(make_config(absent))["receiver certificate"].detail


def test_the_doctor_warns_of_a_key_that_everybody_may_read(
    make_config, receiver, tmp_path: Path
) -> None:
    key = tmp_path / "open.key"
    key.write_bytes(receiver.key.read_bytes())
    key.chmod(0o644)

    found = diagnosed(make_config(Identity(receiver.certificate, key)))["TLS"]

    assert found.warning
    assert "chmod 600" in found.detail


def test_the_doctor_warns_of_passwords_in_the_clear(make_config, receiver) -> None:
    users = [{"name": "ct1", "password_hash": hash_password("x")}, {"name": "old"}]

    plain = diagnosed(make_config(users=users))["users that may send"]
    with_tls = diagnosed(make_config(receiver, users=users))["users that may send"]

    assert plain.warning
    assert "readable" in plain.detail
    assert not with_tls.warning
    assert with_tls.detail == "ct1, old; without password: old"


def test_configured_users_and_rules_are_in_force(make_config, serve, run_dcmtk, testdata) -> None:
    config = make_config(
        users=[{"name": "ct1", "password_hash": hash_password("open sesame")}],
        peers=[
            {"network": "127.0.0.0/8"},
            {"ae_title": "OLD", "network": "127.0.0.0/8", "allow": False},
        ],
    )
    server = serve(config)
    image = testdata / "single" / "ct_image.dcm"

    def push(password: str, title: str = "CT1") -> int:
        user = ("-aet", title, "-aec", "MEDIMGD", "-usr", "ct1", "-pwd", password)
        return run_dcmtk("storescu", *user, "127.0.0.1", server.port, image).returncode

    assert push("open sesame") == 0
    assert push("open says me") != 0
    assert push("open sesame", "OLD") != 0


def test_results_reach_an_archive_over_tls(
    make_config, authority, receiver, start_storescp, testdata
) -> None:
    # given an archive that wants TLS and our certificate
    pacs = authority.sign("pacs")
    peer = start_storescp("+xa", "+tls", pacs.key, pacs.certificate, "+cf", authority.certificate)
    config = destination(make_config(receiver), port=peer.port, tls=True, ca_file=pacs.certificate)

    # when an instance is sent to it
    call = peer_of(config.destinations[0], config)
    (sent,) = send_paths(call, [testdata / "single" / "ct_image.dcm"])

    # then it is there
    assert sent.outcome.is_delivered, sent
    assert len(peer.paths()) == 1


def test_an_archive_under_another_certificate_gets_nothing(
    make_config, serve, authority, receiver, testdata
) -> None:
    config = make_config(receiver)
    serve(config)
    other = authority.sign("not-the-pacs")

    wrong = destination(config, tls=True, ca_file=other.certificate)
    right = destination(config, tls=True, ca_file=receiver.certificate)

    image = testdata / "single" / "ct_image.dcm"
    with pytest.raises(AssociationFailed, match="its certificate is not accepted"):
        list(send_paths(peer_of(wrong.destinations[0], wrong), [image]))
    assert echo(peer_of(right.destinations[0], right)).ok


def test_faults_of_a_call_are_said_in_words(make_config, serve, receiver, tmp_path) -> None:
    config = make_config()
    serve(config)
    to_plain = destination(config, tls=True, ca_file=receiver.certificate)
    without_file = destination(config, tls=True, ca_file=tmp_path / "absent.pem")

    assert "answers without TLS" in echo(peer_of(to_plain.destinations[0], to_plain)).detail
    detail = echo(peer_of(without_file.destinations[0], without_file)).detail
    assert "absent.pem: No such file" in detail


def test_the_command_line_speaks_tls(make_config, serve, authority, receiver, testdata) -> None:
    config = make_config(receiver, tls={"ca_file": authority.certificate})
    peer = f"127.0.0.1:{serve(config).port}"
    ours = authority.sign("console")
    identity = ["--tls-cert", str(ours.certificate), "--tls-key", str(ours.key)]
    trust = ["--tls-ca", str(authority.certificate)]

    def run(*arguments: str) -> int:
        return CliRunner().invoke(app, arguments).exit_code

    image = str(testdata / "single" / "ct_image.dcm")
    assert run("echo", peer, *trust, *identity) == 0
    assert run("send", image, "--to", peer, *trust, *identity) == 0
    assert run("echo", peer, *trust) == ExitCode.PEER
    assert run("echo", peer, "--timeout", "3") == ExitCode.PEER
    assert run("echo", peer, *identity) == ExitCode.USAGE
    assert run("echo", peer, *trust, *identity[:2]) == ExitCode.USAGE
