"""What an evaluation asks and what it answers, as records.

Owns the fields of the report; every other module of this package fills or shows them. Computes
nothing but counts of what it holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from model.evaluation.bootstrap import ROUNDS, Array, BoolArray
from model.evaluation.calibration import Calibration, Scaling
from model.evaluation.classes import ClassMatrix
from model.evaluation.metrics import Confusion, Figure
from model.evaluation.readings import Reading
from model.evaluation.scoring import OutcomeValues, ScoredImage
from model.evaluation.subgroups import GAP_LIMIT, Subgroups
from model.evaluation.thresholds import ChosenThreshold, ThresholdRule
from model.evaluation.truth import ClassMap
from model.training.dataset import SplitValues


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of an evaluation."""

    split: SplitValues
    seed: int = 0
    rounds: int = ROUNDS
    subgroups: tuple[str, ...] = ()
    gap_limit: float = GAP_LIMIT
    rule: ThresholdRule | None = None
    """Choose a threshold by this rule; on validation only."""


@dataclass(frozen=True, slots=True)
class ScoredSplit:
    """The images of one split, what is true of them and what was said."""

    scored: tuple[ScoredImage, ...]
    truth: BoolArray
    """(image, label), of every image, also of those without a score."""

    @property
    def has_score(self) -> BoolArray:
        """Which images have a score; (image,)."""
        return np.array([one.outcome is OutcomeValues.SCORED for one in self.scored], np.bool_)

    def scores(self) -> Array:
        """Return the scores of the images that have one; (scored image, label)."""
        rows = [one.scores for one in self.scored if one.outcome is OutcomeValues.SCORED]
        return np.array(rows, dtype=np.float64)

    @property
    def clusters(self) -> tuple[str, ...]:
        """What a bootstrap draws as one, for every image."""
        return tuple(one.image.cluster for one in self.scored)


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image on the wrong side of the threshold."""

    image: str
    score: float


@dataclass(frozen=True, slots=True)
class ScaledCalibration:
    """A scaling fitted on validation, and the calibration it gives on the evaluated split."""

    scaling: Scaling
    fitted_on: str
    after: Calibration


@dataclass(frozen=True, slots=True)
class LabelResult:
    """Everything about one label."""

    name: str
    threshold: float
    undetermined_low: float
    undetermined_high: float
    confusion: Confusion
    figures: dict[str, Figure]
    readings: tuple[Reading, ...]
    calibration: Calibration
    scaled: tuple[ScaledCalibration, ...]
    """One for each method, when asked for."""
    chosen: ChosenThreshold | None
    subgroups: tuple[Subgroups, ...]
    missed: tuple[Mistake, ...]
    """Images with the label and the lowest scores, lowest first."""
    false_alarms: tuple[Mistake, ...]
    """Images without the label and the highest scores, highest first."""


@dataclass(frozen=True, slots=True)
class Average:
    """The mean of a figure over all labels, each weighing the same."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of every image of the split."""

    images: int
    patients: int
    """Different patients; images of nobody known count as one each."""
    images_without_patient: int
    scored: int
    refused: int
    not_selected: int
    without_whole_contract: int
    """Scored images whose contract could not be judged whole, for want of a header or of values in
    it."""
    refusals_by_reason: dict[str, int]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that was measured."""

    kind: str
    """``binary``, ``multi-label`` or ``multi-class``."""
    question: Question
    outcomes: Outcomes
    classes: ClassMap
    labels: tuple[LabelResult, ...]
    averages: dict[str, Average] = field(default_factory=dict)
    """Over labels; only where there are several."""
    matrix: ClassMatrix | None = None
    """Class against class; only where labels exclude each other."""

    @property
    def gaps_beyond_limit(self) -> int:
        """How many gaps between subgroups are larger than the limit."""
        gaps = (gap for lab in self.labels for part in lab.subgroups for gap in part.gaps)
        return sum(gap.is_beyond_limit for gap in gaps)
