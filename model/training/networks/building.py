"""From a plan and a shape to a network: input, features, head.

Owns which features go with which head, and what a shape must be like; the layers are in the
modules beside this one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from model.errors import NetworkFault
from model.training.network_plan import NetworkKindValues, NetworkPlan, SlicePoolingValues
from model.training.networks.backbones import all_layers, backbone_features, backbone_of
from model.training.networks.compact import compact_features, standardised
from model.training.networks.heads import LOGITS_LAYER, MAP_LAYER, map_head, regulariser
from model.training.networks.reference import reference_features
from model.training.networks.slices import read_by_slice
from model.training.networks.volumes import volume_features

__all__ = [
    "LOGITS_LAYER",
    "MAP_LAYER",
    "build_network",
    "set_backbone_trainable",
]

Shape = tuple[int | None, ...]

_RANKS = {
    NetworkKindValues.COMPACT: (3, 4),
    NetworkKindValues.APPLICATION: (3, 4),
    NetworkKindValues.COMPACT_3D: (4,),
    NetworkKindValues.REFERENCE: (3,),
}
_IMAGE = "(rows, columns, channels)"
_VOLUME = "(slices, rows, columns, channels)"


def build_network(plan: NetworkPlan, shape: Shape, outputs: int) -> Any:
    """Build a network with random weights; a backbone's are read from the plan's file.

    Parameters
    ----------
    plan : NetworkPlan
    shape : tuple
        (rows, columns, channels) of an image or (slices, rows, columns, channels) of a volume;
        only slices may be None. Images and volumes are float32 in [0, 1].
    outputs : int
        Logits of the answer.

    Returns
    -------
    keras.Model
        (batch, *shape) to (batch, outputs), float32 logits of the layer ``logits``; the sigmoid
        or softmax is the package's output step. With a map, the layer ``map`` holds (batch,
        [slices,] rows, columns, outputs): one logit per position. Where the plan has an l2, the
        loss must include the sum of the network's ``losses``.

    Raises
    ------
    NetworkFault
        The shape is none for this kind, or the weights file does not fit the backbone.
    """
    _check_shape(plan, shape, outputs)
    image = keras.Input(shape, name="image")
    try:
        answer = _answer(image, plan, outputs)
    except ValueError as error:
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise NetworkFault(
            f"network.kind: {plan.kind} cannot be built for inputs of {shape}: {first[:200]}"
        ) from error
    return keras.Model(image, answer)


def set_backbone_trainable(network: Any, trainable: bool, *, train_norm: bool = True) -> None:
    """Freeze or release the backbone of an ``application`` network.

    A frozen backbone computes its BatchNormalization from the statistics of its weights file,
    also during training. An optimiser made before this call does not know the released weights:
    make a new one.

    Parameters
    ----------
    network : keras.Model
    trainable : bool
    train_norm : bool
        False leaves the BatchNormalization frozen when the rest is released.

    Raises
    ------
    NetworkFault
        The network has no backbone.
    """
    backbone = backbone_of(network)
    if backbone is None:
        raise NetworkFault(
            "network.frozen_epochs: only networks of the kind application have a backbone to freeze"
        )
    backbone.trainable = trainable
    if trainable and not train_norm:
        for layer in all_layers(backbone):
            if isinstance(layer, layers.BatchNormalization):
                layer.trainable = False


def _check_shape(plan: NetworkPlan, shape: Shape, outputs: int) -> None:
    ranks = _RANKS[plan.kind]
    if len(shape) not in ranks:
        wanted = " or ".join(_IMAGE if rank == 3 else _VOLUME for rank in ranks)
        raise NetworkFault(f"network.kind: {plan.kind} takes {wanted}; received {shape}")
    if any(edge is None or edge < 1 for edge in shape[-3:]) or (shape[0] or 1) < 1:
        raise NetworkFault(f"input: only slices may be open, nothing may be empty; got {shape}")
    if plan.kind is NetworkKindValues.APPLICATION and shape[-1] not in (1, 3):
        raise NetworkFault(f"input.channels: a backbone reads 1 or 3; received {shape[-1]}")
    if outputs < 1:
        raise NetworkFault(f"outputs: there must be one at least; received {outputs}")


def _answer(image: Any, plan: NetworkPlan, outputs: int) -> Any:
    if plan.kind is NetworkKindValues.REFERENCE:
        return _logits(reference_features(image, plan), plan, outputs)
    if plan.kind is NetworkKindValues.COMPACT_3D:
        features = volume_features(standardised(image, plan), plan)
        pool = layers.GlobalAveragePooling3D(name="pool")
        return _headed(features, pool, plan, outputs)
    of_plane, start = _PLANE_FEATURES[plan.kind]
    image = start(image, plan)
    if len(image.shape) == 4:
        pool = layers.GlobalAveragePooling2D(name="pool")
        return _headed(of_plane(image, plan), pool, plan, outputs)
    return _slicewise(image, of_plane, plan, outputs)


def _unchanged(image: Any, plan: NetworkPlan) -> Any:  # noqa: ARG001  the shape of `standardised`
    return image


_Step = Callable[[Any, NetworkPlan], Any]
_PLANE_FEATURES: dict[NetworkKindValues, tuple[_Step, _Step]] = {
    NetworkKindValues.COMPACT: (compact_features, standardised),
    NetworkKindValues.APPLICATION: (backbone_features, _unchanged),
}


def _headed(features: Any, pool: Any, plan: NetworkPlan, outputs: int) -> Any:
    if plan.has_map:
        return map_head(features, plan, outputs)
    return _logits(layers.Dropout(plan.dropout)(pool(features)), plan, outputs)


def _slicewise(volume: Any, of_plane: _Step, plan: NetworkPlan, outputs: int) -> Any:
    """Read every slice by itself, then answer for all of them."""
    features = read_by_slice(volume, lambda image: of_plane(image, plan))
    if plan.has_map:
        return map_head(features, plan, outputs)
    is_mean = plan.slice_pooling is SlicePoolingValues.MEAN
    planes = keras.ops.mean(features, axis=(2, 3))
    pool = layers.GlobalAveragePooling1D if is_mean else layers.GlobalMaxPooling1D
    return _logits(layers.Dropout(plan.dropout)(pool(name="pool")(planes)), plan, outputs)


def _logits(features: Any, plan: NetworkPlan, outputs: int) -> Any:
    return layers.Dense(
        outputs, kernel_regularizer=regulariser(plan), dtype="float32", name=LOGITS_LAYER
    )(features)
