"""The compact network for projection films.

Owns architecture only; knows nothing of films or of how weights are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

STAGES = ((32, 1), (64, 2), (112, 3), (176, 2))
"""Channels and residual blocks of each stage; every stage halves rows and columns."""
STEM_CHANNELS = 20
LOGITS_LAYER = "logits"


def compact_network(rows: int, columns: int, *, dropout: float) -> Any:
    """Build a residual network of separable convolutions that ends in one logit.

    The first layer standardises each film to zero mean and unit variance, so that exposure and
    contrast carry no information. Global average pooling makes the position carry none.

    Parameters
    ----------
    rows, columns : int
        Size of the input, one channel, float32 in [0, 1].
    dropout : float
        Share of the pooled features dropped while training.

    Returns
    -------
    keras.Model
        Input (batch, rows, columns, 1), output (batch, 1) logit.
    """
    image = keras.Input((rows, columns, 1), name="film")
    x = layers.LayerNormalization(
        axis=(1, 2, 3), center=False, scale=False, epsilon=1e-4, name="standardise"
    )(image)
    x = layers.Conv2D(STEM_CHANNELS, 3, 2, "same", use_bias=False, name="stem")(x)
    x = layers.BatchNormalization(momentum=0.97)(x)
    x = layers.Activation("relu")(x)
    for channels, blocks in STAGES:
        for block in range(blocks):
            x = _residual(x, channels, 2 if block == 0 else 1)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(dropout)(x)
    logits = layers.Dense(1, dtype="float32", name=LOGITS_LAYER)(x)
    return keras.Model(image, logits)


def _residual(x: Any, channels: int, stride: int) -> Any:
    shortcut = x
    if stride != 1:
        shortcut = layers.AveragePooling2D(2, 2, "same")(x)
    if shortcut.shape[-1] != channels:
        shortcut = layers.Conv2D(channels, 1, use_bias=False)(shortcut)
        shortcut = layers.BatchNormalization(momentum=0.97)(shortcut)
    for number in range(2):
        x = layers.SeparableConv2D(
            channels,
            3,
            stride if number == 0 else 1,
            "same",
            use_bias=False,
        )(x)
        x = layers.BatchNormalization(momentum=0.97)(x)
        if number == 0:
            x = layers.Activation("relu")(x)
    return layers.Activation("relu")(layers.Add()([x, shortcut]))


def mean_of(members: Sequence[Any]) -> Any:
    """Return one network that answers the mean of its members' logits."""
    if len(members) == 1:
        return members[0]
    image = keras.Input(members[0].input_shape[1:], name="film")
    for number, member in enumerate(members):
        member.name = f"member_{number}"
    mean = keras.layers.Average(name="mean_logit")([member(image) for member in members])
    return keras.Model(image, mean)


def calibrate(members: Sequence[Any], scale: float, offset: float) -> None:
    """Fold ``logit * scale + offset`` into the last layers, so that the file holds all of it."""
    for member in members:
        layer = member.get_layer(LOGITS_LAYER)
        kernel, bias = layer.get_weights()
        layer.set_weights([kernel * scale, bias * scale + offset])
