"""Associations that we request: opening one, and saying in words why it could not be opened.

Owns the translation of everything that can go wrong before the first message into one error.
Must not know what is sent over the association.
"""

from __future__ import annotations

import socket
import ssl
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pydicom.uid import UID
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext, build_context, build_role
from pynetdicom.transport import AddressInformation, AssociationSocket

from dicom_io.errors import AssociationFailed, UnusableCertificate
from dicom_io.network import close, disable_nagle
from dicom_io.tls import TLSCall, requestor_fault
from dicom_io.vocabulary import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

CONNECT_TIMEOUT_SECONDS = 10.0
"""A host on the same site answers in milliseconds; a firewall that drops packets never does."""

ASSOCIATION_TIMEOUT_SECONDS = 30.0
"""For the answer to a request for an association or for its release."""

RESPONSE_TIMEOUT_SECONDS = 120.0
"""For the answer to one message; a busy PACS may take a minute to file an instance."""

_HOLD_SECONDS = 0.02
"""Many rounds of pynetdicom's thread, which looks for messages every millisecond."""

MAXIMUM_CONTEXTS = 128
"""Presentation contexts of one association: odd identifiers from 1 to 255 (PS3.8 9.3.2.2)."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A peer that we call."""

    name: str
    """How the site calls it, for messages."""
    host: str
    port: int
    ae_title: str
    """Theirs: the called AE title."""
    calling_ae_title: str = "MEDIMGD"
    """Ours, as the peer knows us."""
    connect_timeout_seconds: float = CONNECT_TIMEOUT_SECONDS
    association_timeout_seconds: float = ASSOCIATION_TIMEOUT_SECONDS
    response_timeout_seconds: float = RESPONSE_TIMEOUT_SECONDS
    tls: TLSCall | None = None
    """How to speak TLS with it; None speaks without."""

    def __str__(self) -> str:
        return f"{self.name} ({self.ae_title} at {self.host} port {self.port})"


@dataclass(frozen=True, slots=True, order=True)
class Context:
    """What is to be negotiated: one SOP class in one transfer syntax."""

    sop_class_uid: str
    transfer_syntax_uid: str
    provides: bool = False
    """We provide the service there, instead of using the peer's (PS3.7 D.3.3.4)."""


@contextmanager
def open_association(
    destination: Destination, contexts: Iterable[Context]
) -> Iterator[Association | None]:
    """Open an association for exactly these contexts and release it at the end.

    Yields
    ------
    Association or None
        None when the peer accepted the association but none of the contexts. Accepted and refused
        contexts are told by `accepts`.

    Raises
    ------
    AssociationFailed
        If the peer cannot be reached, rejects the association, or does not answer.
    """
    assoc = _request(destination, tuple(contexts))
    if not assoc.is_established:
        if _accepted_without_contexts(assoc):
            yield None
            return
        raise _failure(destination, assoc)
    try:
        yield assoc
    finally:
        _end(assoc)


def accepts(assoc: Association, context: Context) -> bool:
    """Return True when the peer accepted this SOP class in this transfer syntax."""
    return any(
        (cx.abstract_syntax, cx.transfer_syntax[0])
        == (context.sop_class_uid, context.transfer_syntax_uid)
        for cx in assoc.accepted_contexts
    )


def hold_reactor(assoc: Association) -> None:
    """Make sure that the response to what is sent next reaches the sender.

    pynetdicom's own thread looks for messages beside the thread that sends. Its ``send_*`` methods
    ask it to stand aside, but take it for standing aside when it has just passed the gate: then it
    takes the response away, and the sender waits for its timeout. Call this before each of them.
    """
    assoc._reactor_checkpoint.clear()  # noqa: SLF001 - there is no public way
    assoc._is_paused = False  # noqa: SLF001
    deadline = time.monotonic() + _HOLD_SECONDS
    # From here on it can only come to the gate anew and wait there; if it waits already, the
    # time runs out.
    while not assoc._is_paused and assoc.is_alive() and time.monotonic() < deadline:  # noqa: SLF001
        time.sleep(_HOLD_SECONDS / 40)
    assoc._is_paused = True  # noqa: SLF001


