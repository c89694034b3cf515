"""The tiny networks of ``tiny_models`` as ONNX files, written by hand: no Keras, no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dicom_io.tensors import TensorRecipe
from tests.tiny_models import BRIGHT, TinyLabel, TinyModel, write_package

ONNX_NAME = "weights.onnx"


def onnx_network(
    edges: Sequence[int | str | None],
    labels: Sequence[TinyLabel] = (BRIGHT,),
    *,
    output: str = "logit",
    channels_first: bool = False,
    batch: int | str = "batch",
    names: tuple[str, str] = ("image", "scores"),
    element: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """Return a network that gives ``weight * sum of channel means + bias`` for each label.

    Parameters
    ----------
    edges : sequence
        The shape of one input, channels last.
    batch : int or str
        A number fixes the batch, a name leaves it open.
    """
    channels = int(edges[-1])  # type: ignore[arg-type]
    order = [channels, *edges[:-1]] if channels_first else list(edges)
    spatial = len(edges) - 1
    axes = list(range(2, 2 + spatial)) if channels_first else list(range(1, 1 + spatial))
    kernel = np.array([[label.weight for label in labels]] * channels, dtype=np.float32)
    bias = np.array([label.bias for label in labels], dtype=np.float32)
    last = {"logit": "Identity", "probability": "Sigmoid", "softmax": "Softmax"}[output]
    taken, given = names
    nodes = [
        helper.make_node("ReduceMean", ["as_float", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "kernel"], ["weighted"]),
        helper.make_node("Add", ["weighted", "bias"], ["sums"]),
        helper.make_node(last, ["sums"], ["answers"]),
        helper.make_node("Cast", ["answers"], [given], to=element),
    ]
    first = helper.make_node("Cast", [taken], ["as_float"], to=TensorProto.FLOAT)
    graph = helper.make_graph(
        [first, *nodes],
        "tiny",
        [helper.make_tensor_value_info(taken, element, [batch, *order])],
        [helper.make_tensor_value_info(given, element, [batch, len(labels)])],
        [
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(bias, "bias"),
            numpy_helper.from_array(np.array(axes, dtype=np.int64), "axes"),
        ],
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    network.producer_name = "tests"
    onnx.checker.check_model(network)
    return network


def write_onnx_package(
    folder: Path,
    *,
    runtime: str = "onnx",
    labels: Sequence[TinyLabel] = (BRIGHT,),
    output: str = "logit",
    weights: Mapping[str, object] | None = None,
    network: Mapping[str, object] | None = None,
    content: bytes | None = None,
    **package: object,
) -> TinyModel:
    """Write a package of such a network.

    Parameters
    ----------
    weights : mapping, optional
        Further fields of the manifest's ``[weights]``.
    network : mapping, optional
        How the network differs from what the manifest says.
    content : bytes, optional
        The file, in place of a network.
    """
    shape = _shape(package)
    if content is None:
        told = {"labels": labels, "output": output, **(network or {})}
        content = onnx_network(told.pop("edges", shape), **told).SerializeToString()  # type: ignore[arg-type]
    return write_package(
        folder,
        labels=labels,
        output=output,
        weights=content,
        weights_name=ONNX_NAME,
        changes={"weights": {"runtime": runtime, **(weights or {})}},
        **package,  # type: ignore[arg-type]
    )


def _shape(package: Mapping[str, object]) -> tuple[int | None, ...]:
    table: dict[str, object] = {"kind": package.get("kind", "image"), "rows": 16, "columns": 16}
    table |= {"channels": package.get("channels", 1), "intensity": {"kind": "percentile"}}
    if table["kind"] == "volume" and package.get("slices", 8) is not None:
        table["slices"] = package.get("slices", 8)
    return TensorRecipe.from_mapping(table).shape
