"""The report as JSON and CSV: every figure, and what was said of every image.

Owns the fields of the JSON document, which ``report_schema.json`` describes. The same package,
data and seed give the same bytes: no date, no folder and no machine's name is in it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from enum import Enum
from typing import Any

from model.evaluation.bootstrap import INTERVAL_PERCENT
from model.evaluation.records import Evaluation, LabelResult, ScoredSplit
from model.evaluation.scoring import OutcomeValues, ScoredImage
from model.evaluation.subgroups import FEWEST
from model.findings import presence
from model.labels import Label
from model.package import ModelPackage
from model.runtimes.port import PredictorDescription
from model.training.gate_report import GateReport
from model.training.inspection import InspectedImage

REPORT_FORMAT = 1
DIGITS = 9
"""Decimal places kept: more than a float32 score holds, fewer than rounding disturbs."""


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """What a report says besides figures."""

    package: ModelPackage
    gate: GateReport
    data_digest: str
    """SHA-256 over names, contents, labels and patients of the evaluated split."""
    description: PredictorDescription
    libraries: Mapping[str, str]


def data_digest(inspected: Iterable[InspectedImage]) -> str:
    """Return one digest of the images, whatever folder they lie in and whatever their order."""
    lines = sorted(
        json.dumps(
            [one.image.name, one.content_digest, sorted(one.image.labels), one.image.patient]
        )
        for one in inspected
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def report_mapping(
    evaluation: Evaluation, split: ScoredSplit, known: ReportFacts
) -> dict[str, Any]:
    """Return the JSON document as plain data."""
    question, package = evaluation.question, known.package
    return {
        "format": REPORT_FORMAT,
        "kind": evaluation.kind,
        "model": {
            "name": package.identity.name,
            "version": package.identity.version,
            "demonstration": package.identity.demonstration,
            "weights_sha256": package.identity.weights_sha256,
            "preprocessing_digest": package.preprocessing_digest,
            "output_kind": str(package.output.kind),
            **{k: v for k, v in known.description.as_mapping().items() if k != "model"},
        },
        "data": {
            "split": str(question.split),
            "digest": known.data_digest,
            "label_of_class": dict(evaluation.classes.label_of),
            "negative_classes": list(evaluation.classes.negatives),
            "counts": known.gate.counts,
            "gate": {
                "allowed": sorted(known.gate.allowed),
                "limits": asdict(known.gate.limits),
                "findings": [finding.as_mapping() for finding in known.gate.findings],
            },
        },
        "method": {
            "seed": question.seed,
            "rounds": question.rounds,
            "interval_percent": INTERVAL_PERCENT,
            "gap_limit": question.gap_limit,
            "fewest_patients": FEWEST,
            "libraries": dict(known.libraries),
        },
        "outcomes": _plain(evaluation.outcomes),
        "labels": [
            _label(measured, label.index)
            for measured, label in zip(evaluation.labels, package.labels, strict=True)
        ],
        "averages": _plain(evaluation.averages),
        "matrix": _plain(evaluation.matrix),
        "without_score": [_without_score(one) for one in _open_ones(split)],
    }


def _label(label: LabelResult, index: int) -> dict[str, Any]:
    plain: dict[str, Any] = {"index": index, **_plain(label)}
    for one, scaled in zip(plain["scaled"], label.scaled, strict=True):
        one["scaling"]["temperature"] = _plain(scaled.scaling.temperature)
    for part, subgroups in zip(plain["subgroups"], label.subgroups, strict=True):
        for gap, found in zip(part["gaps"], subgroups.gaps, strict=True):
            gap["may_be_chance"] = found.may_be_chance
    return plain


def _open_ones(split: ScoredSplit) -> list[ScoredImage]:
    return [one for one in split.scored if one.outcome is not OutcomeValues.SCORED]


def _without_score(one: ScoredImage) -> dict[str, str]:
    return {
        "image": one.image.name,
        "outcome": str(one.outcome),
        "reason": one.reason,
        "sentence": one.sentence,
    }


def _plain(value: Any) -> Any:
    """Return records as JSON types; a number that is none becomes null."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return round(value, DIGITS) if math.isfinite(value) else None
    return value


def as_json(mapping: Mapping[str, Any]) -> str:
    """Return a document as text, one line a field, ended by a line feed."""
    return json.dumps(mapping, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def calibration_mapping(evaluation: Evaluation, known: ReportFacts) -> dict[str, Any]:
    """Return what was fitted, for whoever packs the next version."""
    return {
        "format": REPORT_FORMAT,
        "model": known.package.at_version,
        "weights_sha256": known.package.identity.weights_sha256,
        "formula": "sigmoid(logit(score) * scale + offset)",
        "labels": [
            {
                "name": label.name,
                "fits": [
                    {
                        "method": str(one.scaling.method),
                        "scale": round(one.scaling.scale, DIGITS),
                        "offset": round(one.scaling.offset, DIGITS),
                        "temperature": round(one.scaling.temperature, DIGITS),
                        "fitted_on": one.fitted_on,
                    }
                    for one in label.scaled
                ],
            }
            for label in evaluation.labels
        ],
    }


def scores_csv(split: ScoredSplit, labels: Sequence[Label]) -> str:
    """Return one line per image: what is true, what became of it, and what was said."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    per_label = [(label.name, part) for label in labels for part in ("true", "score", "finding")]
    writer.writerow(["image", "outcome", "reason", *(f"{n} {part}" for n, part in per_label)])
    for one, true in zip(split.scored, split.truth, strict=True):
        cells: list[str] = []
        for number, label in enumerate(labels):
            cells.append(str(int(true[number])))
            cells.extend(_said(one, number, label))
        writer.writerow([one.image.name, str(one.outcome), one.reason, *cells])
    return written.getvalue()


def _said(one: ScoredImage, number: int, label: Label) -> list[str]:
    if one.outcome is not OutcomeValues.SCORED:
        return ["", ""]
    score = one.scores[number]
    return [f"{score:.{DIGITS}f}", str(presence(score, label))]
