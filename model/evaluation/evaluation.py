"""One evaluation: package, images and question in, one record with every figure out.

Owns the order of the steps. Draws no plot and writes no file: ``report`` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from dicom_io.vocabulary import PresenceValues
from model.errors import EvaluationFault
from model.evaluation.bootstrap import (
    Array,
    BoolArray,
    Resampling,
    Rounds,
    averaged,
    percentile_interval,
)
from model.evaluation.calibration import ScalingMethodValues, calibration_of, fitted_scaling
from model.evaluation.classes import ClassMatrix, class_matrix
from model.evaluation.metrics import FIGURES, Figure, confusion_of, figures_with_intervals
from model.evaluation.readings import Answers, readings_of
from model.evaluation.records import (
    Average,
    Evaluation,
    LabelResult,
    Mistake,
    Outcomes,
    Question,
    ScaledCalibration,
    ScoredSplit,
)
from model.evaluation.scoring import OutcomeValues
from model.evaluation.subgroups import Subgroups, subgroups_of, values_by_column
from model.evaluation.thresholds import choose_threshold, require_validation
from model.evaluation.truth import ClassMap
from model.findings import presence
from model.labels import Label
from model.package import ModelPackage

MOST_ERRORS = 12
"""Images shown on each side of a label's worst mistakes."""


def evaluate_split(
    package: ModelPackage,
    classes: ClassMap,
    split: ScoredSplit,
    question: Question,
    validation: ScoredSplit | None = None,
) -> Evaluation:
    """Measure a package on a scored split.

    Parameters
    ----------
    validation : ScoredSplit, optional
        Fit calibration on it and show what that gives on `split`.

    Raises
    ------
    EvaluationFault
        No image has a score, or the question does not fit the data.
    """
    if question.rule is not None:
        require_validation(question.split)
    if not split.has_score.any():
        why = Counter(one.sentence for one in split.scored).most_common(1)[0][0]
        if not any(one.has_whole_contract for one in split.scored):
            why += " Where headers were emptied, --deidentified judges by what they still state"
        raise EvaluationFault(
            f"{package.at_version} gives no score for any of {len(split.scored)} images of "
            f"{question.split}; most often: {why}"
        )
    resampling = Resampling(split.clusters, question.seed, question.rounds)
    measured = [
        _label_result(number, package.labels[number], split, question, resampling, validation)
        for number in range(len(package.labels))
    ]
    several = len(measured) > 1
    is_exclusive = classes.is_exclusive and several
    return Evaluation(
        kind="multi-class" if is_exclusive else "multi-label" if several else "binary",
        question=question,
        outcomes=_outcomes(split),
        classes=classes,
        labels=tuple(result for result, _ in measured),
        averages=_averages(measured) if several else {},
        matrix=_matrix(classes, split, resampling) if is_exclusive else None,
    )


def _outcomes(split: ScoredSplit) -> Outcomes:
    kinds = Counter(one.outcome for one in split.scored)
    refusals = [one for one in split.scored if one.outcome is OutcomeValues.REFUSED]
    return Outcomes(
        images=len(split.scored),
        patients=len(set(split.clusters)),
        images_without_patient=sum(not one.image.patient for one in split.scored),
        scored=kinds[OutcomeValues.SCORED],
        refused=kinds[OutcomeValues.REFUSED],
        not_selected=kinds[OutcomeValues.NOT_SELECTED],
        without_whole_contract=sum(
            not one.has_whole_contract and one.outcome is OutcomeValues.SCORED
            for one in split.scored
        ),
        refusals_by_reason=dict(sorted(Counter(one.reason for one in refusals).items())),
    )


def _label_result(
    number: int,
    label: Label,
    split: ScoredSplit,
    question: Question,
    resampling: Resampling,
    validation: ScoredSplit | None,
) -> tuple[LabelResult, Rounds]:
    has_score = split.has_score
    truth, scores = _scores_of(split, number)
    judged = scores >= label.threshold
    seen = resampling.part(has_score)
    figures, rounds = figures_with_intervals(truth, scores, judged, seen)
    said = _presences(split, number, label)
    missed, false_alarms = _mistakes(split, number, label.threshold)
    return LabelResult(
        name=label.name,
        threshold=label.threshold,
        undetermined_low=label.undetermined_low,
        undetermined_high=label.undetermined_high,
        confusion=confusion_of(split.truth[:, number], _outcomes_of(split), said),
        figures=figures,
        readings=readings_of(_answers(split, number, said, judged), resampling),
        calibration=calibration_of(truth, scores),
        scaled=_scaled(number, split, validation),
        chosen=choose_threshold(label.name, truth, scores, question.rule)
        if question.rule
        else None,
        subgroups=_subgroups(split, (truth, scores, judged), question, seen),
        missed=missed,
        false_alarms=false_alarms,
    ), rounds


