"""Cross-validation by patient: who is held out when, and what the folds say together.

Owns the division and its figures. Trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from model.errors import TrainingDataFault
from model.training.dataset import LabelledImage
from model.training.targets import FloatArray, IntArray, groups_of


@dataclass(frozen=True, slots=True)
class Fold:
    """One division of the images."""

    name: str
    training: IntArray
    """Places of the images to learn from."""
    held_out: IntArray
    """Places of the others; no patient is in both."""


def folds_of(
    images: Sequence[LabelledImage], targets: FloatArray, count: int, seed: int
) -> tuple[Fold, ...]:
    """Divide images so that no patient is divided and every class has its share in each fold.

    Parameters
    ----------
    images : sequence of LabelledImage
        An image of nobody known counts as a patient of its own.
    targets : ndarray
        (image, outputs).
    count : int
        Of folds.
    seed : int
        Of the division.

    Raises
    ------
    TrainingDataFault
        A class has fewer patients than there are folds.
    """
    groups = groups_of(targets)
    patients = np.array([image.cluster for image in images])
    for group in np.unique(groups):
        known = len(np.unique(patients[groups == group]))
        if known < count:
            raise TrainingDataFault(
                f"folds.count: {count} folds need as many patients of every class; one class has "
                f"{known}"
            )
    splitter = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=seed)
    parts = splitter.split(np.zeros(len(images)), groups, patients)
    return tuple(
        Fold(f"fold-{number}", training.astype(np.int64), held_out.astype(np.int64))
        for number, (training, held_out) in enumerate(parts)
    )


def spread(figures: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation over folds of each figure."""
    return {
        name: {
            "mean": round(fmean(each[name] for each in figures), 4),
            "deviation": round(stdev(each[name] for each in figures), 4),
        }
        for name in figures[0]
    }
