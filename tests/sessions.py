"""Recorded sessions of real senders, and their replay byte by byte, as sent or changed.

Owns what a session is: what the sender sent, and how many PDUs it waited for in between. Judges
nothing.
"""

from __future__ import annotations

import random
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tests.upper_layer import ABORT, P_DATA_TF, cut, p_data, pdv, split_pdus, values_of

_WAIT_SECONDS = 20.0


@dataclass(frozen=True)
class Step:
    """Bytes to send, and how many PDUs to wait for before the next step."""

    sent: bytes
    answers: int


Session = tuple[Step, ...]


class Recorder:
    """Stands between a sender and a receiver and writes down what the sender does."""

    def __init__(self, receiver_port: int) -> None:
        self._receiver_port = receiver_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._relay, name="session-recorder")
        self._steps: list[Step] = []
        self.port: int = self._listener.getsockname()[1]
        self._thread.start()

    def session(self) -> Session:
        """Return what one connection did, once it is over."""
        self._thread.join(_WAIT_SECONDS)
        assert self._steps, "nobody connected"
        return tuple(self._steps)

    def close(self) -> None:
        """Stop waiting for a connection that did not come."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(_WAIT_SECONDS)

    def _relay(self) -> None:
        try:
            sender, _ = self._listener.accept()
        except OSError:
            return
        with sender, socket.create_connection(("127.0.0.1", self._receiver_port)) as receiver:
            for each in (sender, receiver):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pass_on(sender, receiver)

    def _pass_on(self, sender: socket.socket, receiver: socket.socket) -> None:
        sent, answered, unfinished = b"", 0, b""
        while True:
            ready, _, _ = select.select([sender, receiver], [], [], _WAIT_SECONDS)
            if receiver in ready and (answer := _received(receiver)):
                pdus, unfinished = split_pdus(unfinished + answer)
                answered += len(pdus)
                sender.sendall(answer)
            elif sender in ready and (more := _received(sender)):
                if answered:
                    self._steps.append(Step(sent, answered))
                    sent, answered = b"", 0
                sent += more
                receiver.sendall(more)
            else:
                break
        self._steps.append(Step(sent, answered))


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 20)
    except ConnectionError:
        return b""


@contextmanager
def recording(receiver_port: int) -> Iterator[Recorder]:
    """Record one connection to the receiver; the sender must connect to the recorder's port."""
    recorder = Recorder(receiver_port)
    try:
        yield recorder
    finally:
        recorder.close()


@dataclass(frozen=True)
class Replayed:
    """What a receiver answered to a session."""

    pdus: tuple[bytes, ...]
    left: bytes
    """What came after the last whole PDU; nothing, from a receiver that keeps the protocol."""
    was_closed: bool
    """The receiver closed the connection."""


