"""The map of a detecting Keras network: the layer that holds a logit per position, read in a call.

Owns that layer's check against the manifest. Imports neither Keras nor TensorFlow: it is handed
the loaded network and the library by ``keras_runtime``.
"""

from __future__ import annotations

from typing import Any

from model.errors import CannotLocate
from model.package import ModelPackage
from model.runtimes.keras_layers import all_layers, recorded
from model.runtimes.keras_tracing import Traced
from model.runtimes.signature import Shape


def map_faults(package: ModelPackage, network: Any) -> list[str]:
    """Return where the layer that ``[regions]`` names is none that says where."""
    if package.regions is None:
        return []
    name = package.regions.layer
    found = _layers_named(network, name)
    if len(found) != 1:
        return [f"[regions] layer is {name}; the network has {len(found)} layers of that name"]
    shape = _shape_of(found[0])
    rank = len(package.recipe.shape) + 1
    if len(shape) == rank and shape[-1] == package.output.size:
        return []
    wanted = "(batch, slices, rows, columns" if rank == 5 else "(batch, rows, columns"
    return [f"[regions] layer {name} must give {wanted}, {package.output.size}); it gives {shape}"]


def compiled_map(tf: Any, network: Any, name: str, device: str, shape: Shape | None) -> Traced:
    """Return a function of a batch that gives the layer's output; of `shape` see ``Traced``."""
    (layer,) = _layers_named(network, name)

    def compute(values: Any) -> Any:
        with tf.device(device), recorded([layer]) as (outputs,):
            network(values, training=False)
            if len(outputs) != 1:
                raise CannotLocate(f"the network uses the layer {layer.name} {len(outputs)} times")
            return tf.cast(outputs[0], tf.float32)

    return Traced(tf, compute, shape)


def map_layer(network: Any, name: str) -> Any | None:
    """Return the network's own layer of this name; None where it lies inside another network."""
    return next((layer for layer in network.layers if layer.name == name), None)


def _layers_named(network: Any, name: str) -> list[Any]:
    """Return the layers of this name: the network's own, or those of networks inside it.

    An averaged network has a map of its own besides those of its members; it speaks for all.
    """
    own = [layer for layer in network.layers if layer.name == name]
    return own or [layer for layer in all_layers(network) if layer.name == name]


def _shape_of(layer: Any) -> tuple[int | None, ...]:
    try:
        return tuple(layer.output.shape)
    except (AttributeError, ValueError):  # several outputs, or used more than once
        return ()
