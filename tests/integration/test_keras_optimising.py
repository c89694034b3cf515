"""Losses, optimisers and schedules: as their formulas say, and going on where they stopped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

from model.errors import NetworkFault
from model.training.losses import HeadValues, loss_of
from model.training.optimiser_plan import OptimiserPlan, OptimiserValues, ScheduleValues
from model.training.optimisers import optimiser_of, restore_optimiser, state_of
from model.training.schedules import schedule_of

STILL = OptimiserPlan(
    name=OptimiserValues.SGD, learning_rate=0.1, schedule=ScheduleValues.CONSTANT,
    warmup_epochs=0, weight_decay=0.0, clip_norm=0.0, momentum=0.0, nesterov=False,
)  # fmt: skip


def drawn(shape: tuple[int, int], head: HeadValues) -> tuple[np.ndarray, np.ndarray]:
    """Targets between no and yes, as blending makes them, and logits."""
    rng = np.random.default_rng(3)
    targets = rng.random(shape)
    if head is HeadValues.MULTI_CLASS:
        targets /= targets.sum(axis=1, keepdims=True)
    return targets.astype(np.float32), rng.normal(0, 3, shape).astype(np.float32)


def by_hand(targets: np.ndarray, logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return np.logaddexp(0, wide) - targets * wide


def value_of(loss: Any, targets: np.ndarray, logits: np.ndarray) -> float:
    value = loss(keras.ops.convert_to_tensor(targets), keras.ops.convert_to_tensor(logits))
    assert value.shape == ()
    return float(value)


def test_binary_loss_is_the_one_films_were_trained_with() -> None:
    targets, logits = drawn((16, 1), HeadValues.BINARY)

    loss = value_of(loss_of(HeadValues.BINARY, 0.05), targets, logits)

    shipped = keras.losses.BinaryCrossentropy(from_logits=True)
    assert loss == float(shipped(targets * (1 - 0.05) + 0.05 / 2, logits))
    assert loss == pytest.approx(by_hand(targets * 0.95 + 0.025, logits).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("head", "weights", "no", "yes"),
    [
        (HeadValues.BINARY, [0.5, 3.0], [0.5], [3.0]),
        (HeadValues.MULTI_LABEL, [1.0, 2.0, 4.0], [1.0, 1.0, 1.0], [1.0, 2.0, 4.0]),
        (HeadValues.MULTI_LABEL, [[0.5, 1, 1], [1, 2, 4]], [0.5, 1.0, 1.0], [1.0, 2.0, 4.0]),
    ],
)
def test_labels_weigh_as_stated(head: HeadValues, weights: Any, no: Any, yes: Any) -> None:
    targets, logits = drawn((16, len(yes)), head)

    found = value_of(loss_of(head, 0.0, weights), targets, logits)

    each = by_hand(targets, logits) * (targets * np.array(yes) + (1 - targets) * np.array(no))
    assert found == pytest.approx(each.mean(), rel=1e-5)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_loss_is_the_cross_entropy_of_softmax(weights: Any, smoothing: float) -> None:
    targets, logits = drawn((16, 3), HeadValues.MULTI_CLASS)

    found = value_of(loss_of(HeadValues.MULTI_CLASS, smoothing, weights), targets, logits)

    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)
    smooth = targets * (1 - smoothing) + smoothing / 3
    each = -(smooth * np.log(shares)).sum(axis=1)
    if weights is not None:
        each = each * (targets * np.array(weights)).sum(axis=1)
    assert found == pytest.approx(each.mean(), rel=1e-5)


@pytest.mark.parametrize("head", HeadValues)
def test_a_sure_answer_has_a_finite_loss(head: HeadValues) -> None:
    targets = np.array([[1, 0], [0, 1]], np.float32)[:, : 1 if head is HeadValues.BINARY else 2]

    loss = value_of(loss_of(head), targets, np.where(targets > 0, -500, 500).astype(np.float32))

    assert 200 < loss < 2000


def rates(plan: OptimiserPlan, steps: int, epochs: int) -> np.ndarray:
    schedule = schedule_of(plan, steps, epochs)
    return np.array([float(schedule(step)) for step in range(steps * epochs)])


def test_the_schedule_of_films_is_what_it_was() -> None:
    shipped = keras.optimizers.schedules.CosineDecay(
        2e-3 / 20, 28 * 10 - 10, warmup_target=2e-3, warmup_steps=10
    )

    assert rates(OptimiserPlan(), 10, 28).tolist() == [float(shipped(n)) for n in range(280)]


def test_schedules_go_as_their_names_say() -> None:
    plan = replace(STILL, learning_rate=1.0)

    def course(schedule: ScheduleValues, **values: Any) -> np.ndarray:
        return rates(replace(plan, schedule=schedule, **values), 10, 4)

    np.testing.assert_allclose(course(ScheduleValues.CONSTANT), 1.0)
    cosine = course(ScheduleValues.COSINE, final_share=0.2)
    np.testing.assert_allclose(cosine[[0, 20]], [1.0, 0.6], rtol=1e-5)
    assert 0.2 < cosine[-1] < 0.21
    stepped = course(ScheduleValues.STEP, step_epochs=2, factor=0.1)
    np.testing.assert_allclose(stepped, [1.0] * 20 + [0.1] * 20, rtol=1e-5)
    falling = course(ScheduleValues.EXPONENTIAL, factor=0.5)
    np.testing.assert_allclose(falling[[0, 10, 20, 25]], [1, 0.5, 0.25, 0.25 * 0.5**0.5], rtol=1e-5)


@pytest.mark.parametrize("schedule", [each for each in ScheduleValues if each != "one-cycle"])
def test_a_warm_up_rises_to_the_schedule_and_leaves_the_rest_alone(schedule: Any) -> None:
    plan = replace(STILL, schedule=schedule, factor=0.5)

    plain, warmed = (rates(replace(plan, warmup_epochs=w), 10, 4) for w in (0, 0.5))

    np.testing.assert_allclose(warmed[:5] / plain[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-5)
    np.testing.assert_allclose(warmed[5:], plain[5:])


@pytest.mark.parametrize("schedule", ScheduleValues)
def test_one_short_epoch_has_a_schedule(schedule: ScheduleValues) -> None:
    found = rates(replace(STILL, schedule=schedule, warmup_epochs=1.0), 1, 1)

    assert np.isfinite(found).all()
    assert 0 < found[0] <= 0.1 + 1e-7


class Weights:
    """A kernel, a bias and the scale of a normalising layer, each a one."""

    def __init__(self) -> None:
        self.variables = [
            keras.Variable(np.ones(4, np.float32), name=name)
            for name in ("kernel", "bias", "gamma")
        ]

    def moved(self, optimiser: Any, gradient: float, steps: int = 1) -> dict[str, float]:
        if not optimiser.built:
            optimiser.build(self.variables)
        for step in range(steps):
            gradients = [np.full(4, gradient * (step + 1), np.float32) for _ in self.variables]
            tensors = [keras.ops.convert_to_tensor(each) for each in gradients]
            optimiser.apply(tensors, self.variables)
        return {each.name: float(np.asarray(each)[0]) for each in self.variables}


@pytest.mark.parametrize("name", [OptimiserValues.SGD, OptimiserValues.ADAMW])
def test_only_kernels_decay(name: OptimiserValues) -> None:
    plan = replace(STILL, name=name, weight_decay=0.5)

    moved = Weights().moved(optimiser_of(plan, 1, 1), gradient=0.0)

    assert moved == {"kernel": pytest.approx(0.95), "bias": 1.0, "gamma": 1.0}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 1 - 0.1 * 3 - 0.1 * 6),
        ({"clip_norm": 0.6}, 1 - 2 * 0.1 * 0.6 / 12**0.5),  # 12 weights share the length
        ({"momentum": 0.5}, 1 - 0.3 - (0.6 + 0.15)),
        ({"momentum": 0.5, "nesterov": True}, 1 - (0.15 + 0.3) - (0.5 * (0.15 + 0.6) + 0.6)),
        ({"name": OptimiserValues.ADAM}, None),
    ],
)
def test_a_step_goes_as_far_as_its_rule_says(changes: Any, expected: float | None) -> None:
    moved = Weights().moved(optimiser_of(replace(STILL, **changes), 1, 1), 3.0, steps=2)

    if expected is None:  # Adam: a learning rate per step where the gradient keeps its sign
        assert moved["kernel"] == pytest.approx(0.8, abs=0.01)
    else:
        assert moved["kernel"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", OptimiserValues)
def test_an_optimiser_goes_on_where_its_state_was_kept(name: OptimiserValues) -> None:
    plan = replace(
        STILL, name=name, momentum=0.9, nesterov=True, schedule=ScheduleValues.COSINE
    )  # fmt: skip
    # Given a training of five steps,
    whole = Weights()
    expected = whole.moved(optimiser_of(plan, 3, 2), 1.0, steps=5)

    # when it stops after two, and its state goes to arrays and into a new optimiser,
    weights, first, second = Weights(), optimiser_of(plan, 3, 2), optimiser_of(plan, 3, 2)
    weights.moved(first, 1.0, steps=2)
    kept = [array.copy() for array in state_of(first)]
    second.build(weights.variables)
    restore_optimiser(second, kept)
    for step in (3, 4, 5):
        found = weights.moved(second, float(step))

    # then it ends where the other did.
    assert found == expected
    assert int(np.asarray(second.iterations)) == 5


def test_the_state_of_another_training_is_refused() -> None:
    weights, adam = Weights(), optimiser_of(replace(STILL, name=OptimiserValues.ADAM), 1, 1)
    weights.moved(adam, 1.0)
    other = optimiser_of(STILL, 1, 1)
    other.build(weights.variables)

    with pytest.raises(NetworkFault, match="belongs to another plan, network or phase"):
        restore_optimiser(other, state_of(adam))
