"""The same figures for parts of the images: by sex, age, manufacturer, or any column.

Owns the grouping, the smallest group of which figures are given, and the gaps between groups.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from model.errors import EvaluationFault
from model.evaluation.bootstrap import Array, BoolArray, Resampling, Rounds, percentile_interval
from model.evaluation.metrics import Figure, figures_with_intervals
from model.evaluation.scoring import ScoredImage

SUBGROUP_FIGURES = ("sensitivity", "specificity", "roc_auc")
FEWEST = 10
"""Different patients with, and without, the label: below, a figure is not given."""

GAP_LIMIT = 0.05
UNKNOWN = "unknown"
AGE = "age"
OTHERS = "all others"
MOST_GROUPS = 12
_ALL_DIGITS = 17
"""So many tell any two numbers of 64 bits apart."""
_AGE_BANDS = ((1, "0"), (6, "1-5"), (18, "6-17"), (40, "18-39"), (65, "40-64"), (80, "65-79"))
_OLDEST_BAND = "80 and over"
_STANDARD = (("sex", "PatientSex"), (AGE, "age_years"), ("manufacturer", "Manufacturer"))
_COLUMN_SYNONYMS = {AGE: ("age", "age_years", "patient_age")}


@dataclass(frozen=True, slots=True)
class Group:
    """One value of a column, and what was measured for it."""

    value: str
    images: int
    patients: int
    positives: int
    figures: dict[str, Figure]
    """Those that can be given; what is missing is in ``too_few``."""
    too_few: tuple[str, ...]
    """A sentence for each figure that too few patients stand behind."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The distance between the best and the worst group of enough patients."""

    figure: str
    best: str
    worst: str
    gap: float
    low: float | None
    """Of the 95 % interval of the distance between these two groups."""
    high: float | None
    is_beyond_limit: bool

    @property
    def may_be_chance(self) -> bool:
        """True when the interval holds zero."""
        return self.low is None or self.low <= 0


@dataclass(frozen=True, slots=True)
class Subgroups:
    """All groups of one column."""

    column: str
    groups: tuple[Group, ...]
    gaps: tuple[Gap, ...]


