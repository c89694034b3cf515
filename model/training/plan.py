"""The configuration of a training as one record, read with every fault named at once.

Owns which tables there are and how they have to fit each other. Imports no network library: a
wrong configuration is refused within the blink of an eye.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dicom_io.tensors import TensorRecipe
from model.errors import EvaluationFault, TrainingPlanFault
from model.evaluation.thresholds import parse_rule
from model.manifest import LARGEST_MANIFEST_BYTES, ManifestTable
from model.package_files import sha256_of
from model.training.augmentation_ranges import AugmentationRanges
from model.training.heads import HeadValues
from model.training.network_plan import NetworkPlan, read_network_plan
from model.training.optimiser_plan import OptimiserPlan, read_optimiser_plan
from model.training.plan_data import DataPlan, read_data_plan, read_recipe
from model.training.plan_fit import (
    CalibrationPlan,
    FitPlan,
    FoldPlan,
    HeadPlan,
    ThresholdPlan,
    read_calibration,
    read_fit,
    read_folds,
    read_head,
    read_members,
)
from model.training.plan_words import (
    LabelPlan,
    PackageWords,
    ProbePlan,
    read_copied,
    read_labels,
    read_probes,
    read_words,
)


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Everything a training is made of besides the images."""

    path: Path
    """The file it was read from."""
    values: Mapping[str, object]
    """As the file gives them, and the command line in their place."""
    words: PackageWords
    data: DataPlan
    recipe: TensorRecipe
    network: NetworkPlan
    head: HeadPlan
    fit: FitPlan
    optimiser: OptimiserPlan
    augmentation: AugmentationRanges
    folds: FoldPlan | None
    members: int
    calibration: CalibrationPlan | None
    threshold: ThresholdPlan
    labels: tuple[LabelPlan, ...]
    probes: ProbePlan
    copied: Mapping[str, object]
    """Tables that reach the manifest as they are."""
    has_input_distribution: bool
    """The package shall know what its inputs look like, and refuse others."""

    @property
    def outputs(self) -> int:
        """How many numbers the network answers."""
        if self.head.kind is HeadValues.MULTI_CLASS:
            return len(self.data.classes)
        return len(self.labels)

    @property
    def digest(self) -> str:
        """Over everything that decides about the weights: a run goes on with the same only.

        Where a file lies plays no part; what a backbone's file holds does.
        """
        tables = [_decisive(self.values, self.network.weights), self.fit.as_mapping()]
        text = json.dumps(tables, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def with_options(self, *, epochs: int | None = None, seed: int | None = None) -> TrainingPlan:
        """Return the plan with what the command line says otherwise; itself where that is none."""
        stated = {"epochs": epochs, "seed": seed}
        options: dict[str, Any] = {
            key: n for key, n in stated.items() if n not in (None, getattr(self.fit, key))
        }
        if not options:
            return self
        values = {**self.values, "fit": {**table_of(self.values, "fit"), **options}}
        return replace(self, values=values, fit=replace(self.fit, **options))


def _decisive(values: Mapping[str, object], backbone: Path | None) -> dict[str, object]:
    """Return the tables without what says no more than where a file lies."""
    decisive = dict(values)
    decisive["data"] = {k: v for k, v in table_of(values, "data").items() if k != "source"}
    if "readme" in table_of(values, "package"):
        package = table_of(values, "package")
        decisive["package"] = {**package, "readme": Path(str(package["readme"])).name}
    if backbone is not None:
        decisive["network"] = {**table_of(values, "network"), "weights": sha256_of(backbone)}
    return decisive


def table_of(values: Mapping[str, object], name: str) -> dict[str, Any]:
    """Return one table of a configuration; an empty one where it is absent."""
    table: Any = values.get(name, {})
    return dict(table)


def read_plan(path: Path) -> TrainingPlan:
    """Read a training's configuration.

    Raises
    ------
    TrainingPlanFault
        With every fault: where it stands, the rule, what was received.
    """
    faults: list[str] = []
    values = _read_toml(path)
    plan = _read(path, ManifestTable(values, "", faults), values)
    if faults:
        raise TrainingPlanFault(f"training configuration {path.name}", faults)
    return plan


def _read_toml(path: Path) -> dict[str, object]:
    name = f"training configuration {path.name}"
    try:
        if path.stat().st_size > LARGEST_MANIFEST_BYTES:
            raise TrainingPlanFault(name, [f"is larger than {LARGEST_MANIFEST_BYTES} bytes"])
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingPlanFault(name, [f"cannot be read: {error.strerror}"]) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise TrainingPlanFault(name, [f"is not TOML: {error}"]) from error


def _read(path: Path, root: ManifestTable, values: Mapping[str, object]) -> TrainingPlan:
    folder = path.parent
    data = read_data_plan(root.table("data"), folder)
    folds, labels = read_folds(root), read_labels(root)
    head = read_head(root.table("head", required=False), data.classes)
    _check_labels(root, head, data, labels)
    plan = TrainingPlan(
        path=path,
        values=values,
        words=read_words(root.table("package"), folder),
        data=data,
        recipe=read_recipe(root),
        network=read_network_plan(root.table("network", required=False), folder),
        head=head,
        fit=read_fit(root.table("fit", required=False)),
        optimiser=read_optimiser_plan(root.table("optimiser", required=False)),
        augmentation=AugmentationRanges.from_table(root.table("augmentation", required=False)),
        folds=folds,
        members=read_members(root, folds),
        calibration=read_calibration(root),
        threshold=_read_threshold(root, labels),
        labels=labels,
        probes=read_probes(root.table("probes", required=False)),
        copied=read_copied(root, labels, head.output_kind),
        has_input_distribution=root.has("input_distribution"),
    )
    if "regions" in plan.copied and not plan.network.has_map:
        root.faults.append("regions: need a network that says where: set network.map = true")
    root.table("input_distribution", required=False).refuse_unknown()
    root.refuse_unknown()
    return plan


def _check_labels(
    root: ManifestTable, head: HeadPlan, data: DataPlan, labels: tuple[LabelPlan, ...]
) -> None:
    """Add faults where labels, classes and head do not fit each other."""
    claimed = {name for label in labels for name in label.classes}
    for name in sorted(claimed - set(data.classes)):
        root.faults.append(f"labels: there is no class {name} in data.classes")
    if head.kind is HeadValues.BINARY and len(labels) != 1:
        root.faults.append(f"labels: a binary head has one label; received {len(labels)}")
    if head.kind is HeadValues.MULTI_CLASS and len(data.classes) < 2:
        root.faults.append("data.classes: a multi-class head needs two classes at least")
    is_simple = all(len(label.classes) == 1 for label in labels)
    is_pair = head.kind is not HeadValues.BINARY or len(data.classes) == 2
    if head.stated is not None and not (is_simple and is_pair):
        root.faults.append("head.class_weights: can be stated only where each label is for one "
                           "class, and a binary head has two")  # fmt: skip
    if head.kind is HeadValues.MULTI_CLASS and any(len(lab.classes) != 1 for lab in labels):
        root.faults.append("labels: of a multi-class head each is for one class")


def _read_threshold(root: ManifestTable, labels: tuple[LabelPlan, ...]) -> ThresholdPlan:
    """Read ``[threshold]`` and check every rule that is stated anywhere."""
    table = root.table("threshold", required=False)
    plan = ThresholdPlan(
        table.text("rule", default=ThresholdPlan().rule), table.text("band", default="")
    )
    table.refuse_unknown()
    stated = [("threshold.rule", plan.rule), ("threshold.band", plan.band)]
    stated += [(f"labels[{n}].rule", label.rule) for n, label in enumerate(labels)]
    for place, rule in stated:
        try:
            if rule:
                parse_rule(rule)
        except EvaluationFault as fault:
            root.faults.append(f"{place}: {str(fault).partition(': ')[2]}")
    return plan