class _OutgoingSocket(AssociationSocket):
    """A connection we open; keeps why it could not be opened, and is always closed."""

    connection_error: OSError | None = None

    def _create_socket(self, address: AddressInformation) -> socket.socket:
        connection = super()._create_socket(address)
        disable_nagle(connection)
        return connection

    def _shutdown_socket(self) -> None:
        # Called while the failure to connect is being handled, and pynetdicom tells it nobody.
        error = sys.exception()
        if isinstance(error, OSError) and not self._is_connected:
            self.connection_error = error
        if self.socket is not None:
            close(self.socket)


class _RequestingEntity(ApplicationEntity):
    """An application entity whose associations use our sockets."""

    def _create_socket(
        self,
        assoc: Association,
        address: AddressInformation,
        tls_args: tuple[ssl.SSLContext, str] | None,
    ) -> AssociationSocket:
        connection = _OutgoingSocket(assoc, address=address)
        connection.tls_args = tls_args
        return connection


def _request(destination: Destination, contexts: Sequence[Context]) -> Association:
    try:
        return _application_entity(destination).associate(
            destination.host,
            destination.port,
            contexts=[_proposal(context) for context in contexts],
            ae_title=destination.ae_title,
            tls_args=_tls_arguments(destination),
            ext_neg=[
                build_role(context.sop_class_uid, scp_role=True)
                for context in contexts
                if context.provides
            ],
        )
    except OSError as error:
        # Only the name lookup and the local socket raise; a refused connection does not.
        raise _unreachable(destination, error) from error


def _tls_arguments(destination: Destination) -> tuple[ssl.SSLContext, str] | None:
    if destination.tls is None:
        return None
    try:
        return destination.tls.context(), destination.host
    except UnusableCertificate as error:
        # Tried again like everything else about a peer: somebody will mend the file.
        raise AssociationFailed(f"cannot connect to {destination}: {error}") from error


def _application_entity(destination: Destination) -> ApplicationEntity:
    ae = _RequestingEntity(ae_title=destination.calling_ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout = destination.connect_timeout_seconds
    ae.acse_timeout = destination.association_timeout_seconds
    ae.dimse_timeout = destination.response_timeout_seconds
    # Must outlast the wait for a response, or it would cut that wait short.
    ae.network_timeout = destination.response_timeout_seconds + 1
    return ae


def _proposal(context: Context) -> PresentationContext:
    return build_context(UID(context.sop_class_uid), UID(context.transfer_syntax_uid))


def _end(assoc: Association) -> None:
    if assoc.is_established:
        assoc.release()
    elif not assoc.is_released:
        assoc.kill()


def _accepted_without_contexts(assoc: Association) -> bool:
    answer = assoc.acceptor.primitive
    return answer is not None and answer.result == 0 and bool(assoc.rejected_contexts)


def _failure(destination: Destination, assoc: Association) -> AssociationFailed:
    connection = assoc.dul.socket
    if isinstance(connection, _OutgoingSocket) and connection.connection_error is not None:
        return _unreachable(destination, connection.connection_error)
    answer = assoc.acceptor.primitive
    if assoc.is_rejected and answer is not None:
        return _rejection(destination, answer)
    return AssociationFailed(
        f"{destination} took the connection but did not answer the request for an association "
        f"within {destination.association_timeout_seconds:g} s, or broke it off: check that a "
        f"DICOM service listens there, {'without' if destination.tls is None else 'with'} TLS, "
        "and that it is not overloaded"
    )


def _unreachable(destination: Destination, error: OSError) -> AssociationFailed:
    if isinstance(error, ssl.SSLError):
        why = requestor_fault(error)
    else:
        why = (
            f"{error.strerror or error}. Check host and port, and that the peer is running and no "
            "firewall is between"
        )
    failure = AssociationFailed(f"cannot connect to {destination}: {why}")
    failure.__cause__ = error
    return failure


def _rejection(destination: Destination, answer: A_ASSOCIATE) -> AssociationFailed:
    reason = answer.reason_str
    remedy = {
        "Calling AE title not recognised": (
            f"enter our AE title {destination.calling_ae_title!r} and this machine's address "
            "at the peer"
        ),
        "Called AE title not recognised": (
            f"correct ae_title of this destination, {destination.ae_title!r} is not the peer's"
        ),
    }.get(reason, "the peer may accept later" if answer.result == 2 else "ask the peer's log")
    return AssociationFailed(
        f"{destination} rejected the association of {destination.calling_ae_title!r}: "
        f"{answer.result_str}, {answer.source_str}, {reason}: {remedy}"
    )
