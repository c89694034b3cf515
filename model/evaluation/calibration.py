"""How far a score can be taken for a share: reliability, ECE, and scaling fitted on validation.

Owns the bins, temperature and Platt scaling. A fitted scaling is a proposal in a file beside the
report; it never changes a package.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from sklearn import metrics

from model.errors import EvaluationFault
from model.logit_scaling import fitted_to_label

Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

BINS = 10
"""Of equal width over 0..1."""

WILSON_DEVIATES = 1.959963984540054
_NEAREST_TO_ENDS = 1e-7
"""float32 scores of exactly 0 or 1 have no logit; they are moved this far inside."""
_SCALES = (float(np.exp(-6)), float(np.exp(6)))
"""A scale beyond them means that the classes do not overlap: no finite one is best."""


class ScalingMethodValues(StrEnum):
    """How scores are put right."""

    TEMPERATURE = "temperature"
    """One number divides the logit."""
    PLATT = "platt"
    """Scale and offset of the logit."""


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Images whose scores lie in [low, high); the last bin includes 1."""

    low: float
    high: float
    images: int
    mean_score: float | None
    """None where the bin is empty, as the three below."""
    share: float | None
    """Of images of which the label is true."""
    share_low: float | None
    """95 % Wilson interval of the share, over images."""
    share_high: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well scores and shares agree."""

    ece: float
    """Mean distance of share and mean score over the bins, weighted by their images."""
    brier: float
    """Mean squared distance of score and truth."""
    log_loss: float
    mean_score: float
    share: float
    """Of images of which the label is true: the mean score should be near it."""
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, slots=True)
class Scaling:
    """A fitted correction: ``sigmoid(logit(score) * scale + offset)``."""

    method: ScalingMethodValues
    scale: float
    offset: float

    @property
    def temperature(self) -> float:
        """What divides the logit."""
        return 1 / self.scale

    def apply(self, scores: Array) -> Array:
        """Return corrected scores; their order stays."""
        return _sigmoid(logits_of(scores) * self.scale + self.offset)


def calibration_of(truth: BoolArray, scores: Array) -> Calibration:
    """Measure calibration over bins of equal width."""
    bins = tuple(_bin(truth, scores, number) for number in range(BINS))
    gaps = [
        one.images * abs(one.share - one.mean_score)
        for one in bins
        if one.share is not None and one.mean_score is not None
    ]
    inside = np.clip(scores, _NEAREST_TO_ENDS, 1 - _NEAREST_TO_ENDS)
    return Calibration(
        ece=sum(gaps) / len(scores),
        brier=float(np.mean((scores - truth) ** 2)),
        log_loss=float(metrics.log_loss(truth, inside, labels=[False, True])),
        mean_score=float(scores.mean()),
        share=float(truth.mean()),
        bins=bins,
    )


def _bin(truth: BoolArray, scores: Array, number: int) -> ReliabilityBin:
    low, high = number / BINS, (number + 1) / BINS
    # The same edges as printed, whatever the rounding of scores * BINS would say.
    inside = (scores >= low) & ((scores < high) | (number == BINS - 1))
    images = int(inside.sum())
    if not images:
        return ReliabilityBin(low, high, 0, None, None, None, None)
    share = float(truth[inside].mean())
    ends = wilson_interval(share, images)
    return ReliabilityBin(low, high, images, float(scores[inside].mean()), share, *ends)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share of `count`."""
    z2 = WILSON_DEVIATES**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = np.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    half = WILSON_DEVIATES * float(spread) / (1 + z2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def fitted_scaling(truth: BoolArray, scores: Array, method: ScalingMethodValues) -> Scaling:
    """Fit the scaling with the smallest log loss; every image weighs the same.

    Raises
    ------
    EvaluationFault
        A class is missing, so that any certainty would fit.
    """
    if truth.all() or not truth.any():
        raise EvaluationFault("calibration: needs images with and without the label to be fitted")
    has_offset = method is ScalingMethodValues.PLATT
    fitted = fitted_to_label(truth, logits_of(scores), _SCALES, has_offset=has_offset)
    return Scaling(method, *fitted)


def logits_of(scores: Array) -> Array:
    """Return the logits of probabilities; 0 and 1 become large, not infinite."""
    inside = np.clip(scores.astype(np.float64), _NEAREST_TO_ENDS, 1 - _NEAREST_TO_ENDS)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def _sigmoid(logits: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -700, 700))))
