"""``medimgd models pack``: a package made of weights, a draft, an evaluation and a few images.

Owns what is computed for a package instead of being typed: digests, the probes and their scores,
the figures. What it writes has been loaded and tried before it appears under its name.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dicom_io.errors import MedimgdError
from dicom_io.image_files import FileKindValues, file_kind
from dicom_io.tensors import TensorRecipe, build_tensor, image_values_to_tensor, read_film
from dicom_io.wording import number_of
from model.archives import is_archive_name, write_archive
from model.durable import make_folders, publish
from model.errors import PackageFault
from model.evaluation_report import EvaluationReport, read_evaluation_report
from model.input_distribution import DISTRIBUTION_NAME
from model.manifest_writing import write_manifest
from model.package import MANIFEST_FORMAT, ModelPackage, load_package
from model.package_files import MOST_PROBES, sha256_of
from model.probes import PROBES_NAME, FloatArray, write_probes
from model.runtimes.check import CheckReport, check_package

DEFAULT_TOLERANCE = 1e-3
"""Runtimes and devices round differently; another model is further away than this."""

EVALUATION_NAME = "evaluation.json"
PAGE_NAME = "evaluation.html"
README_NAME = "README.md"
"""Read by people; the manifest does not name it."""


@dataclass(frozen=True, slots=True)
class PackSources:
    """What a package is made of."""

    draft: Path
    """A manifest without digests (TOML)."""
    weights: Path | None = None
    """The file ``[weights]`` means; beside the draft when absent."""
    evaluation: Path | None = None
    """The JSON of ``medimgd evaluate``."""
    page: Path | None = None
    """Its HTML."""
    training: Path | None = None
    """Where the weights come from (TOML or JSON); becomes ``[training]``."""
    readme: Path | None = None
    input_distribution: Path | None = None
    """What the inputs look like, as ``InputDistribution.write`` writes it."""
    probes: tuple[Path, ...] = ()
    """Images (DICOM, PNG, JPEG), folders of one DICOM series, or .npy tensors."""
    tolerance: float = DEFAULT_TOLERANCE


@dataclass(frozen=True, slots=True)
class Packed:
    """What was made."""

    package: ModelPackage
    """Where it was made; gone by now."""
    path: Path
    trial: CheckReport
    size_bytes: int


def pack(sources: PackSources, out: Path, *, device: str = "auto") -> Packed:
    """Make a package: a folder, or one file when `out` ends in .zip or .tar (.gz).

    Parameters
    ----------
    sources : PackSources
        Its parts.
    out : Path
        The folder or file; must not be there yet.
    device : str
        What computes the recorded scores: ``auto``, ``cpu`` or ``gpu``.

    Raises
    ------
    PackageFault
        With every fault found: a part is missing or contradicts another, intended use or limits
        are not stated, the weights do not load.
    """
    if out.exists():
        raise PackageFault(f"{out}", ["is there already; name another place, or remove it"])
    draft = _read_draft(sources.draft)
    faults = _statement_faults(draft)
    if faults:
        raise PackageFault(f"draft {sources.draft.name}", faults)
    make_folders(out.parent)
    with tempfile.TemporaryDirectory(prefix=".packing-", dir=out.parent) as temporary:
        folder = Path(temporary) / f"{draft.get('name', '')}-{draft.get('version', '')}"
        folder.mkdir()
        manifest = _gather(sources, draft, folder)
        write_manifest(folder, manifest)
        package = load_package(folder)
        package, trial = _record_probes(sources, manifest, package, device)
        if not trial.passed:
            raise PackageFault(f"model package {package.at_version}", trial.faults)
        size = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
        made = folder
        if is_archive_name(out):
            made = Path(temporary) / out.name
            write_archive(folder, made)
        publish(made, out)
    return Packed(package, out, trial, size)


def _read_draft(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PackageFault(f"draft {path.name}", [f"cannot be read as TOML: {error}"]) from error


def _statement_faults(draft: Mapping[str, Any]) -> list[str]:
    """Return what a person has to say about a model before anybody may use it."""
    faults = []
    use = draft.get("intended_use")
    if not isinstance(use, str) or not use.strip():
        faults.append(
            f"intended_use: must say in a sentence whom and what the model is for; received {use!r}"
        )
    limits = draft.get("limits")
    stated = isinstance(limits, list) and any(isinstance(v, str) and v.strip() for v in limits)
    if not stated:
        faults.append(
            "limits: must name what the model is known not to do, one sentence each; "
            f"received {limits!r}"
        )
    # They become the name of a folder before the package is read as a whole.
    faults += [
        f"{key}: must be stated; received {draft.get(key)!r}"
        for key in ("name", "version")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", str(draft.get(key, "")))
    ]
    return faults


def _gather(sources: PackSources, draft: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Copy the parts into the folder; return the manifest with their digests."""
    manifest = {"format": MANIFEST_FORMAT, **draft}
    manifest["preprocessing_digest"] = _preprocessing_digest(draft)
    manifest["weights"] = _with_weights(sources, draft, folder)
    if sources.training is not None:
        # As with the figures below: what a draft says beside it may be of other weights.
        manifest["training"] = _provenance(sources.training)
    if sources.evaluation is not None:
        manifest["evaluation"] = _with_evaluation(sources, sources.evaluation, folder)
        report = read_evaluation_report(sources.evaluation)
        # Those of a draft, often an earlier version's manifest, may be of other weights.
        manifest["metrics"] = _metrics(report)
    if sources.input_distribution is not None:
        _copy(sources.input_distribution, folder / DISTRIBUTION_NAME)
        digest = sha256_of(sources.input_distribution)
        manifest["input_distribution"] = {"file": DISTRIBUTION_NAME, "sha256": digest}
    if sources.readme is not None:
        _copy(sources.readme, folder / README_NAME)
    return manifest


