"""Peers that mean harm, or are merely broken: what they do to a port, and nothing they look at.

Owns the attacks. Each function attacks the receiver on `port` and returns when it is done; a
receiver may hang up at any moment, so what fails on our side is no fault of the attack.
"""

from __future__ import annotations

import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from tests import upper_layer as ul
from tests.receiver_process import Instance
from tests.sessions import Session, Step, mutated, refragmented
from tests.upper_layer import COMMAND, DATA, LAST_COMMAND, LAST_DATA, Context, pdv

CONTEXTS = (Context(1), Context(3, ul.VERIFICATION))
REQUEST = ul.associate_request(CONTEXTS, calling="HOSTILE")
ECHO = ul.p_data(pdv(3, LAST_COMMAND, ul.echo_request()))

_PATIENCE_SECONDS = 10.0
_SHORTEST_PDU = 7
"""Room for one byte of a message beside the head of its value."""


_tls: ssl.SSLContext | None = None


@contextmanager
def speaking_tls(context: ssl.SSLContext) -> Iterator[None]:
    """Let every connection made here speak TLS meanwhile, the honest peer's as well."""
    global _tls  # noqa: PLW0603 - attacks run in threads of their own
    _tls = context
    try:
        yield
    finally:
        _tls = None


def _dressed(connection: socket.socket) -> socket.socket:
    """Return the connection to speak over: itself, or TLS within it."""
    return connection if _tls is None else _tls.wrap_socket(connection)


def store_pdus(instance: Instance, fragment_bytes: int = 600) -> bytes:
    """Return the PDUs of one C-STORE, each with one value."""
    values = ul.message(1, ul.store_request(instance.uid), instance.data_set, fragment_bytes)
    return b"".join(ul.p_data(value) for value in values)


def whole_session(*instances: Instance) -> Session:
    """Return a session that stores these instances, asks for an echo and releases."""
    stores = [Step(store_pdus(instance), 1) for instance in instances]
    return (Step(REQUEST, 1), *stores, Step(ECHO, 1), Step(ul.RELEASE_REQUEST, 1))


