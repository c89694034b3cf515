"""The reference: the classic network that pneumonia tutorials train on films of 150x150x3.

Owns its layers. They are those of its name and nothing else, so that figures can be compared.
"""

from __future__ import annotations

from typing import Any

from keras import layers

from model.training.network_plan import REFERENCE_DROPOUT, NetworkPlan
from model.training.networks.heads import regulariser

CHANNELS = (32, 64, 128)
UNITS = 512


def reference_features(image: Any, plan: NetworkPlan) -> Any:
    """Return (batch, 512): Conv32-Pool-Conv64-Pool-Conv128-Pool-Flatten-Dense512-Dropout0.5.

    Kernels are 3x3 without padding, activations ReLU, pools the maximum of 2x2.
    """
    x = image
    for channels in CHANNELS:
        x = layers.Conv2D(channels, 3, activation="relu", kernel_regularizer=regulariser(plan))(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(UNITS, activation="relu", kernel_regularizer=regulariser(plan))(x)
    return layers.Dropout(REFERENCE_DROPOUT)(x)
