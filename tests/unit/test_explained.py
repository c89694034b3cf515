"""The lines of ``medimgd explain``: what was considered, by the name it has in the archive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon.cli.studies import explained
from model.package import load_package
from model.selection import StudyInstance, select
from tests.tiny_models import write_package

CT = {"attribute": "Modality", "equals": "CT"}
SLICES = [
    StudyInstance(f"1.7.{n}", "1.7", {"Modality": "CT", "InstanceNumber": float(n)})
    for n in (2, 1, 3)
]
SCOUT = StudyInstance("1.8.1", "1.8", {"Modality": "MR"})


@pytest.mark.parametrize(
    ("kind", "candidate", "other"),
    [
        ("volume", "candidate 1: series 1.7, 3 instances, judged by 1.7.1", "series 1.8"),
        ("image", "candidate 1: instance 1.7.1", "instance 1.8.1"),
    ],
)
def test_candidate_is_named_as_what_it_is(tmp_path: Path, kind, candidate, other) -> None:
    # Given a model of series, or of single images, and a study of two series,
    write_package(tmp_path / "p", kind=kind, where=CT, weights=b"weights")
    selection = select(load_package(tmp_path / "p"), [*SLICES, SCOUT])

    lines = list(explained(json.loads(json.dumps(selection.as_mapping()))))

    # then the UID of a candidate is that which the first sentence and the archive name.
    assert f"  {candidate}" in lines
    assert f"  1 not matching, for example {other}" in lines