@contextmanager
def connected(port: int, *, receive_buffer_bytes: int | None = None) -> Iterator[socket.socket]:
    """Connect; whatever the connection does to us after that ends the attack and no more."""
    connection = socket.socket()
    try:
        connection.settimeout(_PATIENCE_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        with suppress(OSError):  # Time-outs are of this kind as well.
            connection.connect(("127.0.0.1", port))
            connection = _dressed(connection)
            yield connection
    finally:
        connection.close()


def associated(connection: socket.socket) -> bool:
    """Open an association; False when the receiver would not."""
    connection.sendall(REQUEST)
    return _read_pdus(connection, 1)[:1] == bytes([ul.ASSOCIATE_AC])


def _read_pdus(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(ul.split_pdus(data)[0]) < count:
        more = connection.recv(65536)
        if not more:
            raise ConnectionResetError
        data += more
    return data


def _drained(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def hard_close(connection: socket.socket) -> None:
    """Close with a reset instead of a farewell."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


# Silence, in all places where it can be kept

LORIS_BEGINNINGS: dict[str, bytes] = {
    "before the request": b"",
    "in the head of the request": REQUEST[:3],
    "in the request": REQUEST[:90],
    "after the association": REQUEST,
    "in the head of a P-DATA": REQUEST + b"\x04\x00\x00",
    "in the head of a value": REQUEST + ul.pdu(ul.P_DATA_TF, b"\0\0\0", length=500),
    "in a command": REQUEST
    + ul.p_data(pdv(1, COMMAND, ul.store_request()[:40]))
    + ul.pdu(ul.P_DATA_TF, pdv(1, COMMAND, b"", length=400), length=404),
    "after a command": REQUEST + ul.p_data(pdv(1, LAST_COMMAND, ul.store_request())),
    "in a data set": REQUEST
    + ul.p_data(pdv(1, LAST_COMMAND, ul.store_request()), pdv(1, DATA, bytes(100)))
    + ul.pdu(ul.P_DATA_TF, pdv(1, DATA, bytes(10), length=5000), length=5004),
    "in a release": REQUEST + ul.RELEASE_REQUEST[:7],
    "after an abort of the receiver": REQUEST + ul.pdu(0x77, bytes(4)),
    "in a PDU after an abort of the receiver": REQUEST
    + ul.pdu(0x77, b"")
    + ul.pdu(ul.P_DATA_TF, b"", length=0xFFFFFFFF),
}


def slow_loris(port: int, beginning: bytes, pause_seconds: float, at_most_seconds: float) -> float:
    """Send the beginning, then a byte now and then; return after how long we were hung up on."""
    started = time.monotonic()
    with connected(port) as connection:
        if beginning.startswith(REQUEST):
            associated(connection)
            beginning = beginning[len(REQUEST) :]
        connection.sendall(beginning)
        connection.settimeout(pause_seconds)
        while time.monotonic() - started < at_most_seconds:
            with suppress(TimeoutError):
                if not connection.recv(4096):
                    break
            connection.sendall(b"\0")
    return time.monotonic() - started


@contextmanager
def crowd(port: int, count: int, data: bytes) -> Iterator[None]:
    """Hold this many connections that have said `data` and say no more."""
    with ExitStack() as held:
        connections = [held.enter_context(connected(port)) for _ in range(count)]
        for connection in connections:
            connection.sendall(data)
        if data == REQUEST:
            for connection in connections:
                _read_pdus(connection, 1)
        yield


# Lies about lengths

GIB_4 = 0xFFFFFFFF

LENGTH_LIES: dict[str, bytes] = {
    "an A-ASSOCIATE-RQ": ul.pdu(ul.ASSOCIATE_RQ, b"", length=GIB_4),
    "a P-DATA before any association": ul.pdu(ul.P_DATA_TF, b"", length=GIB_4),
    "an A-ABORT before any association": ul.pdu(ul.ABORT, b"", length=GIB_4),
    "a P-DATA": REQUEST + ul.pdu(ul.P_DATA_TF, b"", length=GIB_4),
    "a P-DATA whose value fills it": REQUEST
    + ul.pdu(ul.P_DATA_TF, pdv(1, COMMAND, b"", length=GIB_4 - 4), length=GIB_4),
    "a value longer than its PDU": REQUEST
    + ul.pdu(ul.P_DATA_TF, pdv(1, COMMAND, b"", length=GIB_4), length=16000),
    "a data set": REQUEST
    + ul.p_data(pdv(1, LAST_COMMAND, ul.store_request()))
    + ul.pdu(ul.P_DATA_TF, pdv(1, DATA, b"", length=GIB_4 - 4), length=GIB_4),
    "a message that is no C-STORE": REQUEST
    + ul.p_data(pdv(1, LAST_COMMAND, ul.store_request(field=0x0130)))
    + ul.pdu(ul.P_DATA_TF, pdv(1, DATA, b"", length=GIB_4 - 4), length=GIB_4),
    "an A-RELEASE-RQ": REQUEST + ul.pdu(ul.RELEASE_RQ, b"", length=GIB_4),
    "an A-ABORT": REQUEST + ul.pdu(ul.ABORT, b"", length=GIB_4),
    "a PDU of no type": REQUEST + ul.pdu(0x99, b"", length=GIB_4),
    "a PDU after an abort of the receiver": REQUEST
    + ul.pdu(0x77, b"")
    + ul.pdu(ul.ASSOCIATE_RQ, b"", length=GIB_4),
}


def flood(port: int, beginning: bytes, flood_bytes: int) -> int:
    """Send the beginning and then zeros as fast as they are taken; return how many were."""
    sent = 0
    with connected(port) as connection:
        if beginning.startswith(REQUEST):
            associated(connection)
            beginning = beginning[len(REQUEST) :]
        connection.sendall(beginning)
        piece = bytes(1 << 20)
        while sent < flood_bytes:
            connection.sendall(piece)
            sent += len(piece)
        hard_close(connection)
    return sent


# Breaches of order

BREACHES: dict[str, bytes] = {
    "nonsense": b"GET / HTTP/1.1\r\nHost: pacs\r\n\r\n",
    "an unknown PDU first": ul.pdu(0x42, b"abcd"),
    "P-DATA first": ECHO,
    "a release first": ul.RELEASE_REQUEST,
    "an A-ASSOCIATE-AC first": ul.pdu(ul.ASSOCIATE_AC, REQUEST[6:]),
    "an empty request": ul.pdu(ul.ASSOCIATE_RQ, b""),
    "a request without contexts": ul.associate_request(()),
    "a request of 128 contexts": ul.associate_request(Context(n) for n in range(1, 256, 2)),
    "a request with one context ID twice": ul.associate_request((Context(1), Context(1))),
    "a request with an even context ID": ul.associate_request((Context(2),)),
    "a request for another title": ul.associate_request(CONTEXTS, called="ELSEWHERE"),
    "a second request": REQUEST + REQUEST,
    "an unknown PDU": REQUEST + ul.pdu(0x42, b"abcd"),
    "a context that was never negotiated": REQUEST
    + ul.p_data(pdv(77, LAST_COMMAND, ul.store_request()), pdv(77, LAST_DATA, b"data")),
    "data before its command": REQUEST + ul.p_data(pdv(1, LAST_DATA, b"data")),
    "data on another context": REQUEST
    + ul.p_data(pdv(1, LAST_COMMAND, ul.store_request()), pdv(3, LAST_DATA, b"data")),
    "a response instead of a request": REQUEST
    + ul.p_data(
        pdv(1, LAST_COMMAND, ul.store_request(field=ul.C_STORE_RSP)), pdv(1, LAST_DATA, b"data")
    ),
    "a response without data set": REQUEST
    + ul.p_data(pdv(1, LAST_COMMAND, ul.store_request(field=0x8001, has_data_set=False))),
    "an unknown command": REQUEST
    + ul.p_data(pdv(1, LAST_COMMAND, ul.store_request(field=0x7777, has_data_set=False))),
    "a C-FIND where none is served": REQUEST
    + ul.p_data(pdv(1, LAST_COMMAND, ul.store_request(field=0x0020)), pdv(1, LAST_DATA, b"data")),
    "an N-EVENT-REPORT nobody asked for": REQUEST
    + ul.p_data(pdv(1, LAST_COMMAND, ul.store_request(field=0x0100)), pdv(1, LAST_DATA, b"data")),
    "a C-CANCEL of nothing": REQUEST
    + ul.p_data(pdv(1, LAST_COMMAND, ul.store_request(field=0x0FFF, has_data_set=False))) * 20,
    "a store over the context of Verification": REQUEST
    + ul.p_data(pdv(3, LAST_COMMAND, ul.store_request()), pdv(3, LAST_DATA, b"data")),
    "an instance UID that climbs": REQUEST
    + ul.p_data(
        pdv(1, LAST_COMMAND, ul.store_request("../../../tmp/x")), pdv(1, LAST_DATA, b"data")
    ),
    "a data set that is none": REQUEST
    + ul.p_data(pdv(1, LAST_COMMAND, ul.store_request()), pdv(1, LAST_DATA, b"\xff" * 500)),
    "a command set that is none": REQUEST + ul.p_data(pdv(1, LAST_COMMAND, b"\xff" * 500)),
    "a command set without end": REQUEST + ul.p_data(pdv(1, COMMAND, bytes(15000))) * 20,
    "empty fragments by the thousand": REQUEST + ul.p_data(*[pdv(1, COMMAND, b"")] * 2000) * 5,
    "empty PDUs by the thousand": REQUEST + ul.p_data() * 10_000,
    "a command only": REQUEST + ul.p_data(pdv(1, LAST_COMMAND, ul.store_request())),
    "an HTTP request within an association": REQUEST + b"GET / HTTP/1.1\r\n\r\n",
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "aborts in a row": REQUEST + ul.ABORT_REQUEST * 50,
    "releases in a row": REQUEST + ul.RELEASE_REQUEST * 50,
    "a release within a data set": REQUEST
    + ul.p_data(pdv(1, LAST_COMMAND, ul.store_request()), pdv(1, DATA, b"data"))
    + ul.RELEASE_REQUEST,
}


@dataclass(frozen=True)
class Farewell:
    """How a peer leaves after its bytes."""

    name: str
    leave: Callable[[socket.socket], None]


def _half_close(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)
    _drained(connection)


FAREWELLS = (
    Farewell("close", lambda connection: connection.close()),
    Farewell("reset", hard_close),
    Farewell("half close", _half_close),
    Farewell("abort", lambda connection: connection.sendall(ul.ABORT_REQUEST)),
    Farewell("release", lambda connection: connection.sendall(ul.RELEASE_REQUEST)),
)


def say(port: int, data: bytes, farewell: Farewell) -> None:
    """Say these bytes, waiting for the association where they begin with one, and leave."""
    with connected(port) as connection:
        if data.startswith(REQUEST) and len(data) > len(REQUEST):
            associated(connection)
            data = data[len(REQUEST) :]
        connection.sendall(data)
        farewell.leave(connection)


def leave_at(port: int, session: Session, offset: int, farewell: Farewell) -> None:
    """Play a session up to a byte of it and leave there."""
    left = offset
    with connected(port) as connection:
        for step in session:
            connection.sendall(step.sent[:left])
            left -= len(step.sent)
            if left <= 0:
                break
            _read_pdus(connection, step.answers)
        farewell.leave(connection)


# Mutations


def play_mutation(port: int, session: Session, number: int, seed: int) -> None:
    """Play one mutated session in haste: answers are read, never waited for to the end."""
    rng = random.Random(seed * 1_000_003 + number)
    changed = mutated(refragmented(session, rng, longest=400), rng)
    whole_request = changed[0].sent == REQUEST
    with connected(port) as connection:
        if whole_request and not associated(connection):
            return
        rest = b"".join(step.sent for step in changed[whole_request:])
        connection.sendall(rest)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(0.5)
        _drained(connection)


def play_mutated_messages(
    port: int, messages: Sequence[bytes], numbers: Sequence[int], seed: int
) -> int:
    """Play mutated messages over as few associations as they leave alive; return how many those
    were.

    Each message is mutated once more or less. An association is given up when the receiver ends
    it, or keeps silent for longer than its answer takes.
    """
    waiting, associations = list(numbers), 0
    while waiting:
        associations += 1
        with connected(port) as connection:
            if not associated(connection):
                continue
            connection.settimeout(_HASTE_SECONDS)
            while waiting:
                number = waiting.pop()
                rng = random.Random(seed * 1_000_003 + number)
                message = (Step(messages[number % len(messages)], 1),)
                connection.sendall(mutated(message, rng)[0].sent)
                _read_pdus(connection, 1)
    return associations


_HASTE_SECONDS = 0.06


def together(attacks: Iterable[Callable[[], object]], at_once: int) -> list[object]:
    """Run attacks, several at a time, and return what they return, in order."""
    with ThreadPoolExecutor(at_once) as pool:
        return [done.result() for done in [pool.submit(attack) for attack in attacks]]


# Floods of what is allowed


def probe(port: int, count: int) -> None:
    """Connect and close, again and again."""
    for _ in range(count):
        with connected(port):
            pass


def ask_without_listening(port: int, message: bytes, at_most_seconds: float) -> bool:
    """Send a message again and again and never read an answer; True when we were hung up on.

    The shortest of PDUs are asked for, so that the kernel's buffer is full of answers soon.
    """
    deadline = time.monotonic() + at_most_seconds
    with connected(port, receive_buffer_bytes=4096) as connection:
        connection.sendall(
            ul.associate_request(CONTEXTS, calling="HOSTILE", maximum_pdu_bytes=_SHORTEST_PDU)
        )
        _read_pdus(connection, 1)
        connection.settimeout(0.2)
        while time.monotonic() < deadline:
            try:
                connection.send(message * 200)
            except TimeoutError:
                continue
            except OSError:
                return True
    return False


@dataclass
class HonestPeer:
    """Stores instances, one association after the other, until it is told to stop."""

    port: int
    pixel_bytes: int = 20_000
    stored: list[Instance] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    longest_seconds: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> HonestPeer:
        self._thread = threading.Thread(target=self._store_until_stopped, name="honest-peer")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _store_until_stopped(self) -> None:
        while not self._stop.wait(0.02):
            instance = Instance.make(self.pixel_bytes)
            started = time.monotonic()
            problem = store_honestly(self.port, instance)
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - started)
            if problem:
                self.failures.append(problem)
            else:
                self.stored.append(instance)


def store_honestly(port: int, instance: Instance, patience_seconds: float = 30.0) -> str:
    """Store one instance as everybody does; return what went wrong, if anything."""
    try:
        bare = socket.create_connection(("127.0.0.1", port), timeout=patience_seconds)
        with bare, _dressed(bare) as connection:
            connection.sendall(ul.associate_request(CONTEXTS, calling="HONEST"))
            answer = _read_pdus(connection, 1)
            if answer[0] != ul.ASSOCIATE_AC:
                return f"no association: {answer.hex()}"
            connection.sendall(store_pdus(instance, 16000))
            pdus = ul.split_pdus(_read_pdus(connection, 1))[0]
            (command,) = ul.commands_of(pdus)
            if ul.status_of(command) != 0:
                return f"status {ul.status_of(command):04X}"
            connection.sendall(ul.RELEASE_REQUEST)
            _read_pdus(connection, 1)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
