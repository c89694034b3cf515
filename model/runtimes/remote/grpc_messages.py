"""The messages of the Open Inference Protocol over gRPC, built from a table of their fields.

Owns that table: only what this project sends or reads stands in it, with the numbers of
``open_inference_grpc.proto``. Unknown fields are skipped, as protocol buffers promise.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from model.errors import RuntimeFault

_STRING, _BOOL, _INT64, _BYTES, _FLOAT, _MESSAGE = 9, 8, 3, 12, 2, 11
_OPTIONAL, _REPEATED = 1, 3

_Field = tuple[int, int, int, str]


def _one(number: int, kind: int = _STRING, of: str = "") -> _Field:
    return number, kind, _OPTIONAL, of


def _many(number: int, kind: int = _STRING, of: str = "") -> _Field:
    return number, kind, _REPEATED, of


_MODEL = {"name": _one(1), "version": _one(2)}
_MODEL_OF_INFERENCE = {"model_name": _one(1), "model_version": _one(2)}
_KIND_OF_TENSOR = {"name": _one(1), "datatype": _one(2), "shape": _many(3, _INT64)}

_TABLE: Mapping[str, Mapping[str, _Field]] = {
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {**_MODEL, "extensions": _many(3)},
    "ModelReadyRequest": _MODEL,
    "ModelReadyResponse": {"ready": _one(1, _BOOL)},
    "ModelMetadataRequest": _MODEL,
    "TensorMetadata": _KIND_OF_TENSOR,
    "ModelMetadataResponse": {
        "name": _one(1),
        "versions": _many(2),
        "platform": _one(3),
        "inputs": _many(4, _MESSAGE, "TensorMetadata"),
        "outputs": _many(5, _MESSAGE, "TensorMetadata"),
    },
    "InferTensorContents": {"fp32_contents": _many(6, _FLOAT)},
    "InferTensor": {**_KIND_OF_TENSOR, "contents": _one(5, _MESSAGE, "InferTensorContents")},
    "InferRequestedOutputTensor": {"name": _one(1)},
    "ModelInferRequest": {
        **_MODEL_OF_INFERENCE,
        "inputs": _many(5, _MESSAGE, "InferTensor"),
        "outputs": _many(6, _MESSAGE, "InferRequestedOutputTensor"),
        "raw_input_contents": _many(7, _BYTES),
    },
    "ModelInferResponse": {
        **_MODEL_OF_INFERENCE,
        "outputs": _many(5, _MESSAGE, "InferTensor"),
        "raw_output_contents": _many(6, _BYTES),
    },
}
"""By message and field: number, type, repetition, and of which message it is one."""


@cache
def protocol_messages() -> Mapping[str, Any]:
    """Return the classes of the messages, by their names.

    Raises
    ------
    RuntimeFault
        protobuf is not installed.
    """
    try:
        from google.protobuf import (  # noqa: PLC0415  an extra; only remote models need it
            descriptor_pb2,
            descriptor_pool,
            message_factory,
        )
    except ImportError as error:
        raise RuntimeFault(
            f"gRPC cannot start: {error}; install the extra: pip install 'medimgd[grpc]', or use "
            "the server's HTTP address"
        ) from error
    file = descriptor_pb2.FileDescriptorProto(
        name="medimgd_open_inference.proto", package="inference", syntax="proto3"
    )
    for name, fields in _TABLE.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, label, of) in fields.items():
            type_name = f".inference.{of}" if of else None
            message.field.add(
                name=field, number=number, type=kind, label=label, type_name=type_name
            )
    # A pool of our own: another library may have registered the official names already.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}"))
        for name in _TABLE
    }
