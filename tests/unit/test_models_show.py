"""What ``medimgd models show`` says of a package's figures, in words and whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from daemon.cli.application import app
from daemon.cli.models import figure_in_words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"value": 0.905}, "0.905"),
        ({"value": 1.0, "low": 0.9371, "high": 1.0}, "1.0 (95 % interval 0.9371 to 1.0)"),
        ({}, "none"),
        ("test: 9 images of 5 patients", "test: 9 images of 5 patients"),
        (0.97, "0.97"),
        ({"auc": 0.97, "films": 300}, "auc 0.97, films 300"),
    ],
)
def test_figure_is_said_as_a_person_reads_it(value, words):
    assert figure_in_words(value) == words


def test_thresholds_are_those_that_decide_and_figures_have_their_intervals(tmp_path: Path) -> None:
    config = tmp_path / "medimgd.toml"
    config.write_text(f'[site]\ndata_folder = "{tmp_path / "data"}"\n', encoding="utf-8")

    shown = CliRunner().invoke(app, ["models", "show", "cxr-pneumonia", "--config", str(config)])

    assert shown.exit_code == 0
    assert " 0.43025 " in shown.output
    assert "roc_auc: 0.9975 (95 % interval 0.9952 to 0.9993)" in shown.output
    assert "{" not in shown.output
