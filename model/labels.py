"""What a model says: its labels, and what the numbers of its last layer are.

Owns the manifest's ``[[labels]]`` and ``[output]``, their rules and their defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from dicom_io.vocabulary import Code
from model.manifest import ManifestTable

MOST_LABELS = 1000


class OutputKindValues(StrEnum):
    """What the numbers are that come out of the network."""

    PROBABILITY = "probability"
    """Each output lies in 0..1 already."""
    LOGIT = "logit"
    """Each output goes through the sigmoid, independently."""
    SOFTMAX = "softmax"
    """The outputs are unscaled scores of classes that exclude each other; softmax is applied."""


@dataclass(frozen=True, slots=True)
class Output:
    """The network's last layer."""

    kind: OutputKindValues
    size: int
    """How many numbers come out per input."""


@dataclass(frozen=True, slots=True)
class Label:
    """One statement the model makes."""

    name: str
    code: Code
    site: Code | None
    threshold: float
    """Scores at or above it are Present, outside the undetermined band."""
    undetermined_low: float
    undetermined_high: float
    """Scores in [low, high) are Undetermined; equal ends mean there is no band."""
    index: int
    """Which of the network's outputs speaks for it."""


def read_labels(manifest: ManifestTable) -> tuple[tuple[Label, ...], Output]:
    """Read ``[[labels]]`` and ``[output]``, faults added where they do not fit each other."""
    tables = manifest.tables("labels")
    output = _read_output(manifest.table("output"), len(tables))
    labels = tuple(_read_label(table, n, output.size) for n, table in enumerate(tables))
    _add_repeated(manifest, "index", [str(label.index) for label in labels])
    add_repeated_labels(manifest, [(label.name, label.code) for label in labels])
    return labels, output


def add_repeated_labels(root: ManifestTable, labels: Sequence[tuple[str, Code]]) -> None:
    """Add a fault where two labels bear one name, whatever its case, or one code."""
    _add_repeated(root, "name", [name.casefold() for name, _ in labels])
    _add_repeated(root, "code", [f"{code.value} {code.scheme}" for _, code in labels])


def _add_repeated(root: ManifestTable, what: str, values: Sequence[str]) -> None:
    """Add a fault where two labels have the same."""
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        root.faults.append(f"labels: {what} must differ, twice is {', '.join(twice)}")


def _read_output(table: ManifestTable, label_count: int) -> Output:
    kinds = ", ".join(OutputKindValues)
    kind = table.text("kind", "|".join(OutputKindValues), f"must be one of {kinds}")
    size = table.whole_number("size", 1, MOST_LABELS, default=max(label_count, 1))
    if size < label_count:
        table.add_fault("size", f"must be at least the number of labels, {label_count}")
    if kind == OutputKindValues.SOFTMAX and size < 2:
        table.add_fault("size", "softmax needs at least two outputs")
    table.refuse_unknown()
    return Output(OutputKindValues(kind) if kind else OutputKindValues.PROBABILITY, size)


def _read_label(table: ManifestTable, position: int, output_size: int) -> Label:
    threshold = table.number("threshold", 0.0, 1.0)
    low, high = _read_band(table, threshold)
    label = Label(
        name=table.text("name", r"[^\n]{1,64}", "must be one line of at most 64 characters"),
        code=table.code("code"),
        site=table.code("site") if table.has("site") else None,
        threshold=threshold,
        undetermined_low=low,
        undetermined_high=high,
        index=table.whole_number(
            "index", 0, max(output_size - 1, 0), default=min(position, output_size - 1)
        ),
    )
    table.refuse_unknown()
    return label


def _read_band(table: ManifestTable, threshold: float) -> tuple[float, float]:
    """Return the undetermined band; without one both ends are the threshold."""
    value = table.raw("undetermined")
    if value is None:
        return threshold, threshold
    numbers = isinstance(value, list) and len(value) == 2
    if numbers and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):  # type: ignore[attr-defined]
        low, high = (float(v) for v in value)  # type: ignore[attr-defined]
        if 0 <= low <= threshold <= high <= 1:
            return low, high
    table.add_fault(
        "undetermined",
        f"must be [low, high] within 0..1 with the threshold {threshold:g} between them",
    )
    return threshold, threshold
