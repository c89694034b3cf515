"""Grad-CAM and HiResCAM for Keras networks: the compiled gradient of a score, cell by cell.

Owns the computation; which layer is looked at is ``keras_layers``'. Imports neither Keras nor
TensorFlow: it is handed the loaded network and the library by ``keras_runtime``.

References
----------
Selvaraju et al., Grad-CAM, ICCV 2017; Draelos and Carin, HiResCAM, arXiv:2011.08891.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
from scipy.ndimage import zoom

from model.errors import CannotExplain
from model.explanation_plan import ExplanationPlan, MethodValues
from model.runtimes.keras_end import last_operations
from model.runtimes.keras_layers import (
    answering_networks,
    attention_layers,
    given_shapes,
    recorded,
)
from model.runtimes.keras_tracing import Traced
from model.runtimes.port import Attention, FloatArray
from model.runtimes.signature import Shape

MOST_INPUTS = 8
"""Inputs of one computation: the features of every layer are held for the way back."""

_SQUASHING = frozenset({"sigmoid", "softmax"})
_LIBRARY_FAULTS = (
    ValueError, TypeError, AttributeError, LookupError, NotImplementedError, RuntimeError,
)  # fmt: skip


class KerasAttention:
    """Computes attention maps of one loaded network.

    Parameters
    ----------
    tf : module
        TensorFlow.
    network : keras.Model
        One input, one output.
    plan : ExplanationPlan
        Method and layers.
    device : str
        Where to compute, as TensorFlow names it.
    shape : sequence of int, optional
        Of one input, by which layers are chosen; the network's own when absent.
    open_shape : sequence of int or None, optional
        Of one input, as what is compiled may leave it open; see ``Traced``.

    Raises
    ------
    CannotExplain
        The network has no layer whose map could be shown.
    """

    def __init__(
        self,
        tf: Any,
        network: Any,
        plan: ExplanationPlan,
        device: str,
        shape: Shape | None = None,
        open_shape: Shape | None = None,
    ) -> None:
        self._tf = tf
        shape = tuple(shape or network.inputs[0].shape[1:])
        with _faults_as_reasons(tf):
            self._layers = attention_layers(
                network, plan, partial(given_shapes, tf, network, shape)
            )
        self._method = plan.method
        self._outputs = int(network.outputs[0].shape[-1])
        self._most = MOST_INPUTS if len(network.inputs[0].shape) == 4 else 1
        compute = _function(tf, network, self._layers, plan.method, device)
        self._compute = Traced(tf, compute, open_shape)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The layers looked at."""
        return tuple(str(layer.name) for layer in self._layers)

    def maps(self, batch: FloatArray, outputs: Sequence[int]) -> Attention:
        """Return what speaks for one output of each input, cell by cell.

        Where an input's gradient is no finite number its map is none either.

        Raises
        ------
        CannotExplain
            The device has no memory for it, or the network allows none.
        """
        targets = np.eye(self._outputs, dtype=np.float32)[list(outputs)]
        with _faults_as_reasons(self._tf):
            parts = [
                self._part(batch[start : start + self._most], targets[start : start + self._most])
                for start in range(0, len(batch), self._most)
            ]
        return Attention(np.concatenate(parts), self._method.spoken_name, self.layer_names)

    def _part(self, batch: FloatArray, targets: FloatArray) -> FloatArray:
        """Return the sum over the layers: their gradients are those of the mean already."""
        maps = [each.numpy() for each in self._compute(batch, targets)]
        finest = tuple(np.max([each.shape[1:] for each in maps], axis=0))
        total = np.sum([_on_grid(each, finest) for each in maps], axis=0)
        positive: FloatArray = np.maximum(total, 0).astype(np.float32)
        positive[~np.isfinite(total)] = np.nan
        return positive


@contextmanager
def _faults_as_reasons(tf: Any) -> Iterator[None]:
    """Turn what the libraries raise over an unusual network into the reason why there is no map."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise CannotExplain("the device has no memory left to compute one") from error
    except (tf.errors.OpError, *_LIBRARY_FAULTS) as error:
        raise CannotExplain(f"this network allows none ({type(error).__name__})") from error


def _function(
    tf: Any, network: Any, layers: Sequence[Any], method: MethodValues, device: str
) -> Callable[[Any, Any], list[Any]]:
    """Return a function of (batch, targets) that gives one map per layer."""

    def compute(batch: Any, targets: Any) -> Any:
        with tf.device(device), recorded(layers) as seen, linear_ends(network):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(batch)
                scores = tf.cast(network(batch, training=False), tf.float32)
                target = tf.reduce_sum(scores * targets)
            features = [_only(*pair) for pair in zip(layers, seen, strict=True)]
            gradients = tape.gradient(target, features, unconnected_gradients="zero")
            return [
                _weighed(tf, tf.cast(f, tf.float32), tf.cast(g, tf.float32), method)
                for f, g in zip(features, gradients, strict=True)
            ]

    return compute


def _weighed(tf: Any, features: Any, gradient: Any, method: MethodValues) -> Any:
    """Return (batch, *cells): the features weighed by the gradient, summed over the channels."""
    if method is MethodValues.GRAD_CAM:
        axes = list(range(1, len(features.shape) - 1))
        gradient = tf.reduce_mean(gradient, axes, keepdims=True)
    return tf.reduce_sum(features * gradient, -1)


def _only(layer: Any, outputs: list[Any]) -> Any:
    if len(outputs) != 1:
        raise CannotExplain(f"the network uses the layer {layer.name} {len(outputs)} times")
    return outputs[0]


@contextmanager
def linear_ends(network: Any) -> Iterator[None]:
    """Let the last layers give their score before sigmoid or softmax.

    Where a probability is close to 1 its gradient vanishes, and the surest findings would have
    no map.
    """
    parts = {id(each): each for each in (network, *answering_networks(network))}.values()
    with ExitStack() as stack:
        for end in {id(each): each for part in parts for each in _ends(part)}.values():
            stack.enter_context(_linear(end))
        yield


def _ends(network: Any) -> Iterator[Any]:
    """Yield what may squash a network's answer: its last layer, and what makes its output."""
    yield network.layers[-1]
    yield from last_operations(network)


@contextmanager
def _linear(end: Any) -> Iterator[None]:
    """Let a layer give its score, and a Softmax layer or such an operation what it gets."""
    activation = getattr(end, "activation", None)
    if getattr(activation, "__name__", "") in _SQUASHING:
        end.activation = _unchanged
        try:
            yield
        finally:
            end.activation = activation
    elif type(end).__name__.casefold() in _SQUASHING:
        end.call = _unchanged
        try:
            yield
        finally:
            del end.call
    else:
        yield


def _unchanged(values: Any, *_arguments: Any, **_options: Any) -> Any:
    return values


def _on_grid(maps: FloatArray, grid: tuple[int, ...]) -> FloatArray:
    """Return (batch, *grid): coarser maps of other layers interpolated between cell centres."""
    if maps.shape[1:] == grid:
        return maps
    factors = (1.0, *(wanted / edge for wanted, edge in zip(grid, maps.shape[1:], strict=True)))
    # Sums over cells keep their meaning: a coarse cell's share is spread over the fine ones.
    spread = zoom(maps, factors, order=1, mode="nearest", grid_mode=True)
    result: FloatArray = (spread / np.prod(factors)).astype(np.float32)
    return result
