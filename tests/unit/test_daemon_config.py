"""One TOML file, environment overrides, every fault at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from daemon.config import Config, load_config
from daemon.errors import ConfigurationError
from daemon.example_config import example_toml
from daemon.passwords import hash_password

HASH = hash_password("secret")


def write(folder: Path, text: str) -> Path:
    path = folder / "medimgd.toml"
    path.write_text(text)
    return path


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, ""))

    assert config.receiver.ae_title == "MEDIMGD"
    assert config.receiver.port == 11112
    assert config.web.is_loopback


def test_the_environment_overrides_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "[receiver]\nport = 104\nae_title = 'FROMFILE'\n")
    monkeypatch.setenv("MEDIMGD_RECEIVER__PORT", "10400")

    config = load_config(path)

    assert config.receiver.port == 10400
    assert config.receiver.ae_title == "FROMFILE"


def test_every_fault_is_listed_at_once_with_field_value_and_rule(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "[receiver]\nport = 99999\nae_tile = 'X'\n"
        "[[receiver.peers]]\nnetwork = '10.0.0.300'\n"
        "[[destinations]]\nname = 'pacs'\nhost = 'h'\nport = 0\nae_title = 'A'\n",
    )

    with pytest.raises(ConfigurationError) as caught:
        load_config(path)

    message = str(caught.value)
    assert str(path) in message
    assert "receiver.port" in message
    assert "99999" in message
    assert "receiver.ae_tile: no such setting" in message
    assert "10.0.0.300" in message
    assert "destinations.0.port" in message


def test_rules_over_several_values_are_listed_at_once_too(tmp_path: Path) -> None:
    page = "[web]\naddress = '0.0.0.0'\nuser = 'reader'\n"
    rule = "{ ae_title = 'CT1', network = '10.0.0.0/8' }"
    user = "{ name = 'ct1' }"
    door = (
        f"[receiver]\nport = 0\nprocesses = 2\npeers = [{rule}, {rule}]\nusers = [{user}, {user}]\n"
    )

    with pytest.raises(ConfigurationError) as caught:
        load_config(write(tmp_path, page + door))

    message = str(caught.value)
    assert message.splitlines()[0].endswith("5 fault(s)")
    assert "web: web.user and web.password_hash go together" in message
    assert "web: web.address '0.0.0.0' is not loopback" in message
    assert "receiver: receiver.port 0 gives each of the 2 receivers another port" in message
    assert "receiver: receiver.peers: 'CT1' from 10.0.0.0/8" in message
    assert "receiver: receiver.users: 'ct1' stands there twice" in message


def test_what_two_sections_disagree_about_is_listed_at_once(tmp_path: Path) -> None:
    archive = "[[destinations]]\nname = '{}'\nhost = 'h'\nport = 104\nae_title = 'A'\n{}\n"

    with pytest.raises(ConfigurationError) as caught:
        load_config(
            write(
                tmp_path,
                "[receiver]\nport = 8042\n"
                + archive.format("a", "tls = true")
                + archive.format("a", "ca_file = 'ca.pem'"),
            )
        )

    message = str(caught.value)
    assert message.splitlines()[0].endswith("4 fault(s)")
    assert "receiver.port and web.port are both 8042" in message
    assert "'a' is called with TLS, but nothing says who vouches" in message
    assert "'a' has a ca_file, but is called without TLS" in message
    assert "the name 'a' is used more than once" in message


def test_a_fault_names_the_variables_that_it_may_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDIMGD_RECEIVER__PORT", "many")

    with pytest.raises(ConfigurationError, match=r"medimgd\.toml, MEDIMGD_RECEIVER__PORT: 1 fault"):
        load_config(write(tmp_path, ""))


def test_the_page_refuses_other_addresses_without_a_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not loopback"):
        load_config(write(tmp_path, "[web]\naddress = '0.0.0.0'\n"))


def test_the_page_may_listen_elsewhere_with_a_password(tmp_path: Path) -> None:
    text = f"[web]\naddress = '0.0.0.0'\nuser = 'reader'\npassword_hash = '{HASH}'\n"

    config = load_config(write(tmp_path, text))

    assert "scrypt" not in repr(config)


@pytest.mark.parametrize("half", ["user = 'reader'", f"password_hash = '{HASH}'"])
def test_user_and_password_go_together(tmp_path: Path, half: str) -> None:
    with pytest.raises(ConfigurationError, match="go together"):
        load_config(write(tmp_path, f"[web]\n{half}\n"))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("[worker]\nlease_seconds = 0.5\n", "worker.lease_seconds"),
        ("[study]\nquiet_seconds = inf\n", "study.quiet_seconds"),
        ("[study]\nquiet_seconds = 60\ndeadline_seconds = 30\n", "must not be shorter"),
        ("[retention]\ndays = 1e12\n", "retention.days"),
        ("[web]\nuser = 'r'\npassword_hash = 'secret'\n", "hash-password"),
        (f"[web]\nuser = 'r'\npassword_hash = '{HASH[:-1]}'\n", "whole and unchanged"),
        ("[receiver]\nport = 8042\n", "both 8042"),
    ],
)
def test_values_that_would_do_harm_later_are_refused(tmp_path: Path, text: str, rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule):
        load_config(write(tmp_path, text))


TLS = "[receiver.tls]\n"
CERTIFICATE = "certificate_file = 'c.pem'\n"
KEY = "key_file = 'k.pem'\n"
TWO_RULES = (
    "[receiver]\npeers = [{network = '10.0.0.1/8'}, {network = '10.0.0.0/8', allow = false}]\n"
)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (TLS + CERTIFICATE, "receiver.tls.key_file go together"),
        (TLS + KEY, "receiver.tls.certificate_file and"),
        (TLS + "ca_file = 'ca.pem'\n", "mean nothing without receiver.tls.certificate_file"),
        (TLS + CERTIFICATE + KEY + "client_certificates = 'required'\n", "receiver.tls.ca_file"),
        (TLS + CERTIFICATE + KEY + "client_certificates = 'maybe'\n", "client_certificates"),
        ("[[receiver.users]]\nname = 'ct1'\npassword_hash = 'secret'\n", "hash-password"),
        ("[[receiver.users]]\nname = 'ct1'\n" * 2, "'ct1' stands there twice"),
        ("[[receiver.users]]\nname = 'ct1'\npasscode = 'secret'\n", "passcode: no such setting"),
        ("[receiver]\nae_title = '*'\n", "receiver.accept_any_called_ae"),
        (TWO_RULES, "from 10.0.0.0/8 has more than one rule"),
    ],
)
def test_a_door_that_cannot_work_is_refused(tmp_path: Path, text: str, rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule) as caught:
        load_config(write(tmp_path, text))

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "required"),
    [
        ("", False),
        ("ca_file = 'ca.pem'\n", True),
        ("ca_file = 'ca.pem'\nclient_certificates = 'none'\n", False),
        ("ca_file = 'ca.pem'\nclient_certificates = 'required'\n", True),
    ],
)
def test_an_authority_means_that_senders_show_certificates(
    tmp_path: Path, text: str, required: bool
) -> None:
    section = load_config(write(tmp_path, TLS + CERTIFICATE + KEY + text)).receiver.tls

    assert section.enabled
    assert section.requires_client_certificate is required


def test_without_a_certificate_there_is_no_tls(tmp_path: Path) -> None:
    assert not load_config(write(tmp_path, TLS + "certificate_file = ''\n")).receiver.tls.enabled


@pytest.mark.parametrize("name", ["MEDIMGD_RECIEVER__PORT", "medimgd_reciever__port"])
def test_a_misspelt_variable_is_not_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "104")

    with pytest.raises(ConfigurationError, match=name):
        load_config(write(tmp_path, ""))


@pytest.mark.parametrize("name", ["MEDIMGD_RECEIVER__PORT", "medimgd_receiver__port"])
def test_a_fault_that_comes_from_a_variable_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = write(tmp_path, "[receiver]\nport = 104\n[study]\nquiet_seconds = 0\n")
    monkeypatch.setenv(name, "eleven")

    with pytest.raises(ConfigurationError) as caught:
        load_config(path)

    fault, other = str(caught.value).splitlines()[1:]
    assert fault.endswith(f"(received 'eleven' from {name})")
    assert other.endswith("(received 0)")


def test_two_destinations_may_not_share_a_name(tmp_path: Path) -> None:
    one = "[[destinations]]\nname = 'pacs'\nhost = 'h'\nport = 104\nae_title = 'A'\n"

    with pytest.raises(ConfigurationError, match="more than once"):
        load_config(write(tmp_path, one + one))


def test_a_named_file_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="config init"):
        load_config(tmp_path / "absent.toml")


def test_broken_toml_names_the_file_and_the_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"medimgd\.toml.*line 1"):
        load_config(write(tmp_path, "[receiver\n"))


def test_a_folder_in_the_place_of_the_file_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a folder"):
        load_config(tmp_path)


def test_a_file_that_the_system_does_not_give_out_is_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match=r"/proc/self/mem cannot be read by user \d+ \("):
        load_config(Path("/proc/self/mem"))


def test_the_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, ""))

    with pytest.raises(ValidationError):
        config.receiver.port = 1  # type: ignore[misc]
    assert isinstance(config, Config)


def test_every_line_of_the_example_may_be_put_in_force(tmp_path: Path) -> None:
    """Also what has no default, and of a destination no value that has another type."""
    in_force = re.sub(r"(?m)^# (?=\[\[|[a-z_]+ = )", "", example_toml())

    config = load_config(write(tmp_path, in_force))

    (destination,) = config.destinations
    assert (destination.port, destination.calling_ae_title) == (104, config.receiver.ae_title)
