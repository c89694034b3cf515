"""From chosen networks to a finished package: saved, measured, packed.

Owns the order. A test split is looked at once, when nothing is left to be chosen.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from model.durable import publish
from model.errors import TrainingPlanFault
from model.input_distribution import DISTRIBUTION_NAME
from model.manifest_writing import toml_text, write_manifest
from model.package import MANIFEST_FORMAT, ModelPackage, load_package
from model.package_files import sha256_of
from model.packing import PackSources, pack
from model.runtimes.check import try_package
from model.training.ensemble import (
    name_layers_anew,
    packaged_networks,
    untrained,
)
from model.training.networks import mean_of
from model.training.plan import TrainingPlan
from model.training.run_choice import Chosen, labels_with_thresholds
from model.training.run_evaluation import evaluate_splits
from model.training.run_folder import RunFolder, write_json, write_text
from model.training.run_images import RunImages
from model.training.run_probes import write_probe_tensors
from model.training.watching import Watch

WEIGHTS_NAME = "weights.keras"
DRAFT_NAME = "draft.toml"
PROVENANCE_NAME = "training.json"
UNTRAINED_NAME = "untrained.keras"


def write_package(
    images: RunImages,
    chosen: Chosen,
    plan: TrainingPlan,
    folder: RunFolder,
    provenance: Mapping[str, object],
    watch: Watch,
) -> Path:
    """Save, measure and pack; return the package's folder.

    Raises
    ------
    PackageFault
        The package does not keep its own word; every fault is named.
    """
    weights = _saved(chosen.network, folder)
    draft = _draft(plan, chosen.labels)
    draft_path = write_text(folder.path(DRAFT_NAME), toml_text(draft))
    distribution = folder.path(DISTRIBUTION_NAME) if plan.has_input_distribution else None
    trial = load_package(_trial(draft, weights, distribution, plan, folder))
    report = evaluate_splits(images, trial, plan, folder, watch)
    probes = write_probe_tensors(folder.path("probes"), images, chosen, plan)
    out = folder.package / plan.words.at_version
    if out.exists():
        # Of an earlier attempt that did not come to its end.
        shutil.rmtree(out)
    packed = pack(
        PackSources(
            draft=draft_path,
            weights=weights,
            evaluation=report.json if report is not None else None,
            page=report.page if report is not None else None,
            training=write_json(folder.path(PROVENANCE_NAME), provenance),
            readme=plan.words.readme,
            input_distribution=distribution,
            probes=probes,
        ),
        out,
    )
    shutil.rmtree(trial.folder)
    watch.say(f"package: {packed.path} ({packed.size_bytes} bytes)")
    return packed.path


def _saved(network: Any, folder: RunFolder) -> Path:
    """Save the network once: Keras writes the time into the file, and its digest is its name."""
    path = folder.path(WEIGHTS_NAME)
    if not path.exists():
        part = folder.path(f"part-{WEIGHTS_NAME}")
        network.save(part)
        publish(part, path)
    return path


def _draft(plan: TrainingPlan, labels: list[dict[str, object]]) -> dict[str, object]:
    """Return the manifest without digests."""
    words = plan.words
    return {
        "name": words.name,
        "version": words.version,
        "title": words.title,
        "intended_use": words.intended_use,
        "limits": list(words.limits),
        "demonstration": words.demonstration,
        "weights": {"file": WEIGHTS_NAME, "runtime": "keras"},
        "output": {"kind": plan.head.output_kind, "size": plan.outputs},
        "input": plan.values["input"],
        **plan.copied,
        "labels": labels,
    }


def try_untrained(plan: TrainingPlan, folder: RunFolder) -> ModelPackage:
    """Make the package of networks that have learned nothing, and let it compute.

    What the finished package could not keep its word by is known before the first epoch.

    Returns
    -------
    ModelPackage
        As the finished one in all but weights, thresholds and figures; its files are gone.

    Raises
    ------
    TrainingPlanFault
        The configuration makes no package that loads and serves; every fault is named.
    """
    truth = np.array([[False] * plan.outputs, [True] * plan.outputs])
    labels = labels_with_thresholds(plan, truth, np.where(truth, 0.75, 0.25))
    # The weights are of no interest here: a backbone's file is not read.
    drawn = replace(plan, network=replace(plan.network, weights=None))
    name_layers_anew()
    network = mean_of([untrained(drawn) for _ in range(packaged_networks(plan))])
    weights = folder.path(UNTRAINED_NAME)
    network.save(weights)
    place = _trial(_draft(plan, labels), weights, None, plan, folder)
    weights.unlink()
    try:
        trial = try_package(place)
        if not trial.passed:
            raise TrainingPlanFault(f"training configuration {plan.path.name}", trial.faults)
        return load_package(place)
    finally:
        shutil.rmtree(place)


def _trial(
    draft: Mapping[str, object],
    weights: Path,
    distribution: Path | None,
    plan: TrainingPlan,
    folder: RunFolder,
) -> Path:
    """Write the package as it will be, without the figures that are yet to be measured."""
    place = folder.path("trial") / plan.words.at_version
    place.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights, place / WEIGHTS_NAME)
    manifest = {
        "format": MANIFEST_FORMAT,
        **draft,
        "preprocessing_digest": plan.recipe.digest,
        "weights": {"file": WEIGHTS_NAME, "runtime": "keras", "sha256": sha256_of(weights)},
    }
    if distribution is not None:
        shutil.copyfile(distribution, place / DISTRIBUTION_NAME)
        table = {"file": DISTRIBUTION_NAME, "sha256": sha256_of(distribution)}
        manifest["input_distribution"] = table
    write_manifest(place, manifest)
    return place
