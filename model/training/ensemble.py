"""Which networks a run trains, in which order, and which of them become the package.

Owns the list of networks and what a cross-validation says. The loop itself is ``fit``'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from model.durable import make_folders
from model.errors import TrainingStopped
from model.training.dataset import SplitValues
from model.training.device import FULL, dtype_policy
from model.training.fit import FitJob, Fitted, fit_network
from model.training.fit_steps import answering
from model.training.folds import folds_of, spread
from model.training.measures import figures_of
from model.training.networks import build_network, put_weights
from model.training.plan import TrainingPlan
from model.training.plan_fit import FoldOverValues, FoldPlan, FoldUseValues
from model.training.run_folder import FOLDS_NAME, RunFolder
from model.training.run_images import RunImages
from model.training.targets import FloatArray, IntArray
from model.training.watching import Watch


@dataclass(frozen=True, slots=True)
class Division:
    """The images of one network."""

    name: str
    training: IntArray
    judging: IntArray
    held_out: IntArray
    """Measured when it is trained; none without folds."""
    is_packaged: bool
    seed_offset: int


@dataclass(frozen=True, slots=True)
class Trained:
    """All networks of a run."""

    members: tuple[Fitted, ...]
    """Those that become the package."""
    folds: dict[str, object]
    """What the cross-validation says; empty without one."""
    held_out: tuple[IntArray, FloatArray] | None
    """Places and logits of images that their network has not learned from, where the networks of
    the package have learned from all of validation between them."""


def train_networks(
    images: RunImages, plan: TrainingPlan, folder: RunFolder, policy: str, watch: Watch
) -> Trained:
    """Train every network that the plan asks for, those of the folds first."""
    fitted: dict[str, Fitted] = {}
    measured: list[tuple[Division, FloatArray]] = []
    divisions = divisions_of(images, plan)
    for division in divisions:
        fitted[division.name] = _trained(division, images, plan, folder, policy, watch)
        if len(division.held_out):
            part = images.part(division.held_out)
            network = network_of(plan, fitted[division.name])
            measured.append((division, answering(network)(part)))
    folds: dict[str, object] = {}
    if plan.folds is not None:
        folds = _fold_report(measured, fitted, images, plan, plan.folds)
        folder.write_json(FOLDS_NAME, folds)
        watch.say(_spread_in_words([_figures(images, plan, *each) for each in measured]))
    members = tuple(fitted[each.name] for each in divisions if each.is_packaged)
    return Trained(members, folds, _independent(measured, plan))


def divisions_of(images: RunImages, plan: TrainingPlan) -> list[Division]:
    """Return what each network learns from, is judged by and is measured on."""
    train, validation = (images.places(s) for s in (SplitValues.TRAIN, SplitValues.VALIDATION))
    nothing = np.array([], dtype=np.int64)
    found: list[Division] = []
    if plan.folds is not None:
        is_both = plan.folds.over is FoldOverValues.BOTH
        pool = np.concatenate([train, validation]) if is_both else train
        pooled = [images.images[place] for place in pool]
        found = [
            Division(
                fold.name,
                pool[fold.training],
                # Chosen and measured on the same images only where there are no others.
                pool[fold.held_out] if is_both else validation,
                pool[fold.held_out],
                plan.folds.use is FoldUseValues.ENSEMBLE,
                number,
            )
            for number, fold in enumerate(
                folds_of(pooled, images.targets[pool], plan.folds.count, plan.fit.seed)
            )
        ]
    if not any(division.is_packaged for division in found):
        found += [
            Division(f"seed-{number}", train, validation, nothing, True, number)
            for number in range(plan.members)
        ]
    return found


def _trained(
    division: Division,
    images: RunImages,
    plan: TrainingPlan,
    folder: RunFolder,
    policy: str,
    watch: Watch,
) -> Fitted:
    """Train one network, unless somebody asked to stop while the images were read."""
    seeded = plan.with_options(seed=plan.fit.seed + division.seed_offset)
    job = FitJob(
        name=division.name,
        plan=seeded,
        training=images.part(division.training),
        judging=images.part(division.judging),
        folder=make_folders(folder.network(division.name)),
        events=folder.tensorboard / division.name,
    )
    if watch.should_stop():
        raise TrainingStopped(f"stopped before {division.name}")
    fitted = fit_network(job, lambda: untrained(plan, policy), watch)
    watch.say(f"{division.name}: epoch {fitted.chosen_epoch} is kept")
    return fitted


def packaged_networks(plan: TrainingPlan) -> int:
    """Return how many networks become the package."""
    is_of_folds = plan.folds is not None and plan.folds.use is FoldUseValues.ENSEMBLE
    return plan.folds.count if plan.folds is not None and is_of_folds else plan.members


def name_layers_anew() -> None:
    """Let the layers that are made next bear the same names, whatever was made before.

    Keras numbers them through the process; a package may name its layers.
    """
    keras.utils.clear_session(free_memory=False)


def untrained(plan: TrainingPlan, policy: str = FULL) -> Any:
    """Return the plan's network with fresh weights."""
    with dtype_policy(policy):
        return build_network(plan.network, plan.recipe.shape, plan.outputs)


def network_of(plan: TrainingPlan, fitted: Fitted) -> Any:
    """Return a trained network that computes in float32, as it will in service."""
    # Its weights come from the run; a backbone's file is not read again.
    network = untrained(replace(plan, network=replace(plan.network, weights=None)))
    put_weights(network, fitted.weights)
    return network


def _figures(
    images: RunImages, plan: TrainingPlan, division: Division, logits: FloatArray
) -> dict[str, float]:
    return figures_of(plan.head.kind, images.targets[division.held_out], logits)


def _fold_report(
    measured: Sequence[tuple[Division, FloatArray]],
    fitted: Mapping[str, Fitted],
    images: RunImages,
    plan: TrainingPlan,
    folds: FoldPlan,
) -> dict[str, object]:
    """Return figures of every fold on the images it has not learned from."""
    figures = [_figures(images, plan, *each) for each in measured]
    places = np.concatenate([division.held_out for division, _ in measured])
    pooled = np.concatenate([logits for _, logits in measured])
    is_both = folds.over is FoldOverValues.BOTH
    return {
        "folds": [
            {
                "name": division.name,
                "images": len(division.held_out),
                "patients": len({images.images[place].cluster for place in division.held_out}),
                "chosen_epoch": fitted[division.name].chosen_epoch,
                "figures": _rounded(each),
            }
            for (division, _), each in zip(measured, figures, strict=True)
        ],
        "spread": spread(figures),
        "pooled": _rounded(figures_of(plan.head.kind, images.targets[places], pooled)),
        "chosen_on": "the images held out, which flatters" if is_both else "validation",
        "over": str(folds.over),
        "use": str(folds.use),
    }


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}


def _independent(
    measured: Sequence[tuple[Division, FloatArray]], plan: TrainingPlan
) -> tuple[IntArray, FloatArray] | None:
    folds = plan.folds
    if folds is None or folds.over is not FoldOverValues.BOTH:
        return None
    if folds.use is not FoldUseValues.ENSEMBLE:
        return None
    places = np.concatenate([division.held_out for division, _ in measured])
    return places, np.concatenate([logits for _, logits in measured])


def _spread_in_words(figures: Sequence[Mapping[str, float]]) -> str:
    words = ", ".join(
        f"{name} {each['mean']:.4f} ± {each['deviation']:.4f}"
        for name, each in spread(figures).items()
    )
    return f"folds, each on the patients it has not seen: {words}"
