"""Backbones of ``keras.applications`` with weights from a local file, or none.

Owns the conversion from [0, 1] to what a backbone was trained on, which becomes part of the
network, and the reading of weights. Nothing is ever downloaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers, ops

from model.errors import NetworkFault
from model.training.network_plan import APPLICATIONS, NetworkPlan, ScalingValues
from model.training.networks.heads import regulariser

BACKBONE_LAYER = "backbone"

_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)
"""Of red, green and blue in [0, 1] over ImageNet."""
_VARIANCE = tuple(deviation**2 for deviation in _DEVIATION)
_CENTRE_BGR = (103.939, 116.779, 123.68)

_READING_FAULTS = (ValueError, TypeError, KeyError, OSError, AttributeError, IndexError)
"""What Keras and h5py raise for files that do not fit."""


def backbone_features(image: Any, plan: NetworkPlan) -> Any:
    """Return the backbone's last features, (batch, rows, columns, channels).

    Parameters
    ----------
    image : KerasTensor
        (batch, rows, columns, 1 or 3), float32 in [0, 1]; one channel is repeated.
    """
    if image.shape[-1] == 1:
        image = layers.Concatenate()([image, image, image])
    build = getattr(keras.applications, plan.application)
    backbone = build(include_top=False, weights=None, input_shape=tuple(image.shape[1:]))
    if plan.weights is not None:
        _read_weights(backbone, plan.weights, plan.application)
    _penalise(backbone, plan)
    backbone.name = BACKBONE_LAYER
    return backbone(scaled(image, APPLICATIONS[plan.application]))


def scaled(image: Any, scaling: ScalingValues) -> Any:
    """Return an image in [0, 1], (batch, rows, columns, 3), as its backbone expects it."""
    match scaling:
        case ScalingValues.UNIT_RANGE:
            return layers.Rescaling(2.0, -1.0)(image)
        case ScalingValues.IMAGENET_STANDARD:
            scale = [1 / deviation for deviation in _DEVIATION]
            offset = [-mean / deviation for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)]
            return layers.Rescaling(scale, offset)(image)
        case ScalingValues.IMAGENET_CENTRED:
            reversed_channels = ops.flip(image, axis=-1)
            return layers.Rescaling(255.0, [-centre for centre in _CENTRE_BGR])(reversed_channels)
        case ScalingValues.BYTES:
            return layers.Rescaling(255.0)(image)


def backbone_of(network: Any) -> Any:
    """Return the backbone inside a network of this kind, None in others."""
    return next((layer for layer in all_layers(network) if layer.name == BACKBONE_LAYER), None)


def all_layers(network: Any) -> Iterator[Any]:
    """Yield the layers of a network and of the networks inside it."""
    for layer in network.layers:
        yield layer
        if hasattr(layer, "layers"):
            yield from all_layers(layer)


def _read_weights(backbone: Any, path: Path, application: str) -> None:
    try:
        with warnings.catch_warnings():
            # Keras 3.15 converts its variables in a way NumPy 2 calls outdated, and announces each
            # part a file lacks before it raises over all of them.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", UserWarning)
            if path.suffix == ".keras":
                put_weights(backbone, _saved_backbone(path).get_weights())
            else:
                backbone.load_weights(path)
            _correct_variance(backbone)
    except _READING_FAULTS as error:
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise NetworkFault(
            f"network.weights: {path.name} does not fit {application} without its top: "
            f"{type(error).__name__}: {first[:200]}"
        ) from error


def put_weights(network: Any, weights: Sequence[npt.NDArray[Any]]) -> None:
    """Give a network all of its weights, in the order of ``keras.Model.weights``."""
    network.set_weights(weights)
    for layer in _normalisations(network):
        # Keras normalises by copies of the weights, which only reading a file renews.
        layer.finalize_state()


def _normalisations(network: Any) -> Iterator[Any]:
    return (each for each in all_layers(network) if isinstance(each, layers.Normalization))


def _correct_variance(backbone: Any) -> None:
    """Put the variance of ImageNet where a file has the deviation.

    The EfficientNet files of Keras do, and Keras divides once more where it fetches them itself.
    """
    for layer in _normalisations(backbone):
        weights = layer.get_weights()
        if len(weights) > 1 and np.allclose(weights[1].ravel(), _DEVIATION, atol=1e-4):
            weights[1] = np.reshape(_VARIANCE, weights[1].shape)
            layer.set_weights(weights)
            layer.finalize_state()


def _saved_backbone(path: Path) -> Any:
    """Return the network of a file, or the backbone inside one that was trained here."""
    network = keras.models.load_model(path, compile=False, safe_mode=True)
    return backbone_of(network) or network


def _penalise(backbone: Any, plan: NetworkPlan) -> None:
    """Put the plan's penalty on every kernel of a backbone that was built without one."""
    if not plan.l2:
        return
    for layer in all_layers(backbone):
        for name in ("kernel", "depthwise_kernel", "pointwise_kernel"):
            weight = getattr(layer, name, None)
            if weight is not None:
                weight.regularizer = regulariser(plan)
