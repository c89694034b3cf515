"""A model package: a folder with a manifest, weights and what both promise.

Owns the manifest's fields and the check that a folder keeps its word. Loads no weights and no
network library, so that every process can read the catalogue; ``model.runtimes`` does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dicom_io.errors import MedimgdError
from dicom_io.tensors import TensorRecipe
from dicom_io.vocabulary import ModelIdentity
from model.conditions import keywords
from model.errors import PackageFault
from model.explanation_plan import ExplanationPlan, read_explanation_plan
from model.input_distribution import InputDistribution, read_distribution_file
from model.labels import Label, Output, read_labels
from model.manifest import MANIFEST_NAME, ManifestTable, read_manifest
from model.package_files import (
    DIGEST_PATTERN,
    EvaluationFiles,
    ProbeFile,
    read_evaluation_files,
    read_file,
    read_probe_file,
    sha256_of,
)
from model.region_plan import RegionPlan, read_region_plan
from model.runtime_plan import RuntimePlan, RuntimeValues, read_runtime_plan
from model.selection_rules import ContractClause, SelectionRule, read_clause, read_selection

MANIFEST_FORMAT = 1
NAME_PATTERN = r"[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?"
VERSION_PATTERN = r"\d{1,6}\.\d{1,6}\.\d{1,6}(?:[-+][0-9A-Za-z.-]{1,24})?"


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """Everything a manifest says, checked."""

    folder: Path
    identity: ModelIdentity
    recipe: TensorRecipe
    output: Output
    labels: tuple[Label, ...]
    selection: SelectionRule
    contract: tuple[ContractClause, ...]
    weights_path: Path
    """The manifest itself where a remote server holds the weights."""
    runtime: RuntimePlan
    preprocessing_digest: str
    explanation: ExplanationPlan = field(default_factory=ExplanationPlan)
    regions: RegionPlan | None = None
    """None where the network does not say where a finding lies."""
    manifest_sha256: str = ""
    """Stands for the whole package: the manifest names the digests of all other files."""
    evaluation: EvaluationFiles | None = None
    probes: ProbeFile | None = None
    input_distribution: InputDistribution | None = field(default=None, repr=False, compare=False)
    """What its inputs look like; ``manifest_sha256`` stands for it in comparisons."""
    limits: tuple[str, ...] = ()
    metrics: Mapping[str, object] = field(default_factory=dict)
    training: Mapping[str, object] = field(default_factory=dict)
    conversion: Mapping[str, object] = field(default_factory=dict)
    """Which package it was converted from, by what, and how far the answers differ."""

    @property
    def at_version(self) -> str:
        """``name@version``."""
        return self.identity.at_version

    @property
    def converted_from(self) -> tuple[str, ...]:
        """SHA-256 of the weights these were proven to answer as, oldest first; empty for none.

        ``[conversion]`` speaks of the weights that stand in it: kept beside others it says
        nothing.
        """
        told = self.conversion
        if told.get("converted_weights_sha256") != self.identity.weights_sha256:
            return ()
        earlier = told.get("earlier_weights_sha256")
        links = [*(earlier if isinstance(earlier, list) else ()), told.get("source_weights_sha256")]
        return tuple(each for each in links if isinstance(each, str))

    @property
    def keywords(self) -> frozenset[str]:
        """The attributes that selection, ranking and contract look at."""
        preferred = [key.prefer for key in self.selection.rank if key.prefer is not None]
        clauses = [clause.require for clause in self.contract]
        ranked = {key.attribute for key in self.selection.rank if key.attribute}
        return keywords(self.selection.where, *preferred, *clauses) | ranked


def load_package(folder: Path) -> ModelPackage:
    """Read and check a package folder, its weights' digest included.

    Raises
    ------
    PackageFault
        With every fault found, not only the first.
    """
    faults: list[str] = []
    manifest = read_manifest(folder, faults)
    package = _read_package(folder, manifest) if manifest is not None else None
    if package is None or faults:
        raise PackageFault(f"model package {folder.name}", faults)
    return package


def _read_package(folder: Path, manifest: ManifestTable) -> ModelPackage | None:
    manifest.whole_number("format", MANIFEST_FORMAT, MANIFEST_FORMAT)
    weights = manifest.table("weights")
    runtime = read_runtime_plan(manifest, weights)
    weights_path, digest = _read_weights(folder, weights, runtime)
    identity = _read_identity(manifest, digest)
    labels, output = read_labels(manifest)
    recipe = _read_recipe(manifest)
    preprocessing_digest = _read_preprocessing_digest(manifest, recipe)
    selection = read_selection(manifest.table("selection"))
    contract = tuple(
        clause
        for table in manifest.tables("contract", required=False)
        if (clause := read_clause(table)) is not None
    )
    package = None
    if recipe is not None and selection is not None:
        package = ModelPackage(
            folder=folder,
            identity=identity,
            recipe=recipe,
            output=output,
            labels=labels,
            selection=selection,
            contract=contract,
            weights_path=weights_path,
            runtime=runtime,
            preprocessing_digest=preprocessing_digest,
            manifest_sha256=sha256_of(folder / MANIFEST_NAME),
            evaluation=read_evaluation_files(folder, manifest),
            probes=read_probe_file(folder, manifest, len(labels)),
            input_distribution=read_distribution_file(folder, manifest, recipe),
            explanation=read_explanation_plan(manifest.table("explanation", required=False)),
            regions=read_region_plan(manifest, labels, output.kind),
            limits=manifest.texts("limits"),
            metrics=manifest.table("metrics", required=False).plain(),
            training=manifest.table("training", required=False).plain(),
            conversion=manifest.table("conversion", required=False).plain(),
        )
        weights.refuse_unknown()
        manifest.refuse_unknown()
    return package


def _read_identity(manifest: ManifestTable, weights_sha256: str) -> ModelIdentity:
    return ModelIdentity(
        name=manifest.text(
            "name", NAME_PATTERN, "must be lower case letters, digits and hyphens, at most 48"
        ),
        version=manifest.text(
            "version", VERSION_PATTERN, "must be a version such as 1.0.0 or 1.0.0-rc1"
        ),
        weights_sha256=weights_sha256,
        title=manifest.text("title", r"[^\n]{1,64}", "must be one line of at most 64 characters"),
        intended_use=manifest.text("intended_use"),
        demonstration=manifest.flag("demonstration", default=False),
    )


def _read_weights(folder: Path, weights: ManifestTable, runtime: RuntimePlan) -> tuple[Path, str]:
    """Check that the file is inside the folder and is the one the manifest means.

    Weights that a remote server holds are stated by their digest only: it names the model in
    reports, and nobody can check it from here.
    """
    if runtime.kind is RuntimeValues.REMOTE and not weights.has("file"):
        rule = "must be 64 hexadecimal digits, lower case: those of the weights the server holds"
        return folder / MANIFEST_NAME, weights.text("sha256", DIGEST_PATTERN, rule)
    return read_file(folder, weights, "file", "sha256")


def _read_recipe(manifest: ManifestTable) -> TensorRecipe | None:
    table = manifest.table("input")
    if not table.plain():
        return None
    try:
        return TensorRecipe.from_mapping(dict(table.plain()))
    except (MedimgdError, ValueError, TypeError, KeyError) as error:
        manifest.faults.append(f"input: {error}")
        return None


def _read_preprocessing_digest(manifest: ManifestTable, recipe: TensorRecipe | None) -> str:
    rule = "must be 64 hexadecimal digits, lower case"
    stated = manifest.text("preprocessing_digest", DIGEST_PATTERN, rule)
    if stated and recipe is not None and stated != recipe.digest:
        manifest.add_fault(
            "preprocessing_digest",
            f"this installation's steps for [input] have the digest {recipe.digest}: the model "
            f"was trained on other pixels than it would be shown; train it again or install "
            f"the version of medimgd it was made with",
        )
    return stated
