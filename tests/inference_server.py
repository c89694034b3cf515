"""A server of the Open Inference Protocol 2 on this machine, over HTTP and gRPC, that can fail.

Speaks as Triton and MLServer do: health, metadata, inference with JSON or binary tensors. Computes
with numpy; keeps every request as it came, for tests of what is sent.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from tests.certificates import Identity

HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Misbehaviour:
    """An answer in place of the right one."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    hang_up: bool = False
    states_length: bool = True
    """False lets the end of the connection be the end of the answer."""


@dataclass
class ServedNetwork:
    """What is served under one name and version."""

    compute: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, ...]
    """Of one input; -1 where it is open."""
    outputs: int
    name: str = "tiny"
    version: str = "1"
    input_name: str = "image"
    output_name: str = "scores"
    batch: int = -1
    ready: bool = True
    tells: bool = True
    """False leaves inputs and outputs out of the metadata, as some MLServer models do."""

    def metadata(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "name": self.name, "versions": [self.version], "platform": "numpy",
        }  # fmt: skip
        if self.tells:
            taken, given = [self.batch, *self.shape], [self.batch, self.outputs]
            told["inputs"] = [{"name": self.input_name, "datatype": "FP32", "shape": taken}]
            told["outputs"] = [{"name": self.output_name, "datatype": "FP32", "shape": given}]
        return told


@dataclass
class InferenceServer:
    """A running server."""

    network: ServedNetwork
    url: str = ""
    extensions: tuple[str, ...] = ()
    token: str = ""
    requests: list[Request] = field(default_factory=list)
    misbehave: Callable[[Request], Misbehaviour | None] = lambda request: None
    connections: int = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: InferenceServer

    def setup(self) -> None:
        super().setup()
        self.state.connections += 1

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, self.path, dict(self.headers), body)
        self.state.requests.append(request)
        bad = self.state.misbehave(request)
        if bad is not None:
            time.sleep(bad.delay_seconds)
            if bad.hang_up:
                self.close_connection = True
                return
            self.close_connection = not bad.states_length
            self._send(bad.status, bad.body, bad.headers, states_length=bad.states_length)
        elif self.state.token and self.headers.get("Authorization") != f"Bearer {self.state.token}":
            self._send(401, b'{"error": "who are you?"}')
        else:
            self._send(*self._right_answer(request))

    def _right_answer(self, request: Request) -> tuple[int, bytes, dict[str, str]]:
        network = self.state.network
        place = f"/v2/models/{network.name}"
        paths = {place, f"{place}/versions/{network.version}"}
        base, _, last = request.path.rpartition("/")
        if request.path == "/v2":
            told = {"name": "tests", "version": "0.1", "extensions": list(self.state.extensions)}
            return 200, json.dumps(told).encode(), {}
        if last == "ready" and base in paths:
            return (200 if network.ready else 503), b"", {}
        if last == "infer" and base in paths:
            return infer_over_http(network, request)
        if request.path in paths:
            return 200, json.dumps(network.metadata()).encode(), {}
        return 404, b'{"error": "no such model"}', {}

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        states_length: bool = True,
    ) -> None:
        try:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if states_length and "Content-Length" not in (headers or {}):
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # the client has given up


def infer_over_http(network: ServedNetwork, request: Request) -> tuple[int, bytes, dict[str, str]]:
    """Read a request by the letter of the protocol, compute, and answer in the form asked for."""
    header_length = request.headers.get(HEADER_LENGTH)
    end = len(request.body) if header_length is None else int(header_length)
    asked = json.loads(request.body[:end])
    (tensor,) = asked["inputs"]
    if tensor["name"] != network.input_name or tensor["datatype"] != "FP32":
        return 400, b'{"error": "no such input"}', {}
    if "data" in tensor:
        values = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
    else:
        size = tensor["parameters"]["binary_data_size"]
        values = np.frombuffer(request.body[end : end + size], "<f4").reshape(tensor["shape"])
    outputs = network.compute(values).astype(np.float32)
    told: dict[str, Any] = {
        "name": network.output_name, "datatype": "FP32", "shape": list(outputs.shape),
    }  # fmt: skip
    answer = {"model_name": network.name, "model_version": network.version, "outputs": [told]}
    wanted = asked.get("outputs", [{}])[0].get("parameters", {}).get("binary_data", False)
    if not (wanted or asked.get("parameters", {}).get("binary_data_output", False)):
        told["data"] = [float(value) for value in outputs.ravel()]
        return 200, json.dumps(answer).encode(), {}
    told["parameters"] = {"binary_data_size": outputs.nbytes}
    header = json.dumps(answer).encode()
    kind = {HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"}
    return 200, header + outputs.astype("<f4").tobytes(), kind


@contextmanager
def http_server(
    network: ServedNetwork,
    *,
    binary: bool = False,
    token: str = "",
    identity: Identity | None = None,
) -> Iterator[InferenceServer]:
    """Run a server on a free port."""
    state = InferenceServer(network, token=token)
    state.extensions = ("binary_tensor_data",) if binary else ()
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if identity is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(identity.certificate, identity.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "http" if identity is None else "https"
    state.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def grpc_server(network: ServedNetwork, *, raw: bool = True) -> Iterator[InferenceServer]:
    """Run a gRPC server on a free port; without `raw` it answers in typed contents."""
    import grpc  # noqa: PLC0415  only these tests need it

    from model.runtimes.remote.grpc_messages import protocol_messages  # noqa: PLC0415

    known = protocol_messages()
    state = InferenceServer(network)

    def answered(name: str) -> Any:
        def behave(request: Any, context: Any) -> Any:
            state.requests.append(Request("gRPC", name, dict(context.invocation_metadata()), b""))
            bad = state.misbehave(state.requests[-1])
            if bad is not None:
                time.sleep(bad.delay_seconds)
                context.abort(grpc.StatusCode[bad.body.decode()], "told to fail")
            return _grpc_answer(known, network, name, request, raw)

        return grpc.unary_unary_rpc_method_handler(
            behave,
            request_deserializer=known[f"{name}Request"].FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    names = ("ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer")
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(
                "inference.GRPCInferenceService", {name: answered(name) for name in names}
            )
        ]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    state.url = f"grpc://127.0.0.1:{port}"
    server.start()
    try:
        yield state
    finally:
        server.stop(None).wait()


def _grpc_answer(known: Any, network: ServedNetwork, name: str, request: Any, raw: bool) -> Any:
    if name == "ServerMetadata":
        return known["ServerMetadataResponse"](name="tests", version="0.1")
    if name == "ModelReady":
        return known["ModelReadyResponse"](ready=network.ready)
    if name == "ModelMetadata":
        return known["ModelMetadataResponse"](**network.metadata())
    tensor = request.inputs[0]
    values = np.frombuffer(request.raw_input_contents[0], "<f4").reshape(list(tensor.shape))
    outputs = network.compute(values).astype(np.float32)
    answer = known["ModelInferResponse"](
        model_name=request.model_name, model_version=network.version
    )
    told = answer.outputs.add(name=network.output_name, datatype="FP32", shape=outputs.shape)
    if raw:
        answer.raw_output_contents.append(outputs.astype("<f4").tobytes())
    else:
        told.contents.fp32_contents.extend(outputs.ravel().tolist())
    return answer