def _preprocessing_digest(draft: Mapping[str, Any]) -> str:
    table = draft.get("input")
    try:
        digest = TensorRecipe.from_mapping(dict(table or {})).digest
    except (MedimgdError, ValueError, TypeError, KeyError) as error:
        raise PackageFault("draft", [f"input: {error}"]) from error
    stated = draft.get("preprocessing_digest", digest)
    if stated != digest:
        fault = (
            f"preprocessing_digest: the draft says {stated}, this installation's steps for [input] "
            f"have {digest}: the model was trained on other pixels than it would be shown"
        )
        raise PackageFault("draft", [fault])
    return digest


def _with_weights(sources: PackSources, draft: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    table = dict(draft.get("weights", {}))
    stated = str(table.get("file", ""))
    source = sources.weights or sources.draft.parent / stated
    if not source.is_file():
        if table.get("runtime") == "remote" and not stated:
            return table
        raise PackageFault("draft", [f"weights: there is no file {source}; name it (--weights)"])
    name = stated or source.name
    _copy(source, folder / Path(name).name)
    return {**table, "file": name, "sha256": sha256_of(source)}


def _with_evaluation(sources: PackSources, report: Path, folder: Path) -> dict[str, Any]:
    _copy(report, folder / EVALUATION_NAME)
    table = {"file": EVALUATION_NAME, "sha256": sha256_of(report)}
    if sources.page is not None:
        _copy(sources.page, folder / PAGE_NAME)
        table |= {"page": PAGE_NAME, "page_sha256": sha256_of(sources.page)}
    return table


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise PackageFault(f"{source}", [f"cannot be read: {error.strerror}"]) from error


def _provenance(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        plain = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise PackageFault(f"provenance {path.name}", [f"cannot be read: {error}"]) from error
    if not isinstance(plain, dict):
        raise PackageFault(f"provenance {path.name}", ["must be a table (TOML) or object (JSON)"])
    return {key: _toml(value) for key, value in plain.items() if value is not None}


def _toml(value: Any) -> Any:
    """Leave out what TOML has no word for."""
    if isinstance(value, dict):
        return {key: _toml(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_toml(item) for item in value if item is not None]
    return value


def _metrics(report: EvaluationReport) -> dict[str, Any]:
    """Return the figures as ``models show`` prints them; of several labels, of each."""
    known: dict[str, Any] = {
        "split": f"{report.split}: {number_of(report.images, 'image')} of "
        f"{number_of(report.patients, 'patient')}"
    }
    for label in report.labels:
        for name, figure in label.figures.items():
            values = {"value": figure.value, "low": figure.low, "high": figure.high}
            key = name if len(report.labels) == 1 else f"{label.name} {name}"
            known[key] = {k: round(v, 4) for k, v in values.items() if v is not None}
    return known


def _record_probes(
    sources: PackSources, manifest: dict[str, Any], package: ModelPackage, device: str
) -> tuple[ModelPackage, CheckReport]:
    """Let the package score its probes, and write down what it said."""
    folder = package.folder
    if not sources.probes:
        return package, check_package(folder, device=device)
    path = folder / PROBES_NAME
    write_probes(path, _tensors(sources.probes, package.recipe))
    trial = check_package(folder, device=device, probes=path)
    if not trial.passed:
        return package, trial
    manifest["probes"] = {
        "file": PROBES_NAME,
        "sha256": sha256_of(path),
        "tolerance": sources.tolerance,
        "runtime": f"{trial.runtime} on {trial.device}",
        "scores": [[round(score, 7) for score in row] for row in trial.probe_scores],
    }
    write_manifest(folder, manifest)
    again = load_package(folder)
    return again, replace(trial, probe_difference=0.0)


def _tensors(paths: Sequence[Path], recipe: TensorRecipe) -> list[FloatArray]:
    if len(paths) > MOST_PROBES:
        fault = f"at most {MOST_PROBES} are kept with a package; received {len(paths)}"
        raise PackageFault("probes", [fault])
    tensors, faults = [], []
    for path in paths:
        try:
            tensors.append(_tensor(path, recipe))
        except (MedimgdError, OSError, ValueError) as error:
            faults.append(f"{path}: {error}")
    if faults:
        raise PackageFault("probes", faults)
    return tensors


def _tensor(path: Path, recipe: TensorRecipe) -> FloatArray:
    if path.suffix == ".npy":
        stored: FloatArray = np.load(path, allow_pickle=False).astype(np.float32)
        return stored
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    if len(files) == 1 and file_kind(files[0]) in (FileKindValues.PNG, FileKindValues.JPEG):
        return image_values_to_tensor(read_film(files[0]), recipe)
    return build_tensor(files, recipe).values
