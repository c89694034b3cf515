"""Who may reach the page: names, passwords, headers. Answered by a real server on a free port."""

from __future__ import annotations

import base64
import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from urllib.parse import quote

import pytest
from pydantic import ValidationError

from daemon.config import Config, SiteSection, WebSection
from daemon.errors import PortTaken
from daemon.passwords import hash_password
from daemon.web.protection import SECURITY_HEADERS, Gate, host_is_served
from daemon.web.serving import WebServer

PASSWORD = "correct hörse"
ALL_PATHS = (
    "/",
    "/studies/1.2.3",
    "/studies/1.2.3/capture/1.png",
    "/api/studies",
    "/api/studies/1.2.3",
    "/health",
    "/health/live",
    "/metrics",
    "/static/medimgd.css",
    "/nowhere",
)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Message
    body: str


@contextmanager
def serving(folder: Path, **web: object) -> Iterator[int]:
    section = WebSection(port=0, **web)  # type: ignore[arg-type]
    server = WebServer(Config(site=SiteSection(data_folder=folder), web=section))
    server.start()
    try:
        yield server.port
    finally:
        server.stop()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, headers={k.capitalize(): v for k, v in headers.items()})
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read().decode(errors="replace"))
    finally:
        connection.close()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture(scope="module")
def open_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with serving(tmp_path_factory.mktemp("open")) as port:
        yield port


@pytest.fixture(scope="module")
def locked_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("locked")
    with serving(folder, user="reader", password_hash=hash_password(PASSWORD)) as port:
        yield port


@pytest.mark.parametrize("path", ALL_PATHS)
def test_nothing_is_shown_without_the_password(locked_page: int, path: str) -> None:
    answer = ask(locked_page, path)

    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    assert answer.body == "User and password are needed.\n"


def test_the_right_password_opens_the_page_again_and_again(locked_page: int) -> None:
    right = basic("reader", PASSWORD)

    assert ask(locked_page, "/", authorization=right).status == 200
    assert ask(locked_page, "/static/medimgd.css", authorization=right).status == 200


@pytest.mark.parametrize(
    "header",
    [
        basic("reader", "wrong"),
        basic("other", PASSWORD),
        basic("", PASSWORD),
        basic("reader", ""),
        "Basic",
        "Basic !!!",
        "Basic \xe9\xe9\xe9\xe9",
        "Bearer abc",
    ],
)
def test_a_wrong_password_is_refused_also_after_a_right_one(locked_page: int, header: str) -> None:
    ask(locked_page, "/", authorization=basic("reader", PASSWORD))

    assert ask(locked_page, "/", authorization=header).status == 401


def test_a_remembered_password_is_not_kept_in_clear() -> None:
    gate = Gate(WebSection(user="reader", password_hash=hash_password(PASSWORD)))

    assert gate.admits(basic("reader", PASSWORD))

    assert gate.remembers(basic("reader", PASSWORD))
    assert PASSWORD not in repr(vars(gate))
    assert basic("reader", PASSWORD) not in repr(vars(gate))


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "hospital.example"])
def test_other_addresses_need_a_password(address: str) -> None:
    with pytest.raises(ValidationError, match="is not loopback"):
        WebSection(address=address)


@pytest.mark.parametrize("path", ALL_PATHS)
def test_every_answer_carries_the_security_headers(open_page: int, path: str) -> None:
    answer = ask(open_page, path)

    for name, value in SECURITY_HEADERS.items():
        assert answer.headers[name] == value
    assert "Server" not in answer.headers
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8042", "127.0.0.1.evil.example", ""]
)
def test_a_foreign_name_is_not_served_on_loopback(open_page: int, host: str) -> None:
    assert ask(open_page, "/", host=host).status == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8042"])
def test_the_names_of_loopback_are_served(open_page: int, host: str) -> None:
    assert ask(open_page, "/", host=host).status == 200


def test_behind_a_password_any_name_of_the_host_is_served() -> None:
    section = WebSection(address="0.0.0.0", user="r", password_hash=hash_password("p"))

    assert host_is_served(section, "pacs.hospital.example:8042")
    assert not host_is_served(section, "")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(open_page: int, method: str) -> None:
    answer = ask(open_page, "/", method)

    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"


def test_the_generated_documentation_is_off(open_page: int) -> None:
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert ask(open_page, path).status == 404


def test_no_file_outside_the_static_folder_is_served(open_page: int) -> None:
    for path in ("/static/../templates/frame.html", "/static/%2e%2e/application.py", "/static/"):
        assert ask(open_page, path).status == 404


def test_a_taken_port_is_named_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = Config(site=SiteSection(data_folder=tmp_path), web=WebSection(port=port))

        with pytest.raises(PortTaken, match=f"web.port {port}: cannot listen there") as caught:
            WebServer(config)

    assert "choose another web.port" in str(caught.value)


def test_a_search_leaves_no_trace_in_the_log(
    open_page: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")

    ask(open_page, f"/?q={quote('Marked^Name')}")
    ask(open_page, f"/api/studies?q={quote('Marked^Name' * 20)}")

    captured = capfd.readouterr()
    assert "Marked" not in caplog.text + captured.out + captured.err
