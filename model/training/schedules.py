"""Learning rates over the steps of a training.

Owns the five courses a plan may name; each is a function of the step alone, so that a training
taken up again goes on with the rate it had.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops
from keras.optimizers import schedules

from model.training.optimiser_plan import OptimiserPlan, ScheduleValues

ONE_CYCLE_START = 20
"""A one-cycle schedule begins with this part of its highest rate."""


class WarmUp(schedules.LearningRateSchedule):  # type: ignore[misc]  # Keras has no types
    """Another schedule, multiplied by a linear rise over the first steps.

    Parameters
    ----------
    inner : LearningRateSchedule
    steps : int
        After so many the inner schedule is alone; its course is not shifted.
    """

    def __init__(self, inner: Any, steps: int) -> None:
        self.inner = inner
        self.steps = steps

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step, the first being 0."""
        done = ops.cast(step, "float32") + 1.0
        return self.inner(step) * ops.minimum(done / float(self.steps), 1.0)

    def get_config(self) -> dict[str, Any]:
        """Return what the schedule is made from."""
        inner = keras.saving.serialize_keras_object(self.inner)
        return {"inner": inner, "steps": self.steps}


def schedule_of(plan: OptimiserPlan, steps_per_epoch: int, epochs: int) -> Any:
    """Return the learning rate as a function of the step.

    Parameters
    ----------
    plan : OptimiserPlan
    steps_per_epoch, epochs : int
        Of the whole training; ``cosine`` and ``one-cycle`` end with it.

    Returns
    -------
    keras.optimizers.schedules.LearningRateSchedule
    """
    total = max(steps_per_epoch * epochs, 1)
    rise = min(round(plan.warmup_epochs * steps_per_epoch), total - 1)
    if plan.schedule is ScheduleValues.ONE_CYCLE:
        return schedules.CosineDecay(
            plan.learning_rate / ONE_CYCLE_START,
            total - rise,
            warmup_target=plan.learning_rate,
            warmup_steps=rise,
        )
    course = _course(plan, steps_per_epoch, total)
    return WarmUp(course, rise) if rise else course


def _course(plan: OptimiserPlan, steps_per_epoch: int, total: int) -> Any:
    rate = plan.learning_rate
    match plan.schedule:
        case ScheduleValues.COSINE:
            return schedules.CosineDecay(rate, total, alpha=plan.final_share)
        case ScheduleValues.STEP:
            every = plan.step_epochs * steps_per_epoch
            return schedules.ExponentialDecay(rate, every, plan.factor, staircase=True)
        case ScheduleValues.EXPONENTIAL:
            return schedules.ExponentialDecay(rate, steps_per_epoch, plan.factor)
        case _:
            return schedules.ExponentialDecay(rate, 1, 1.0)
