"""The layers of a Keras network: found however deep they lie, chosen to be looked at, listened to.

Owns the walk through a network. Imports neither Keras nor TensorFlow: it is handed the loaded
network, and the library where a walk needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from model.errors import CannotExplain
from model.explanation_plan import ExplanationPlan

_SMALLEST_GRID = 2

Shape = tuple[int | None, ...]
Shapes = Mapping[int, Shape]
ShapesOf = Callable[[Sequence[Any]], Shapes]


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


def answering_networks(network: Any) -> list[Any]:
    """Return the networks inside that answer by themselves, or the network when there is none."""
    return [part for each in _members(network) for part in answering_networks(each)] or [network]


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


def given_shapes(
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
        # Without autograph, as in ``keras_tracing``.
        traced = tf.function(lambda values: network(values, training=False), autograph=False)
        traced.get_concrete_function(tf.TensorSpec((1, *shape), tf.float32))
    pairs = zip(undecided, seen, strict=True)
    return shapes | {id(each): tuple(outputs[0].shape) for each, outputs in pairs}


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