def replay(
    port: int,
    session: Session,
    *,
    segment_bytes: int | None = None,
    pause_seconds: float = 0.0,
    quiet_seconds: float = _WAIT_SECONDS,
    source: str = "127.0.0.1",
) -> Replayed:
    """Play a session against a receiver.

    Parameters
    ----------
    port : int
        Of the receiver.
    session : Session
        What to send and when to wait.
    segment_bytes : int, optional
        Send in pieces of this size, each on its way before the next is written.
    pause_seconds : float
        Listen this long after each PDU, and send no more once the receiver has aborted.
    quiet_seconds : float
        After a pause this long nothing more is expected: the sending side is closed, and only
        what still comes is read.
    source : str
        The sender's address.
    """
    with socket.create_connection(("127.0.0.1", port), source_address=(source, 0)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener = _Listener(connection, quiet_seconds)
        for step in session:
            for part in _parts(step.sent, segment_bytes, in_pdus=pause_seconds > 0):
                # Closed by the receiver; its last words may still be there to be read.
                with suppress(OSError):
                    connection.sendall(part)
                listener.hear(pause_seconds)
                if listener.is_over:
                    break
            if listener.is_over or not listener.await_pdus(step.answers):
                break
        if not listener.is_closed:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            listener.await_end()
        pdus, left = split_pdus(listener.data)
        return Replayed(tuple(pdus), left, listener.is_closed)


def _parts(data: bytes, segment_bytes: int | None, *, in_pdus: bool) -> list[bytes]:
    if in_pdus:
        pdus, left = split_pdus(data)
        return [*pdus, left] if left else pdus
    size = segment_bytes or len(data) or 1
    return [data[at : at + size] for at in range(0, len(data), size)]


class _Listener:
    """Gathers what a receiver answers."""

    def __init__(self, connection: socket.socket, quiet_seconds: float) -> None:
        self._connection = connection
        self._quiet_seconds = quiet_seconds
        self._awaited = 0
        self.data = b""
        self.is_closed = False

    @property
    def is_over(self) -> bool:
        """True when the receiver has closed or aborted, as far as it was heard."""
        return self.is_closed or any(pdu[0] == ABORT for pdu in split_pdus(self.data)[0])

    def hear(self, seconds: float) -> None:
        """Take what comes within this time, which for 0 is nothing."""
        while seconds and select.select([self._connection], [], [], seconds)[0]:
            if not self._more():
                return

    def await_pdus(self, count: int) -> bool:
        """Wait for that many PDUs more; False when they will not come."""
        self._awaited += count
        while len(split_pdus(self.data)[0]) < self._awaited:
            if not self._more():
                return False
        return True

    def await_end(self) -> None:
        """Read until the receiver closes, or is quiet."""
        while self._more():
            pass

    def _more(self) -> bool:
        self._connection.settimeout(self._quiet_seconds)
        try:
            more = self._connection.recv(65536)
        except TimeoutError:
            return False
        except ConnectionError:
            more = b""
        self.is_closed = not more
        self.data += more
        return bool(more)


def refragmented(session: Session, rng: random.Random, longest: int = 3000) -> Session:
    """Return the session with every P-DATA cut into other values and PDUs, still legal."""
    return tuple(Step(_refragment(step.sent, rng, longest), step.answers) for step in session)


def _refragment(sent: bytes, rng: random.Random, longest: int) -> bytes:
    pdus, left = split_pdus(sent)
    assert not left, "a session must be whole PDUs"
    values: list[bytes] = []
    parts = b""
    for pdu in pdus:
        if pdu[0] != P_DATA_TF:
            parts += _packed(values, rng) + pdu
            values = []
            continue
        for context_id, control, fragment in values_of(pdu):
            values += _recut(context_id, control, fragment, rng, longest)
    return parts + _packed(values, rng)


def _recut(
    context_id: int, control: int, fragment: bytes, rng: random.Random, longest: int
) -> list[bytes]:
    sizes = []
    while sum(sizes) < len(fragment):
        sizes.append(rng.choice((0, 1, rng.randint(0, 9), rng.randint(1, longest))))
    pieces = cut(fragment, sizes)
    reserved = rng.choice((0, 0, 0xFC))
    ends = [0] * (len(pieces) - 1) + [control & 2]
    return [
        pdv(context_id, control & 1 | end | reserved, piece)
        for piece, end in zip(pieces, ends, strict=True)
    ]


def _packed(values: Sequence[bytes], rng: random.Random) -> bytes:
    data, waiting = b"", list(values)
    while waiting:
        count = rng.choice((1, 1, 2, rng.randint(1, 9)))
        data += p_data(*waiting[:count])
        del waiting[:count]
    return data


def mutated(session: Session, rng: random.Random) -> Session:
    """Return the session with some bytes changed, cut out, put in, doubled or made extreme."""
    steps = list(session)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(steps))
        steps[at] = Step(_mutate(steps[at].sent, rng), steps[at].answers)
    return tuple(steps)


def _mutate(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    if not changed:
        return data
    # Heads decide most, so half of all changes go to the beginning.
    at = rng.randrange(min(len(changed), 160) if rng.random() < 0.5 else len(changed))
    _MUTATIONS[rng.randrange(len(_MUTATIONS))](changed, at, rng)
    return bytes(changed)


def _flip(data: bytearray, at: int, rng: random.Random) -> None:
    data[at] ^= 1 << rng.randrange(8)


def _replace(data: bytearray, at: int, rng: random.Random) -> None:
    data[at] = rng.randrange(256)


def _extreme(data: bytearray, at: int, rng: random.Random) -> None:
    data[at : at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"))


def _remove(data: bytearray, at: int, rng: random.Random) -> None:
    del data[at : at + rng.choice((1, 2, 4, 6, 12))]


def _insert(data: bytearray, at: int, rng: random.Random) -> None:
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 6)))


def _double(data: bytearray, at: int, rng: random.Random) -> None:
    data[at:at] = data[at : at + rng.randrange(1, 80)]


def _truncate(data: bytearray, at: int, rng: random.Random) -> None:
    del data[at:]


_MUTATIONS: tuple[Callable[[bytearray, int, random.Random], None], ...] = (
    _flip,
    _flip,
    _replace,
    _replace,
    _extreme,
    _remove,
    _insert,
    _double,
    _truncate,
)
