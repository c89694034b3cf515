"""The compact network for volumes: residual blocks of convolutions within and across slices.

Owns the layers from the volume to the last features. A convolution of 3x3x3 is factorised into
one of 1x3x3 and one of 3x1x1, which costs less than half and suits slices thicker than pixels.
"""

from __future__ import annotations

from typing import Any

from keras import layers

from model.training.network_plan import NetworkPlan
from model.training.networks.compact import NORM_MOMENTUM
from model.training.networks.heads import regulariser

_IN_PLANE, _ACROSS = (1, 3, 3), (3, 1, 1)


def volume_features(volume: Any, plan: NetworkPlan) -> Any:
    """Return (batch, slices / t, rows / s, columns / s, channels); t and s as the plan strides."""
    stride = (1, plan.stem_stride, plan.stem_stride)
    x = _convolved(volume, plan.stem_channels, _IN_PLANE, stride, plan)
    x = layers.Activation("relu")(x)
    for stage in plan.planned_stages:
        for block in range(stage.blocks):
            first = (stage.slice_stride, stage.stride, stage.stride)
            x = _residual(x, stage.channels, first if block == 0 else (1, 1, 1), plan)
    return x


def _convolved(
    x: Any, channels: int, kernel: tuple[int, ...], stride: tuple[int, ...], plan: NetworkPlan
) -> Any:
    x = layers.Conv3D(
        channels, kernel, stride, "same", use_bias=False, kernel_regularizer=regulariser(plan)
    )(x)
    return layers.BatchNormalization(momentum=NORM_MOMENTUM)(x)


def _residual(x: Any, channels: int, stride: tuple[int, int, int], plan: NetworkPlan) -> Any:
    shortcut = x
    if stride != (1, 1, 1):
        shortcut = layers.AveragePooling3D(stride, stride, "same")(x)
    if shortcut.shape[-1] != channels:
        shortcut = _convolved(shortcut, channels, (1, 1, 1), (1, 1, 1), plan)
    for number in range(2):
        slices, rows, columns = stride if number == 0 else (1, 1, 1)
        x = _convolved(x, channels, _IN_PLANE, (1, rows, columns), plan)
        x = layers.Activation("relu")(x)
        x = _convolved(x, channels, _ACROSS, (slices, 1, 1), plan)
        if number == 0:
            x = layers.Activation("relu")(x)
    return layers.Activation("relu")(layers.Add()([x, shortcut]))
