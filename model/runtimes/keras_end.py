"""What a Keras network does last: what made its numbers, and whether that squashed them.

Owns the walk from the output back. Imports neither Keras nor TensorFlow: it is handed the loaded
network by ``keras_runtime``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_PASSING_ON = frozenset(
    {"Activation", "Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze"}
)
"""What gives the numbers it gets, in another shape or type; Activation where it is linear."""
_JOINING = frozenset({"Average", "Concatenate"})
"""What gives numbers of the kind that all of its inputs are."""
_LINEAR = "linear"


def last_operation(network: Any) -> str:
    """Return the activation or operation that makes a network's output: ``sigmoid``, ``Softmax``.

    Empty where nobody can tell, and where several are joined that are not made alike.
    """
    names = {_name(each) for each in last_operations(network)}
    return names.pop() if len(names) == 1 else ""


def last_operations(network: Any) -> list[Any]:
    """Return the layers and operations that make a network's output; several where it is joined.

    They are looked for inside networks within the network and before what only passes numbers on.
    Empty where nobody can tell.
    """
    try:
        return list(_makers(network.outputs[0]))
    except (AttributeError, LookupError, TypeError):  # a network of somebody's own class
        return []


def _makers(tensor: Any) -> Iterator[Any]:
    history = tensor._keras_history  # noqa: SLF001  Keras has no public edges
    operation = history.operation
    if hasattr(operation, "layers"):
        yield from _makers(operation.outputs[history.tensor_index])
        return
    kind, activation = type(operation).__name__, _activation(operation)
    before = operation._inbound_nodes[history.node_index].input_tensors  # noqa: SLF001
    if activation not in ("", _LINEAR):
        yield operation
    elif kind in _PASSING_ON:
        yield from _makers(before[0])
    elif kind in _JOINING:
        for each in before:
            yield from _makers(each)
    else:
        yield operation


def _name(operation: Any) -> str:
    return _activation(operation) or type(operation).__name__


def _activation(operation: Any) -> str:
    return str(getattr(getattr(operation, "activation", None), "__name__", ""))
