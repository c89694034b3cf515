"""A Keras network written as ONNX, on this machine and without a network connection.

Owns tf2onnx and onnx, imported when something is converted. What comes out has one float32 input
and one output under plain names, an open batch, and all weights inside; a detecting network has its
map as a second output, under the name of its layer.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import ConversionFault, RuntimeFault
from model.package import ModelPackage
from model.runtimes.keras_map import map_layer
from model.runtimes.keras_runtime import KerasPredictor
from model.runtimes.signature import probe_shape

INPUT_NAME, OUTPUT_NAME, BATCH_NAME = "input", "output", "batch"
OPERATOR_SET = 17
"""Read by ONNX Runtime since 1.12 and by OpenVINO since 2023; newer ones bring nothing needed."""

_CONVERSION_FAULTS = (
    ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError, OSError,
    IndexError, AssertionError,
)  # fmt: skip
"""What Keras and tf2onnx raise for networks they cannot convert."""


def exported_onnx(package: ModelPackage, predictor: KerasPredictor) -> bytes:
    """Return the ONNX file of a loaded Keras package.

    Raises
    ------
    RuntimeFault
        The libraries that convert are not installed.
    ConversionFault
        The network holds something that has no form in ONNX.
    """
    onnx, keras = _import_libraries()
    shape = package.recipe.shape
    layer = map_layer(predictor.network, package.regions.layer) if package.regions else None
    network = predictor.network
    if layer is not None:
        network = keras.Model(network.inputs, [network.output, layer.output])
    with tempfile.TemporaryDirectory(prefix="medimgd-onnx-") as folder, warnings.catch_warnings():
        # tf2onnx and Keras use what NumPy 2 calls outdated; nothing to act on.
        warnings.simplefilter("ignore")
        path = Path(folder) / "network.onnx"
        try:
            # Keras exports only what was called once.
            network(np.zeros((1, *probe_shape(package.recipe)), np.float32), training=False)
            network.export(
                path,
                format="onnx",
                verbose=False,
                opset_version=OPERATOR_SET,
                input_signature=[
                    keras.InputSpec(shape=(None, *shape), dtype="float32", name=INPUT_NAME)
                ],
            )
            converted = onnx.load(path)
        except _CONVERSION_FAULTS as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ConversionFault(
                f"{package.at_version}: cannot be written as ONNX: {lines[0][:200]}; serve it with "
                "Keras, or replace the layer and train again"
            ) from error
    _name_plainly(converted, [OUTPUT_NAME] + ([] if layer is None else [layer.name]))
    onnx.checker.check_model(converted)
    content: bytes = converted.SerializeToString(deterministic=True)
    return content


def converter_versions() -> str:
    """Return the libraries that convert, with their versions.

    Raises
    ------
    RuntimeFault
        They are not installed.
    """
    onnx, keras = _import_libraries()
    import tf2onnx  # noqa: PLC0415

    return f"keras {keras.__version__}, tf2onnx {tf2onnx.__version__}, onnx {onnx.__version__}"


def _name_plainly(converted: Any, outputs: Sequence[str]) -> None:
    """Give input, outputs and batch names that mean something to whoever serves the file."""
    graph = converted.graph
    if len(graph.input) != 1 or len(graph.output) != len(outputs):
        raise ConversionFault(
            f"the converted network must have one input and {len(outputs)} outputs; it has "
            f"{len(graph.input)} and {len(graph.output)}"
        )
    tensors = [graph.input[0], *graph.output]
    plain = [INPUT_NAME, *outputs]
    _make_way(graph, set(plain))
    new_names = {tensor.name: name for tensor, name in zip(tensors, plain, strict=True)}
    for tensor, name in zip(tensors, plain, strict=True):
        tensor.name = name
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = new_names.get(name, name)
    for tensor in tensors:
        tensor.type.tensor_type.shape.dim[0].dim_param = BATCH_NAME


def _make_way(graph: Any, taken: set[str]) -> None:
    """Rename values inside the graph that have a plain name already, of a layer called so."""
    outside = {tensor.name for tensor in (*graph.input, *graph.output)}
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name in taken - outside:
                    names[place] = f"{name}_inside"


def _import_libraries() -> tuple[Any, Any]:
    try:
        import keras  # noqa: PLC0415  importing takes seconds
        import onnx  # noqa: PLC0415  an extra
        import tf2onnx  # noqa: F401, PLC0415  an extra; Keras calls it
    except ImportError as error:
        raise RuntimeFault(
            f"nothing can be converted: {error}; install the extra: pip install 'medimgd[optimise]'"
        ) from error
    return onnx, keras
