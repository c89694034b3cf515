"""The worklist in a real browser: what a radiologist sees, and what a hostile header cannot do."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

import pytest

from daemon.config import Config, SiteSection, WebSection
from daemon.web.serving import WebServer
from storage.database import migrate, open_database
from tests.acceptance.browser import dump_dom, screenshot
from tests.worklist_material import SCRIPT, Ward, fill

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class _Rows(HTMLParser):
    """Collects the rows of the worklist: study UID, style class and text."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, tuple[str, str]] = {}
        self._uid: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "tr" and found.get("data-uid"):
            self._uid = str(found["data-uid"])
            self.rows[self._uid] = (str(found["class"]), "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr":
            self._uid = None

    def handle_data(self, data: str) -> None:
        if self._uid is not None:
            flag, text = self.rows[self._uid]
            self.rows[self._uid] = (flag, f"{text} {data.strip()}".strip())


def rows_of(dom: str) -> dict[str, tuple[str, str]]:
    parser = _Rows()
    parser.feed(dom)
    return parser.rows


@pytest.fixture(scope="module")
def filled(
    testdata: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a page over studies in every state, and their UIDs."""
    config = Config(
        site=SiteSection(data_folder=tmp_path_factory.mktemp("page")),
        web=WebSection(port=0, finding_order=("Intracranial haemorrhage", "Pneumonia")),
    )
    migrate(config.database_path)
    database = open_database(config.database_path)
    ward = Ward(database)
    uids = fill(ward, testdata / "single/dx_image.dcm", testdata / "single/ct_image.dcm")
    ward.beat()
    server = WebServer(config)
    server.start()
    yield f"http://127.0.0.1:{server.port}", uids
    server.stop()
    database.close()


@pytest.fixture(scope="module")
def worklist_dom(
    filled: tuple[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> str:
    return dump_dom(filled[0], tmp_path_factory.mktemp("browser"))


def test_the_worst_study_stands_first_by_the_sites_rule(
    filled: tuple[str, dict[str, str]], worklist_dom: str
) -> None:
    words = {uid: word for word, uid in filled[1].items()}

    order = [words[uid] for uid in rows_of(worklist_dom)]

    # A 61 % haemorrhage before a 93 % pneumonia before a 99 % effusion: the site says so.
    assert order == [
        "mixed", "positive", "demo", "mild", "undetermined", "failed", "held", "refused",
        "receiving", "waiting", "late", "unmatched", "script", "negative",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "style", "label"),
    [
        ("positive", "positive", "POSITIVE Pneumonia 93 %"),
        ("mixed", "positive", "NOT ANALYSED outside the model's input contract"),
        ("undetermined", "undetermined", "UNDETERMINED Pneumonia 47 %"),
        ("refused", "refused", "NOT ANALYSED cannot decode"),
        ("failed", "failed", "FAILED software failure"),
        ("held", "held", "HELD preparation failed"),
        ("unmatched", "unmatched", "UNMATCHED none of 3 installed models reads this study"),
        ("waiting", "pending", "PENDING waits for analysis by cxr-pneumonia@1.0.0"),
        ("late", "pending", "earlier images only"),
        ("negative", "negative", "NEGATIVE Pneumonia absent 2 %"),
    ],
)
def test_every_study_says_in_words_what_is_known_of_it(
    filled: tuple[str, dict[str, str]], worklist_dom: str, word: str, style: str, label: str
) -> None:
    flag, text = rows_of(worklist_dom)[filled[1][word]]

    assert flag == style
    assert label in text


def test_a_script_in_a_header_is_shown_and_never_runs(
    filled: tuple[str, dict[str, str]], worklist_dom: str, tmp_path: Path
) -> None:
    address, uids = filled
    for dom in (worklist_dom, dump_dom(f"{address}/studies/{uids['script']}", tmp_path)):
        title = re.search(r"<title>(.*?)</title>", dom)

        assert title is not None
        assert "pwned" not in title[1]
        assert SCRIPT not in dom
        assert "&lt;script&gt;document.title" in dom


def test_the_page_says_that_nothing_is_verified(
    filled: tuple[str, dict[str, str]], worklist_dom: str, tmp_path: Path
) -> None:
    notice = "AI results - preliminary, not verified by a physician"
    address, uids = filled

    assert notice in worklist_dom
    assert notice in dump_dom(f"{address}/studies/{uids['positive']}", tmp_path)


def test_a_study_page_shows_finding_report_and_picture(
    filled: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    address, uids = filled

    dom = dump_dom(f"{address}/studies/{uids['positive']}", tmp_path)

    assert "Pneumonia" in dom
    assert "40 % to 60 %" in dom
    assert "Status: COMPLETE PRELIMINARY UNVERIFIED" in dom
    assert re.search(r'<img src="/studies/[0-9.]+/capture/\d+\.png"', dom)


def test_the_browser_accepts_style_script_and_pictures_under_our_policy(
    filled: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    address, uids = filled
    pictures = {}
    for name, path in (("list", "/"), ("study", f"/studies/{uids['positive']}")):
        pictures[name] = tmp_path / f"{name}.png"
        screenshot(f"{address}{path}", pictures[name])

    for picture in pictures.values():
        assert picture.read_bytes().startswith(_PNG_SIGNATURE)
        # An unstyled page is nearly all white and compresses to almost nothing.
        assert picture.stat().st_size > 40_000


def test_the_list_renews_itself(filled: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    with _standing_before(filled[0], answers=100) as (address, asked):
        dom = dump_dom(address, tmp_path, after_seconds=40)

    assert asked.count("/") > 1
    assert "NO CONNECTION" not in dom
    assert len(rows_of(dom)) == len(filled[1])


def test_a_list_that_cannot_be_renewed_says_so_loudly(
    filled: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    with _standing_before(filled[0], answers=1) as (address, _):
        dom = dump_dom(address, tmp_path, after_seconds=40)

    assert "NO CONNECTION - list as of" in dom
    assert re.search(r'<body class="[^"]*stale', dom)
    assert len(rows_of(dom)) == len(filled[1])


def test_a_list_that_waits_for_marked_text_says_so_loudly(
    filled: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    """Text that stays marked keeps the list as it is: a new positive would not be seen."""
    marking = 'getSelection().selectAllChildren(document.getElementById("live"));'
    with _standing_before(filled[0], answers=100, script=marking) as (address, asked):
        dom = dump_dom(address, tmp_path, after_seconds=40)

    assert asked.count("/") == 1
    assert "PAUSED while text is marked - list as of" in dom
    assert re.search(r'<body class="[^"]*stale', dom)


def test_a_list_goes_on_when_no_text_is_marked_any_more(
    filled: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    marking = (
        'getSelection().selectAllChildren(document.getElementById("live"));'
        "setTimeout(() => getSelection().removeAllRanges(), 20000);"
    )
    with _standing_before(filled[0], answers=100, script=marking) as (address, asked):
        dom = dump_dom(address, tmp_path, after_seconds=40)

    assert asked.count("/") > 1
    assert "PAUSED" not in dom
    assert not re.search(r'<body class="[^"]*stale', dom)


@contextmanager
def _standing_before(
    origin: str, *, answers: int, script: str = ""
) -> Iterator[tuple[str, list[str]]]:
    """Pass requests on to the page, the list so many times only; give what was asked for.

    `script` runs after the page's own.
    """
    asked: list[str] = []

    class Front(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            refused = asked.count("/") > answers
            with urlopen(origin + self.path, timeout=20) as answer:
                self.send_response(503 if refused else 200)
                self.send_header("Content-Type", answer.headers["Content-Type"])
                self.end_headers()
                self.wfile.write(answer.read())
                if self.path.endswith("/worklist.js"):
                    self.wfile.write(script.encode())

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Front) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", asked
        finally:
            server.shutdown()
            thread.join()
