"""HTTP to an inference server: one connection that is kept, deadlines, TLS, statuses as errors.

Owns the connection and which status is worth another try. Knows no tensor.
"""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote

from model.errors import ModelError, RemoteUnavailable, RuntimeFault
from model.runtimes.remote import messages
from model.runtimes.remote.access import Address, RemoteAccess, bearer_token
from model.runtimes.remote.messages import Answer, ModelFacts, Question, ServerFacts

LARGEST_ANSWER_BYTES = 64 << 20
"""A thousand probabilities for each of a few hundred inputs fit many times over."""

_PIECE_BYTES = 1 << 16
_NOT_LET_IN = {401: "asks for a valid token", 403: "does not let this token in"}
_WORTH_ANOTHER_TRY = {404, 408, 409, 421, 425, 429}
"""Not there (yet), too slow, busy. With all of 5xx: nothing is wrong with the tensor."""


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes
    has_stated_end: bool
    """False when the end of the connection was the end of the answer, be it whole or not."""


class HTTPChannel:
    """Speaks the protocol over HTTP or HTTPS.

    Parameters
    ----------
    address : Address
    access : RemoteAccess

    Raises
    ------
    RuntimeFault
        The file of trusted authorities cannot be used.
    """

    def __init__(self, address: Address, access: RemoteAccess) -> None:
        self._connection: http.client.HTTPConnection | None = None
        self._address = address
        self._access = access
        self._tls = _tls_context(access) if address.scheme.is_encrypted else None
        self._takes_binary = False

    def __del__(self) -> None:
        """A package that is removed takes its predictor along, and nobody else knows of this."""
        self.close()

    @property
    def words(self) -> str:
        """How it is spoken to, for ``status``."""
        return f"{self._address.scheme}, {'binary tensors' if self._takes_binary else 'JSON'}"

    def close(self) -> None:
        """End the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def server(self) -> ServerFacts:
        """Return what the server says of itself; how tensors are sent follows from it."""
        reply = self._get("/v2")
        with self._broken_off_told(reply):
            facts = messages.server_facts(reply.body)
        self._takes_binary = facts.takes_binary
        return facts

    def require_ready(self, model: str, version: str) -> None:
        """Raise ``RemoteUnavailable`` unless the server serves the model now."""
        self._get(f"{_model_path(model, version)}/ready")

    def model(self, model: str, version: str) -> ModelFacts:
        """Return what the server says of the model."""
        reply = self._get(_model_path(model, version))
        with self._broken_off_told(reply):
            return messages.model_facts(reply.body)

    def infer(self, question: Question) -> Answer:
        """Compute one batch."""
        headers, body = messages.encoded_question(question, binary=self._takes_binary)
        path = f"{_model_path(question.model, question.version)}/infer"
        reply = self._checked("POST", path, headers, body)
        with self._broken_off_told(reply):
            return messages.decoded_answer(reply.headers, reply.body, question.output_name)

    @contextmanager
    def _broken_off_told(self, reply: _Reply) -> Iterator[None]:
        """Ask again for what cannot be read, where nothing says that the answer came whole."""
        try:
            yield
        except RuntimeFault as error:
            if reply.has_stated_end or reply.body.rstrip().endswith(b"}"):
                raise
            place = self._address.text
            raise RemoteUnavailable(
                f"{place}: its answer states no length and seems cut short: {error}"
            ) from error

    def _get(self, path: str) -> _Reply:
        return self._checked("GET", path, {}, None)

    def _checked(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None
    ) -> _Reply:
        token = bearer_token(self._access)
        if token:
            headers = {**headers, "Authorization": f"Bearer {token}"}
        reply = self._sent(method, self._address.path + path, headers, body)
        if reply.status != http.client.OK:
            raise self._fault_of(reply, path)
        return reply

    def _sent(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> _Reply:
        kept = self._connection is not None
        try:
            return self._exchanged(method, path, headers, body)
        except (ConnectionError, http.client.BadStatusLine) as error:
            self.close()
            # A server may close a connection that was idle; that says nothing about this request.
            if not kept:
                raise self._unreachable(error) from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(error) from error
        return self._sent(method, path, headers, body)

    def _exchanged(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None
    ) -> _Reply:
        deadline = time.monotonic() + self._access.timeout_seconds
        if self._connection is None:
            self._connection = self._connected()
        connection = self._connection
        connection.request(method, path, body, {"Accept": "*/*", **headers})
        self._shorten(connection, deadline)
        response = connection.getresponse()
        pieces: list[bytes] = []
        size = 0
        while piece := response.read1(_PIECE_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > LARGEST_ANSWER_BYTES:
                self.close()
                raise RuntimeFault(
                    f"{self._address.text}: answers with more than {LARGEST_ANSWER_BYTES} bytes"
                )
            self._shorten(connection, deadline)
        has_stated_end = response.chunked or response.length is not None
        if response.length:
            raise http.client.IncompleteRead(b"".join(pieces), response.length)
        response.close()  # the connection takes the next request only then
        body = b"".join(pieces)
        return _Reply(response.status, dict(_named(response)), body, has_stated_end)

    def _connected(self) -> http.client.HTTPConnection:
        address, seconds = self._address, self._access.timeout_seconds
        if self._tls is not None:
            return http.client.HTTPSConnection(
                address.host, address.port, timeout=seconds, context=self._tls
            )
        return http.client.HTTPConnection(address.host, address.port, timeout=seconds)

    def _shorten(self, connection: http.client.HTTPConnection, deadline: float) -> None:
        """Let what remains of the request's time be the socket's patience."""
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("timed out")
        if connection.sock is not None:
            connection.sock.settimeout(remaining)

    def _unreachable(self, error: Exception) -> ModelError:
        place = self._address.text
        if isinstance(error, ssl.SSLCertVerificationError):
            return RemoteUnavailable(
                f"{place}: its certificate is not trusted ({error.verify_message}): name who "
                "vouches for it as ca_file in the site's models.remote"
            )
        if isinstance(error, TimeoutError):
            return RemoteUnavailable(
                f"{place}: gave no answer within {self._access.timeout_seconds:g} s: look at the "
                "server, or raise timeout_seconds in the site's models.remote"
            )
        reason = messages.excerpt(error) or type(error).__name__
        return RemoteUnavailable(
            f"{place}: cannot be reached ({reason}): start the server, or correct its url"
        )

    def _fault_of(self, reply: _Reply, path: str) -> ModelError:
        self.close()
        said = messages.error_of(reply.body)
        place = f"{self._address.text}{path}: answers {reply.status}{f' ({said})' if said else ''}"
        if reply.status in _NOT_LET_IN:
            what = _NOT_LET_IN[reply.status]
            return RemoteUnavailable(f"{place}: it {what}: put one into token_file")
        if reply.status in _WORTH_ANOTHER_TRY or reply.status >= 500:
            return RemoteUnavailable(f"{place}: the model is not served there now")
        if 300 <= reply.status < 400:
            return RuntimeFault(f"{place}: redirections are not followed: name the final address")
        return RuntimeFault(f"{place}: it refuses the tensor; compare the manifest with the model")


def _named(response: http.client.HTTPResponse) -> list[tuple[str, str]]:
    length = response.headers.get(messages.HEADER_LENGTH)
    return [] if length is None else [(messages.HEADER_LENGTH, length)]


def _model_path(model: str, version: str) -> str:
    versions = f"/versions/{quote(version, safe='')}" if version else ""
    return f"/v2/models/{quote(model, safe='')}{versions}"


def _tls_context(access: RemoteAccess) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=access.ca_file)
    except (OSError, ValueError) as error:
        raise RuntimeFault(f"ca_file {access.ca_file}: holds no usable certificate") from error
