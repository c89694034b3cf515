"""An evaluation report as whoever admits a model reads it: figures, bounds and gaps per label.

Owns the reading of the JSON that ``medimgd evaluate`` writes, and whether it speaks of this
package. Tolerant of fields it does not know; what it relies on it checks.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model.errors import PackageFault
from model.labels import Label
from model.package import ModelPackage

REPORT_FORMAT = 1
LARGEST_REPORT_BYTES = 64 << 20
SAME_THRESHOLD = 1e-9
"""Reports round what they write. Networks that are sure have thresholds this near to 0."""


@dataclass(frozen=True, slots=True)
class ReportedFigure:
    """One figure with its confidence interval."""

    value: float | None
    """None where it is not defined."""
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ReportedGap:
    """The distance of a figure between two groups of one column."""

    figure: str
    best: str
    worst: str
    gap: float


@dataclass(frozen=True, slots=True)
class ReportedGroup:
    """One value of a column."""

    value: str
    patients: int
    figures: frozenset[str]
    """Those that enough patients stand behind to be given."""


@dataclass(frozen=True, slots=True)
class ReportedSubgroups:
    """All groups of one column, and how far they are apart."""

    column: str
    groups: tuple[ReportedGroup, ...]
    gaps: tuple[ReportedGap, ...]


@dataclass(frozen=True, slots=True)
class ReportedLabel:
    """What was measured of one label."""

    name: str
    index: int | None
    """Which output spoke for it; None in reports of earlier versions."""
    threshold: float
    undetermined_low: float
    undetermined_high: float
    figures: Mapping[str, ReportedFigure]
    subgroups: tuple[ReportedSubgroups, ...]
    """One for each column."""


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What a report says."""

    name: str
    version: str
    weights_sha256: str
    preprocessing_digest: str
    output_kind: str
    """What was made of the network's numbers; empty in reports of earlier versions."""
    split: str
    images: int
    patients: int
    refused: int
    """Images the model abstained from; no figure counts them."""
    not_selected: int
    gate_findings: Mapping[str, int]
    """What the checks of the data found and a person let pass: findings by check."""
    labels: tuple[ReportedLabel, ...]


def read_evaluation_report(path: Path) -> EvaluationReport:
    """Read a report.

    Raises
    ------
    PackageFault
        It cannot be read, or lacks what is relied on; every fault is named.
    """
    faults: list[str] = []
    document = _document(path, faults)
    if not faults and document.get("format") != REPORT_FORMAT:
        faults.append(f"format: must be {REPORT_FORMAT}, received {document.get('format')!r}")
    report = None
    if not faults:
        report = _report(_Reader(document, "", faults))
    if report is None or faults:
        raise PackageFault(f"evaluation report {path.name}", faults)
    return report


def contradictions(report: EvaluationReport, package: ModelPackage) -> list[str]:
    """Return where a report speaks of something else than this package; empty when nowhere."""
    identity = package.identity
    # A converted package answers as its source does: that was proven when it was made.
    is_of_source = report.weights_sha256 in package.converted_from
    weights = report.weights_sha256 if is_of_source else identity.weights_sha256
    faults = [
        f"the evaluation report is about {what} {found}, the package has {wanted}: "
        "evaluate the package as it is"
        for what, found, wanted in (
            ("the model", report.name, identity.name),
            ("weights", report.weights_sha256, weights),
            ("preprocessing", report.preprocessing_digest, package.preprocessing_digest),
            ("outputs of kind", report.output_kind or package.output.kind, package.output.kind),
        )
        if found != wanted
    ]
    reported = {label.name: label for label in report.labels}
    stated = {label.name: label for label in package.labels}
    if reported.keys() != stated.keys():
        faults.append(
            f"the evaluation report is about the labels {', '.join(sorted(reported))}, "
            f"the package speaks of {', '.join(sorted(stated))}"
        )
    for name in reported.keys() & stated.keys():
        faults += _other_output(reported[name], stated[name])
        faults += _other_thresholds(reported[name], stated[name])
    return faults


def _other_output(reported: ReportedLabel, stated: Label) -> list[str]:
    if reported.index in (None, stated.index):
        return []
    fault = (
        f"{stated.name}: in the evaluation report output {reported.index} speaks for it, in the "
        f"package output {stated.index}: its figures are those of another answer"
    )
    return [fault]


