"""The files beside a manifest: where each lies, and that it is the one the manifest means.

Owns the tables of a manifest that name a file with its digest. What the files say is read by
``model.probes`` and ``model.evaluation_report``.
"""

from __future__ import annotations

import hashlib
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from model.manifest import ManifestTable

MOST_PROBES = 64
LARGEST_TOLERANCE = 0.05
"""Scores that differ by more are those of another model."""

DIGEST_PATTERN = r"[0-9a-f]{64}"
_READ_CHUNK_BYTES = 1 << 20

UNREADABLE_ARRAYS = (
    OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, tokenize.TokenError,
    RuntimeError,
)  # fmt: skip
"""What NumPy and zipfile raise over an ``.npz`` that is damaged or none. The last is of members
that are encrypted or compressed in a way that Python does not know."""


@dataclass(frozen=True, slots=True)
class EvaluationFiles:
    """The report of ``medimgd evaluate`` that comes with a package."""

    path: Path
    """JSON, as ``model.evaluation_report`` reads it."""
    page: Path | None
    """The same for people, or None."""


@dataclass(frozen=True, slots=True)
class ProbeFile:
    """A few real inputs and the scores they had when the package was made."""

    path: Path
    scores: tuple[tuple[float, ...], ...]
    """(probes, labels)."""
    tolerance: float
    """How far a score may be from the recorded one."""
    runtime: str
    """What computed the recorded scores."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def read_file(folder: Path, table: ManifestTable, file: str, sha256: str) -> tuple[Path, str]:
    """Check that a file is inside the folder and is the one the manifest means.

    Parameters
    ----------
    folder : Path
        The package.
    table : ManifestTable
        Which names the file; faults are added to it.
    file, sha256 : str
        The fields that hold its name and its digest.

    Returns
    -------
    tuple of Path and str
        Where it lies and the digest stated.
    """
    name = table.text(
        file, r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", "must be a plain file name in the folder"
    )
    stated = table.text(sha256, DIGEST_PATTERN, "must be 64 hexadecimal digits, lower case")
    path = folder / name if name else folder / "absent"
    if name and not path.is_file():
        table.add_fault(file, f"there is no such file in {folder}")
    elif name and stated:
        found = sha256_of(path)
        if found != stated:
            table.add_fault(
                sha256,
                f"the SHA-256 of {name} is {found}: the file was changed or copied badly; "
                f"install the package again",
            )
    return path, stated


def read_evaluation_files(folder: Path, manifest: ManifestTable) -> EvaluationFiles | None:
    """Read table ``[evaluation]``; None when there is none, as in older packages."""
    if not manifest.has("evaluation"):
        return None
    table = manifest.table("evaluation")
    path, _ = read_file(folder, table, "file", "sha256")
    page = None
    if table.has("page"):
        page, _ = read_file(folder, table, "page", "page_sha256")
    table.refuse_unknown()
    return EvaluationFiles(path, page)


def read_probe_file(folder: Path, manifest: ManifestTable, label_count: int) -> ProbeFile | None:
    """Read table ``[probes]``; None when there is none, as in older packages."""
    if not manifest.has("probes"):
        return None
    table = manifest.table("probes")
    path, _ = read_file(folder, table, "file", "sha256")
    probes = ProbeFile(
        path,
        _read_scores(table, label_count),
        table.number("tolerance", 0.0, LARGEST_TOLERANCE),
        table.text("runtime", default=""),
    )
    table.refuse_unknown()
    return probes


def _read_scores(table: ManifestTable, label_count: int) -> tuple[tuple[float, ...], ...]:
    """Return the recorded scores, a row per probe."""
    rows = table.raw("scores")
    known = isinstance(rows, list) and 0 < len(rows) <= MOST_PROBES
    given = cast("list[object]", rows) if known else []
    read = tuple(row for one in given if (row := _score_row(one, label_count)))
    if given and len(read) == len(given):
        return read
    table.add_fault(
        "scores",
        f"must be 1 to {MOST_PROBES} lists of {label_count} numbers between 0 and 1, one list "
        f"for each probe and one number for each label",
    )
    return ()


def _score_row(row: object, label_count: int) -> tuple[float, ...]:
    """Return one probe's scores; empty when they are none."""
    numbers = [
        float(v) for v in (row if isinstance(row, list) else ())
        if isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= 1
    ]  # fmt: skip
    whole = isinstance(row, list) and len(row) == len(numbers) == label_count
    return tuple(numbers) if whole else ()
