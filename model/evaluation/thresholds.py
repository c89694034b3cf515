"""A threshold chosen by a rule that is written down, on validation only.

Owns the rules and the choice. Chosen on the images it is judged on, a threshold would flatter
itself: the test split is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.errors import EvaluationFault
from model.training.dataset import SplitValues

Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

FEWEST_DIGITS = 5
"""Decimal places of a threshold: a person can read it."""

MOST_DIGITS = 17
"""Beyond them a threshold stays as it is; networks that are sure have scores this near to 0."""

_RULE = re.compile(r"(youden)|(sensitivity|specificity)=(0?\.\d+|1(?:\.0*)?|0)")


@dataclass(frozen=True, slots=True)
class ThresholdRule:
    """What a threshold has to achieve."""

    kind: str
    """``youden``, ``sensitivity`` or ``specificity``."""
    target: float | None = None

    @property
    def words(self) -> str:
        """The rule as a sentence."""
        if self.kind == "youden":
            return "the threshold with the largest sum of sensitivity and specificity"
        end = "highest" if self.kind == "sensitivity" else "lowest"
        return f"the {end} threshold with a {self.kind} of at least {self.target:g}"


@dataclass(frozen=True, slots=True)
class ChosenThreshold:
    """A threshold and what it achieves on the images it was chosen on."""

    label: str
    rule: str
    threshold: float
    sensitivity: float
    specificity: float
    images: int


def parse_rule(words: str) -> ThresholdRule:
    """Read ``youden``, ``sensitivity=0.95`` or ``specificity=0.9``.

    Raises
    ------
    EvaluationFault
        It is none of them.
    """
    match = _RULE.fullmatch(words.strip().lower())
    if match is None:
        raise EvaluationFault(
            f"choose-threshold: must be youden, sensitivity=0.95 or specificity=0.9 (any number "
            f"from 0 to 1); received {words!r}"
        )
    if match[1]:
        return ThresholdRule("youden")
    return ThresholdRule(match[2], float(match[3]))


def require_validation(split: SplitValues) -> None:
    """Refuse to choose a threshold on any split but validation.

    Raises
    ------
    EvaluationFault
        Another split was asked for.
    """
    if split is not SplitValues.VALIDATION:
        raise EvaluationFault(
            f"choose-threshold: a threshold is chosen on validation only, the split is {split}; "
            f"run with --split validation, put the threshold into a new version of the package, "
            f"and measure that on {SplitValues.TEST}"
        )


def choose_threshold(
    label: str, truth: BoolArray, scores: Array, rule: ThresholdRule
) -> ChosenThreshold:
    """Choose among the middles between neighbouring scores, written as short as can be.

    The threshold has five decimal places, and more where fewer would move an image.

    Raises
    ------
    EvaluationFault
        A class is missing, so that the rule cannot be judged.
    """
    if truth.all() or not truth.any():
        raise EvaluationFault(f"choose-threshold: {label} needs images with and without it")
    values = np.unique(scores)
    candidates = np.concatenate([[0.0], (values[:-1] + values[1:]) / 2, [1.0]])
    positives, negatives = scores[truth], scores[~truth]
    found = len(positives) - _below(candidates, positives)
    rejected = _below(candidates, negatives)
    sensitivity, specificity = found / len(positives), rejected / len(negatives)
    # In whole numbers, so that equal sums are equal.
    sums = found * len(negatives) + rejected * len(positives)
    number = _chosen(rule, sensitivity, specificity, sums)
    return ChosenThreshold(
        label,
        rule.words,
        _shortened(float(candidates[number]), scores),
        float(sensitivity[number]),
        float(specificity[number]),
        len(scores),
    )


def _below(candidates: Array, scores: Array) -> npt.NDArray[np.int64]:
    """Return how many scores are below each candidate; (candidate,)."""
    return np.searchsorted(np.sort(scores), candidates, side="left").astype(np.int64)


def _shortened(threshold: float, scores: Array) -> float:
    """Return the threshold with as few digits as judge every score alike."""
    judged = scores >= threshold
    shorter = (round(threshold, digits) for digits in range(FEWEST_DIGITS, MOST_DIGITS))
    return next((one for one in shorter if np.array_equal(scores >= one, judged)), threshold)


def _chosen(
    rule: ThresholdRule, sensitivity: Array, specificity: Array, sums: npt.NDArray[np.int64]
) -> int:
    """Return the place of the threshold; candidates ascend."""
    if rule.kind == "youden":
        # Of equal ones the lowest: a missed finding weighs more than a needless flag.
        return int(np.argmax(sums))
    target = float(rule.target or 0.0)
    if rule.kind == "sensitivity":
        return int(np.flatnonzero(sensitivity >= target)[-1])
    return int(np.flatnonzero(specificity >= target)[0]) if (specificity >= target).any() else -1