def _other_thresholds(reported: ReportedLabel, stated: Label) -> list[str]:
    return [
        f"{stated.name}: the evaluation report used {what} {found:.9g}, the package has "
        f"{wanted:.9g}: "
        "its sensitivity and specificity are those of another operating point"
        for what, found, wanted in (
            ("the threshold", reported.threshold, stated.threshold),
            ("undetermined from", reported.undetermined_low, stated.undetermined_low),
            ("undetermined to", reported.undetermined_high, stated.undetermined_high),
        )
        if not math.isclose(found, wanted, abs_tol=SAME_THRESHOLD)
    ]


class _Reader:
    """One JSON object: gets fields of a type, and notes what is wrong with them."""

    def __init__(self, values: Mapping[str, object], place: str, faults: list[str]) -> None:
        self._values = values
        self._place = place
        self._faults = faults

    def _wrong(self, key: str, rule: str) -> None:
        received = repr(self._values.get(key))[:80]
        self._faults.append(f"{self._place}{key}: {rule}; received {received}")

    def text(self, key: str) -> str:
        value = self._values.get(key)
        if isinstance(value, str) and value:
            return value
        self._wrong(key, "must be text")
        return ""

    def number(self, key: str) -> float:
        value = self.number_or_none(key)
        if value is None:
            self._wrong(key, "must be a number")
        return 0.0 if value is None else value

    def number_or_none(self, key: str) -> float | None:
        value = self._values.get(key)
        usable = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if usable and math.isfinite(value) else None  # type: ignore[arg-type]

    def inner(self, key: str) -> _Reader:
        value = self._values.get(key)
        if not isinstance(value, Mapping):
            self._wrong(key, "must be an object")
            value = {}
        return _Reader(value, f"{self._place}{key}.", self._faults)

    def each(self, key: str) -> list[_Reader]:
        value = self._values.get(key)
        if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
            self._wrong(key, "must be a list of objects")
            return []
        return [
            _Reader(one, f"{self._place}{key}[{number}].", self._faults)
            for number, one in enumerate(value)
        ]

    def has(self, key: str) -> bool:
        return key in self._values

    def names(self) -> list[str]:
        return list(self._values)


def _document(path: Path, faults: list[str]) -> Mapping[str, object]:
    try:
        if path.stat().st_size > LARGEST_REPORT_BYTES:
            faults.append(f"must be at most {LARGEST_REPORT_BYTES} bytes")
            return {}
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        faults.append(f"is no JSON that can be read: {error}")
        return {}
    if not isinstance(document, Mapping):
        faults.append("must be a JSON object, as 'medimgd evaluate' writes it")
        return {}
    return document


def _report(reader: _Reader) -> EvaluationReport:
    model, outcomes = reader.inner("model"), reader.inner("outcomes")
    data = reader.inner("data")
    findings = data.inner("gate").each("findings")
    return EvaluationReport(
        name=model.text("name"),
        version=model.text("version"),
        weights_sha256=model.text("weights_sha256"),
        preprocessing_digest=model.text("preprocessing_digest"),
        output_kind=model.text("output_kind") if model.has("output_kind") else "",
        split=data.text("split"),
        images=int(outcomes.number("images")),
        patients=int(outcomes.number("patients")),
        refused=int(outcomes.number("refused")),
        not_selected=int(outcomes.number("not_selected")),
        gate_findings=Counter(one.text("check") for one in findings),
        labels=tuple(_label(each) for each in reader.each("labels")),
    )


def _label(reader: _Reader) -> ReportedLabel:
    figures = reader.inner("figures")
    index = reader.number("index") if reader.has("index") else None
    return ReportedLabel(
        name=reader.text("name"),
        index=None if index is None else int(index),
        threshold=reader.number("threshold"),
        undetermined_low=reader.number("undetermined_low"),
        undetermined_high=reader.number("undetermined_high"),
        figures={name: _figure(figures.inner(name)) for name in figures.names()},
        subgroups=tuple(_subgroups(one) for one in reader.each("subgroups")),
    )


def _subgroups(reader: _Reader) -> ReportedSubgroups:
    return ReportedSubgroups(
        column=reader.text("column"),
        groups=tuple(_group(group) for group in reader.each("groups")),
        gaps=tuple(
            ReportedGap(
                figure=gap.text("figure"),
                best=gap.text("best"),
                worst=gap.text("worst"),
                gap=gap.number("gap"),
            )
            for gap in reader.each("gaps")
        ),
    )


def _group(reader: _Reader) -> ReportedGroup:
    figures = reader.inner("figures")
    given = {name for name in figures.names() if _figure(figures.inner(name)).value is not None}
    return ReportedGroup(reader.text("value"), int(reader.number("patients")), frozenset(given))


def _figure(reader: _Reader) -> ReportedFigure:
    return ReportedFigure(*(reader.number_or_none(key) for key in ("value", "low", "high")))
