"""The compiled parts of a training: one step of the optimiser, and the answers of a network.

Owns TensorFlow's functions and the phases of transfer learning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from model.training.loop_batches import Part
from model.training.losses import loss_of
from model.training.networks import set_backbone_trainable
from model.training.optimisers import optimiser_of
from model.training.plan import TrainingPlan
from model.training.targets import FloatArray, class_weights_of

ANSWER_BATCH = 64


@dataclass(frozen=True, slots=True)
class Phase:
    """Epochs in which the same weights are trained."""

    start: int
    end: int
    """The first epoch after it."""
    is_frozen: bool = False
    """The backbone stays as its weights file has it."""
    rate: float = 1.0
    """Share of the learning rate."""

    @property
    def epochs(self) -> int:
        """How many there are."""
        return self.end - self.start


def phases_of(plan: TrainingPlan) -> tuple[Phase, ...]:
    """Return the phases of a training: frozen and fine-tuned, or a single one."""
    frozen, epochs = plan.network.frozen_epochs, plan.fit.epochs
    if not frozen:
        return (Phase(0, epochs),)
    first = Phase(0, min(frozen, epochs), is_frozen=True)
    if frozen >= epochs:
        return (first,)
    return (first, Phase(frozen, epochs, rate=plan.network.fine_tune_rate))


@dataclass(frozen=True, slots=True)
class Step:
    """A compiled step and the optimiser behind it."""

    run: Callable[[FloatArray, FloatArray], Any]
    """Takes values and targets, moves the weights once, returns the loss."""
    optimiser: Any

    @property
    def learning_rate(self) -> float:
        """As it is now."""
        return float(self.optimiser.learning_rate)


def compiled_step(
    network: Any, plan: TrainingPlan, phase: Phase, steps: int, targets: FloatArray
) -> Step:
    """Return the step of a phase.

    Parameters
    ----------
    network : keras.Model
        Its backbone is frozen or released here, as the phase has it.
    plan : TrainingPlan
    phase : Phase
    steps : int
        Per epoch.
    targets : ndarray
        Of the training images; what balanced class weights are computed from.
    """
    if plan.network.frozen_epochs:
        set_backbone_trainable(network, not phase.is_frozen, train_norm=plan.network.train_norm)
    optimiser_plan = replace(
        plan.optimiser, learning_rate=plan.optimiser.learning_rate * phase.rate
    )
    optimiser = optimiser_of(optimiser_plan, steps, phase.epochs)
    optimiser.build(network.trainable_variables)
    loss = loss_of(plan.head.kind, plan.head.label_smoothing, class_weights_of(targets, plan))

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def step(values: Any, wanted: Any) -> Any:
        with tf.GradientTape() as tape:
            found = loss(wanted, network(values, training=True))
            # What layers add by themselves, such as L2.
            found = tf.add_n([found, *network.losses])
        variables = network.trainable_variables
        optimiser.apply(tape.gradient(found, variables), variables)
        return found

    return Step(step, optimiser)


def answering(network: Any) -> Callable[[Part], FloatArray]:
    """Return a function from a part to the network's logits, (row, outputs)."""
    inputs = tf.TensorSpec(network.input_shape, tf.float32)

    @tf.function(input_signature=[inputs])  # type: ignore[untyped-decorator]
    def answer(values: Any) -> Any:
        return network(values, training=False)

    def answers(part: Part) -> FloatArray:
        found = [np.asarray(answer(values)) for values in part.chunks(ANSWER_BATCH)]
        return np.concatenate(found).astype(np.float32)

    return answers
