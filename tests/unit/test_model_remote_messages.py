"""The protocol's messages beside those of other programs: the bytes must be the same."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from model.errors import RuntimeFault
from model.runtimes.remote.grpc_messages import protocol_messages
from model.runtimes.remote.messages import (
    HEADER_LENGTH,
    Question,
    decoded_answer,
    encoded_question,
    excerpt,
    model_facts,
    server_facts,
    tensor_from_bytes,
)

QUESTION = Question("tiny", "v2", "image", "scores", np.array([[1.0, 2.0]], np.float32))


def test_json_question_is_as_the_protocol_writes_it():
    headers, body = encoded_question(QUESTION, binary=False)

    assert headers == {"Content-Type": "application/json"}
    assert json.loads(body) == {
        "inputs": [{"name": "image", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}],
        "outputs": [{"name": "scores"}],
    }


def test_json_carries_every_float32_exactly():
    values = np.random.default_rng(5).random((1, 500), dtype=np.float32)

    _, body = encoded_question(Question("m", "", "x", "y", values), binary=False)

    back = np.array(json.loads(body)["inputs"][0]["data"], np.float32)
    np.testing.assert_array_equal(back, values[0])


def test_binary_question_is_a_header_and_little_endian_bytes():
    headers, body = encoded_question(QUESTION, binary=True)

    length = int(headers["Inference-Header-Content-Length"])
    header = json.loads(body[:length])
    assert header["inputs"][0]["parameters"] == {"binary_data_size": 8}
    assert header["outputs"] == [{"name": "scores", "parameters": {"binary_data": True}}]
    assert body[length:] == b"\0\0\x80?\0\0\0@"


def test_output_is_found_among_others_by_its_name_and_place():
    outputs = [
        {"name": "a", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
        {"name": "scores", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
    ]
    header = json.dumps({"outputs": outputs}).encode()
    length = {"Inference-Header-Content-Length": str(len(header))}

    answer = decoded_answer(length, header + b"\0\0\x80?" + b"\0\0\0@", "scores")

    assert answer.values == pytest.approx(2.0)
    with pytest.raises(RuntimeFault, match="one output, it answers with a, scores"):
        decoded_answer(length, header + bytes(8), "")


def test_metadata_is_read_as_servers_write_it():
    triton = b"""{"name": "triton", "version": "2.50.0",
        "extensions": ["classification", "binary_tensor_data"]}"""
    assert server_facts(triton).takes_binary
    assert not server_facts(b'{"name": "mlserver", "version": "1", "extensions": []}').takes_binary

    facts = model_facts(
        b"""{"name": "m", "platform": "onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 16]}], "outputs": null}"""
    )

    assert facts.inputs[0].shape == (None, 16)
    assert (facts.inputs[0].datatype, facts.outputs) == ("float32", ())


@pytest.mark.parametrize("shape", ['"x"', "[1.5]", "[true]"])
def test_metadata_with_a_shape_that_is_none_is_refused(shape):
    with pytest.raises(RuntimeFault, match="must be a list of whole numbers"):
        model_facts(
            f'{{"inputs": [{{"name": "x", "datatype": "FP32", "shape": {shape}}}]}}'.encode()
        )


@pytest.mark.parametrize("length", ["\u00b2", "9" * 5000, "-1", "", "3"])
def test_length_of_a_header_that_is_none_is_refused(length):
    with pytest.raises(RuntimeFault, match="Content-Length is wrong"):
        decoded_answer({HEADER_LENGTH: length}, b"{}", "")


@pytest.mark.parametrize("shape", [[0, 10**30], [0, 2**62], [1] * 100])
def test_shape_that_no_tensor_can_have_is_refused(shape):
    data = [1.0] * math.prod(shape)
    output = {"name": "y", "datatype": "FP32", "shape": shape, "data": data}

    with pytest.raises(RuntimeFault, match="shape is that of no tensor"):
        decoded_answer({}, json.dumps({"outputs": [output]}).encode(), "")
    with pytest.raises(RuntimeFault, match="shape is that of no tensor"):
        tensor_from_bytes(np.float32(data).tobytes(), tuple(shape))


def test_foreign_text_is_fit_for_a_log_line():
    assert excerpt("a\nb\x1b[31m\u202ec") == "a b[31mc"
    assert len(excerpt("x" * 10_000)) == 200
    assert excerpt(None) == ""


# Written by the classes that protoc made for MLServer 1.7.1 from open_inference_grpc.proto.
INFER_REQUEST = (
    "0a0474696e79120276322a110a05696e7075741204465033321a02010232080a066f75747075743a08"
    "0000803f00000040"
)
ANSWER_WITH_CONTENTS = (
    "0a0474696e79120276321a01372a1a0a066f75747075741204465033321a0201012a0632040000003f"
)
ANSWER_WITH_BYTES = "0a0474696e79120276321a01372a120a066f75747075741204465033321a02010132040000003f"
METADATA = (
    "0a0474696e79120276321a0170221a0a05696e7075741204465033321a0bffffffffffffffffff0102"
    "2a1b0a066f75747075741204465033321a0bffffffffffffffffff0101"
)
SERVER = "0a086d6c7365727665721205312e372e311a0178"


def test_messages_of_grpc_are_those_of_another_program():
    known = protocol_messages()
    request = known["ModelInferRequest"](model_name="tiny", model_version="v2")
    request.inputs.add(name="input", datatype="FP32", shape=[1, 2])
    request.outputs.add(name="output")
    request.raw_input_contents.append(b"\0\0\x80?\0\0\0@")
    assert request.SerializeToString() == bytes.fromhex(INFER_REQUEST)

    answer = known["ModelInferResponse"].FromString(bytes.fromhex(ANSWER_WITH_CONTENTS))
    assert list(answer.outputs[0].contents.fp32_contents) == [0.5]
    assert (answer.outputs[0].name, list(answer.outputs[0].shape)) == ("output", [1, 1])
    answer = known["ModelInferResponse"].FromString(bytes.fromhex(ANSWER_WITH_BYTES))
    assert list(answer.raw_output_contents) == [b"\0\0\0?"]

    facts = known["ModelMetadataResponse"].FromString(bytes.fromhex(METADATA))
    assert (facts.inputs[0].name, list(facts.inputs[0].shape)) == ("input", [-1, 2])
    assert (facts.outputs[0].datatype, facts.platform) == ("FP32", "p")
    server = known["ServerMetadataResponse"].FromString(bytes.fromhex(SERVER))
    assert (server.name, server.version, list(server.extensions)) == ("mlserver", "1.7.1", ["x"])
    assert known["ModelReadyResponse"].FromString(b"\x08\x01").ready
    ready = known["ModelReadyRequest"](name="tiny", version="v2")
    assert ready.SerializeToString() == bytes.fromhex("0a0474696e7912027632")
