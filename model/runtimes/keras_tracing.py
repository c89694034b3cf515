"""A function of a batch, compiled for batches of any size.

Owns which edges of an input stay open in what is compiled. Imports neither Keras nor TensorFlow:
``keras_runtime`` hands both in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model.runtimes.port import FloatArray
from model.runtimes.signature import Shape


class Traced:
    """A function of a batch and perhaps more, compiled when it is first called.

    Parameters
    ----------
    tf : module
    function : callable
        From float32 tensors, the batch first.
    shape : sequence of int or None, optional
        Of one input; it is compiled once, with these edges open. Without it, it is compiled for
        each shape: some networks are wrong where an edge is left open.
    """

    def __init__(self, tf: Any, function: Callable[..., Any], shape: Shape | None) -> None:
        self._tf = tf
        # Autograph would wrap the reason why there is no map into a traceback of many lines.
        self._compiled = tf.function(function, jit_compile=False, autograph=False)
        self._shape = shape

    @property
    def count(self) -> int:
        """How often it was compiled."""
        return int(self._compiled.experimental_get_tracing_count())

    def __call__(self, batch: FloatArray, *others: FloatArray) -> Any:
        """Return what the function gives, as tensors."""
        tf = self._tf
        edges = batch.shape[1:] if self._shape is None else self._shape
        shapes = [(None, *edges), *([None] * each.ndim for each in others)]
        signature = [tf.TensorSpec(each, tf.float32) for each in shapes]
        compiled = self._compiled.get_concrete_function(*signature)
        return compiled(*map(tf.constant, (batch, *others)))
