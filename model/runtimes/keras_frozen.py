"""A Keras network as a graph without variables, which TensorFlow simplifies before computing it.

With its weights as constants, a batch normalisation becomes part of the convolution before it, and
activations too. Owns the graph and the sessions that compute it on a CPU. Imports neither Keras nor
TensorFlow until it is asked to: ``keras_runtime`` hands both in.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.runtimes.port import FloatArray

MOST_PARAMETERS = 2**25
"""Above that memory speaks against it: a session holds its weights some five times over, and takes
twice that while it simplifies them."""

SAME_OUTPUT = 1e-4
"""How far an output may be from Keras's own, as a share of the largest above 1: additions in
another order differ by some 1e-6."""

BatchFunction = Callable[[FloatArray], FloatArray]

_LIBRARY_FAULTS = (
    ValueError, TypeError, AttributeError, LookupError, NotImplementedError, RuntimeError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FrozenNetwork:
    """A network's graph, weights included."""

    graph: Any
    """``GraphDef``."""
    input: str
    output: str


def own_threads_for_each_session() -> None:
    """Let sessions differ in their threads; before TensorFlow opens its first device."""
    os.environ.setdefault("TF_OVERRIDE_GLOBAL_THREADPOOL", "1")


def freeze(
    tf: Any, compute: Any, network: Any, shape: Sequence[int | None]
) -> FrozenNetwork | None:
    """Return a network as a graph for batches of any size.

    Parameters
    ----------
    tf : module
    compute : callable
        From one batch to the outputs of the network, as tensors.
    network : keras.Model
    shape : sequence of int or None
        Of one input; None where an edge is open.

    Returns
    -------
    FrozenNetwork or None
        None where the network insists on its batch or on whole shapes, is very large, or holds
        something besides numbers that cannot become a constant.
    """
    if network.inputs[0].shape[0] is not None or network.count_params() > MOST_PARAMETERS:
        return None
    # TensorFlow has no public name for it; its converters and those of others use this one.
    from tensorflow.python.framework.convert_to_constants import (  # noqa: PLC0415
        convert_variables_to_constants_v2,
    )

    try:
        traced = tf.function(compute, jit_compile=False).get_concrete_function(
            tf.TensorSpec((None, *shape), tf.float32)
        )
        frozen = convert_variables_to_constants_v2(traced)
    except (tf.errors.OpError, *_LIBRARY_FAULTS):
        return None
    if len(frozen.inputs) != 1 or len(frozen.outputs) != 1:
        return None
    return FrozenNetwork(frozen.graph.as_graph_def(), frozen.inputs[0].name, frozen.outputs[0].name)


def answers_alike(tf: Any, function: BatchFunction, compute: Any, shape: Sequence[int]) -> bool:
    """Return whether a function of a batch gives what Keras gives, operation by operation.

    Not every layer computes the same where the length of its input was left open: of a series,
    ``TimeDistributed`` takes only as many slices as the batch has inputs.

    Parameters
    ----------
    tf : module
    function : callable
    compute : callable
        What was made that function of, given TensorFlow's tensors; it is called as it is.
    shape : sequence of int
        Of one input. Two are tried, no part of which is like another.
    """
    batch = np.random.default_rng(0).random((2, *shape), np.float32)
    batch *= np.linspace(0, 1, batch.size, dtype=np.float32).reshape(batch.shape)
    try:
        with warnings.catch_warnings():
            # Keras warns of a tensor for a list of one, which is no mistake.
            warnings.simplefilter("ignore")
            own = compute(tf.constant(batch)).numpy()
        given = function(batch)
    except (tf.errors.OpError, *_LIBRARY_FAULTS):
        return False
    tolerance = SAME_OUTPUT * max(1.0, float(np.abs(own).max()))
    return given.shape == own.shape and bool(np.abs(given - own).max() <= tolerance)


def open_session(tf: Any, network: FrozenNetwork, *, threads: int, cores: int) -> BatchFunction:
    """Return what computes batches on the CPU; safe to call from several threads at once.

    Parameters
    ----------
    tf : module
    network : FrozenNetwork
    threads : int
        That compute one operation together.
    cores : int
        How many operations are computed at once, of all batches together.
    """
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(network.graph, name="")
    settings = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=threads,
        inter_op_parallelism_threads=cores,
        use_per_session_threads=True,
        device_count={"GPU": 0},
    )
    # The graph is complete: what a later part of it would be joined to need not be kept.
    settings.experimental.optimize_for_static_graph = True
    settings.experimental.disable_output_partition_graphs = True
    session = tf.compat.v1.Session(graph=graph, config=settings)
    computed: BatchFunction = session.make_callable(network.output, [network.input])
    return computed
