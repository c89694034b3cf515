"""Bootstrap intervals: patients drawn with replacement, the same rounds for every figure.

Owns the drawing, and the few lines that compute a figure for all rounds at once. The figures
themselves are scikit-learn's (``metrics``); a test holds both equal, weights included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Rounds = dict[str, Array]
"""Figures by name, one value per round; NaN where a round leaves a figure undefined."""

ROUNDS = 2000
"""Enough for the second digit of a 95 % interval."""

INTERVAL_PERCENT = 95.0
_BLOCK_VALUES = 4_000_000
"""Counts drawn at once, rounds times patients, and weights given at once, rounds times images."""


@dataclass(frozen=True, slots=True, eq=False)
class Resampling:
    """Rounds of drawing patients with replacement; the same whenever it is asked.

    Parameters
    ----------
    drawn_from : tuple of str
        One name per image of the split; images of one name are drawn together.
    """

    drawn_from: tuple[str, ...]
    seed: int
    rounds: int = ROUNDS
    inside: BoolArray | None = None
    """The images that are looked at; the rounds are those of all images all the same."""

    def part(self, inside: BoolArray) -> Resampling:
        """Return the same rounds, seen by some of the images; (image of the split,)."""
        return replace(self, inside=inside)

    @property
    def clusters(self) -> npt.NDArray[np.str_]:
        """The patient of each image that is looked at."""
        names = np.array(self.drawn_from)
        return names if self.inside is None else names[self.inside]

    def weights(self) -> Iterator[Array]:
        """Yield how often each image was drawn, (rounds, images), in blocks of rounds."""
        names, index = np.unique(np.array(self.drawn_from), return_inverse=True)
        if self.inside is not None:
            index = index[self.inside]
        block = max(1, _BLOCK_VALUES // max(len(names), 1))
        for start in range(0, self.rounds, block):
            drawn = _drawn(len(names), min(block, self.rounds - start), self.seed, start)
            # What is drawn follows from the patients; how much of it is given at once does not.
            parts = max(1, math.ceil(len(drawn) * len(index) / _BLOCK_VALUES))
            for part in np.array_split(drawn, parts):
                yield part[:, index].astype(np.float64)

    def collected(self, figures: Callable[[Array], Rounds]) -> Rounds:
        """Return what `figures` gives for the weights of every round."""
        blocks = [figures(weights) for weights in self.weights()]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


@lru_cache(maxsize=16)
def _drawn(count: int, rounds: int, seed: int, start: int) -> npt.NDArray[np.uint16]:
    """Draw `count` of `count` with replacement; every figure of a report asks for the same."""
    rng = np.random.default_rng([seed, start])
    return rng.multinomial(count, np.full(count, 1 / count), size=rounds).astype(np.uint16)


def rounds_of(truth: BoolArray, scores: Array, judged: BoolArray, weights: Array) -> Rounds:
    """Compute every figure of one label for all rounds at once.

    Parameters
    ----------
    truth, judged : ndarray
        (image,), what is true and what the threshold says.
    scores : ndarray
        (image,), probabilities.
    weights : ndarray
        (rounds, images).
    """
    return {
        **_counted(truth, judged, weights),
        "roc_auc": _roc_areas(truth, scores, weights),
        "pr_auc": _average_precisions(truth, scores, weights),
        "brier": ratio(weights @ (scores - truth) ** 2, weights.sum(axis=1)),
    }


def _counted(truth: BoolArray, judged: BoolArray, weights: Array) -> Rounds:
    true_positive = weights @ (truth & judged)
    true_negative = weights @ (~truth & ~judged)
    positive, negative = weights @ truth, weights @ ~truth
    called = weights @ judged
    return {
        "accuracy": ratio(true_positive + true_negative, positive + negative),
        "precision": ratio(true_positive, called),
        "sensitivity": ratio(true_positive, positive),
        "specificity": ratio(true_negative, negative),
        "f1": ratio(2 * true_positive, positive + called),
    }


def ratio(above: Array, below: Array) -> Array:
    """Divide round by round; NaN where nothing was drawn to divide by."""
    result = np.full(above.shape, np.nan)
    np.divide(above, below, out=result, where=below > 0)
    return result


def _steps(truth: BoolArray, scores: Array, weights: Array) -> tuple[Array, Array]:
    """Return the weight of positives and negatives at each different score, ascending."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-1.0))
    ordered, is_positive = weights[:, order], truth[order]
    positive = np.add.reduceat(ordered * is_positive, starts, axis=1)
    return positive, np.add.reduceat(ordered * ~is_positive, starts, axis=1)


def _roc_areas(truth: BoolArray, scores: Array, weights: Array) -> Array:
    """Return the share of pairs that are ordered rightly; ties count half."""
    positive, negative = _steps(truth, scores, weights)
    below = np.cumsum(negative, axis=1) - negative
    won = (positive * (below + negative / 2)).sum(axis=1)
    return ratio(won, positive.sum(axis=1) * negative.sum(axis=1))


def _average_precisions(truth: BoolArray, scores: Array, weights: Array) -> Array:
    """Return the sum of precision over the steps of recall, from the highest score down."""
    positive, negative = (part[:, ::-1] for part in _steps(truth, scores, weights))
    found = np.cumsum(positive, axis=1)
    precision = np.nan_to_num(ratio(found, found + np.cumsum(negative, axis=1)))
    return ratio((positive * precision).sum(axis=1), positive.sum(axis=1))


def percentile_interval(values: Array) -> tuple[float, float] | None:
    """Return the ends of the interval; None when no round defines the figure."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    tail = (100 - INTERVAL_PERCENT) / 2
    low, high = np.percentile(finite, (tail, 100 - tail))
    return float(low), float(high)


def averaged(parts: Sequence[Mapping[str, Array]]) -> Rounds:
    """Return the mean over labels, round by round; only what every label defines counts."""
    return {name: np.mean([part[name] for part in parts], axis=0) for name in parts[0]}
