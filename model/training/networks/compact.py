"""The compact network for images: residual blocks of separable convolutions.

Owns the layers from the image to the last features.
"""

from __future__ import annotations

from typing import Any

from keras import layers

from model.training.network_plan import NetworkPlan
from model.training.networks.heads import regulariser

NORM_MOMENTUM = 0.97


def standardised(image: Any, plan: NetworkPlan) -> Any:
    """Return each input with zero mean and unit variance, so that exposure says nothing.

    A volume is standardised as a whole: its slices stay comparable. An input of one value
    everywhere becomes zeros.
    """
    if not plan.standardise:
        return image
    return layers.LayerNormalization(
        axis=tuple(range(1, len(image.shape))),
        center=False,
        scale=False,
        epsilon=1e-4,
        name="standardise",
    )(image)


def compact_features(image: Any, plan: NetworkPlan) -> Any:
    """Return (batch, rows / s, columns / s, channels), s the product of the plan's strides."""
    x = layers.Conv2D(
        plan.stem_channels,
        3,
        plan.stem_stride,
        "same",
        use_bias=False,
        kernel_regularizer=regulariser(plan),
        name="stem",
    )(image)
    x = layers.BatchNormalization(momentum=NORM_MOMENTUM)(x)
    x = layers.Activation("relu")(x)
    for stage in plan.planned_stages:
        for block in range(stage.blocks):
            x = _residual(x, stage.channels, stage.stride if block == 0 else 1, plan)
    return x


def _residual(x: Any, channels: int, stride: int, plan: NetworkPlan) -> Any:
    penalty = regulariser(plan)
    shortcut = x
    if stride != 1:
        shortcut = layers.AveragePooling2D(stride, stride, "same")(x)
    if shortcut.shape[-1] != channels:
        shortcut = layers.Conv2D(channels, 1, use_bias=False, kernel_regularizer=penalty)(shortcut)
        shortcut = layers.BatchNormalization(momentum=NORM_MOMENTUM)(shortcut)
    for number in range(2):
        x = layers.SeparableConv2D(
            channels,
            3,
            stride if number == 0 else 1,
            "same",
            use_bias=False,
            depthwise_regularizer=penalty,
            pointwise_regularizer=penalty,
        )(x)
        x = layers.BatchNormalization(momentum=NORM_MOMENTUM)(x)
        if number == 0:
            x = layers.Activation("relu")(x)
    return layers.Activation("relu")(layers.Add()([x, shortcut]))
