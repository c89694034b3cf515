"""What the pages and the JSON say, asked of a real server over a filled database."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from typer.testing import CliRunner

from daemon.cli.application import app
from daemon.config import Config, SiteSection, WebSection
from daemon.metrics import METRICS, metrics_text
from daemon.web import connection
from daemon.web.rendering import make_environment
from daemon.web.serving import WebServer
from daemon.web.wording import age, person_name, span
from daemon.worklist.flags import FlagValues
from storage.database import migrate, open_database
from storage.retention import purge_finished_studies
from storage.spool import Spool
from tests.waiting import wait_until
from tests.worklist_material import ROLES, SCRIPT, Ward, fill, present


@dataclass(frozen=True)
class Page:
    """A running page over a filled database."""

    port: int
    uids: dict[str, str]
    ward: Ward
    config: Config

    def text(self, path: str, status: int = 200) -> str:
        return self.raw(path, status).decode()

    def raw(self, path: str, status: int = 200) -> bytes:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
                found, body = answer.status, answer.read()
        except HTTPError as error:
            with error:
                found, body = error.code, error.read()
        assert found == status, body[:2000]
        return bytes(body)

    def json(self, path: str, status: int = 200) -> Any:
        return json.loads(self.raw(path, status))


def configured(folder: Path) -> Config:
    order = ("Intracranial haemorrhage", "Pneumonia")
    return Config(site=SiteSection(data_folder=folder), web=WebSection(port=0, finding_order=order))


@pytest.fixture(scope="module")
def page(testdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    config = configured(tmp_path_factory.mktemp("page"))
    migrate(config.database_path)
    database = open_database(config.database_path)
    ward = Ward(database)
    uids = fill(ward, testdata / "single/dx_image.dcm", testdata / "single/ct_image.dcm")
    server = WebServer(config)
    server.start()
    yield Page(server.port, uids, ward, config)
    server.stop()
    database.close()


def test_the_json_has_every_study_once_worst_first(page: Page) -> None:
    found = page.json("/api/studies")

    assert found["notice"] == "AI results - preliminary, not verified by a physician"
    order = [study["study_instance_uid"] for study in found["studies"]]
    words = {uid: word for word, uid in page.uids.items()}
    assert [words[uid] for uid in order] == [
        "mixed", "positive", "demo", "mild", "undetermined", "failed", "held", "refused",
        "receiving", "waiting", "late", "unmatched", "script", "negative",
    ]  # fmt: skip
    assert found["counts"] == {
        "positive": 4, "undetermined": 1, "failed": 1, "held": 1, "refused": 1, "pending": 3,
        "unmatched": 1, "negative": 2,
    }  # fmt: skip


def test_connections_that_never_ask_keep_nobody_out_for_long(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 2.0)
    with ExitStack() as stack:
        address = ("127.0.0.1", page.port)
        peers = [stack.enter_context(socket.create_connection(address, 5)) for _ in range(100)]
        silent, dripping = peers[:50], peers[50:]
        # One of them is answered once, and drips from then on.
        dripping[0].sendall(b"HEAD /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert dripping[0].recv(1000).startswith(b"HTTP/1.1 ")
        for each in dripping:
            each.sendall(b"GET / HTTP/1.1\r\n")
        page.text("/health/live", 503)

        assert wait_until(lambda: all(map(_has_ended, silent)), 20)
        assert wait_until(lambda: all(_has_ended(each, b"X: 1\r\n") for each in dripping), 20)

        page.text("/health/live")


def _has_ended(peer: socket.socket, drip: bytes = b"") -> bool:
    try:
        peer.sendall(drip)
        return not peer.recv(1, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_a_line_of_the_json_names_finding_certainty_model_and_delivery(page: Page) -> None:
    lines = page.json("/api/studies?q=Muster")["studies"]

    assert len(lines) == 1
    line = lines[0]
    assert line["flag"] == "POSITIVE"
    assert (line["finding"], line["certainty_percent"]) == ("Pneumonia", 93.0)
    assert line["models"] == ["cxr-pneumonia@1.0.0"]
    assert line["delivery"] == {"text": "sent 2/2", "needs_person": False}
    assert line["received_at"].endswith("+00:00")


def test_the_json_of_a_study_holds_report_timeline_and_verbatim_answers(page: Page) -> None:
    study = page.json(f"/api/studies/{page.uids['undetermined']}")

    assert study["line"]["flag"] == "UNDETERMINED"
    assert "Status: COMPLETE PRELIMINARY UNVERIFIED" in study["reports"][0]["text"]
    assert [one["status"] for one in study["deliveries"]] == ["0122 failure"] * 2
    assert study["deliveries"][0]["comment"] == "SOP class not supported"
    assert [step["name"] for step in study["timeline"]][-1] == "report written"


def test_the_result_card_of_a_study_is_a_picture(page: Page) -> None:
    html = page.text(f"/studies/{page.uids['positive']}")
    (address,) = set(re.findall(r'src="(/studies/[^"]+\.png)"', html))

    assert page.raw(address).startswith(b"\x89PNG\r\n")


def test_a_result_card_is_not_shown_under_another_study(page: Page) -> None:
    html = page.text(f"/studies/{page.uids['positive']}")
    (address,) = set(re.findall(r'src="(/studies/[^"]+\.png)"', html))

    answer = page.raw(address.replace(page.uids["positive"], page.uids["negative"]), 404)
    assert not answer.startswith(b"\x89PNG")


@pytest.mark.parametrize("path", ["/", "/studies/{script}"])
def test_what_a_header_says_is_text_and_never_markup(page: Page, path: str) -> None:
    html = page.text(path.format(**page.uids))

    assert SCRIPT not in html
    assert "&lt;script&gt;" in html
    assert "&lt;i&gt;1&lt;/i&gt;" in html
    assert "<i>1</i>" not in html


def test_what_is_searched_for_is_text_and_never_markup(page: Page) -> None:
    html = page.text("/?q=" + quote('"><script>alert(1)</script>'))

    assert "<script>alert" not in html
    assert "No study matches" in html


@pytest.mark.parametrize("word", ["positive", "mixed", "failed", "refused", "held", "unmatched"])
def test_pages_hold_no_inline_script_or_style_and_load_nothing_from_elsewhere(
    page: Page, word: str
) -> None:
    for html in (page.text("/"), page.text(f"/studies/{page.uids[word]}")):
        assert not re.search(r"<script(?![^>]*\bsrc=\"/static/)", html)
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=", html)
        assert not re.search(r"(?:src|href|action)=\"(?:[a-z]+:|//)", html)


@pytest.mark.parametrize("word", ["refused", "failed", "held", "unmatched", "waiting", "receiving"])
def test_a_study_without_answer_never_says_negative(page: Page, word: str) -> None:
    html = page.text(f"/studies/{page.uids[word]}")

    assert "NEGATIVE" not in html
    assert " absent" not in html


def test_a_refusal_beside_a_positive_is_on_both_pages(page: Page) -> None:
    (line,) = page.json("/api/studies?q=Nowak")["studies"]

    assert [one["flag"] for one in line["statements"]] == ["POSITIVE", "NOT ANALYSED", "NEGATIVE"]
    for html in (page.text("/?q=Nowak"), page.text(f"/studies/{page.uids['mixed']}")):
        assert "NOT ANALYSED" in html
        assert "outside the model&#39;s input contract" in html


def test_a_demonstration_model_is_labelled_on_both_pages(page: Page) -> None:
    assert "demonstration model" in page.text("/?q=Demo")
    html = page.text(f"/studies/{page.uids['demo']}")
    assert "Demonstration model - no clinical claim" in html


def test_a_conflict_is_an_alarm(page: Page) -> None:
    assert "1 in conflict" in page.text("/?q=Held")
    assert "came again with other content" in page.text(f"/studies/{page.uids['held']}")


@pytest.mark.parametrize("one", FlagValues)
def test_the_filter_shows_studies_of_one_flag(page: Page, one: FlagValues) -> None:
    flags = {line["flag"] for line in page.json(f"/api/studies?flag={one.key}")["studies"]}

    assert flags == {one.value}
    assert f'href="/?flag={one.key}" aria-current=true' in page.text(f"/?flag={one.key}")


def test_a_list_that_is_cut_says_so_and_where_the_rest_is(page: Page) -> None:
    found = page.json("/api/studies?limit=3")
    html = page.text("/?flag=positive&limit=3")

    assert (len(found["studies"]), found["matching"], found["judged"]) == (3, 14, 14)
    assert "The first 3 of 4 are listed" in html
    assert 'href="/?limit=500&amp;flag=positive"' in html
    assert "are listed" not in page.text("/?flag=positive")


def test_a_cut_list_says_so_to_whoever_reads_the_command(page: Page) -> None:
    path = page.config.site.data_folder / "cut.toml"
    path.write_text(f"[site]\ndata_folder = '{page.config.site.data_folder}'\n")

    for arguments in (["--limit", "3"], ["--limit", "3", "--json"]):
        done = CliRunner().invoke(app, ["studies", *arguments, "--config", str(path)])

        assert done.exit_code == 0
        assert "the first 3 of 14 studies" in done.stderr
        assert "of 14 studies" not in done.stdout


def said_by_show(page: Page, word: str) -> str:
    path = page.config.site.data_folder / "show.toml"
    path.write_text(f"[site]\ndata_folder = '{page.config.site.data_folder}'\n")
    done = CliRunner().invoke(app, ["show", page.uids[word], "--config", str(path)])
    assert done.exit_code == 0
    return done.stdout


def test_the_command_says_that_a_negative_is_about_earlier_images(page: Page) -> None:
    said = said_by_show(page, "late")

    assert "Intracranial haemorrhage: ABSENT" in said
    assert "earlier images only: images arrived that this result does not know" in said
    current = said_by_show(page, "negative")
    assert "earlier images only" not in current
    assert "NEGATIVE: Pneumonia absent 2 %" in current


def test_the_command_says_that_a_demonstration_model_speaks(page: Page) -> None:
    said = said_by_show(page, "demo")

    assert "POSITIVE: Bright 70 % (demonstration model)" in said
    assert "  demonstration model, no clinical claim" in said


@pytest.mark.parametrize(("word", "said"), [("failed", "FAILED ("), ("refused", "NOT ANALYSED (")])
def test_the_command_says_failed_of_what_failed(page: Page, word: str, said: str) -> None:
    assert f"\n  {said}" in said_by_show(page, word)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/studies/1.2.3", 404),
        ("/studies/1.2.3", 404),
        ("/studies/not-a-uid", 404),
        ("/api/studies?flag=purple", 422),
        ("/api/studies?limit=0", 422),
        ("/studies/1.2.3/capture/1.png", 404),
        ("/studies/1.2.3/capture/99999999999999999999999.png", 404),
    ],
)
def test_what_does_not_exist_is_said_plainly(page: Page, path: str, status: int) -> None:
    body = page.text(path, status)

    assert "Traceback" not in body
    if path.startswith("/api/"):
        assert set(json.loads(body)) == {"error", "reason"}


@pytest.fixture(scope="module")
def purged(testdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Return a page over one delivered positive, whose images and documents retention removed."""
    config = configured(tmp_path_factory.mktemp("purged"))
    migrate(config.database_path)
    database = open_database(config.database_path)
    ward = Ward(database)
    uid = ward.positive("Muster^Mara", present("Pneumonia", 0.93))
    ward.compose(testdata / "single/dx_image.dcm")
    ward.deliver(uid, 0x0000)
    later = ward.pass_time(31 * 86400)
    spool = Spool(config.spool_folder, 0)
    assert len(purge_finished_studies(database, spool, later, older_than_days=30)) == 1
    server = WebServer(config)
    server.start()
    yield Page(server.port, {"positive": uid}, ward, config)
    server.stop()
    database.close()


