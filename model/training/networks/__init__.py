"""The networks that can be trained: built from a plan, averaged, calibrated.

Owns architecture only; knows nothing of images or of how weights are found. Every network is made
of Keras's own layers and operations, so that its file loads wherever Keras is installed.
"""

from model.training.networks.backbones import put_weights
from model.training.networks.building import (
    LOGITS_LAYER,
    MAP_LAYER,
    build_network,
    set_backbone_trainable,
)
from model.training.networks.combining import calibrate, mean_of

__all__ = [
    "LOGITS_LAYER",
    "MAP_LAYER",
    "build_network",
    "calibrate",
    "mean_of",
    "put_weights",
    "set_backbone_trainable",
]