def _outcomes_of(split: ScoredSplit) -> list[OutcomeValues]:
    return [one.outcome for one in split.scored]


def _presences(split: ScoredSplit, number: int, label: Label) -> dict[int, PresenceValues]:
    return {
        place: presence(one.scores[number], label)
        for place, one in enumerate(split.scored)
        if one.outcome is OutcomeValues.SCORED
    }


def _answers(
    split: ScoredSplit, number: int, said: Mapping[int, PresenceValues], judged: BoolArray
) -> Answers:
    places = range(len(split.scored))
    above = np.zeros(len(split.scored), np.bool_)
    above[split.has_score] = judged
    return Answers(
        truth=split.truth[:, number],
        present=np.array([said.get(p) is PresenceValues.PRESENT for p in places]),
        absent=np.array([said.get(p) is PresenceValues.ABSENT for p in places]),
        scored=split.has_score,
        above=above,
    )


def _mistakes(
    split: ScoredSplit, number: int, threshold: float
) -> tuple[tuple[Mistake, ...], tuple[Mistake, ...]]:
    pairs = [
        (bool(true), Mistake(one.image.name, one.scores[number]))
        for one, true in zip(split.scored, split.truth[:, number], strict=True)
        if one.outcome is OutcomeValues.SCORED
    ]
    missed = sorted(
        (m for true, m in pairs if true and m.score < threshold), key=lambda m: (m.score, m.image)
    )
    alarms = sorted(
        (m for true, m in pairs if not true and m.score >= threshold),
        key=lambda m: (-m.score, m.image),
    )
    return tuple(missed[:MOST_ERRORS]), tuple(alarms[:MOST_ERRORS])


def _scaled(
    number: int, split: ScoredSplit, validation: ScoredSplit | None
) -> tuple[ScaledCalibration, ...]:
    if validation is None:
        return ()
    truth, scores = _scores_of(split, number)
    known, given = _scores_of(validation, number)
    flattered = ", the same as these: no proof of what it does elsewhere" * (validation is split)
    return tuple(
        ScaledCalibration(
            scaling,
            f"{len(known)} validation images{flattered}",
            calibration_of(truth, scaling.apply(scores)),
        )
        for scaling in (fitted_scaling(known, given, method) for method in ScalingMethodValues)
    )


def _scores_of(split: ScoredSplit, number: int) -> tuple[BoolArray, Array]:
    """Return truth and scores of one label, of the images that have a score."""
    return split.truth[split.has_score, number], split.scores()[:, number]


def _subgroups(
    split: ScoredSplit,
    label: tuple[BoolArray, Array, BoolArray],
    question: Question,
    seen: Resampling,
) -> tuple[Subgroups, ...]:
    scored = [one for one in split.scored if one.outcome is OutcomeValues.SCORED]
    return tuple(
        subgroups_of(column, values, label, seen, question.gap_limit)
        for column, values in values_by_column(scored, question.subgroups).items()
    )


def _averages(measured: Sequence[tuple[LabelResult, Rounds]]) -> dict[str, Average]:
    rounds = averaged([part for _, part in measured])
    return {
        name: _average([result.figures[name] for result, _ in measured], rounds[name])
        for name in FIGURES
    }


def _average(figures: Sequence[Figure], rounds: Array) -> Average:
    values, lows, highs = (
        _mean_or_none([getattr(figure, part) for figure in figures])
        for part in ("value", "low", "high")
    )
    if values is None or lows is None or highs is None:
        return Average(values, None, None)
    if all(figure.interval == "bootstrap" for figure in figures):
        return Average(values, *(percentile_interval(rounds) or (None, None)))
    # A label without exception is the same in every round: the mean of the ends is wide enough.
    return Average(values, lows, highs)


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _matrix(classes: ClassMap, split: ScoredSplit, resampling: Resampling) -> ClassMatrix:
    has_score = split.has_score
    seen = resampling.part(has_score)
    return class_matrix(classes.names, split.truth[has_score], split.scores(), seen)
