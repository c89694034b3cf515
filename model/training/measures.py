"""What a network's answers are worth while it is being trained, and how they are calibrated.

Owns the figures by which an epoch is chosen, and what a calibration is fitted to. Figures for
people, with intervals, are ``model.evaluation``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special
from sklearn import metrics

from model.logit_scaling import fitted_to_classes, fitted_to_label
from model.training.heads import HeadValues
from model.training.losses import probabilities_of

LOWEST_SCALE = 0.01
"""Of a calibration: answers that are worth nothing shall not all become the same score."""

FloatArray = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]


def figures_of(head: HeadValues, targets: FloatArray, logits: FloatArray) -> dict[str, float]:
    """Return loss, accuracy and the areas under both curves.

    Parameters
    ----------
    head : HeadValues
    targets : ndarray
        (image, outputs), 0 or 1.
    logits : ndarray
        (image, outputs).

    Returns
    -------
    dict
        ``loss`` in nats, ``accuracy`` (of the likeliest class, or of every answer at 0.5),
        ``roc_auc`` and ``pr_auc``: means over the outputs that have images of both kinds, NaN
        where none has.
    """
    scores = probabilities_of(head, logits)
    return {
        "loss": _log_loss(head, targets, logits),
        "accuracy": _accuracy(head, targets, scores),
        "roc_auc": _mean_over_outputs(metrics.roc_auc_score, targets, scores),
        "pr_auc": _mean_over_outputs(metrics.average_precision_score, targets, scores),
    }


def _log_loss(head: HeadValues, targets: FloatArray, logits: FloatArray) -> float:
    wide = logits.astype(np.float64)
    if head is HeadValues.MULTI_CLASS:
        return float(-np.mean(np.sum(targets * special.log_softmax(wide, axis=1), axis=1)))
    return float(np.mean(np.logaddexp(0.0, wide) - targets * wide))


def _accuracy(head: HeadValues, targets: FloatArray, scores: FloatArray) -> float:
    if head is HeadValues.MULTI_CLASS:
        return float(np.mean(targets.argmax(axis=1) == scores.argmax(axis=1)))
    return float(np.mean((scores >= 0.5) == (targets >= 0.5)))


def _mean_over_outputs(
    figure: Callable[..., Any], targets: FloatArray, scores: FloatArray
) -> float:
    columns = [c for c in range(targets.shape[1]) if 0 < targets[:, c].sum() < len(targets)]
    values = [float(figure(targets[:, c], scores[:, c])) for c in columns]
    return float(np.mean(values)) if values else float("nan")


def fitted_calibration(
    head: HeadValues,
    targets: FloatArray,
    logits: FloatArray,
    *,
    highest_scale: float = np.inf,
    is_balanced: bool = True,
) -> tuple[Array, Array]:
    """Return scale and offset of the logits that minimise the log loss.

    Parameters
    ----------
    highest_scale : float
        The scale stays at or below it: validation images come from where the training images
        come from, and certainty would be overstated elsewhere.
    is_balanced : bool
        Every class weighs the same, whatever its share: the probability is the one at equal
        prevalence, so that it does not carry this set's share into another hospital.

    Returns
    -------
    tuple of ndarray
        Scale and offset for each output, (outputs,); of a softmax the scale is the same for all
        and the offsets sum to zero. The scale is the inverse of a temperature.
    """
    if head is HeadValues.MULTI_CLASS:
        return _fitted_softmax(targets, logits, highest_scale, is_balanced)
    pairs = [
        _fitted_sigmoid(targets[:, c], logits[:, c], highest_scale, is_balanced)
        for c in range(targets.shape[1])
    ]
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


def _fitted_sigmoid(
    labels: FloatArray, logits: FloatArray, highest_scale: float, is_balanced: bool
) -> tuple[float, float]:
    share = float(labels.mean())
    if not 0 < share < 1:
        return 1.0, 0.0
    weights = np.where(labels == 1, 0.5 / share, 0.5 / (1 - share)) if is_balanced else None
    return fitted_to_label(labels, logits, (LOWEST_SCALE, highest_scale), weights)


def _fitted_softmax(
    targets: FloatArray, logits: FloatArray, highest_scale: float, is_balanced: bool
) -> tuple[Array, Array]:
    outputs = targets.shape[1]
    share = np.maximum(targets.mean(axis=0, dtype=np.float64), 1e-12)
    weights = (targets / (share * outputs)).sum(axis=1) if is_balanced else None
    scale, offsets = fitted_to_classes(targets, logits, (LOWEST_SCALE, highest_scale), weights)
    return np.full(outputs, scale), offsets
