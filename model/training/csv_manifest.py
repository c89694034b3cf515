"""A CSV manifest: one line per image, with its labels, split and patient.

Owns the columns, their rules and the sentences that name line and column. Sees whether a path
exists and opens no image.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from model.errors import TrainingDataFault
from model.training.dataset import NO_LABEL, SPLIT_NAMES, SplitValues

MOST_FAULTS_SHOWN = 20
LABEL_SEPARATORS = re.compile(r"[;|]")
_DELIMITERS = ",;\t"
_REQUIRED = ("path", "labels", "split")
_PATIENT = "patient"
_SYNONYMS = {"label": "labels", "class": "labels", "file": "path", "patient_key": _PATIENT}


@dataclass(frozen=True, slots=True)
class ManifestLine:
    """One line, checked."""

    number: int
    """Of the line in the file, counted from 1."""
    path: Path
    name: str
    """The path as the manifest writes it, with forward slashes."""
    split: SplitValues
    labels: frozenset[str]
    patient: str
    columns: Mapping[str, str]


def read_csv_manifest(path: Path) -> tuple[tuple[ManifestLine, ...], tuple[str, ...]]:
    """Read a manifest and the names of its further columns.

    Parameters
    ----------
    path : Path
        UTF-8 text with a heading line, separated by commas, semicolons or tabs. Columns: ``path``
        (absolute, or from the manifest's folder; a folder is one series), ``labels`` (or
        ``label``; several separated by ``;`` or ``|``, ``none`` where no class applies),
        ``split``, and optionally ``patient``. Any other column is kept as it is.

    Raises
    ------
    TrainingDataFault
        With every fault: line, column, what was received and what is wanted.
    """
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), delimiter=_delimiter(path))
    headings = _headings(path, next(reader, []))
    faults: list[str] = []
    lines: list[ManifestLine] = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.extend(_line(path, reader.line_num, headings, cells, faults))
    except csv.Error as error:
        faults.append(f"line {reader.line_num}: is not CSV ({error})")
    if not lines and not faults:
        faults.append("holds a heading line only; write one line per image below it")
    if faults:
        raise TrainingDataFault(_listed(path, faults))
    further = tuple(h for h in headings if h not in (*_REQUIRED, _PATIENT))
    return tuple(lines), further


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = bytes(error.object[: error.start])
        raise TrainingDataFault(
            f"{path.name}: line {before.count(10) + 1}: is not UTF-8 text; save it as UTF-8"
        ) from error
    except OSError as error:
        raise TrainingDataFault(f"{path.name}: cannot be read: {error.strerror}") from error


def _delimiter(path: Path) -> str:
    """Return the separator that the heading line uses most."""
    heading = _decoded(path).partition("\n")[0]
    return max(_DELIMITERS, key=heading.count)


def _headings(path: Path, cells: list[str]) -> list[str]:
    names = [_SYNONYMS.get(cell.strip().casefold(), cell.strip()) for cell in cells]
    names = [
        name.casefold() if name.casefold() in (*_REQUIRED, _PATIENT) else name for name in names
    ]
    faults = [
        f"line 1: column {wanted} is missing; the columns are {', '.join(names) or 'none'}"
        for wanted in _REQUIRED
        if wanted not in names
    ]
    faults += [
        f"line 1: column {name or number} appears twice or has no name; give each column one name"
        for number, name in enumerate(names, start=1)
        if not name or names.index(name) != number - 1
    ]
    if faults:
        raise TrainingDataFault(_listed(path, faults))
    return names


def _line(
    manifest: Path, number: int, headings: list[str], cells: list[str], faults: list[str]
) -> Iterator[ManifestLine]:
    """Yield the line's record; nothing when it has faults."""
    if len(cells) != len(headings):
        faults.append(
            f"line {number}: has {len(cells)} cells, the heading {len(headings)}; "
            f"put cells that hold the separator in quotes"
        )
        return
    row = {name: cell.strip() for name, cell in zip(headings, cells, strict=True)}
    found = [
        f"line {number}, column {column}: {fault}"
        for column, fault in _cell_faults(manifest, row)
        if fault
    ]
    faults.extend(found)
    if not found:
        yield _record(manifest, number, row)


def _record(manifest: Path, number: int, row: dict[str, str]) -> ManifestLine:
    split = SPLIT_NAMES[row.pop("split").casefold()]
    name, labels = row.pop("path"), row.pop("labels")
    return ManifestLine(
        number=number,
        path=manifest.parent / name,
        name=name.replace("\\", "/"),
        split=split,
        labels=frozenset(_label_names(labels)) - {NO_LABEL},
        patient=row.pop(_PATIENT, ""),
        columns=row,
    )


def _label_names(cell: str) -> list[str]:
    names = [name.strip() for name in LABEL_SEPARATORS.split(cell) if name.strip()]
    return [NO_LABEL if name.casefold() == NO_LABEL else name for name in names]


def _cell_faults(manifest: Path, row: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield a sentence for each cell that breaks its rule, empty for those that do not."""
    yield "path", _path_fault(manifest, row["path"])
    yield "labels", _labels_fault(row["labels"])
    yield "split", _split_fault(row["split"])


def _path_fault(manifest: Path, cell: str) -> str:
    if not cell:
        return "is empty; write the path of the image"
    if not (manifest.parent / cell).exists():
        return f"there is no {cell} in the manifest's folder"
    return ""


def _labels_fault(cell: str) -> str:
    names = _label_names(cell)
    if not names:
        return f"is empty; write the class, or {NO_LABEL} for an image that shows none of them"
    if NO_LABEL in names and len(names) > 1:
        return f"is {cell!r}; {NO_LABEL} stands alone"
    return ""


def _split_fault(cell: str) -> str:
    if cell.casefold() in SPLIT_NAMES:
        return ""
    return f"must be one of {', '.join(SplitValues)}; received {cell or 'nothing'!r}"


def _listed(path: Path, faults: list[str]) -> str:
    shown = "; ".join(faults[:MOST_FAULTS_SHOWN])
    more = f"; and {len(faults) - MOST_FAULTS_SHOWN} more" * (len(faults) > MOST_FAULTS_SHOWN)
    return f"{path.name}: {shown}{more}"
