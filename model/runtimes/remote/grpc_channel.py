"""gRPC to an inference server: the protocol's calls, deadlines, TLS, statuses as errors.

Owns grpcio and protobuf, imported when a channel is made. Which status is worth another try is the
same as over HTTP.

References
----------
https://github.com/kserve/open-inference-protocol: inference_grpc.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from model.errors import ModelError, RemoteUnavailable, RuntimeFault
from model.runtimes.remote import messages
from model.runtimes.remote.access import Address, RemoteAccess, bearer_token
from model.runtimes.remote.grpc_messages import protocol_messages
from model.runtimes.remote.http_channel import LARGEST_ANSWER_BYTES
from model.runtimes.remote.messages import Answer, ModelFacts, Question, ServerFacts
from model.runtimes.signature import TensorSpec

_SERVICE = "/inference.GRPCInferenceService/"
_NOT_LET_IN = {"UNAUTHENTICATED", "PERMISSION_DENIED"}
_OUR_FAULT = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED"}


class GRPCChannel:
    """Speaks the protocol over gRPC, with or without TLS.

    Parameters
    ----------
    address : Address
    access : RemoteAccess

    Raises
    ------
    RuntimeFault
        grpcio is not installed, or the file of trusted authorities cannot be read.
    """

    def __init__(self, address: Address, access: RemoteAccess) -> None:
        self._channel: Any = None
        self._grpc = _import_grpc()
        self._messages = protocol_messages()
        self._address = address
        self._access = access

    def __del__(self) -> None:
        """A package that is removed takes its predictor along, and nobody else knows of this."""
        self.close()

    @property
    def words(self) -> str:
        """How it is spoken to, for ``status``."""
        return str(self._address.scheme)

    def close(self) -> None:
        """End the connection; the next call opens another."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def server(self) -> ServerFacts:
        """Return what the server says of itself."""
        facts = self._call("ServerMetadata", self._messages["ServerMetadataRequest"]())
        return ServerFacts(
            messages.excerpt(facts.name),
            messages.excerpt(facts.version),
            frozenset(facts.extensions),
        )

    def require_ready(self, model: str, version: str) -> None:
        """Raise ``RemoteUnavailable`` unless the server serves the model now."""
        request = self._messages["ModelReadyRequest"](name=model, version=version)
        if not self._call("ModelReady", request).ready:
            raise RemoteUnavailable(f"{self._address.text}: {model} is not ready there yet")

    def model(self, model: str, version: str) -> ModelFacts:
        """Return what the server says of the model."""
        request = self._messages["ModelMetadataRequest"](name=model, version=version)
        facts = self._call("ModelMetadata", request)
        return ModelFacts(
            tuple(_spec(each) for each in facts.inputs),
            tuple(_spec(each) for each in facts.outputs),
            messages.excerpt(facts.platform),
        )

    def infer(self, question: Question) -> Answer:
        """Compute one batch."""
        request = self._messages["ModelInferRequest"](
            model_name=question.model, model_version=question.version
        )
        tensor = request.inputs.add(name=question.input_name, datatype=messages.FP32)
        tensor.shape.extend(question.values.shape)
        if question.output_name:
            request.outputs.add(name=question.output_name)
        request.raw_input_contents.append(np.ascontiguousarray(question.values, "<f4").tobytes())
        reply = self._call("ModelInfer", request)
        outputs = {messages.excerpt(each.name): n for n, each in enumerate(reply.outputs)}
        place = outputs[messages.chosen_output(tuple(outputs), question.output_name)]
        output = reply.outputs[place]
        messages.refuse_other_datatype(output.datatype)
        shape = messages.open_shape(list(output.shape))
        if reply.raw_output_contents:
            if len(reply.raw_output_contents) <= place:
                raise RuntimeFault(f"{self._address.text}: the answer lacks the output's bytes")
            values = messages.tensor_from_bytes(reply.raw_output_contents[place], shape)
        else:
            values = messages.tensor_from_numbers(list(output.contents.fp32_contents), shape)
        return Answer(
            messages.excerpt(reply.model_name), messages.excerpt(reply.model_version), values
        )

    def _call(self, name: str, request: Any) -> Any:
        answer = self._messages[f"{name}Response"]
        token = bearer_token(self._access)
        call = self._opened().unary_unary(
            _SERVICE + name,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        try:
            return call(
                request,
                timeout=self._access.timeout_seconds,
                metadata=[("authorization", f"Bearer {token}")] if token else None,
            )
        except self._grpc.RpcError as error:
            self.close()
            raise self._fault_of(name, error) from error

    def _opened(self) -> Any:
        if self._channel is not None:
            return self._channel
        address = self._address
        host = f"[{address.host}]" if ":" in address.host else address.host
        options = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", LARGEST_ANSWER_BYTES),
            ("grpc.max_send_message_length", -1),
        ]
        target = f"{host}:{address.port}"
        if address.scheme.is_encrypted:
            self._channel = self._grpc.secure_channel(target, self._credentials(), options)
        else:
            self._channel = self._grpc.insecure_channel(target, options)
        return self._channel

    def _credentials(self) -> Any:
        roots = None
        if self._access.ca_file is not None:
            try:
                roots = self._access.ca_file.read_bytes()
            except OSError as error:
                raise RuntimeFault(
                    f"ca_file {self._access.ca_file}: cannot be read: {error.strerror}"
                ) from error
        return self._grpc.ssl_channel_credentials(root_certificates=roots)

    def _fault_of(self, call: str, error: Any) -> ModelError:
        status, said = error.code().name, messages.excerpt(error.details())
        place = f"{self._address.text} {call}: answers {status}{f' ({said})' if said else ''}"
        if status in _NOT_LET_IN:
            return RemoteUnavailable(f"{place}: put a valid token into token_file")
        if status in _OUR_FAULT:
            return RuntimeFault(f"{place}: compare the manifest with the model at the server")
        if status == "RESOURCE_EXHAUSTED" and "larger than max" in said:
            return RuntimeFault(
                f"{place}: raise the server's limit of a message, or lower largest_batch in "
                "[remote] of the manifest"
            )
        if status == "DEADLINE_EXCEEDED":
            seconds = self._access.timeout_seconds
            return RemoteUnavailable(
                f"{self._address.text}: gave no answer within {seconds:g} s: look at the server, "
                "or raise timeout_seconds in the site's models.remote"
            )
        return RemoteUnavailable(f"{place}: the model is not served there now")


def _spec(tensor: Any) -> TensorSpec:
    datatype = messages.datatype_of(messages.excerpt(tensor.datatype))
    return TensorSpec(
        messages.excerpt(tensor.name), datatype, messages.open_shape(list(tensor.shape))
    )


def _import_grpc() -> Any:
    try:
        import grpc  # noqa: PLC0415  an extra; only workers that need it pay for it
    except ImportError as error:
        raise RuntimeFault(
            f"gRPC cannot start: {error}; install the extra: pip install 'medimgd[grpc]', or use "
            "the server's HTTP address"
        ) from error
    return grpc
