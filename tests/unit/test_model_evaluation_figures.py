"""Figures against numbers counted by hand, against scikit-learn, and against a known truth."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from model.errors import EvaluationFault
from model.evaluation.bootstrap import Resampling, averaged, percentile_interval, rounds_of
from model.evaluation.calibration import (
    BINS,
    ScalingMethodValues,
    calibration_of,
    fitted_scaling,
    logits_of,
    wilson_interval,
)
from model.evaluation.classes import class_matrix
from model.evaluation.metrics import (
    FIGURES,
    exact_interval,
    figures_with_intervals,
    point_figures,
)
from model.evaluation.subgroups import Gap, subgroups_of
from model.evaluation.thresholds import choose_threshold, parse_rule, require_validation
from model.training.dataset import SplitValues

TRUTH = np.array([True, True, True, False, False])
SCORES = np.array([0.9, 0.8, 0.3, 0.6, 0.1])
JUDGED = SCORES >= 0.5


def singles(count: int, seed: int = 0, rounds: int = 200) -> Resampling:
    return Resampling(tuple(f"image {n}" for n in range(count)), seed, rounds)


def test_figures_are_those_counted_by_hand():
    # Two hits, one miss, one false alarm, one right rejection; of six pairs five are ordered.
    figures = point_figures(TRUTH, SCORES, JUDGED)

    assert figures["accuracy"] == pytest.approx(3 / 5)
    assert figures["precision"] == pytest.approx(2 / 3)
    assert figures["sensitivity"] == pytest.approx(2 / 3)
    assert figures["specificity"] == pytest.approx(1 / 2)
    assert figures["f1"] == pytest.approx(2 / 3)
    assert figures["roc_auc"] == pytest.approx(5 / 6)
    # Recall rises by thirds at precision 1, 1 and 3/4.
    assert figures["pr_auc"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert figures["brier"] == pytest.approx((0.01 + 0.04 + 0.49 + 0.36 + 0.01) / 5)


def test_tie_between_the_classes_counts_half():
    figures = point_figures(np.array([True, False]), np.array([0.4, 0.4]), np.array([False] * 2))

    assert figures["roc_auc"] == 0.5


@pytest.mark.parametrize(
    ("truth", "missing"),
    [
        (np.ones(3, bool), {"specificity", "roc_auc"}),
        (np.zeros(3, bool), {"sensitivity", "roc_auc", "pr_auc"}),
    ],
)
def test_figure_without_its_class_is_undefined_and_says_why(truth, missing):
    scores = np.array([0.2, 0.6, 0.7])

    figures, _ = figures_with_intervals(truth, scores, scores >= 0.5, singles(3))

    undefined = {name for name in FIGURES if figures[name].value is None}
    assert undefined == missing
    assert all("there is no" in figures[name].note for name in undefined)


def test_precision_of_a_package_that_flags_nothing_is_undefined():
    scores = np.array([0.2, 0.1, 0.3])

    figures, _ = figures_with_intervals(TRUTH[1:4], scores, scores >= 0.5, singles(3))

    assert figures["precision"].value is None
    assert figures["precision"].note == "no image was judged positive"


def test_many_images_of_one_patient_have_figures_and_no_interval():
    truth = np.array([True, False] * 10)
    scores = np.linspace(0, 1, 20)

    figures, _ = figures_with_intervals(
        truth, scores, scores >= 0.5, Resampling(("one",) * 20, 0, 100)
    )

    assert figures["roc_auc"].value == pytest.approx(0.45)
    for name in ("accuracy", "sensitivity", "specificity", "roc_auc", "brier"):
        assert (figures[name].low, figures[name].high) == (None, None)
        assert "one patient only" in figures[name].note


@pytest.mark.parametrize(
    ("truth", "words", "without_interval"),
    [
        (np.arange(40) < 1, "with", {"f1", "roc_auc", "pr_auc"}),
        (np.arange(40) < 39, "without", {"roc_auc"}),
        (np.arange(40) < 2, "", set()),
    ],
)
def test_one_patient_with_or_without_the_label_says_nothing_of_others(
    truth, words, without_interval
):
    # Given an area of which one side is the same patient in every round,
    scores = np.random.default_rng(4).random(40)
    scores[[0, -1]] = 0.6, 0.4

    figures, _ = figures_with_intervals(truth, scores, scores >= 0.5, singles(40))

    # then it has a value and no interval, and says why.
    found = {name for name in ("f1", "roc_auc", "pr_auc") if figures[name].low is None}
    assert found == without_interval
    for name in found:
        assert figures[name].value is not None
        assert figures[name].note.startswith(f"one patient only is {words} the label")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_rounds_are_what_scikit_learn_gives_for_the_same_weights(seed):
    # Given images with ties among their scores and weights as a bootstrap draws them,
    rng = np.random.default_rng(seed)
    count = int(rng.integers(6, 40))
    truth = np.append(rng.random(count) < 0.5, [True, False])
    scores = np.round(rng.random(count + 2), 1)
    weights = rng.integers(0, 4, (1, count + 2)).astype(np.float64)
    weights[0, -2:] = 1
    judged = scores >= 0.5

    # when a figure is computed for a round,
    found = rounds_of(truth, scores, judged, weights)

    # then it is scikit-learn's.
    weight = weights[0]
    common = {"sample_weight": weight}
    expected = {
        "accuracy": metrics.accuracy_score(truth, judged, **common),
        "precision": metrics.precision_score(truth, judged, zero_division=np.nan, **common),
        "sensitivity": metrics.recall_score(truth, judged, **common),
        "specificity": metrics.recall_score(truth, judged, pos_label=False, **common),
        "f1": metrics.f1_score(truth, judged, **common),
        "roc_auc": metrics.roc_auc_score(truth, scores, **common),
        "pr_auc": metrics.average_precision_score(truth, scores, **common),
        "brier": metrics.brier_score_loss(truth, scores, **common),
    }
    assert {name: values[0] for name, values in found.items()} == pytest.approx(
        expected, nan_ok=True
    )


def test_rounds_of_undrawn_classes_are_undefined_and_left_out():
    found = rounds_of(TRUTH, SCORES, JUDGED, np.array([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]]))

    assert np.isnan(found["specificity"][0])
    assert percentile_interval(found["specificity"]) == (0.5, 0.5)


def test_images_of_one_patient_are_drawn_together():
    resampling = Resampling(("a", "a", "b", "c", "b"), seed=3, rounds=50)

    (weights,) = resampling.weights()

    np.testing.assert_array_equal(weights[:, 0], weights[:, 1])
    np.testing.assert_array_equal(weights[:, 2], weights[:, 4])
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert len(np.unique(weights, axis=0)) > 5


def test_many_images_of_few_patients_are_weighed_in_blocks_of_bounded_size():
    # Given 30 patients with 500 images each,
    resampling = Resampling(tuple(f"p{n % 30:02}" for n in range(15_000)), seed=3, rounds=2000)

    # when the rounds are drawn, then no block is larger than one of 15,000 patients would be,
    blocks = list(resampling.weights())
    assert max(block.size for block in blocks) <= 4_000_000

    # and the rounds are those of the patients, whatever the blocks.
    drawn = np.random.default_rng([3, 0]).multinomial(30, np.full(30, 1 / 30), size=2000)
    np.testing.assert_array_equal(np.concatenate([b[:, :60] for b in blocks]), np.tile(drawn, 2))


def test_same_seed_draws_the_same_whatever_part_is_looked_at():
    whole = Resampling(tuple("abcdef"), seed=9, rounds=40)
    part = whole.part(np.array([True, False, True, False, False, True]))

    (all_weights,), (some,) = list(whole.weights()), list(part.weights())

    np.testing.assert_array_equal(some, all_weights[:, [0, 2, 5]])
    assert part.clusters.tolist() == ["a", "c", "f"]
    (other,) = Resampling(tuple("abcdef"), seed=10, rounds=40).weights()
    assert not np.array_equal(other, all_weights)


def interval(name: str, truth, scores, resampling: Resampling) -> tuple[float, float]:
    rounds = resampling.collected(lambda w: rounds_of(truth, scores, scores >= 0.5, w))
    ends = percentile_interval(rounds[name])
    assert ends is not None
    return ends


def coverage_of_patients_found(*, by_patient: bool) -> float:
    """Return how often the interval holds 80 %: patients found or not, one to five images each."""
    rng = np.random.default_rng(11)
    covered = 0
    for trial in range(400):
        patients = np.repeat(np.arange(60), rng.integers(1, 6, 60))
        found = (rng.random(60) < 0.8)[patients]
        names = patients if by_patient else np.arange(len(patients))
        resampling = Resampling(tuple(f"p{n:04}" for n in names), trial, 200)
        low, high = interval("sensitivity", np.ones(len(found), bool), found * 1.0, resampling)
        covered += low <= 0.8 <= high
    return covered / 400


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    assert 0.91 <= coverage_of_patients_found(by_patient=True) <= 0.98


def test_intervals_that_forget_the_patients_would_be_too_narrow():
    assert coverage_of_patients_found(by_patient=False) < 0.85


def test_intervals_of_the_roc_area_cover_the_truth_too():
    # Given scores of two normal distributions one deviation apart: the area is known,
    rng = np.random.default_rng(12)
    area = 0.5 * (1 + math.erf(1.0 / 2))
    truth = np.repeat([True, False], 60)
    covered = 0
    for trial in range(200):
        scores = 1 / (1 + np.exp(-rng.normal(truth * 1.0, 1)))
        low, high = interval("roc_auc", truth, scores, singles(120, trial))
        covered += low <= area <= high

    assert 0.90 <= covered / 200 <= 0.99


def test_share_without_exception_gets_the_exact_interval_over_patients():
    # Given thirty images of fifteen patients, all found,
    truth = np.ones(30, bool)
    clusters = tuple(f"p{n // 2}" for n in range(30))

    figures, _ = figures_with_intervals(truth, np.ones(30), truth, Resampling(clusters, 0, 100))

    # then the lower end solves p to the 15 = 2.5 %.
    figure = figures["sensitivity"]
    assert (figure.interval, figure.images, figure.patients) == ("exact", 30, 15)
    assert figure.low**15 == pytest.approx(0.025)
    assert exact_interval(0.0, 15) == (0.0, pytest.approx(1 - figure.low))


def test_classes_that_do_not_overlap_leave_open_how_far_they_may_elsewhere():
    # Given six images of three patients with the label and as many of four without, and one of
    # either kind of an eighth patient,
    truth = np.repeat([True, False], 7)
    names = [*"aabbcch", *"ddeefgh"]

    figures, _ = figures_with_intervals(truth, truth * 1.0, truth, Resampling(tuple(names), 0, 100))

    # then the area has the exact interval over four pairs of patients, and what has none says so.
    area = figures["roc_auc"]
    assert (area.value, area.interval, area.high) == (1.0, "exact", 1.0)
    assert area.low**4 == pytest.approx(0.025)
    for name in ("f1", "pr_auc", "brier"):
        assert (figures[name].low, figures[name].high, figures[name].interval) == (
            None, None, "none",
        )  # fmt: skip
        assert "without exception" in figures[name].note


def test_average_over_labels_is_taken_round_by_round():
    mean = averaged([{"f1": np.array([0.2, 0.4])}, {"f1": np.array([0.6, 1.0])}])

    assert mean["f1"].tolist() == pytest.approx([0.4, 0.7])


def test_calibration_error_is_the_weighted_distance_of_share_and_score():
    # Bin 0.1 to 0.2: three images, score 0.15, one true. Bin 0.9 to 1: one image, 1.0, true.
    truth = np.array([True, False, False, True])
    scores = np.array([0.15, 0.15, 0.15, 1.0])

    found = calibration_of(truth, scores)

    assert found.ece == pytest.approx((3 * (1 / 3 - 0.15) + 0) / 4)
    assert found.brier == pytest.approx((0.85**2 + 2 * 0.15**2) / 4)
    assert [one.images for one in found.bins] == [0, 3, 0, 0, 0, 0, 0, 0, 0, 1]
    assert math.isfinite(found.log_loss)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_every_score_is_in_exactly_one_bin(scores):
    found = calibration_of(np.zeros(len(scores), bool), np.array(scores))

    assert sum(one.images for one in found.bins) == len(scores)
    assert len(found.bins) == BINS


def test_wilson_interval_is_that_of_the_textbook():
    # 8 of 10: centre (0.8 + 0.19207) / 1.38415, Agresti and Coull's example figures.
    low, high = wilson_interval(0.8, 10)

    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


@pytest.mark.parametrize(
    ("method", "scale", "offset"),
    [(ScalingMethodValues.TEMPERATURE, 0.5, 0.0), (ScalingMethodValues.PLATT, 0.5, -0.5)],
)
def test_scaling_undoes_a_known_distortion(method, scale, offset):
    # Given logits of the truth that were doubled and, for Platt, shifted by one,
    rng = np.random.default_rng(9)
    real = rng.normal(0, 2, 20_000)
    truth = rng.random(20_000) < 1 / (1 + np.exp(-real))
    distorted = 2 * real + (1.0 if offset else 0.0)
    scores = 1 / (1 + np.exp(-distorted))

    # when it is fitted, then it halves them and shifts them back.
    fitted = fitted_scaling(truth, scores, method)

    assert fitted.scale == pytest.approx(scale, abs=0.03)
    assert fitted.offset == pytest.approx(offset, abs=0.06)
    before, after = calibration_of(truth, scores), calibration_of(truth, fitted.apply(scores))
    assert after.log_loss < before.log_loss
    assert after.ece < 0.02 < before.ece


def test_scaling_keeps_the_order_of_scores_and_takes_their_ends():
    scores = np.array([0.0, 0.2, 0.5, 0.9, 1.0])
    fitted = fitted_scaling(
        np.array([False, True, False, True, True]), scores, ScalingMethodValues.PLATT
    )

    scaled = fitted.apply(scores)

    assert (np.diff(scaled) >= 0).all()
    assert np.isfinite(logits_of(scores)).all()


def scaled_loss(truth: np.ndarray, logits: np.ndarray, scale: float, offset: float) -> float:
    scaled = logits * scale + offset
    return float(np.mean(np.logaddexp(0, scaled) - truth * scaled))


def test_scaling_is_the_best_one_wherever_the_scores_lie():
    rng = np.random.default_rng(3)
    for _ in range(120):
        truth = rng.random(rng.integers(100, 600)) < rng.uniform(0.1, 0.9)
        apart = rng.uniform(1.5, 5) * (truth - 0.5)
        real = (rng.normal(0, 1, len(truth)) + apart) * rng.uniform(0.7, 2.5)
        scores = 1 / (1 + np.exp(-(real + rng.uniform(-12, 12))))
        logits = logits_of(scores)

        platt = fitted_scaling(truth, scores, ScalingMethodValues.PLATT)
        other = fitted_scaling(truth, scores, ScalingMethodValues.TEMPERATURE)

        # Each fits no worse than what can do less, and no step away from it is better.
        found = scaled_loss(truth, logits, platt.scale, platt.offset)
        cooled = scaled_loss(truth, logits, other.scale, 0.0)
        assert found - 1e-8 <= cooled <= scaled_loss(truth, logits, 1.0, 0.0)
        for factor in (0.98, 1.02):
            near = max(other.scale * factor, math.exp(-6))
            assert cooled <= scaled_loss(truth, logits, near, 0.0) + 1e-8
            centre = platt.offset + logits.mean() * platt.scale * (1 - factor)
            for offset in (centre - 0.02, centre, centre + 0.02):
                assert found <= scaled_loss(truth, logits, platt.scale * factor, offset) + 1e-8


def test_scaling_of_one_class_is_refused():
    with pytest.raises(EvaluationFault, match="with and without"):
        fitted_scaling(np.ones(3, bool), np.full(3, 0.5), ScalingMethodValues.TEMPERATURE)


THRESHOLD_TRUTH = np.array([True, True, True, True, False, False, False, False])
THRESHOLD_SCORES = np.array([0.9, 0.8, 0.7, 0.2, 0.6, 0.4, 0.3, 0.1])


@pytest.mark.parametrize(
    ("rule", "threshold", "sensitivity", "specificity"),
    [
        ("sensitivity=0.75", 0.65, 0.75, 1.0),
        ("sensitivity=1", 0.15, 1.0, 0.25),
        ("specificity=0.5", 0.35, 0.75, 0.5),
        ("specificity=1.0", 0.65, 0.75, 1.0),
        ("youden", 0.65, 0.75, 1.0),
        ("sensitivity=0", 1.0, 0.0, 1.0),
    ],
)
def test_threshold_is_chosen_by_its_rule(rule, threshold, sensitivity, specificity):
    found = choose_threshold("X", THRESHOLD_TRUTH, THRESHOLD_SCORES, parse_rule(rule))

    assert found.threshold == pytest.approx(threshold)
    assert (found.sensitivity, found.specificity) == (sensitivity, specificity)


@pytest.mark.parametrize(
    ("rule", "positive", "negative"),
    [("specificity=0.95", 16, 6), ("sensitivity=0.98", -10, -20), ("youden", -14, -20)],
)
def test_threshold_has_as_many_digits_as_it_needs_to_move_no_image(rule, positive, negative):
    # Given scores near one end of their range, as networks that are sure give them,
    rng = np.random.default_rng(0)
    truth = np.arange(400) >= 200
    logits = rng.normal(np.where(truth, positive, negative), 3)
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32).astype(np.float64)

    # when a threshold is chosen, then it does what is said of it,
    found = choose_threshold("X", truth, scores, parse_rule(rule))
    assert found.sensitivity == pytest.approx((scores[truth] >= found.threshold).mean())
    assert found.specificity == pytest.approx((scores[~truth] < found.threshold).mean())

    # and with one digit less it would move an image.
    digits = len(np.format_float_positional(found.threshold).partition(".")[2])
    assert digits > 5
    shorter = round(found.threshold, digits - 1)
    assert ((scores >= shorter) != (scores >= found.threshold)).any()


def test_threshold_is_chosen_without_holding_every_score_against_every_other():
    rng = np.random.default_rng(2)
    scores = rng.random(20_000)
    truth = rng.random(20_000) < scores

    tracemalloc.start()
    found = choose_threshold("X", truth, scores, parse_rule("youden"))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most < 20_000 * 200
    assert found.threshold == pytest.approx(0.5, abs=0.05)


def test_threshold_among_scores_that_lie_apart_has_five_digits():
    scores = np.array([0.1, 0.12345678, 0.5, 0.61111111])

    found = choose_threshold("X", scores > 0.2, scores, parse_rule("youden"))

    assert found.threshold == 0.31173


def test_of_equal_thresholds_youden_takes_the_one_that_misses_less():
    # Both 0.7 (one missed) and 0.15 (one false alarm) give a sum of 1.5.
    truth = np.array([True, True, False, False])
    scores = np.array([0.9, 0.3, 0.5, 0.0])

    found = choose_threshold("X", truth, scores, parse_rule("youden"))

    assert (found.sensitivity, found.specificity) == (1.0, 0.5)


def separated(positives: tuple[int, ...], negatives: tuple[int, ...]):
    """Return truth and scores with so many images of each kind at ascending scores."""
    truth = np.repeat([True, False], [sum(positives), sum(negatives)])
    steps = [np.repeat(np.linspace(0.1, 0.9, len(each)), each) for each in (positives, negatives)]
    return truth, np.concatenate(steps)


def test_specificity_that_is_just_reached_is_reached_whatever_the_rounding():
    # Given 93 of 100 negatives below the middle: 1 - 0.07 is a little less than 0.93,
    truth, scores = separated((10, 40, 50), (93, 3, 4))

    found = choose_threshold("X", truth, scores, parse_rule("specificity=0.93"))

    assert (found.threshold, found.specificity, found.sensitivity) == (0.3, 0.93, 0.9)


def test_of_equal_sums_youden_takes_the_lowest_whatever_the_rounding():
    # Given 13 of each: 13 found and 9 rejected make the sum of 10 and 12.
    truth, scores = separated((0, 3, 10), (9, 3, 1))

    found = choose_threshold("X", truth, scores, parse_rule("youden"))

    assert (found.threshold, found.sensitivity) == (0.3, 1.0)


@pytest.mark.parametrize("words", ["f1", "sensitivity", "sensitivity=1.2", "sensitivity=-1", ""])
def test_unknown_rule_is_refused(words):
    with pytest.raises(EvaluationFault, match="must be youden, sensitivity"):
        parse_rule(words)


@pytest.mark.parametrize("split", [SplitValues.TEST, SplitValues.TRAIN])
def test_threshold_is_never_chosen_but_on_validation(split):
    require_validation(SplitValues.VALIDATION)
    with pytest.raises(EvaluationFault, match="on validation only"):
        require_validation(split)


def test_classes_that_exclude_each_other_are_compared_by_the_most_likely():
    # Given three images of A and B and one of neither, whose labels' scores leave 0.8 to others,
    truth = np.array([[True, False], [True, False], [False, True], [False, False]])
    scores = np.array([[0.7, 0.3], [0.2, 0.8], [0.1, 0.9], [0.1, 0.1]])

    found = class_matrix(("A", "B"), truth, scores, singles(4))

    assert found.names == ("A", "B", "none of these")
    assert found.counts == ((1, 1, 0), (0, 1, 0), (0, 0, 1))
    assert found.accuracy.value == 0.75


def test_rounds_without_any_scored_image_say_nothing_of_the_likeliest_class():
    # Given two patients with a score among ten: every tenth round draws neither,
    drawn_from = tuple(f"p{number // 10}" for number in range(100))
    resampling = Resampling(drawn_from, 0, 1000).part(np.arange(100) < 20)
    right = np.arange(20) % 10 > np.repeat([0, 1], 10)
    truth = np.tile([True, False], (20, 1))
    scores = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])

    accuracy = class_matrix(("A", "B"), truth, scores, resampling).accuracy

    # then accuracy lies between that of one and that of the other.
    assert (accuracy.value, accuracy.low, accuracy.high) == pytest.approx((0.85, 0.8, 0.9))


def gap_in_sensitivity(first: tuple[int, int], second: tuple[int, int], seed: int = 0) -> Gap:
    """Return the gap between two groups with so many found of so many patients."""
    judged = np.concatenate([np.arange(count) < found for found, count in (first, second)])
    groups = ["F"] * first[1] + ["M"] * second[1]
    truth = np.ones(len(judged), bool)
    (gap,) = subgroups_of(
        "sex", groups, (truth, judged * 1.0, judged), singles(len(judged), seed)
    ).gaps
    return gap


@pytest.mark.parametrize(
    ("first", "second"),
    [((10, 10), (70, 100)), ((10, 10), (7, 10)), ((12, 12), (40, 60)), ((0, 12), (20, 60))],
)
def test_gap_to_a_group_without_exception_is_no_chance_only_where_fisher_agrees(first, second):
    gap = gap_in_sensitivity(first, second)

    table = [[found, count - found] for found, count in (first, second)]
    assert gap.may_be_chance is bool(stats.fisher_exact(table).pvalue >= 0.05)
    assert gap.low < gap.gap < gap.high


def test_groups_that_are_alike_are_seldom_said_to_differ():
    rng = np.random.default_rng(3)
    found = [(int(rng.binomial(10, 0.9)), int(rng.binomial(60, 0.9))) for _ in range(200)]

    gaps = [gap_in_sensitivity((a, 10), (b, 60), n) for n, (a, b) in enumerate(found)]

    assert sum(not gap.may_be_chance for gap in gaps) <= 0.05 * len(gaps)
