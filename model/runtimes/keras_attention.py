"""Grad-CAM and HiResCAM for Keras networks: which layer is looked at, and the compiled gradient.

Owns the walk through a network's layers. Imports neither Keras nor TensorFlow: it is handed the
loaded network and the library by ``keras_runtime``.

References
----------
Selvaraju et al., Grad-CAM, ICCV 2017; Draelos and Carin, HiResCAM, arXiv:2011.08891.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
from scipy.ndimage import zoom

from model.errors import CannotExplain
from model.explanation_plan import ExplanationPlan, MethodValues
from model.runtimes.keras_end import last_operations
from model.runtimes.port import Attention, FloatArray

MOST_INPUTS = 8
"""Inputs of one computation: the features of every layer are held for the way back."""

_SQUASHING = frozenset({"sigmoid", "softmax"})
_SMALLEST_GRID = 2
Shape = tuple[int | None, ...]
Shapes = Mapping[int, Shape]
ShapesOf = Callable[[Sequence[Any]], Shapes]

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
        Of one input; the network's own when absent.

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
        shape: Sequence[int | None] | None = None,
    ) -> None:
        self._tf = tf
        shape = tuple(shape or network.inputs[0].shape[1:])
        with _faults_as_reasons(tf):
            self._layers = attention_layers(network, plan, partial(_shapes, tf, network, shape))
        self._method = plan.method
        self._outputs = int(network.outputs[0].shape[-1])
        self._most = MOST_INPUTS if len(network.inputs[0].shape) == 4 else 1
        self._compute = _compiled(tf, network, self._layers, plan.method, device)

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


def attention_layers(
    network: Any, plan: ExplanationPlan, shapes_of: ShapesOf | None = None
) -> list[Any]:
    """Return the layers to look at: the named ones, or one chosen in each averaged network.

    A network that joins the answers of networks is looked at inside each of them that looks at
    pixels: not in a head behind them. Only layers that everything passes through are chosen: one
    branch of several would tell half of the reasons.

    Raises
    ------
    CannotExplain
        A named layer does not exist or is not the only one of its name, or no layer keeps rows and
        columns behind a convolution.
    """
    if plan.layers:
        return _named_layers(network, plan.layers)
    parts = [_candidates(part) for part in _seeing_networks(network)]
    shapes = (shapes_of or _declared)([each for part in parts for each in part])
    return [_deepest(part, plan.cells, shapes) for part in parts]


def _named_layers(network: Any, names: Sequence[str]) -> list[Any]:
    known: dict[str, dict[int, Any]] = {}
    for layer in all_layers(network):
        known.setdefault(layer.name, {})[id(layer)] = layer
    absent = [name for name in names if name not in known]
    if absent:
        raise CannotExplain(f"the network has no layer named {', '.join(absent)}")
    # Averaged networks may name theirs alike: one of them would tell half of the reasons.
    several = [f"{len(known[name])} layers named {name}" for name in names if len(known[name]) > 1]
    if several:
        raise CannotExplain(f"the network has {', '.join(several)}")
    layers = [layer for name in names for layer in known[name].values()]
    flat = [layer.name for layer in layers if not _is_spatial(layer)]
    if flat:
        raise CannotExplain(f"the layer {', '.join(flat)} keeps no rows and columns")
    return layers


def all_layers(network: Any) -> Iterator[Any]:
    """Yield the layers of a network, those of networks inside it included."""
    for layer in network.layers:
        yield layer
        if _is_network(layer):
            yield from all_layers(layer)


def _answering_networks(network: Any) -> list[Any]:
    """Return the networks inside that answer by themselves, or the network when there is none."""
    return [part for each in _members(network) for part in _answering_networks(each)] or [network]


def _seeing_networks(network: Any) -> list[Any]:
    """Return those of them that look at pixels, each with what answers for it inside."""
    seeing = [each for each in _members(network) if any(map(_is_convolution, all_layers(each)))]
    return [part for each in seeing for part in _seeing_networks(each)] or [network]


def _members(network: Any) -> list[Any]:
    return [each for each in network.layers if _is_network(each) and not _is_spatial(each)]


def _is_convolution(layer: Any) -> bool:
    return "Conv" in type(layer).__name__


def _candidates(network: Any) -> Sequence[Any]:
    """Return what everything passes through behind a convolution, rows and columns kept.

    Not what pads or crops: its cells do not divide the input evenly.
    """
    passages = [each for each in _passages(network) if _is_spatial(each)]
    return [each for each in _behind_convolution(passages) if not _moves_edges(each)]


def _moves_edges(layer: Any) -> bool:
    return type(layer).__name__.startswith(("ZeroPadding", "Cropping"))


def _deepest(candidates: Sequence[Any], cells: int, shapes: Shapes) -> Any:
    edges = {id(each): _edge(shapes[id(each)]) for each in candidates}
    spatial = [each for each in candidates if edges[id(each)] >= _SMALLEST_GRID]
    if not spatial:
        raise CannotExplain("the network has no convolution that everything passes through")
    fine = [each for each in spatial if edges[id(each)] >= cells]
    return (fine or spatial)[-1]


def _behind_convolution(layers: Sequence[Any]) -> Sequence[Any]:
    for number, layer in enumerate(layers):
        if _is_network(layer) or _is_convolution(layer):
            return layers[number:]
    return ()


def _passages(network: Any) -> Iterator[Any]:
    """Yield the layers that every path from input to output passes through, in order.

    Operations come sorted by depth, so a layer is passed by all unless an edge leads over it.
    """
    operations = list(getattr(network, "operations", network.layers))
    places = {id(each): place for place, each in enumerate(operations)}
    furthest = 0
    for place, operation in enumerate(operations):
        if furthest <= place and hasattr(operation, "output"):
            if _is_network(operation):
                yield from _passages(operation)
            yield operation
        furthest = max(furthest, _last_reader(operation, places))


def _last_reader(operation: Any, places: dict[int, int]) -> int:
    """Return the place of the last operation that reads what this one gives; 0 without any."""
    nodes = operation._outbound_nodes  # noqa: SLF001  Keras has no public edges
    readers = [places[id(each.operation)] for each in nodes if id(each.operation) in places]
    return max(readers, default=0)


def _is_network(layer: Any) -> bool:
    return hasattr(layer, "layers") and hasattr(layer, "inputs")


def _is_spatial(layer: Any) -> bool:
    """True when the output still has rows and columns, more than one of them."""
    try:
        shape = tuple(layer.output.shape)
    except (AttributeError, ValueError):  # several outputs, or used more than once
        return False
    edges = shape[1:-1]
    return len(shape) in (4, 5) and all(e is None or e >= _SMALLEST_GRID for e in edges[-2:])


def _edge(shape: Shape) -> int:
    """Return the smaller of rows and columns; an open edge counts as fine enough."""
    return min(edge if edge is not None else 2**31 for edge in shape[-3:-1])


def _declared(operations: Sequence[Any]) -> dict[int, Shape]:
    """Return what layers say that they give, by their identity."""
    return {id(each): tuple(each.output.shape) for each in operations}


def _shapes(
    tf: Any, network: Any, shape: Sequence[int | None], operations: Sequence[Any]
) -> Shapes:
    """Return what layers give for an input of this shape, by their identity.

    A network within a network may take images of any size, as backbones of Keras do: what it
    makes of this one is found by tracing.
    """
    shapes = _declared(operations)
    undecided = [each for each in operations if None in shapes[id(each)][1:]]
    if not undecided:
        return shapes
    with recorded(undecided) as seen:
        # Without autograph, as below.
        traced = tf.function(lambda values: network(values, training=False), autograph=False)
        traced.get_concrete_function(tf.TensorSpec((1, *shape), tf.float32))
    pairs = zip(undecided, seen, strict=True)
    return shapes | {id(each): tuple(outputs[0].shape) for each, outputs in pairs}


def _compiled(
    tf: Any, network: Any, layers: Sequence[Any], method: MethodValues, device: str
) -> Any:
    """Return a function of (batch, targets) that gives one map per layer, compiled once."""
    shape = (None, *network.inputs[0].shape[1:])
    signature = [tf.TensorSpec(shape, tf.float32), tf.TensorSpec((None, None), tf.float32)]

    # Autograph would wrap the reason why there is no map into a traceback of many lines.
    @tf.function(  # type: ignore[untyped-decorator]
        input_signature=signature, jit_compile=False, autograph=False
    )
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
def recorded(layers: Sequence[Any]) -> Iterator[list[list[Any]]]:
    """Note what each of these layers gives while the network is called, however deep it lies."""
    seen: list[list[Any]] = [[] for _ in layers]
    with ExitStack() as stack:
        for layer, outputs in zip(layers, seen, strict=True):
            stack.enter_context(_listening(layer, outputs))
        yield seen


@contextmanager
def _listening(layer: Any, outputs: list[Any]) -> Iterator[None]:
    call = layer.call

    def noted(*arguments: Any, **options: Any) -> Any:
        outputs.append(call(*arguments, **options))
        return outputs[-1]

    layer.call = noted
    try:
        yield
    finally:
        del layer.call


@contextmanager
def linear_ends(network: Any) -> Iterator[None]:
    """Let the last layers give their score before sigmoid or softmax.

    Where a probability is close to 1 its gradient vanishes, and the surest findings would have
    no map.
    """
    parts = {id(each): each for each in (network, *_answering_networks(network))}.values()
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