def test_a_study_whose_images_are_gone_is_still_shown_with_its_flag(purged: Page) -> None:
    uid = purged.uids["positive"]

    html = purged.text(f"/studies/{uid}")
    found = purged.json(f"/api/studies/{uid}")

    assert "removed here" in html
    assert "was removed by retention with the images" in html
    assert (found["line"]["flag"], found["line"]["finding"]) == ("POSITIVE", "Pneumonia")
    assert "removed by retention" in found["reports"][0]["text"]


def test_a_result_card_that_is_gone_is_not_asked_for(purged: Page) -> None:
    html = purged.text(f"/studies/{purged.uids['positive']}")

    assert "<img" not in html
    assert "The result card was removed here" in html


def test_a_study_whose_images_are_gone_is_shown_by_the_command(purged: Page) -> None:
    path = purged.config.site.data_folder / "medimgd.toml"
    path.write_text(f"[site]\ndata_folder = '{purged.config.site.data_folder}'\n")

    done = CliRunner().invoke(app, ["show", purged.uids["positive"], "--config", str(path)])

    assert done.exit_code == 0
    assert "Pneumonia: PRESENT" in done.stdout
    assert "removed by retention" in done.stdout


def test_metrics_hold_every_named_metric_and_no_patient(page: Page) -> None:
    page.ward.beat()

    text = page.text("/metrics")

    names = set(re.findall(r"^# HELP (\S+)", text, re.MULTILINE))
    assert names == set(METRICS)
    assert 'medimgd_studies{state="held"} 1.0' in text
    assert 'medimgd_process_alive{role="worker",slot="worker-1"} 1.0' in text
    for marked in ("Muster", "P-00001", "A7001", "1.2.826"):
        assert marked not in text


