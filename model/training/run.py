"""``medimgd train``: from a configuration and labelled images to a run folder and a package.

Owns the order of the steps and what a run folder must be like to be gone on with. Everything it
calls can be called again: a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.durable import make_folders
from model.errors import TrainingPlanFault, TrainingRunFault
from model.package_files import sha256_of
from model.training.dataset import SplitValues
from model.training.device import CPU, MIXED, Environment, prepare
from model.training.ensemble import Trained, train_networks
from model.training.network_plan import NetworkKindValues
from model.training.plan import TrainingPlan
from model.training.run_choice import Chosen, choose
from model.training.run_config import write_config
from model.training.run_evaluation import require_measurable
from model.training.run_folder import (
    CONFIG_NAME,
    ENVIRONMENT_NAME,
    LOG_NAME,
    RUN_NAME,
    RunFolder,
    held,
    logged_to,
    read_json,
)
from model.training.run_images import RunImages, gather_images, write_distribution
from model.training.run_package import try_untrained, write_package
from model.training.sources import open_dataset
from model.training.watching import Watch

COMMAND = "medimgd train"


@dataclass(frozen=True, slots=True)
class RunWishes:
    """What the command line says besides the configuration."""

    out: Path
    """The run folder."""
    data: Path | None = None
    """In the place of the configuration's source."""
    resume: bool = False
    threads: int = 0
    """Of TensorFlow's operations; 0 leaves the number to TensorFlow."""


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """What a training came to."""

    folder: RunFolder
    package: Path


def run_training(plan: TrainingPlan, wishes: RunWishes, watch: Watch) -> FinishedRun:
    """Train, or go on with a training, and pack what comes of it.

    Parameters
    ----------
    plan : TrainingPlan
    wishes : RunWishes
    watch : Watch

    Raises
    ------
    TrainingPlanFault
        No data are named, or the configuration makes no package that loads and serves, or asks
        for what this device computes wrongly.
    TrainingRunFault
        The folder holds another run, one that nobody asked to go on with, or one that was begun
        on another device, in another precision or with other libraries.
    DataGateFault, TrainingDataFault, EvaluationFault
        The data are not fit to be learned from, or the package could not be measured by them.
    TrainingStopped
        Somebody asked for it; the run can be gone on with.
    """
    source = wishes.data or plan.data.source
    if source is None:
        fault = "data.source: must name a folder, a zip or a CSV manifest, here or with --data"
        raise TrainingPlanFault(f"training configuration {plan.path.name}", [fault])
    folder = RunFolder(wishes.out)
    known = _opened(folder, plan, source, wishes)
    with held(folder), logged_to(folder.path(LOG_NAME)):
        finished = known.get("package")
        if finished and Path(str(finished)).is_dir():
            watch.say(f"finished already: {finished}")
            return FinishedRun(folder, Path(str(finished)))
        environment = prepare(plan.fit.precision, wishes.threads)
        _require_same(environment, folder)
        _require_right_gradients(environment, plan)
        watch.say(f"training on {environment.device}, {environment.dtype_policy}: {folder.root}")
        untrained = try_untrained(plan, folder)
        with open_dataset(source) as dataset:
            images = gather_images(dataset, plan, folder, watch, known.get("splits_sha256"))
            require_measurable(images, untrained, plan)
            folder.write_json(ENVIRONMENT_NAME, environment.as_mapping())
            folder.write_json(RUN_NAME, {**known, "splits_sha256": images.digest})
            write_distribution(images, plan, folder)
            return _trained(images, plan, folder, environment, watch)


def _opened(
    folder: RunFolder, plan: TrainingPlan, source: Path, wishes: RunWishes
) -> dict[str, Any]:
    """Make the run folder, or check that it is the one to go on with; return what it says."""
    known = _gone_on_with(folder, plan) if wishes.resume else _begun(folder, plan)
    # The record comes first: a folder that has it can be gone on with, whatever else it lacks.
    if not folder.path(CONFIG_NAME).exists():
        write_config(plan, source, folder)
    return known


def _begun(folder: RunFolder, plan: TrainingPlan) -> dict[str, Any]:
    if folder.is_in_use:
        raise TrainingRunFault(
            f"{folder.root}: is there already; go on with it (--resume), name another folder "
            f"(--out), or remove it"
        )
    make_folders(folder.root)
    known = {"plan_digest": plan.digest, "epochs": plan.fit.epochs, "seed": plan.fit.seed}
    folder.write_json(RUN_NAME, known)
    return known


def _gone_on_with(folder: RunFolder, plan: TrainingPlan) -> dict[str, Any]:
    record = folder.path(RUN_NAME)
    if not record.is_file():
        raise TrainingRunFault(f"{folder.root}: holds no run to go on with; leave out --resume")
    known = read_json(record)
    if known.get("plan_digest") != plan.digest:
        raise TrainingRunFault(
            f"{folder.root}: was begun with another configuration, another backbone's file, "
            f"--epochs ({known.get('epochs')}) or --seed ({known.get('seed')}); go on with those "
            f"({CONFIG_NAME} in the folder has them), or train into a new folder"
        )
    return known


