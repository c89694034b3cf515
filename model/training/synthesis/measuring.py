"""What a package says of a labelled set, beyond what an evaluation asks: places, and severities.

Run as ``python -m model.training.synthesis.measuring PACKAGE MANIFEST``. Owns the comparison of
regions with the places that a set knows, and of scores by a column of the manifest.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from dicom_io.tensors import build_tensor
from dicom_io.vocabulary import Detection, Finding, PresenceValues, Region
from model.explain import Explicable
from model.findings import judge
from model.package import ModelPackage, load_package
from model.regions import detect
from model.runtimes.opening import open_predictor
from model.runtimes.port import Predictor

Row = Mapping[str, str]
"""A line of the manifest."""

Place = tuple[float, float, float]
"""Slice, row and column, from 0, of the centre of something."""

NEGATIVES = frozenset({"clear", "still"})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a package said of one series."""

    row: Row
    finding: Finding
    regions: tuple[Region, ...]
    hits: tuple[bool, ...]
    """For each place that the manifest knows, whether a region holds it."""
    strays: int
    """Regions that hold none of them."""

    @property
    def is_positive(self) -> bool:
        """What is true of the series."""
        return self.row["labels"] not in NEGATIVES


def answered(package: ModelPackage, predictor: Predictor, folder: Path, row: Row) -> Answer:
    """Let a package read one series of a set."""
    tensor = build_tensor(sorted((folder / row["path"]).iterdir()), package.recipe)
    findings = judge(predictor.predict(tensor.values[np.newaxis])[0], package.labels)
    detection = detect(package, predictor, [Explicable(tensor, findings)])[0] or Detection()
    places = places_of(row)
    held = [
        [holds(region, place, tensor.sop_instance_uids) for place in places]
        for region in detection.regions
    ]
    return Answer(
        row=row,
        finding=findings[0],
        regions=detection.regions,
        hits=tuple(any(column) for column in zip(*held, strict=True)) or (False,) * len(places),
        strays=sum(not any(each) for each in held),
    )


def places_of(row: Row) -> list[Place]:
    """Return where nodules were put; a centre beyond the first or last slice lies on it."""
    first, _, last = row.get("slices", "0-0").partition("-")
    found = []
    for text in row.get("nodules", "").split():
        number, line, column, _ = (float(part) for part in text.split("/"))
        found.append((min(max(number, 0.0), float(int(last) - int(first))), line, column))
    return found


def holds(region: Region, place: Place, sop_instance_uids: Sequence[str]) -> bool:
    """Return True when a region's box on the place's slice, or on a neighbour, holds the place."""
    number = round(place[0])
    near = set(sop_instance_uids[max(number - 1, 0) : number + 2])
    for outline in region.outlines:
        columns, rows = zip(*outline.points, strict=True)
        inside = min(rows) <= place[1] + 0.5 <= max(rows) and min(columns) <= place[2] + 0.5 <= max(
            columns
        )
        if outline.sop_instance_uid in near and inside:
            return True
    return False


def figures(answers: Sequence[Answer]) -> dict[str, object]:
    """Return what can be said of some series of both kinds, or of one."""
    positive = [each for each in answers if each.is_positive]
    negative = [each for each in answers if not each.is_positive]
    found: dict[str, object] = {"series": len(answers), "positive": len(positive)}
    if positive and negative:
        truth = [each.is_positive for each in answers]
        scores = [each.finding.probability for each in answers]
        found["roc_auc"] = round(float(roc_auc_score(truth, scores)), 4)
    if positive:
        found["sensitivity"] = _share(_is_present(each) for each in positive)
    if negative:
        found["specificity"] = _share(not _is_present(each) for each in negative)
    hits = [hit for each in positive for hit in each.hits]
    if hits:
        found["nodules"] = len(hits)
        found["nodules_hit"] = _share(hits)
        found["strays_per_series"] = round(float(np.mean([each.strays for each in answers])), 3)
    return found


def _is_present(answer: Answer) -> bool:
    """Return the statement at the threshold: of an undetermined band nothing is left out."""
    finding = answer.finding
    if finding.presence is PresenceValues.UNDETERMINED:
        return finding.probability >= finding.threshold
    return finding.presence is PresenceValues.PRESENT


def _share(values: object) -> float:
    return round(float(np.mean(list(values))), 4)  # type: ignore[call-overload]


def measured(package: ModelPackage, manifest: Path, by: str = "") -> dict[str, dict[str, object]]:
    """Return figures of each split, and of each value of a column against all negatives.

    Parameters
    ----------
    package : ModelPackage
    manifest : Path
        Of a set that this package made.
    by : str
        A column of the manifest, ``severity`` for example; none when empty.
    """
    predictor = open_predictor(package)
    predictor.load()
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] != "train"]
    answers = [answered(package, predictor, manifest.parent, row) for row in rows]
    found: dict[str, dict[str, object]] = {}
    for split in dict.fromkeys(row["split"] for row in rows):
        of_split = [each for each in answers if each.row["split"] == split]
        found[split] = figures(of_split)
        for value in sorted({each.row[by] for each in of_split if each.is_positive} if by else ()):
            found[f"{split}, {by} {value}"] = figures(
                [each for each in of_split if not each.is_positive or each.row[by] == value]
            )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures of a set's validation and test splits as JSON."""
    parser = argparse.ArgumentParser(prog="python -m model.training.synthesis.measuring")
    parser.add_argument("package", type=Path, help="folder of the package")
    parser.add_argument("manifest", type=Path, help="manifest.csv of the set")
    parser.add_argument("--by", default="", help="a column of the manifest")
    options = parser.parse_args(arguments)
    found = measured(load_package(options.package), options.manifest, options.by)
    print(json.dumps(found, indent=2))  # noqa: T201  what the command is for
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
