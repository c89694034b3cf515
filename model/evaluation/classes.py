"""Class against class, where labels exclude each other.

Owns the most likely class of each image, the matrix and the accuracy over all classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn import metrics

from model.evaluation.bootstrap import Array, BoolArray, Resampling, ratio
from model.evaluation.metrics import Figure, figure_of

NONE_OF_THEM = "none of these"


@dataclass(frozen=True, slots=True)
class ClassMatrix:
    """How often each class was taken for each; thresholds play no part."""

    names: tuple[str, ...]
    """The labels, and ``none of these`` where outputs without a label or images without one are."""
    counts: tuple[tuple[int, ...], ...]
    """A row for what is true, a column for the most likely class."""
    accuracy: Figure


def class_matrix(
    names: tuple[str, ...], truth: BoolArray, scores: Array, resampling: Resampling
) -> ClassMatrix:
    """Compare the most likely class with the true one.

    Parameters
    ----------
    truth : ndarray
        (image, label), at most one true in each row.
    scores : ndarray
        (image, label); what is missing to one is the probability of no label.
    """
    rest = np.clip(1 - scores.sum(axis=1, keepdims=True), 0, 1)
    likely = np.concatenate([scores, rest], axis=1).argmax(axis=1)
    true = np.where(truth.any(axis=1), truth.argmax(axis=1), len(names))
    used = [*range(len(names))]
    if len(names) in likely or len(names) in true:
        used.append(len(names))
    shown = (*names, NONE_OF_THEM)
    matrix: npt.NDArray[np.int_] = metrics.confusion_matrix(true, likely, labels=used)
    return ClassMatrix(
        tuple(shown[place] for place in used),
        tuple(tuple(int(count) for count in row) for row in matrix),
        _accuracy(true == likely, resampling),
    )


def _accuracy(right: BoolArray, resampling: Resampling) -> Figure:
    rounds = resampling.collected(
        lambda weights: {"accuracy": ratio(weights @ right, weights.sum(axis=1))}
    )
    everything = np.ones_like(right)
    value = float(right.mean())
    return figure_of("accuracy", value, rounds["accuracy"], everything, resampling.clusters)