def values_by_column(
    scored: Sequence[ScoredImage], wanted: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Return the value of every image for each column.

    Parameters
    ----------
    scored : sequence of ScoredImage
    wanted : sequence of str
        ``sex``, ``age``, ``manufacturer``, or a column of the manifest; when empty, those of the
        first three that are known of some image.

    Raises
    ------
    EvaluationFault
        A column that nobody has.
    """
    found: dict[str, tuple[str, ...]] = {}
    standard = [name for name, _ in _STANDARD]
    for name in wanted or standard:
        values = _values(scored, name)
        if any(value != UNKNOWN for value in values):
            found[name] = values
        elif wanted:
            columns = sorted({column for one in scored for column in one.image.columns})
            raise EvaluationFault(
                f"subgroup {name}: no image has it; there are {', '.join([*standard, *columns])}"
            )
    return found


def _values(scored: Sequence[ScoredImage], name: str) -> tuple[str, ...]:
    raw = [_raw(one, name) for one in scored]
    if name.casefold() == AGE:
        return tuple(_age_band(value) for value in raw)
    return _bounded(raw)


def _raw(one: ScoredImage, name: str) -> str:
    """Return the manifest's word, else the header's; empty when both are silent."""
    for column in _COLUMN_SYNONYMS.get(name.casefold(), (name,)):
        for own, value in one.image.columns.items():
            if own.casefold() == column.casefold() and value:
                return value
    keyword = next((k for standard, k in _STANDARD if standard == name.casefold()), "")
    found = one.attributes.get(keyword)
    return "" if found is None else str(found).strip()


def _age_band(value: str) -> str:
    try:
        age = float(value)
    except ValueError:
        return UNKNOWN
    if not 0 <= age < 150:
        return UNKNOWN
    return next((words for end, words in _AGE_BANDS if age < end), _OLDEST_BAND)


def _bounded(raw: Sequence[str]) -> tuple[str, ...]:
    """Band numbers and join what is rare, so that a column never has more groups than be read."""
    known = Counter(value for value in raw if value)
    if len(known) <= MOST_GROUPS:
        return tuple(value or UNKNOWN for value in raw)
    try:
        return _quarters([float(value) if value else np.nan for value in raw])
    except ValueError:
        largest = {value for value, _ in known.most_common(MOST_GROUPS - 1)}
        return tuple((value if value in largest else OTHERS) if value else UNKNOWN for value in raw)


def _quarters(numbers: Sequence[float]) -> tuple[str, ...]:
    """Name the quarter of each number; what is nan or infinite says as little as nothing."""
    values = np.array(numbers)
    known = np.isfinite(values)
    if not known.any():
        return (UNKNOWN,) * len(values)
    ends = np.percentile(values[known], (0, 25, 50, 75, 100))
    words = [f"{low} to {high}" for low, high in pairwise(_told_apart(ends.tolist()))]
    places = np.clip(np.searchsorted(ends, values, side="right") - 1, 0, 3)
    pairs = zip(known, places, strict=True)
    return tuple(words[place] if is_known else UNKNOWN for is_known, place in pairs)


def _told_apart(ends: Sequence[float]) -> list[str]:
    """Write numbers with as few digits as tell different ones apart, six at least."""
    written = ([f"{end:.{digits}g}" for end in ends] for digits in range(6, _ALL_DIGITS))
    exact = [f"{end:.{_ALL_DIGITS}g}" for end in ends]
    return next((each for each in written if len(set(each)) == len(set(ends))), exact)


def subgroups_of(
    column: str,
    values: Sequence[str],
    label: tuple[BoolArray, Array, BoolArray],
    resampling: Resampling,
    gap_limit: float = GAP_LIMIT,
) -> Subgroups:
    """Measure one label in every group of a column.

    Parameters
    ----------
    values : sequence of str
        The group of each scored image.
    label : tuple of ndarray
        Truth, scores and judgement of each scored image.
    resampling : Resampling
        Over all scored images; groups are parts of the same rounds.
    """
    names = sorted(set(values), key=lambda value: (value == UNKNOWN, _natural(value)))
    measured = {name: _group(name, np.array(values) == name, label, resampling) for name in names}
    gaps = (_gap(figure, measured, gap_limit) for figure in SUBGROUP_FIGURES)
    return Subgroups(
        column,
        tuple(group for group, _ in measured.values()),
        tuple(gap for gap in gaps if gap is not None),
    )


def _natural(value: str) -> tuple[float, str]:
    start = value.partition(" ")[0].partition("-")[0]
    try:
        number = float(start)
    except ValueError:
        number = np.nan
    return (number if np.isfinite(number) else np.inf, value)


def _group(
    name: str,
    inside: BoolArray,
    label: tuple[BoolArray, Array, BoolArray],
    resampling: Resampling,
) -> tuple[Group, Rounds]:
    truth, scores, judged = label[0][inside], label[1][inside], label[2][inside]
    seen = _within(resampling, inside)
    figures, rounds = figures_with_intervals(truth, scores, judged, seen)
    with_label = len(set(seen.clusters[truth].tolist()))
    without = len(set(seen.clusters[~truth].tolist()))
    behind = {
        "sensitivity": with_label, "specificity": without, "roc_auc": min(with_label, without)
    }  # fmt: skip
    group = Group(
        value=name,
        images=int(inside.sum()),
        patients=len(set(seen.clusters.tolist())),
        positives=int(truth.sum()),
        figures={f: figures[f] for f in SUBGROUP_FIGURES if behind[f] >= FEWEST},
        too_few=tuple(
            f"{f}: too few, {behind[f]} of at least {FEWEST} patients"
            for f in SUBGROUP_FIGURES
            if behind[f] < FEWEST
        ),
    )
    return group, rounds


def _within(resampling: Resampling, inside: BoolArray) -> Resampling:
    """Return the part of a part: `inside` speaks of the images that are looked at already."""
    whole = np.ones(len(resampling.drawn_from), np.bool_)
    if resampling.inside is not None:
        whole = resampling.inside.copy()
    whole[whole] = inside
    return resampling.part(whole)


def _gap(figure: str, measured: dict[str, tuple[Group, Rounds]], limit: float) -> Gap | None:
    """Return the largest distance; None where fewer than two groups can be compared."""
    known = {
        name: value
        for name, (group, _) in measured.items()
        if name != UNKNOWN
        and figure in group.figures
        and (value := group.figures[figure].value) is not None
    }
    if len(known) < 2:
        return None
    best = max(known, key=lambda name: known[name])
    worst = min((name for name in known if name != best), key=lambda name: known[name])
    distance = known[best] - known[worst]
    figures = (measured[best][0].figures[figure], measured[worst][0].figures[figure])
    rounds = measured[best][1][figure] - measured[worst][1][figure]
    low, high = _interval(*figures, rounds)
    return Gap(figure, best, worst, distance, low, high, distance > limit)


def _interval(best: Figure, worst: Figure, rounds: Array) -> tuple[float | None, float | None]:
    """Return the interval of the distance of two groups' figures; None where there is none.

    References
    ----------
    Newcombe, Interval estimation for the difference between independent proportions, 1998: method
    10, which takes the square and adds the distances to the ends of each.
    """
    if best.interval == worst.interval == "bootstrap":
        return percentile_interval(rounds) or (None, None)
    values = (best.value, best.low, best.high, worst.value, worst.low, worst.high)
    if None in values:
        return None, None
    # A group without exception is the same in every round: the rounds know the other one only.
    top, top_low, top_high, bottom, bottom_low, bottom_high = map(float, values)  # type: ignore[arg-type]
    distance = top - bottom
    below = math.hypot(top - top_low, bottom_high - bottom)
    above = math.hypot(top_high - top, bottom - bottom_low)
    return max(-1.0, distance - below), min(1.0, distance + above)
