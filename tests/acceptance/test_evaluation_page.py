"""The evaluation report as a browser shows it: whole, without a network, on a desk and a phone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from model.evaluation.records import Question
from model.evaluation.running import run_evaluation
from model.package import load_package
from model.training.dataset import SplitValues
from model.training.sources import open_dataset
from tests.acceptance.browser import dump_dom
from tests.labelled_images import MeanPredictor, put_film
from tests.tiny_models import write_package

_MEASURE = """<script>
addEventListener("load", () => setTimeout(() => {
  const pictures = [...document.images].map(i => i.complete && i.naturalWidth > 0);
  const wide = [...document.querySelectorAll("body *")].filter(
    e => !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1);
  parent.postMessage(JSON.stringify({pictures, wide: wide.length, width: innerWidth,
    fetched: performance.getEntriesByType("resource")
      .map(e => e.name).filter(name => !name.startsWith("data:")).length}), "*");
}, 200));
</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    for number in range(12):
        label, value = ("Bright", 0.7) if number % 2 else ("Dull", 0.3)
        put_film(folder / "test" / label / f"film{number}.png", value + number / 80 - 0.1, number)
    tiny = write_package(folder / "package", intensity={"kind": "full"}, weights=b"not read")
    with open_dataset(folder) as dataset:
        done = run_evaluation(
            load_package(tiny.folder), MeanPredictor(), dataset, Question(SplitValues.TEST)
        )
    done.write(folder / "out")
    return folder / "out" / "report.html"


@pytest.mark.parametrize("width", ["1200px", "360px"])
def test_page_shows_every_picture_and_nothing_sticks_out(report, tmp_path, width):
    # Given the page in a window of a desk and of a phone,
    measuring = tmp_path / "measuring.html"
    measuring.write_text(report.read_text(encoding="utf-8") + _MEASURE, encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<script>onmessage = event => document.title = event.data</script>"
        f'<iframe src="measuring.html" style="width:{width};height:900px"></iframe>',
        encoding="utf-8",
    )

    # when a browser has loaded it,
    dom = dump_dom(f"file://{frame}?", tmp_path, after_seconds=4)

    # then all pictures are drawn, nothing was fetched, and no line is cut at the edge.
    match = re.search(r"<title>(\{.*?\})</title>", dom)
    assert match, dom[-2000:]
    found = json.loads(match[1].replace("&quot;", '"'))
    assert found["pictures"] == [True] * 5
    assert (found["wide"], found["fetched"]) == (0, 0)
    assert f"{found['width']}px" == width
