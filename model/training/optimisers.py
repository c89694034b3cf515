"""Optimisers as planned, and their state on the way to a file and back.

Owns Keras's optimisers; which is meant is read in ``optimiser_plan``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from model.errors import NetworkFault
from model.training.optimiser_plan import OptimiserPlan, OptimiserValues, read_optimiser_plan
from model.training.schedules import schedule_of

__all__ = [
    "OptimiserPlan",
    "optimiser_of",
    "read_optimiser_plan",
    "restore_optimiser",
    "state_of",
]

UNDECAYED = ("gamma", "beta", "bias")
"""Weights of these names do not decay: scales and shifts of normalising layers, and biases."""


def optimiser_of(plan: OptimiserPlan, steps_per_epoch: int, epochs: int) -> Any:
    """Return an optimiser that was not built yet.

    Parameters
    ----------
    plan : OptimiserPlan
    steps_per_epoch, epochs : int
        Of the whole training, for the schedule.

    Returns
    -------
    keras.optimizers.Optimizer
        Build it with the weights that are trained; other weights need another optimiser.
    """
    rate = schedule_of(plan, steps_per_epoch, epochs)
    common = {"global_clipnorm": plan.clip_norm or None}
    if plan.name is OptimiserValues.ADAM:
        return keras.optimizers.Adam(rate, **common)
    if plan.name is OptimiserValues.SGD:
        optimiser = keras.optimizers.SGD(
            rate,
            momentum=plan.momentum,
            nesterov=plan.nesterov,
            weight_decay=plan.weight_decay or None,
            **common,
        )
    else:
        optimiser = keras.optimizers.AdamW(rate, weight_decay=plan.weight_decay, **common)
    optimiser.exclude_from_weight_decay(var_names=list(UNDECAYED))
    return optimiser


def state_of(optimiser: Any) -> list[npt.NDArray[Any]]:
    """Return everything a built optimiser remembers, its step among it."""
    return [np.asarray(variable) for variable in optimiser.variables]


def restore_optimiser(optimiser: Any, state: Sequence[npt.NDArray[Any]]) -> None:
    """Let an optimiser that was built for the same weights go on where another stopped.

    Raises
    ------
    NetworkFault
        The state is that of another optimiser or of other weights.
    """
    wanted = [tuple(variable.shape) for variable in optimiser.variables]
    found = [tuple(array.shape) for array in state]
    if wanted != found:
        raise NetworkFault(
            f"optimiser: the state has {len(found)} arrays that do not fit the {len(wanted)} of "
            f"this optimiser; it belongs to another plan, network or phase of the training"
        )
    for variable, array in zip(optimiser.variables, state, strict=True):
        variable.assign(array)
