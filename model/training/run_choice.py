"""What is chosen on images that the networks have not learned from: calibration and thresholds.

Owns the order: averaged, calibrated, then judged by each label's rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from model.evaluation.thresholds import choose_threshold, parse_rule
from model.findings import FloatArray
from model.training.dataset import SplitValues
from model.training.ensemble import Trained, name_layers_anew, network_of
from model.training.fit_steps import answering
from model.training.heads import HeadValues
from model.training.losses import probabilities_of
from model.training.measures import Array, fitted_calibration
from model.training.networks import calibrate, mean_of
from model.training.plan import TrainingPlan
from model.training.run_images import RunImages
from model.training.targets import IntArray


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was chosen on images that the network has not learned from."""

    network: Any
    """keras.Model, calibrated."""
    scale: Array
    offset: Array
    labels: list[dict[str, object]]
    """As the manifest has them."""
    scores: Array
    """(image, outputs), calibrated."""
    places: IntArray
    """Of the images the scores belong to."""


def choose(images: RunImages, trained: Trained, plan: TrainingPlan) -> Chosen:
    """Average the networks, fold the calibration into them and choose the thresholds.

    Raises
    ------
    EvaluationFault
        A label has no image, or only images, among those it is chosen on.
    """
    name_layers_anew()
    members = [network_of(plan, fitted) for fitted in trained.members]
    network = mean_of(members)
    places = images.places(SplitValues.VALIDATION)
    logits: FloatArray
    if trained.held_out is not None:
        places, logits = trained.held_out
    else:
        logits = answering(network)(images.part(places))
    targets = images.targets[places]
    scale, offset = np.ones(plan.outputs), np.zeros(plan.outputs)
    if plan.calibration is not None:
        scale, offset = fitted_calibration(
            plan.head.kind,
            targets,
            logits,
            highest_scale=plan.calibration.highest_scale,
            is_balanced=plan.calibration.is_balanced,
        )
        calibrate(members, scale, offset)
    if trained.held_out is None:
        logits = answering(network)(images.part(places))
    else:
        logits = (logits * scale + offset).astype(np.float32)
    scores = probabilities_of(plan.head.kind, logits).astype(np.float64)
    labels = labels_with_thresholds(plan, targets >= 0.5, scores)
    return Chosen(network, scale, offset, labels, scores, places)


def labels_with_thresholds(
    plan: TrainingPlan, truth: Any, scores: Array
) -> list[dict[str, object]]:
    """Return the labels as the manifest has them, thresholds and bands chosen by their rules.

    Parameters
    ----------
    plan : TrainingPlan
    truth, scores : ndarray
        (image, outputs): bool, and probabilities in [0, 1].
    """
    found: list[dict[str, object]] = []
    for number, label in enumerate(plan.labels):
        output = output_of(plan, number)
        column = (label.name, truth[:, output], scores[:, output])
        rule = parse_rule(label.rule or plan.threshold.rule)
        threshold = choose_threshold(*column, rule).threshold
        table: dict[str, object] = {
            "name": label.name,
            "code": [label.code.value, label.code.scheme, label.code.meaning],
            "threshold": threshold,
            "index": output,
        }
        if label.site is not None:
            table["site"] = [label.site.value, label.site.scheme, label.site.meaning]
        if plan.threshold.band:
            other = choose_threshold(*column, parse_rule(plan.threshold.band)).threshold
            table["undetermined"] = sorted([other, threshold])
        found.append(table)
    return found


def output_of(plan: TrainingPlan, number: int) -> int:
    """Return which output of the network speaks for a label."""
    if plan.head.kind is HeadValues.MULTI_CLASS:
        return plan.data.classes.index(plan.labels[number].classes[0])
    return number
