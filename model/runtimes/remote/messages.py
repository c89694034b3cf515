"""The Open Inference Protocol version 2 as values: what is asked, what is answered, in JSON.

Owns the encoding over HTTP, with and without the binary tensor extension. Opens no connection.
A request holds a tensor and names of the model's; nothing of a patient or a study is ever in it.

References
----------
https://github.com/kserve/open-inference-protocol: inference_rest.md; Triton's binary tensor data
extension.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from model.errors import RuntimeFault
from model.runtimes.port import FloatArray
from model.runtimes.signature import FLOAT32, Shape, TensorSpec

BINARY_EXTENSION = "binary_tensor_data"
HEADER_LENGTH = "Inference-Header-Content-Length"
FP32 = "FP32"

_DATATYPES = {FP32: FLOAT32, "FP16": "float16", "FP64": "float64"}
_LITTLE_ENDIAN = np.dtype("<f4")
_LONGEST_EXCERPT = 200
_MOST_DIGITS = 19
"""Of a number of bytes."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says of itself."""

    name: str
    version: str
    extensions: frozenset[str]

    @property
    def takes_binary(self) -> bool:
        """True where tensors may be sent as bytes in place of JSON numbers."""
        return BINARY_EXTENSION in self.extensions


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a server says of a model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    platform: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """One inference."""

    model: str
    version: str
    """Empty leaves it to the server."""
    input_name: str
    output_name: str
    """Empty takes the only one."""
    values: FloatArray


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one inference."""

    model: str
    version: str
    """Empty where the server does not say."""
    values: FloatArray


def server_facts(body: bytes) -> ServerFacts:
    """Read the metadata of a server."""
    facts = _object(body)
    extensions = facts.get("extensions") or []
    if not isinstance(extensions, list):
        raise RuntimeFault("the server's metadata: extensions must be a list")
    known = frozenset(str(each) for each in extensions)
    return ServerFacts(excerpt(facts.get("name")), excerpt(facts.get("version")), known)


def model_facts(body: bytes) -> ModelFacts:
    """Read the metadata of a model; a server may leave inputs and outputs out."""
    facts = _object(body)
    return ModelFacts(
        tuple(_spec(each) for each in _list(facts, "inputs")),
        tuple(_spec(each) for each in _list(facts, "outputs")),
        excerpt(facts.get("platform")),
    )


def encoded_question(question: Question, *, binary: bool) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of an inference request."""
    values = np.ascontiguousarray(question.values, dtype=_LITTLE_ENDIAN)
    tensor: dict[str, Any] = {
        "name": question.input_name,
        "shape": list(values.shape),
        "datatype": FP32,
    }
    request: dict[str, Any] = {"inputs": [tensor]}
    if question.output_name:
        request["outputs"] = [{"name": question.output_name}]
    if not binary:
        tensor["data"] = values.ravel().tolist()
        return {"Content-Type": "application/json"}, _json(request)
    tensor["parameters"] = {"binary_data_size": values.nbytes}
    for output in request.get("outputs", ()):
        output["parameters"] = {"binary_data": True}
    if not question.output_name:
        request["parameters"] = {"binary_data_output": True}
    header = _json(request)
    kind = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    return kind, header + values.tobytes()


def decoded_answer(headers: Mapping[str, str], body: bytes, output_name: str) -> Answer:
    """Read the answer to an inference.

    Raises
    ------
    RuntimeFault
        It is no such answer, or lacks the output.
    """
    header, tail = body, b""
    length = headers.get(HEADER_LENGTH)
    if length is not None:
        # Digits of other scripts, and more of them than the body has bytes, are no length of it.
        is_number = length.isascii() and length.isdigit() and len(length) <= _MOST_DIGITS
        if not is_number or int(length) > len(body):
            raise RuntimeFault(f"the answer's {HEADER_LENGTH} is wrong: {excerpt(length)}")
        header, tail = body[: int(length)], body[int(length) :]
    answer = _object(header)
    outputs = _list(answer, "outputs")
    place = 0
    found: dict[str, tuple[Any, bytes]] = {}
    for output in outputs:
        size = _binary_size(output)
        found[excerpt(output.get("name"))] = (output, tail[place : place + size])
        place += size
    name = chosen_output(tuple(found), output_name)
    values = _values(*found[name])
    return Answer(excerpt(answer.get("model_name")), excerpt(answer.get("model_version")), values)


def chosen_output(names: tuple[str, ...], wanted: str) -> str:
    """Return the output that is meant.

    Raises
    ------
    RuntimeFault
        It is not among them, or several are and none is named.
    """
    if wanted in names:
        return wanted
    if not wanted and len(names) == 1:
        return names[0]
    known = ", ".join(names) or "none"
    asked = f"the output {wanted}" if wanted else "one output"
    raise RuntimeFault(
        f"the server must answer with {asked}, it answers with {known}; name it as output in "
        "[weights] of the manifest"
    )


