"""What an ONNX file says about itself, before any library opens it.

Owns the sentences for files that are truncated, scattered over several files or no ONNX at all.
Reads the few fields it needs by itself (protocol buffers, ``onnx.proto3``) and imports no library.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from model.errors import RuntimeFault

LARGEST_FILE_BYTES = 2 << 30
"""More does not fit a protocol buffer; larger networks keep their weights outside, which is not
supported: one digest must stand for all of it."""

_PASSING_ON = frozenset({"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXTERNAL = 1
_DEEPEST = 8
"""Graphs within graphs; nobody writes more."""

# Field numbers of onnx.proto3.
_MODEL_PRODUCER, _MODEL_GRAPH, _MODEL_OPSETS, _MODEL_FUNCTIONS = 2, 7, 8, 25
_GRAPH_NODES, _GRAPH_TENSORS, _GRAPH_OUTPUTS, _GRAPH_SPARSE = 1, 5, 12, 15
_FUNCTION_NAME, _FUNCTION_OUTPUTS, _FUNCTION_NODES = 1, 5, 7
_NODE_INPUTS, _NODE_OUTPUTS, _NODE_TYPE, _NODE_ATTRIBUTES = 1, 2, 4, 5
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_DIMENSIONS, _TENSOR_LOCATION = 1, 14
_SPARSE_VALUES, _SPARSE_INDICES = 1, 2
_ENUM_BITS = 0xFFFF_FFFF
"""Protocol buffers read no more of an enumeration."""


@dataclass(frozen=True, slots=True)
class ONNXFile:
    """The facts of a sound file."""

    content: bytes = field(repr=False)
    producer: str
    opset: int
    parameters: int
    """Numbers in the initialisers."""
    last_operations: dict[str, str]
    """What makes each output, by its name: ``Sigmoid``, ``Add``, ..."""


@dataclass(slots=True)
class _Graph:
    parameters: int = 0
    makers: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    """By the name of what is made: operation, its first input, and which of its outputs it is."""
    outputs: list[str] = field(default_factory=list)


def read_onnx_file(path: Path) -> ONNXFile:
    """Read a complete ONNX file and check that it is one.

    Raises
    ------
    RuntimeFault
        The file is absent, truncated, no ONNX model, or keeps weights in other files; the message
        says which and what to do.
    """
    content = _content(path)
    try:
        return _read_model(path, content)
    except (ValueError, IndexError, RecursionError) as error:
        raise RuntimeFault(
            f"{path.name}: is no complete ONNX model: {error or 'it ends too early'} "
            f"({len(content)} bytes); copy the package again, or export the model again"
        ) from error


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise RuntimeFault(f"{path.name}: must be at most {LARGEST_FILE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise RuntimeFault(f"{path.name}: cannot be read: {error.strerror}") from error


def _read_model(path: Path, content: bytes) -> ONNXFile:
    producer, opset, graph = "", 0, None
    functions: dict[str, _Graph] = {}
    for number, value in _fields(memoryview(content)):
        if number == _MODEL_PRODUCER:
            producer = _text(value)
        elif number == _MODEL_OPSETS:
            opset = max(opset, _default_opset(value))
        elif number == _MODEL_GRAPH:
            graph = _read_graph(path, _message(value), 0)
        elif number == _MODEL_FUNCTIONS:
            functions |= _read_function(path, _message(value))
    if graph is None or not graph.outputs:
        raise ValueError("it holds no graph with outputs")
    last = {name: _last_operation(graph, name, functions) for name in graph.outputs}
    parameters = graph.parameters + sum(each.parameters for each in functions.values())
    return ONNXFile(content, producer, opset, parameters, last)


def _default_opset(value: int | memoryview) -> int:
    fields = dict(_fields(_message(value)))
    version = fields.get(2, 0)
    is_default = _text(fields.get(1, memoryview(b""))) in ("", "ai.onnx")
    return version if is_default and isinstance(version, int) else 0


def _read_graph(path: Path, data: memoryview, depth: int) -> _Graph:
    if depth > _DEEPEST:
        raise ValueError("its graphs are nested too deeply")
    graph = _Graph()
    for number, value in _fields(data):
        if number == _GRAPH_NODES:
            _read_node(path, _message(value), graph, depth)
        elif number == _GRAPH_TENSORS:
            graph.parameters += _numbers_in_tensor(path, _message(value))
        elif number == _GRAPH_SPARSE:
            graph.parameters += _numbers_in_sparse_tensor(path, _message(value))
        elif number == _GRAPH_OUTPUTS:
            graph.outputs.append(_text(dict(_fields(_message(value))).get(1, memoryview(b""))))
    return graph


def _read_function(path: Path, data: memoryview) -> dict[str, _Graph]:
    """Return what a function of the file's own is made of, by its name."""
    name, graph = "", _Graph()
    for number, value in _fields(data):
        if number == _FUNCTION_NAME:
            name = _text(value)
        elif number == _FUNCTION_OUTPUTS:
            graph.outputs.append(_text(value))
        elif number == _FUNCTION_NODES:
            _read_node(path, _message(value), graph, 0)
    return {name: graph}


