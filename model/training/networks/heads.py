"""The head that says where: one logit per position, and their smooth maximum as the answer.

Owns the layers ``map`` and ``logits`` of detecting networks. What it computes stays true when
logits are calibrated: all its numbers are weights.

References
----------
Pinheiro and Collobert, From image-level to pixel-level labeling, CVPR 2015: log-mean-exp pooling.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from model.training.network_plan import NetworkPlan

LOGITS_LAYER = "logits"
MAP_LAYER = "map"
SHARPENED_LAYER = "sharpened"


def regulariser(plan: NetworkPlan) -> Any:
    """Return the plan's penalty on kernels, None without one."""
    return keras.regularizers.L2(plan.l2) if plan.l2 else None


def map_head(features: Any, plan: NetworkPlan, outputs: int) -> Any:
    """Turn features into a map of logits and their smooth maximum.

    Parameters
    ----------
    features : KerasTensor
        (batch, [slices,] rows, columns, channels).

    Returns
    -------
    KerasTensor
        (batch, outputs) float32: log(mean(exp(r * map))) / r over all positions, r the plan's
        sharpness.
    """
    features = layers.Dropout(plan.dropout)(features)
    positions = layers.Dense(
        outputs, kernel_regularizer=regulariser(plan), dtype="float32", name=MAP_LAYER
    )(features)
    return pooled(positions, *_pooling_layers(outputs, plan.map_sharpness))


def _pooling_layers(outputs: int, sharpness: float) -> tuple[Any, Any]:
    """Return r and 1 / r as layers whose weights no training touches."""
    sharpened, logits = (
        layers.Dense(
            outputs,
            use_bias=False,
            kernel_initializer=keras.initializers.Identity(gain),
            trainable=False,
            dtype="float32",
            name=name,
        )
        for name, gain in ((SHARPENED_LAYER, sharpness), (LOGITS_LAYER, 1 / sharpness))
    )
    return sharpened, logits


def pooled(positions: Any, sharpened: Any, logits: Any) -> Any:
    """Return the smooth maximum of a map through the two layers of a map head."""
    sharp = sharpened(positions)
    axes = tuple(range(1, len(sharp.shape) - 1))
    # The highest is taken out first: exp() of a calibrated logit times r would overflow.
    highest = ops.max(sharp, axis=axes, keepdims=True)
    mean = ops.mean(ops.exp(ops.subtract(sharp, highest)), axis=axes)
    return logits(ops.add(ops.log(mean), ops.max(sharp, axis=axes)))
