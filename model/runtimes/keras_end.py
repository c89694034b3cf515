"""What a Keras network does last: whether its numbers were squashed already.

Owns the walk from the output back. Imports neither Keras nor TensorFlow: it is handed the loaded
network by ``keras_runtime``.
"""

from __future__ import annotations

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

    It is looked for inside networks within the network, before what only passes numbers on, and
    where several are joined that are made alike. Empty where nobody can tell.
    """
    try:
        return _maker(network.outputs[0])
    except (AttributeError, LookupError, TypeError):  # a network of somebody's own class
        return ""


def _maker(tensor: Any) -> str:
    history = tensor._keras_history  # noqa: SLF001  Keras has no public edges
    operation, kind = history.operation, type(history.operation).__name__
    if hasattr(operation, "layers"):
        return _maker(operation.outputs[history.tensor_index])
    activation = str(getattr(getattr(operation, "activation", None), "__name__", ""))
    if activation not in ("", _LINEAR):
        return activation
    before = operation._inbound_nodes[history.node_index].input_tensors  # noqa: SLF001
    if kind in _PASSING_ON:
        return _maker(before[0])
    if kind in _JOINING:
        makers = {_maker(each) for each in before}
        return makers.pop() if len(makers) == 1 else ""
    return activation or kind
