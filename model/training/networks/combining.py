"""Several networks as one, and logits brought to the scale of probabilities.

Owns what happens to networks after their training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from model.errors import NetworkFault
from model.training.networks.backbones import BACKBONE_LAYER, all_layers
from model.training.networks.heads import LOGITS_LAYER, MAP_LAYER, SHARPENED_LAYER, pooled

SPOKEN_LAYERS = frozenset({BACKBONE_LAYER, LOGITS_LAYER, MAP_LAYER, SHARPENED_LAYER})
"""Names by which code finds a layer; they are the same in every network."""


def mean_of(members: Sequence[Any]) -> Any:
    """Return one network that answers the mean of its members; a single member stays itself.

    Without maps, the mean of the members' logits. With maps, their mean is the layer ``map`` of
    the whole, and the answer is its smooth maximum through the layers of the first member: the
    answer and the map speak of the same positions. The weights stay those of the members.

    Raises
    ------
    NetworkFault
        There is no member, or they differ in input, output or map.
    """
    _check_alike(members)
    if len(members) == 1:
        return members[0]
    _name_apart(members)
    image = keras.Input(members[0].input_shape[1:], name="image")
    if not has_map(members[0]):
        mean = keras.layers.Average(name="mean_logit")([member(image) for member in members])
        return keras.Model(image, mean)
    positions = keras.layers.Activation("linear", dtype="float32", name=MAP_LAYER)
    first = members[0]
    layers = first.get_layer(SHARPENED_LAYER), first.get_layer(LOGITS_LAYER)
    return keras.Model(image, pooled(positions(_mean_map(members)(image)), *layers))


def _name_apart(members: Sequence[Any]) -> None:
    """Number the members, and put its number before every layer name that others bear too.

    Members come from files and processes of their own, where names are given out anew.
    """
    named = Counter(layer.name for member in members for layer in all_layers(member))
    for number, member in enumerate(members):
        member.name = f"member_{number}"
        for layer in all_layers(member):
            if named[layer.name] > 1 and layer.name not in SPOKEN_LAYERS:
                layer.name = f"{member.name}_{layer.name}"


def _mean_map(members: Sequence[Any]) -> Any:
    """Return the network from an input to the mean of the members' maps."""
    image = keras.Input(members[0].input_shape[1:], name="image")
    maps = [
        keras.Model(each.inputs[0], each.get_layer(MAP_LAYER).output, name=each.name)(image)
        for each in members
    ]
    return keras.Model(image, keras.layers.Average(dtype="float32")(maps), name="members")


def has_map(network: Any) -> bool:
    """Return True when a network has the layer ``map``."""
    return any(layer.name == MAP_LAYER for layer in network.layers)


def _check_alike(members: Sequence[Any]) -> None:
    if not members:
        raise NetworkFault("members: there must be one at least; received none")
    kinds = {(each.input_shape, each.output_shape, has_map(each)) for each in members}
    if len(kinds) > 1:
        raise NetworkFault(f"members: must be alike in input, output and map; received {kinds}")


def calibrate(members: Sequence[Any], scale: npt.ArrayLike, offset: npt.ArrayLike) -> None:
    """Fold ``logit * scale + offset`` into the last layers, so that the file holds all of it.

    Parameters
    ----------
    members : sequence of keras.Model
        As given to ``mean_of``; the whole made of them is calibrated with them. Maps are
        calibrated as their logits are.
    scale, offset : float or array-like
        One number, or one per output; scales are above zero.

    Raises
    ------
    NetworkFault
        A scale is not above zero, or a number is not finite.
    """
    scales, offsets = np.asarray(scale, np.float64), np.asarray(offset, np.float64)
    if not (np.isfinite(scales).all() and np.isfinite(offsets).all() and (scales > 0).all()):
        raise NetworkFault(
            f"calibration: the scale must be above zero and all finite; got {scales} and {offsets}"
        )
    for member in members:
        if not has_map(member):
            _rescale(member.get_layer(LOGITS_LAYER), scales, offsets)
            continue
        _rescale(member.get_layer(MAP_LAYER), scales, offsets)
        # The maximum over a map that is s times as wide is equally smooth with r / s.
        _rescale(member.get_layer(SHARPENED_LAYER), 1 / scales)
        _rescale(member.get_layer(LOGITS_LAYER), scales)


def _rescale(layer: Any, scale: npt.NDArray[np.float64], offset: Any = 0.0) -> None:
    kernel, *bias = layer.get_weights()
    layer.set_weights([kernel * scale, *(each * scale + offset for each in bias)])