def test_health_is_ready_while_every_role_beats(page: Page) -> None:
    page.ward.beat(*ROLES)

    health = page.json("/health")

    assert health["live"]
    assert health["ready"]
    assert health["reasons"] == []


def test_without_a_database_the_page_waits_and_the_json_says_why(tmp_path: Path) -> None:
    config = configured(tmp_path)
    server = WebServer(config)
    server.start()
    empty = Page(server.port, {}, None, config)  # type: ignore[arg-type]
    try:
        assert "Nothing received yet" in empty.text("/")
        assert "no database at" in empty.json("/api/studies", 503)["reason"]
        assert not empty.json("/health", 503)["ready"]
        assert empty.json("/health/live")["live"]
        assert "medimgd_database_readable 0.0" in empty.text("/metrics")

        migrate(config.database_path)

        assert empty.json("/api/studies")["studies"] == []
        assert "Nothing received yet" in empty.text("/")
    finally:
        server.stop()


def test_a_damaged_database_is_said_and_not_shown_as_an_empty_list(tmp_path: Path) -> None:
    config = configured(tmp_path)
    config.database_path.write_bytes(b"this is no database" * 100)
    server = WebServer(config)
    server.start()
    broken = Page(server.port, {}, None, config)  # type: ignore[arg-type]
    try:
        assert "The worklist cannot be read" in broken.text("/", 503)
        assert "not a usable database" in broken.json("/api/studies", 503)["reason"]
        assert not broken.json("/health", 503)["ready"]
        assert b"medimgd_database_readable 0.0" in metrics_text(config)
    finally:
        server.stop()


def test_no_template_can_switch_escaping_off() -> None:
    environment = make_environment()

    assert environment.autoescape is True
    assert "safe" not in environment.filters
    for template in (Path(__file__).parents[2] / "daemon/web/templates").glob("*.html"):
        assert "autoescape" not in template.read_text()


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("Muster^Mara", "Muster, Mara"),
        ("Muster^Mara^Maria^Dr.", "Muster, Mara Maria Dr."),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada, Tarou (山田, 太郎; やまだ, たろう)"),
        ("=山田^太郎", "山田, 太郎"),
        ("^", ""),
        ("", ""),
    ],
)
def test_a_person_name_is_shown_as_people_write_it(stored: str, shown: str) -> None:
    assert person_name(stored) == shown


def test_durations_are_worded_in_two_units(page: Page) -> None:
    assert [span(s) for s in (0.42, 61, 3600, 90061)] == ["0.4 s", "1 min 1 s", "1 h", "1 d 1 h"]
    assert age(page.ward.now, page.ward.now) == "just now"
