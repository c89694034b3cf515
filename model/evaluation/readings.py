"""Three honest ways to count the images that got no clear answer.

Owns the readings. A package that abstains often looks better among what it decided; shown side by
side, nothing hides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.evaluation.bootstrap import Array, BoolArray, Resampling
from model.evaluation.metrics import Figure, figures_with_intervals

READING_FIGURES = ("accuracy", "sensitivity", "specificity")
_BY_THRESHOLD = "scored images by the threshold alone, the undetermined band put aside"
_DECIDED = "images judged Present or Absent only"
_ALL = "every image of the split; undetermined, refused and not selected count as wrong"


@dataclass(frozen=True, slots=True)
class Reading:
    """Figures under one way of counting."""

    name: str
    words: str
    images: int
    figures: dict[str, Figure]


@dataclass(frozen=True, slots=True)
class Answers:
    """What was said of every image of a split, also of those without a score."""

    truth: BoolArray
    present: BoolArray
    """The finding was Present."""
    absent: BoolArray
    """The finding was Absent; neither of the two is Undetermined, refused or not selected."""
    scored: BoolArray
    above: BoolArray
    """The score reaches the threshold, whatever the undetermined band says."""


def readings_of(answers: Answers, resampling: Resampling) -> tuple[Reading, ...]:
    """Count by threshold alone, among decided images, and with every open answer as wrong."""
    decided = answers.present | answers.absent
    everything = np.ones_like(decided)
    # An image without a clear answer is read as the opposite of what is true.
    worst = np.where(decided, answers.present, ~answers.truth)
    ways = (
        ("by threshold", _BY_THRESHOLD, answers.scored, answers.above),
        ("decided", _DECIDED, decided, answers.present),
        ("all, open ones wrong", _ALL, everything, worst),
    )
    return tuple(
        _reading(name, words, answers.truth[kept], judged[kept], resampling.part(kept))
        for name, words, kept, judged in ways
        if kept.any()
    )


def _reading(
    name: str, words: str, truth: BoolArray, said: BoolArray, resampling: Resampling
) -> Reading:
    # No score is looked at here: what was said stands for it.
    as_scores: Array = said.astype(np.float64)
    figures, _ = figures_with_intervals(truth, as_scores, said, resampling)
    kept = {figure: figures[figure] for figure in READING_FIGURES}
    return Reading(name, words, len(truth), kept)