def _require_same(environment: Environment, folder: RunFolder) -> None:
    """Refuse to go on where other numbers are computed: the weights would be of neither run."""
    record = folder.path(ENVIRONMENT_NAME)
    if not record.is_file():
        return
    differences = environment.differences(read_json(record))
    if differences:
        raise TrainingRunFault(
            f"{folder.root}: was begun where other numbers are computed "
            f"({'; '.join(differences)}): what went on here would end in other weights; go on "
            f"where it was begun, or train into a new folder"
        )


def _require_right_gradients(environment: Environment, plan: TrainingPlan) -> None:
    """Refuse what TensorFlow computes wrongly.

    oneDNN's gradients of 3-D convolutions over few slices are, in bfloat16, several times too
    large or no numbers, and others in each run (TensorFlow 2.21).
    """
    is_mixed_on_cpu = environment.device == CPU and environment.dtype_policy == MIXED
    if is_mixed_on_cpu and plan.network.kind is NetworkKindValues.COMPACT_3D:
        fault = (
            "fit.precision: on a CPU the gradients of compact-3d are wrong in bfloat16; take auto "
            "or off, or a GPU"
        )
        raise TrainingPlanFault(f"training configuration {plan.path.name}", [fault])


def _trained(
    images: RunImages,
    plan: TrainingPlan,
    folder: RunFolder,
    environment: Environment,
    watch: Watch,
) -> FinishedRun:
    started = time.monotonic()
    trained = train_networks(images, plan, folder, environment.dtype_policy, watch)
    chosen = choose(images, trained, plan)
    facts = _provenance(images, plan, trained, chosen, environment)
    package = write_package(images, chosen, plan, folder, facts, watch)
    record = read_json(folder.path(RUN_NAME))
    folder.write_json(RUN_NAME, {**record, "package": str(package.resolve())})
    watch.say(f"finished after {time.monotonic() - started:.0f} s")
    return FinishedRun(folder, package)


def _provenance(
    images: RunImages,
    plan: TrainingPlan,
    trained: Trained,
    chosen: Chosen,
    environment: Environment,
) -> dict[str, object]:
    """Return where the weights come from, for the manifest's ``[training]``."""
    allowed = {str(check): reason for check, reason in plan.data.allowed.items()}
    backbone = plan.network.weights
    courses = [fitted.course for fitted in trained.members]
    return {
        **({"source": plan.words.source} if plan.words.source else {}),
        **({"licence": plan.words.licence} if plan.words.licence else {}),
        "command": f"{COMMAND} {plan.path.name}",
        "configuration_sha256": plan.digest,
        "splits_sha256": images.digest,
        "images": "; ".join(_counted(images, split, plan) for split in images.dataset.splits),
        "split": "as the data have it" if allowed else images.gate.split_in_words,
        **({"allowed": allowed} if allowed else {}),
        "members": len(trained.members),
        "networks": [fitted.name for fitted in trained.members],
        "parameters": int(chosen.network.count_params()),
        "chosen_epochs": [fitted.chosen_epoch for fitted in trained.members],
        "seconds": round(sum(course.seconds for course in courses)),
        "calibration": _calibration_in_words(plan, trained, chosen),
        "threshold_rule": _threshold_in_words(plan, trained),
        **({"folds": trained.folds} if trained.folds else {}),
        "network": plan.network.as_mapping(),
        **({"backbone_sha256": sha256_of(backbone)} if backbone is not None else {}),
        "head": {"kind": str(plan.head.kind), "label_smoothing": plan.head.label_smoothing,
                 "class_weights": plan.head.stated or plan.head.class_weights},
        "fit": plan.fit.as_mapping(),
        "optimiser": plan.optimiser.as_mapping(),
        "augmentation": plan.augmentation.as_mapping(),
        "environment": environment.as_mapping(),
    }  # fmt: skip


def _counted(images: RunImages, split: SplitValues, plan: TrainingPlan) -> str:
    counts = images.dataset.class_counts(split)
    return f"{split}: " + ", ".join(f"{counts.get(n, 0)} {n}" for n in plan.data.classes)


def _chosen_on(trained: Trained) -> str:
    return "validation" if trained.held_out is None else "the images that each fold held out"


def _calibration_in_words(plan: TrainingPlan, trained: Trained, chosen: Chosen) -> str:
    if plan.calibration is None:
        return "none"
    pairs = zip(chosen.scale, chosen.offset, strict=True)
    words = "; ".join(f"logit * {scale:.4f} + {offset:.4f}" for scale, offset in pairs)
    weighing = ", every class weighing the same" * plan.calibration.is_balanced
    return (
        f"{words}; fitted on {_chosen_on(trained)}{weighing}, the scale at most "
        f"{plan.calibration.highest_scale:g}"
    )


def _threshold_in_words(plan: TrainingPlan, trained: Trained) -> str:
    rules = {label.name: label.rule for label in plan.labels if label.rule}
    own = "".join(f"; {name}: {rule}" for name, rule in rules.items())
    band = f"; undetermined between it and {plan.threshold.band}" * bool(plan.threshold.band)
    return f"{plan.threshold.rule}{own}{band}; chosen on {_chosen_on(trained)}"