def tensor_from_bytes(data: bytes, shape: Shape) -> FloatArray:
    """Return a float32 tensor from its bytes, little endian."""
    edges = _edges(list(shape))
    if len(data) != 4 * math.prod(edges):
        raise RuntimeFault(
            f"the answer holds {len(data)} bytes for an output of shape {edges}: "
            f"{4 * math.prod(edges)} are needed"
        )
    return _shaped(np.frombuffer(data, _LITTLE_ENDIAN), edges)


def tensor_from_numbers(numbers: object, shape: Shape) -> FloatArray:
    """Return a float32 tensor from JSON numbers, nested or flat."""
    edges = _edges(list(shape))
    try:
        values = np.asarray(numbers)
    except ValueError as error:
        raise RuntimeFault("the answer's data are no table of numbers") from error
    if values.dtype.kind not in "fiu" or values.size != math.prod(edges):
        raise RuntimeFault(
            f"the answer must hold {math.prod(edges)} numbers for an output of shape {edges}, "
            f"received {values.size} of another kind or number"
        )
    return _shaped(values, edges)


def _shaped(numbers: npt.NDArray[Any], edges: tuple[int, ...]) -> FloatArray:
    try:
        values: FloatArray = numbers.astype(np.float32).reshape(edges)
    except ValueError as error:  # more edges, or longer ones, than an array can have
        raise RuntimeFault(f"the answer's shape is that of no tensor: {excerpt(edges)}") from error
    return values


def datatype_of(name: str) -> str:
    """Return a datatype as this project names it."""
    return _DATATYPES.get(name, name)


def refuse_other_datatype(name: str) -> None:
    """Refuse an output that is not float32."""
    if name != FP32:
        raise RuntimeFault(f"the server's output must be FP32, received {excerpt(name)}")


def open_shape(edges: object) -> Shape:
    """Return a shape from metadata; a negative edge is an open one."""
    if not isinstance(edges, list):
        raise RuntimeFault("the server's metadata: a shape must be a list of whole numbers")
    if not all(isinstance(edge, int) and not isinstance(edge, bool) for edge in edges):
        raise RuntimeFault("the server's metadata: a shape must be a list of whole numbers")
    return tuple(None if edge < 0 else edge for edge in edges)


def error_of(body: bytes) -> str:
    """Return what a server says is wrong; empty when it says nothing."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    return excerpt(answer.get("error")) if isinstance(answer, dict) else ""


def excerpt(text: object) -> str:
    """Return a foreign text fit for a message: one line, printable, short; empty for none."""
    if text is None:
        return ""
    line = " ".join(str(text)[: 4 * _LONGEST_EXCERPT].split())
    return "".join(each for each in line if each.isprintable())[:_LONGEST_EXCERPT]


def _values(output: Mapping[str, Any], data: bytes) -> FloatArray:
    refuse_other_datatype(str(output.get("datatype")))
    shape = open_shape(output.get("shape"))
    if "data" in output:
        return tensor_from_numbers(output["data"], shape)
    return tensor_from_bytes(data, shape)


def _binary_size(output: Mapping[str, Any]) -> int:
    parameters = output.get("parameters")
    size = parameters.get("binary_data_size", 0) if isinstance(parameters, dict) else 0
    if not isinstance(size, int) or size < 0:
        raise RuntimeFault("the answer's binary_data_size must be a whole number")
    return size


def _edges(shape: list[int | None]) -> tuple[int, ...]:
    edges = tuple(edge for edge in shape if edge is not None)
    if len(edges) != len(shape):
        raise RuntimeFault(f"the answer's shape must hold whole numbers, received {shape}")
    return edges


def _spec(tensor: Mapping[str, Any]) -> TensorSpec:
    name, datatype = excerpt(tensor.get("name")), excerpt(tensor.get("datatype"))
    return TensorSpec(name, datatype_of(datatype), open_shape(tensor.get("shape")))


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RuntimeFault(
            "the server answers with something that is no JSON; does its address name a server of "
            "the Open Inference Protocol 2?"
        ) from error
    if not isinstance(found, dict):
        raise RuntimeFault("the server answers with JSON that is no object")
    return found


def _list(facts: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = facts.get(key) or []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise RuntimeFault(f"the server's answer: {key} must be a list of objects")
    return found


def _json(request: Mapping[str, Any]) -> bytes:
    return json.dumps(request, separators=(",", ":"), allow_nan=False).encode()