def _read_node(path: Path, data: memoryview, graph: _Graph, depth: int) -> None:
    inputs: list[str] = []
    outputs: list[str] = []
    operation = ""
    for number, value in _fields(data):
        if number == _NODE_INPUTS:
            inputs.append(_text(value))
        elif number == _NODE_OUTPUTS:
            outputs.append(_text(value))
        elif number == _NODE_TYPE:
            operation = _text(value)
        elif number == _NODE_ATTRIBUTES:
            _read_attribute(path, _message(value), graph, depth)
    for place, name in enumerate(outputs):
        graph.makers[name] = (operation, inputs[0] if inputs else "", place)


def _read_attribute(path: Path, data: memoryview, graph: _Graph, depth: int) -> None:
    for number, value in _fields(data):
        if number in _ATTRIBUTE_TENSORS and isinstance(value, memoryview):
            graph.parameters += _numbers_in_tensor(path, value)
        elif number in _ATTRIBUTE_SPARSE and isinstance(value, memoryview):
            graph.parameters += _numbers_in_sparse_tensor(path, value)
        elif number in _ATTRIBUTE_GRAPHS and isinstance(value, memoryview):
            graph.parameters += _read_graph(path, value, depth + 1).parameters


def _numbers_in_tensor(path: Path, data: memoryview) -> int:
    dimensions: list[int] = []
    for number, value in _fields(data):
        if number == _TENSOR_DIMENSIONS:
            dimensions += [value] if isinstance(value, int) else list(_packed(value))
        elif number == _TENSOR_LOCATION and _enumerated(value) == _EXTERNAL:
            raise RuntimeFault(
                f"{path.name}: keeps weights in other files, which the package's digest would not "
                f"cover; save it as one file (onnx.save_model with save_as_external_data=False)"
            )
    return math.prod(dimensions)


def _numbers_in_sparse_tensor(path: Path, data: memoryview) -> int:
    """Return how many numbers are not zero; they and their places must be inside."""
    found = 0
    for number, value in _fields(data):
        if number in (_SPARSE_VALUES, _SPARSE_INDICES):
            numbers = _numbers_in_tensor(path, _message(value))
            found += numbers if number == _SPARSE_VALUES else 0
    return found


def _enumerated(value: int | memoryview) -> int:
    return value & _ENUM_BITS if isinstance(value, int) else 0


def _last_operation(
    graph: _Graph, name: str, functions: Mapping[str, _Graph], depth: int = 0
) -> str:
    """Return what makes an output, inside functions too; empty where it is an input."""
    seen: set[str] = set()
    operation = ""
    while name in graph.makers and name not in seen:
        seen.add(name)
        operation, before, place = graph.makers[name]
        inside = functions.get(operation)
        if inside is not None and place < len(inside.outputs) and depth < _DEEPEST:
            operation = _last_operation(inside, inside.outputs[place], functions, depth + 1)
        if operation and operation not in _PASSING_ON:
            break
        name = before
    return operation


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and value of each field of a message."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise ValueError("it is not a protocol buffer")
        if kind == _VARINT:
            value, place = _varint(data, place)
            yield number, value
            continue
        if kind == _BYTES:
            length, place = _varint(data, place)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("it is not a protocol buffer")
        if place + length > len(data):
            raise ValueError("it is truncated")
        yield number, data[place : place + length]
        place += length


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("it is not a protocol buffer")


def _packed(data: memoryview) -> Iterator[int]:
    place = 0
    while place < len(data):
        value, place = _varint(data, place)
        yield value


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("it is not an ONNX model")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode("utf-8", "replace")
