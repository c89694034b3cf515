"""What a binary classifier is worth: threshold rule, calibration, figures with intervals.

Owns scikit-learn, which only training and evaluation need. Works on arrays of
labels and scores; knows nothing of films or networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize
from sklearn import metrics

FloatArray = npt.NDArray[np.float32]

BOOTSTRAP_ROUNDS = 1000
INTERVAL_PERCENT = 95.0


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure with its bootstrap interval."""

    value: float
    low: float
    high: float

    def as_mapping(self) -> dict[str, float]:
        """Return the figure for a manifest, rounded to four places."""
        return {
            "value": round(self.value, 4),
            "low": round(self.low, 4),
            "high": round(self.high, 4),
        }


def roc_auc(labels: FloatArray, scores: FloatArray) -> float:
    """Return the area under the ROC curve."""
    return float(metrics.roc_auc_score(labels, scores))


def figures_at(labels: FloatArray, scores: FloatArray, threshold: float) -> dict[str, float]:
    """Return accuracy, sensitivity, specificity, F1, ROC AUC, PR AUC and Brier score.

    Parameters
    ----------
    labels : ndarray
        (film,), 0 or 1.
    scores : ndarray
        (film,), probability of the positive class.
    threshold : float
        Scores at or above it count as positive.
    """
    judged = (scores >= threshold).astype(np.float32)
    return {
        "accuracy": float(metrics.accuracy_score(labels, judged)),
        "sensitivity": float(metrics.recall_score(labels, judged, zero_division=0.0)),
        "specificity": float(metrics.recall_score(labels, judged, pos_label=0, zero_division=0.0)),
        "f1": float(metrics.f1_score(labels, judged, zero_division=0.0)),
        "roc_auc": float(metrics.roc_auc_score(labels, scores)),
        "pr_auc": float(metrics.average_precision_score(labels, scores)),
        "brier": float(metrics.brier_score_loss(labels, scores)),
    }


def measured(
    labels: FloatArray,
    scores: FloatArray,
    threshold: float,
    seed: int,
    count: int = BOOTSTRAP_ROUNDS,
) -> dict[str, Measure]:
    """Return every figure with a percentile bootstrap interval over films.

    Films are drawn within each class, so that every round holds both.
    """
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(labels == label) for label in (0, 1)]
    rounds: list[dict[str, float]] = []
    for _ in range(count):
        drawn = np.concatenate([rng.choice(index, len(index)) for index in classes])
        rounds.append(figures_at(labels[drawn], scores[drawn], threshold))
    tail = (100 - INTERVAL_PERCENT) / 2
    return {
        name: Measure(value, *(np.percentile([r[name] for r in rounds], (tail, 100 - tail))))
        for name, value in figures_at(labels, scores, threshold).items()
    }


def fitted_calibration(
    labels: FloatArray, logits: FloatArray, highest_scale: float = np.inf
) -> tuple[float, float]:
    """Return the scale and offset of the logits that minimise the log loss.

    Both classes weigh the same, whatever their share of the films: the probability is the one
    at equal prevalence, so that it does not carry this set's share into another hospital. The
    scale stays at or below `highest_scale`.

    Returns
    -------
    tuple of float
        ``(scale, offset)`` of ``sigmoid(logit * scale + offset)``; the scale is positive and
        the inverse of a temperature.
    """
    weights = np.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))

    def log_loss(parameters: npt.NDArray[np.float64]) -> float:
        scaled = logits.astype(np.float64) * np.exp(parameters[0]) + parameters[1]
        return float(np.mean(weights * (np.logaddexp(0.0, scaled) - labels * scaled)))

    bounds = [(None, np.log(highest_scale)), (None, None)]
    found = optimize.minimize(log_loss, np.zeros(2), method="Nelder-Mead", bounds=bounds)
    return float(np.exp(found.x[0])), float(found.x[1])


def highest_threshold(labels: FloatArray, scores: FloatArray, sensitivity: float) -> float:
    """Return the highest threshold that keeps at least this sensitivity.

    It lies half-way between two neighbouring scores, so that rounding cannot move a film of
    this set across it.

    Raises
    ------
    ValueError
        There is no positive film.
    """
    positives = np.sort(scores[labels == 1])[::-1]
    if len(positives) == 0:
        raise ValueError("labels: at least one positive film is needed, received none")
    kept = int(np.ceil(sensitivity * len(positives)))
    lowest_kept = float(positives[kept - 1])
    below = scores[scores < lowest_kept]
    neighbour = float(below.max()) if len(below) else 0.0
    return (lowest_kept + neighbour) / 2
