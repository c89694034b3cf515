"""A Keras network as a graph without variables, which TensorFlow simplifies before computing it.

With its weights as constants, a batch normalisation becomes part of the convolution before it, and
activations too. Owns the graph and the sessions that compute it on a CPU. Imports neither Keras nor
TensorFlow until it is asked to: ``keras_runtime`` hands both in.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from model.runtimes.port import FloatArray

MOST_PARAMETERS = 2**28
"""A graph is written as one message of at most 2 GiB, and is held several times for a while."""

BatchFunction = Callable[[FloatArray], FloatArray]


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


def freeze(tf: Any, compute: Any, network: Any) -> FrozenNetwork | None:
    """Return a network as a graph for batches of any size.

    Parameters
    ----------
    tf : module
    compute : tf.function
        From one batch to the outputs of the network.
    network : keras.Model

    Returns
    -------
    FrozenNetwork or None
        None where the network insists on its batch, is very large, or holds something besides
        numbers that cannot become a constant; then ``compute`` itself has to do.
    """
    shape = tuple(network.inputs[0].shape)
    if shape[0] is not None or network.count_params() > MOST_PARAMETERS:
        return None
    # TensorFlow has no public name for it; its converters and those of others use this one.
    from tensorflow.python.framework.convert_to_constants import (  # noqa: PLC0415
        convert_variables_to_constants_v2,
    )

    traced = compute.get_concrete_function(tf.TensorSpec(shape, tf.float32))
    try:
        frozen = convert_variables_to_constants_v2(traced)
    except (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError):
        return None
    if len(frozen.inputs) != 1 or len(frozen.outputs) != 1:
        return None
    return FrozenNetwork(frozen.graph.as_graph_def(), frozen.inputs[0].name, frozen.outputs[0].name)


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
    session = tf.compat.v1.Session(graph=graph, config=settings)
    computed: BatchFunction = session.make_callable(network.output, [network.input])
    return computed
