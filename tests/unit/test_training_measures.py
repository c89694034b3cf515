"""Figures by which epochs are chosen, and the calibration of what was chosen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from model.training.heads import HeadValues
from model.training.measures import LOWEST_SCALE, figures_of, fitted_calibration
from model.training.patients import patient_key

BINARY, CLASSES, LABELS = HeadValues.BINARY, HeadValues.MULTI_CLASS, HeadValues.MULTI_LABEL


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("person12_bacteria_46.jpeg", "person12"),
        ("IM-0115-0001.jpeg", "IM-0115"),
        ("NORMAL2-IM-0115-0001-0002.jpeg", "NORMAL2-IM-0115"),
        ("anything.jpeg", "anything"),
    ],
)
def test_file_name_says_which_patient_it_is(name, key):
    assert patient_key(name) == key


def test_figures_of_one_question_are_those_counted_by_hand():
    # Three positives at 2, 1, -1 and two negatives at 0.5, -2, judged at 0.
    figures = figures_of(BINARY, column(1, 1, 1, 0, 0), column(2, 1, -1, 0.5, -2))

    assert figures["accuracy"] == pytest.approx(3 / 5)
    assert figures["roc_auc"] == pytest.approx(5 / 6)
    losses = [np.log1p(np.exp(-m)) for m in (2, 1, -1, -0.5, 2)]
    assert figures["loss"] == pytest.approx(np.mean(losses))


def test_class_counts_where_its_logit_is_the_highest():
    targets = np.eye(3, dtype=np.float32)
    logits = np.array([[2, 1, 0], [0, 1, 2], [0, 1, 2]], dtype=np.float32)

    figures = figures_of(CLASSES, targets, logits)

    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["loss"] == pytest.approx(np.log(np.exp([2, 1, 0]).sum()) - (2 + 1 + 2) / 3)


def test_label_without_images_of_both_kinds_is_left_out_of_the_areas():
    targets = np.array([[1, 0], [0, 0]], dtype=np.float32)
    logits = np.array([[1, 5], [0, 9]], dtype=np.float32)

    assert figures_of(LABELS, targets, logits)["roc_auc"] == 1.0
    assert np.isnan(figures_of(LABELS, targets[:, 1:], logits[:, 1:])["roc_auc"])


def test_calibration_undoes_a_known_scale_and_offset():
    # Given logits that were doubled and shifted away from the truth,
    rng = np.random.default_rng(9)
    truth = rng.normal(0, 2, 20_000)
    targets = column(*(rng.random(20_000) < 1 / (1 + np.exp(-truth))))
    logits = column(*(2 * truth + 1))

    # when the calibration is fitted,
    scale, offset = fitted_calibration(BINARY, targets, logits)

    # then it halves them and shifts them back.
    assert scale == pytest.approx([0.5], abs=0.03)
    assert offset == pytest.approx([-0.5], abs=0.06)


@pytest.mark.parametrize(("logits", "scale"), [((-0.2, -0.1, 0.1, 0.2), 2.0),
                                               ((0.2, 0.1, -0.1, -0.2), LOWEST_SCALE)])  # fmt: skip
def test_calibration_stays_between_its_scales(logits, scale):
    found, _ = fitted_calibration(BINARY, column(0, 0, 1, 1), column(*logits), highest_scale=2.0)

    assert found == pytest.approx([scale], rel=1e-2)


def shifted_answers(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits that tell them apart somewhat, with an offset of their own."""
    targets = column(*(rng.random(rng.integers(100, 600)) < rng.uniform(0.1, 0.9)))
    apart = rng.uniform(1, 4) * (targets - 0.5)
    noise = rng.normal(0, 1, targets.shape)
    logits = (noise + apart) * rng.uniform(0.7, 2.5) + rng.uniform(-5, 5)
    return targets, logits.astype(np.float32)


def weighted_loss(
    targets: np.ndarray, logits: np.ndarray, scale: float, offset: float, is_balanced: bool
) -> float:
    share = targets.mean()
    weights = np.where(targets == 1, 0.5 / share, 0.5 / (1 - share)) if is_balanced else 1.0
    scaled = logits.astype(np.float64) * scale + offset
    return float(np.mean(weights * (np.logaddexp(0, scaled) - targets * scaled)))


@pytest.mark.parametrize("highest", [0.5, 2.0, 1000.0])
@pytest.mark.parametrize("is_balanced", [False, True])
def test_calibration_is_the_best_one_wherever_the_logits_lie(highest, is_balanced):
    rng = np.random.default_rng(11)
    for _ in range(40):
        targets, logits = shifted_answers(rng)
        scale, offset = fitted_calibration(
            BINARY, targets, logits, highest_scale=highest, is_balanced=is_balanced
        )

        # No worse than none at all, and no step away from it is better: the loss is convex.
        def loss(scale, offset, images=(targets, logits)):
            return weighted_loss(*images, scale, offset, is_balanced)

        found = loss(scale[0], offset[0])
        assert found <= loss(min(1.0, highest), 0.0)
        for other in (scale[0] * 0.99, min(scale[0] * 1.01, highest)):
            centre = offset[0] + logits.mean() * (scale[0] - other)
            for near in (centre - 0.01, centre, centre + 0.01):
                assert found <= loss(max(other, LOWEST_SCALE), near) + 1e-9


@pytest.mark.parametrize("highest", [0.5, 2.0])
def test_calibration_of_classes_is_the_best_one_wherever_the_logits_lie(highest):
    rng = np.random.default_rng(12)
    for _ in range(20):
        truth = rng.choice(3, 300, p=[0.6, 0.3, 0.1])
        evidence = rng.normal(0, 1, (300, 3)) + rng.uniform(0.5, 3) * np.eye(3)[truth]
        logits = (evidence * rng.uniform(0.5, 3) + rng.uniform(-8, 8, 3)).astype(np.float32)
        targets = np.eye(3, dtype=np.float32)[truth]

        scale, offset = fitted_calibration(
            CLASSES, targets, logits, highest_scale=highest, is_balanced=False
        )

        def loss(scale, offset, images=(targets, logits)):
            return -np.sum(images[0] * log_softmax(images[1] * scale + offset, axis=1)) / 300

        found = loss(scale, offset)
        assert found <= loss(np.full(3, min(1.0, highest)), np.zeros(3))
        for other in (scale * 0.98, np.minimum(scale * 1.02, highest)):
            centre = offset + logits.mean(axis=0) * (scale - other)
            for step in np.concatenate([np.zeros((1, 3)), 0.02 * np.eye(3), -0.02 * np.eye(3)]):
                assert found <= loss(other, centre + step) + 1e-9


def test_calibration_of_classes_has_one_scale_and_undoes_the_shares():
    # Given classes of shares 0.7, 0.2, 0.1 and logits that know their log shares, tripled,
    rng = np.random.default_rng(4)
    shares = np.array([0.7, 0.2, 0.1])
    truth = rng.choice(3, 30_000, p=shares)
    evidence = rng.normal(0, 1, (30_000, 3)) + 1.0 * np.eye(3)[truth]
    logits = (3 * (evidence + np.log(shares))).astype(np.float32)

    scale, offset = fitted_calibration(CLASSES, np.eye(3, dtype=np.float32)[truth], logits)

    # then the scale is undone, and what remains speaks at equal prevalence.
    assert scale == pytest.approx([1 / 3] * 3, abs=0.02)
    expected = -np.log(shares) + np.log(shares).mean()
    assert offset == pytest.approx(expected, abs=0.08)
    assert offset.sum() == pytest.approx(0, abs=1e-9)
