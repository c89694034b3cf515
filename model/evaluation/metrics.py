"""Figures of one label with their intervals, and the counts behind them.

Owns which figures there are and what is said where one cannot be given. scikit-learn computes
the values; ``bootstrap`` the rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn import metrics

from dicom_io.vocabulary import PresenceValues
from model.evaluation.bootstrap import (
    INTERVAL_PERCENT,
    Array,
    BoolArray,
    Resampling,
    Rounds,
    percentile_interval,
    rounds_of,
)
from model.evaluation.scoring import OutcomeValues

FIGURES = (
    "accuracy",
    "precision",
    "sensitivity",
    "specificity",
    "f1",
    "roc_auc",
    "pr_auc",
    "brier",
)
_PROPORTIONS = frozenset({"accuracy", "precision", "sensitivity", "specificity"})
_NEEDS_POSITIVE = frozenset({"sensitivity", "f1", "roc_auc", "pr_auc"})
_NEEDS_NEGATIVE = frozenset({"specificity", "roc_auc"})
_ONE_PATIENT = "one patient only: it says nothing about others"
_ONE_OF_A_KIND = "one patient only is {} the label: it says nothing about others"
_NO_EXCEPTION = "without exception in these images: they do not tell how far it may be elsewhere"
_NO_OVERLAP = (
    "the classes do not overlap in these images: the interval is the exact binomial one of {pairs} "
    "pairs of patients"
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure with its interval; ``value`` is None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None
    images: int
    """Images that the figure is a share of, or is computed from."""
    patients: int
    """Different patients among them; where nobody is known each image counts as one."""
    interval: str
    """``bootstrap``, ``exact`` where no image or every image counts, or ``none``; those of an
    area are pairs of a patient with and one without the label."""
    note: str = ""
    """What a reader has to know about this value."""


def point_figures(truth: BoolArray, scores: Array, judged: BoolArray) -> dict[str, float]:
    """Return every figure as scikit-learn computes it; NaN where a class is missing.

    Parameters
    ----------
    truth, judged : ndarray
        (image,), what is true and what the threshold says.
    scores : ndarray
        (image,), probabilities.
    """
    found = {
        "accuracy": metrics.accuracy_score(truth, judged),
        "precision": metrics.precision_score(truth, judged, zero_division=np.nan),
        "sensitivity": metrics.recall_score(truth, judged, zero_division=np.nan),
        "specificity": metrics.recall_score(truth, judged, pos_label=False, zero_division=np.nan),
        "f1": metrics.f1_score(truth, judged, zero_division=np.nan),
        "brier": float(np.mean((scores - truth) ** 2)),
    }
    if truth.any():
        found["pr_auc"] = metrics.average_precision_score(truth, scores)
        if not truth.all():
            found["roc_auc"] = metrics.roc_auc_score(truth, scores)
            found["brier"] = metrics.brier_score_loss(truth, scores)
    return {name: float(found.get(name, np.nan)) for name in FIGURES}


def figures_with_intervals(
    truth: BoolArray, scores: Array, judged: BoolArray, resampling: Resampling
) -> tuple[dict[str, Figure], Rounds]:
    """Return the figures of one label, and their rounds for averages and gaps."""
    rounds = resampling.collected(lambda weights: rounds_of(truth, scores, judged, weights))
    values = point_figures(truth, scores, judged)
    clusters = resampling.clusters
    return {
        name: figure_of(
            name, values[name], rounds[name], _counted_in(name, truth, judged), clusters, truth
        )
        for name in FIGURES
    }, rounds


def _counted_in(name: str, truth: BoolArray, judged: BoolArray) -> BoolArray:
    """Return which images a figure is a share of."""
    parts = {"precision": judged, "sensitivity": truth, "specificity": ~truth}
    return parts.get(name, np.ones_like(truth))


def figure_of(
    name: str,
    value: float,
    rounds: Array,
    counted: BoolArray,
    clusters: npt.NDArray[np.str_],
    truth: BoolArray | None = None,
) -> Figure:
    """Put a value, its rounds and its counts into one record.

    Parameters
    ----------
    truth : ndarray, optional
        (image,), for figures that look at images with and without the label apart.
    """
    images = int(counted.sum())
    patients = len(set(clusters[counted].tolist()))
    if not np.isfinite(value):
        return Figure(None, None, None, images, patients, "none", _why_undefined(name))
    is_extreme = value in (0.0, 1.0)
    if is_extreme and name in _PROPORTIONS:
        note = f"no exception among {patients}: the interval is the exact binomial one"
        return Figure(value, *exact_interval(value, patients), images, patients, "exact", note)
    pairs = 0 if truth is None else _pairs(truth, clusters)
    if is_extreme and name == "roc_auc" and pairs:
        note = _NO_OVERLAP.format(pairs=pairs)
        return Figure(value, *exact_interval(value, pairs), images, patients, "exact", note)
    why = _one_only(name, patients, truth, clusters) or _NO_EXCEPTION * is_extreme
    ends = None if why else percentile_interval(rounds)
    if ends is None:
        return Figure(value, None, None, images, patients, "none", why or "no round defines it")
    return Figure(value, *ends, images, patients, "bootstrap")


def _pairs(truth: BoolArray, clusters: npt.NDArray[np.str_]) -> int:
    """Return how many pairs of different patients there are, one with and one without the label.

    No patient is in two of them: whether a pair is ordered rightly says nothing of the others.
    """
    having, lacking = set(clusters[truth].tolist()), set(clusters[~truth].tolist())
    return min(len(having), len(lacking), len(having | lacking) // 2)


def _one_only(
    name: str, patients: int, truth: BoolArray | None, clusters: npt.NDArray[np.str_]
) -> str:
    """Return that a single patient stands behind a figure, or behind a side of it; else nothing.

    Every round would draw the same one: an interval without its width says the opposite.
    """
    if patients < 2:
        return _ONE_PATIENT
    if truth is None:
        return ""
    sides = (
        ("with", truth, _NEEDS_POSITIVE - _PROPORTIONS),
        ("without", ~truth, _NEEDS_NEGATIVE - _PROPORTIONS),
    )
    for words, side, names in sides:
        if name in names and len(set(clusters[side].tolist())) < 2:
            return _ONE_OF_A_KIND.format(words)
    return ""


def _why_undefined(name: str) -> str:
    if name == "precision":
        return "no image was judged positive"
    missing = "positive" * (name in _NEEDS_POSITIVE) or "negative" * (name in _NEEDS_NEGATIVE)
    if name == "roc_auc":
        missing = "positive or no negative"
    return f"there is no {missing} image"


def exact_interval(value: float, count: int) -> tuple[float, float]:
    """Return the Clopper-Pearson interval of 0 or all of `count`.

    A bootstrap of images that all agree has no width; it would say that no more is to be known.
    """
    reach = ((100 - INTERVAL_PERCENT) / 200) ** (1 / count) if count else 0.0
    return (reach, 1.0) if value == 1.0 else (0.0, 1 - reach)


@dataclass(frozen=True, slots=True)
class ConfusionRow:
    """What was said of the images of which one thing is true."""

    present: int
    absent: int
    undetermined: int
    refused: int
    not_selected: int

    @property
    def total(self) -> int:
        """Every image, none left out."""
        return self.present + self.absent + self.undetermined + self.refused + self.not_selected


@dataclass(frozen=True, slots=True)
class Confusion:
    """Truth against what the package says at its own threshold."""

    positive: ConfusionRow
    negative: ConfusionRow


def confusion_of(
    truth: BoolArray,
    outcomes: Sequence[OutcomeValues],
    presences: Mapping[int, PresenceValues],
) -> Confusion:
    """Count what was said; `presences` holds the finding of each scored image by its place."""
    said = [
        str(presences[number]) if outcome is OutcomeValues.SCORED else str(outcome)
        for number, outcome in enumerate(outcomes)
    ]
    rows = []
    for wanted in (True, False):
        found = [word for word, true in zip(said, truth, strict=True) if bool(true) is wanted]
        rows.append(
            ConfusionRow(
                present=found.count(str(PresenceValues.PRESENT)),
                absent=found.count(str(PresenceValues.ABSENT)),
                undetermined=found.count(str(PresenceValues.UNDETERMINED)),
                refused=found.count(str(OutcomeValues.REFUSED)),
                not_selected=found.count(str(OutcomeValues.NOT_SELECTED)),
            )
        )
    return Confusion(*rows)
