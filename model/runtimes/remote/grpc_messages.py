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

_TABLE: Mapping[str, Mapping[str, tuple[int, int, int, str]]] = {
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {
        "name": (1, _STRING, _OPTIONAL, ""),
        "version": (2, _STRING, _OPTIONAL, ""),
        "extensions": (3, _STRING, _REPEATED, ""),
    },
    "ModelReadyRequest": {
        "name": (1, _STRING, _OPTIONAL, ""),
        "version": (2, _STRING, _OPTIONAL, ""),
    },
    "ModelReadyResponse": {"ready": (1, _BOOL, _OPTIONAL, "")},
    "ModelMetadataRequest": {
        "name": (1, _STRING, _OPTIONAL, ""),
        "version": (2, _STRING, _OPTIONAL, ""),
    },
    "TensorMetadata": {
        "name": (1, _STRING, _OPTIONAL, ""),
        "datatype": (2, _STRING, _OPTIONAL, ""),
        "shape": (3, _INT64, _REPEATED, ""),
    },
    "ModelMetadataResponse": {
        "name": (1, _STRING, _OPTIONAL, ""),
        "versions": (2, _STRING, _REPEATED, ""),
        "platform": (3, _STRING, _OPTIONAL, ""),
        "inputs": (4, _MESSAGE, _REPEATED, "TensorMetadata"),
        "outputs": (5, _MESSAGE, _REPEATED, "TensorMetadata"),
    },
    "InferTensorContents": {"fp32_contents": (6, _FLOAT, _REPEATED, "")},
    "InferTensor": {
        "name": (1, _STRING, _OPTIONAL, ""),
        "datatype": (2, _STRING, _OPTIONAL, ""),
        "shape": (3, _INT64, _REPEATED, ""),
        "contents": (5, _MESSAGE, _OPTIONAL, "InferTensorContents"),
    },
    "InferRequestedOutputTensor": {"name": (1, _STRING, _OPTIONAL, "")},
    "ModelInferRequest": {
        "model_name": (1, _STRING, _OPTIONAL, ""),
        "model_version": (2, _STRING, _OPTIONAL, ""),
        "inputs": (5, _MESSAGE, _REPEATED, "InferTensor"),
        "outputs": (6, _MESSAGE, _REPEATED, "InferRequestedOutputTensor"),
        "raw_input_contents": (7, _BYTES, _REPEATED, ""),
    },
    "ModelInferResponse": {
        "model_name": (1, _STRING, _OPTIONAL, ""),
        "model_version": (2, _STRING, _OPTIONAL, ""),
        "outputs": (5, _MESSAGE, _REPEATED, "InferTensor"),
        "raw_output_contents": (6, _BYTES, _REPEATED, ""),
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
