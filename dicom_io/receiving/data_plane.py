"""C-STORE from the socket to the sink: P-DATA streamed, nearly everything else passed on.

Owns the order of presentation data values within one association. A C-STORE request is answered
here, with memory that does not grow with the instance, and so is a C-ECHO; other messages go to
pynetdicom value by value and other PDUs whole. Must not know pynetdicom, sockets or files: the
ports below do.

References
----------
PS3.8 section 9.3.5 and Annex E (P-DATA-TF), PS3.7 section 6.3.1 (fragmentation).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from typing import Protocol

from dicom_io.receiving.commands import (
    StoreCommand,
    announces_data_set,
    echo_response,
    read_echo_command,
    read_store_command,
    store_response,
)
from dicom_io.receiving.storing import StoreInProgress

COMMAND_MAX_BYTES = 64 * 1024
"""A command set has a few hundred bytes; one that grows beyond this is no command set."""
ORDINARY_MAX_BYTES = 16 * 1024 * 1024
"""The most that a message outside C-STORE may hold: room for a commitment of 100,000 instances."""
OTHER_PDU_MAX_BYTES = 1024 * 1024
"""The most that a PDU other than P-DATA may hold."""
WINDOW_BYTES = 128 * 1024
"""What is read at once of a PDU that is longer than what we offered to take."""

_P_DATA_TF = 0x04
_PDU_TYPES = range(0x01, 0x08)
_PDU_HEAD = struct.Struct(">BBL")
_VALUE_HEAD = struct.Struct(">LBB")
_CONTEXT_AND_CONTROL = 2
_IS_COMMAND = 0x01
_IS_LAST = 0x02
_LAST_COMMAND = 0x03


class ProtocolFault(Exception):
    """The peer broke the upper layer protocol; the association must be aborted."""


class Stream(Protocol):
    """The connection, as `PeerStream` gives it."""

    def read(self, view: memoryview) -> None:
        """Fill `view`, or raise why that will not happen."""
        ...

    def send(self, data: bytes) -> None:
        """Send all of `data`, or raise."""
        ...


class OrdinaryPath(Protocol):
    """Where everything goes that is no C-STORE."""

    def value(self, context_id: int, control: int, fragment: bytes, *, is_whole: bool) -> None:
        """Take one presentation data value; `is_whole` when it completes a message."""
        ...


class DataPlane:
    """Serves the established association on one connection.

    Parameters
    ----------
    stream : Stream
        Where PDUs come from and responses go.
    context_ids : collection of int
        The accepted presentation contexts.
    begin_store : callable
        Starts the instance of a request on a presentation context.
    ordinary : OrdinaryPath
        Takes the values of other messages.
    maximum_pdu_bytes : int
        What we offered to receive; 0 means any.
    peer_maximum_pdu_bytes : int
        What the peer offered to receive, which bounds our responses; 0 means any.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        context_ids: Collection[int],
        begin_store: Callable[[StoreCommand, int], StoreInProgress],
        ordinary: OrdinaryPath,
        maximum_pdu_bytes: int,
        peer_maximum_pdu_bytes: int,
    ) -> None:
        self._stream = stream
        self._context_ids = frozenset(context_ids)
        self._begin_store = begin_store
        self._ordinary = ordinary
        self._peer_maximum_pdu_bytes = peer_maximum_pdu_bytes
        self._head = memoryview(bytearray(_PDU_HEAD.size))
        self._window = memoryview(bytearray(maximum_pdu_bytes or WINDOW_BYTES))
        self._command = bytearray()
        self._takes_command = False
        self._context_id = 0
        self._store: tuple[StoreCommand, StoreInProgress] | None = None
        self._takes_data_set = False
        self._ordinary_bytes = 0

    def serve_pdu(self) -> bytes | None:
        """Read one PDU and serve it if it is P-DATA; return it whole if it is another.

        Raises
        ------
        ProtocolFault
            The association must be aborted.
        """
        self._stream.read(self._head)
        kind, _, length = _PDU_HEAD.unpack(self._head)
        if kind != _P_DATA_TF:
            return self._other_pdu(kind, length)
        if length <= len(self._window):
            body = self._window[:length]
            self._stream.read(body)
            self._serve_values(body)
        else:
            self._serve_long_pdu(length)
        return None

    def discard(self) -> None:
        """Leave nothing of an instance that did not come to its end."""
        if self._store is not None:
            self._store[1].discard()
            self._store = None

    def _other_pdu(self, kind: int, length: int) -> bytes:
        if kind not in _PDU_TYPES:
            raise ProtocolFault(f"there is no PDU of type {kind:02X}H")
        if length > OTHER_PDU_MAX_BYTES:
            raise ProtocolFault("a PDU that is no P-DATA is longer than any can be")
        pdu = bytearray(_PDU_HEAD.size + length)
        pdu[: _PDU_HEAD.size] = self._head
        self._stream.read(memoryview(pdu)[_PDU_HEAD.size :])
        return bytes(pdu)

    def _serve_values(self, body: memoryview) -> None:
        """Serve the values of a PDU that is here as a whole; a damaged one has no effect."""
        values = []
        at, end = 0, len(body)
        while at < end:
            length, context_id, control = _value_head(body[at:], end - at)
            at += _VALUE_HEAD.size
            values.append((context_id, control, body[at : at + length]))
            at += length
        for context_id, control, fragment in values:
            self._take(context_id, control, fragment, ends=True)

    def _serve_long_pdu(self, left: int) -> None:
        """Serve a PDU piece by piece, however long it says it is."""
        head = memoryview(bytearray(_VALUE_HEAD.size))
        while left:
            self._stream.read(head[: min(left, len(head))])
            length, context_id, control = _value_head(head, left)
            left -= _VALUE_HEAD.size + length
            while True:
                piece = self._window[: min(length, len(self._window))]
                self._stream.read(piece)
                length -= len(piece)
                self._take(context_id, control, piece, ends=not length)
                if not length:
                    break

    def _take(self, context_id: int, control: int, fragment: memoryview, *, ends: bool) -> None:
        """Serve one fragment; `ends` when it reaches to the end of its value."""
        if context_id not in self._context_ids:
            raise ProtocolFault(f"presentation context {context_id} was not accepted")
        is_last = ends and bool(control & _IS_LAST)
        if control & _IS_COMMAND:
            self._take_command(context_id, fragment, is_last=is_last)
        elif not self._takes_data_set or context_id != self._context_id:
            raise ProtocolFault("a data set fragment without its command")
        elif self._store is not None:
            self._take_instance(fragment, is_last=is_last)
        else:
            self._pass_on(0, fragment, is_last=is_last)

    def _take_command(self, context_id: int, fragment: memoryview, *, is_last: bool) -> None:
        if self._takes_data_set or (self._takes_command and context_id != self._context_id):
            raise ProtocolFault("a command within another message")
        if len(self._command) + len(fragment) > COMMAND_MAX_BYTES:
            raise ProtocolFault("a command set without end")
        self._context_id = context_id
        self._takes_command = not is_last
        self._command += fragment
        if is_last:
            command, self._command = self._command, bytearray()
            self._begin_message(command)

    def _begin_message(self, command: bytearray) -> None:
        request = read_store_command(command)
        if request is not None:
            self._store = request, self._begin_store(request, self._context_id)
            self._takes_data_set = True
            return
        echo = read_echo_command(command)
        if echo is not None:
            self._respond(echo_response(echo))
            return
        self._ordinary_bytes = 0
        self._takes_data_set = announces_data_set(command)
        self._ordinary.value(
            self._context_id, _LAST_COMMAND, bytes(command), is_whole=not self._takes_data_set
        )

    def _take_instance(self, fragment: memoryview, *, is_last: bool) -> None:
        assert self._store is not None  # noqa: S101 - asked by the caller
        request, store = self._store
        store.write(fragment)
        if is_last:
            self._takes_data_set, self._store = False, None
            answer = store.finish()
            self._respond(store_response(request, answer))

    def _pass_on(self, control: int, fragment: memoryview, *, is_last: bool) -> None:
        self._ordinary_bytes += len(fragment)
        if self._ordinary_bytes > ORDINARY_MAX_BYTES:
            raise ProtocolFault("a message outside C-STORE is longer than any may be")
        self._takes_data_set = not is_last
        self._ordinary.value(
            self._context_id,
            control | (_IS_LAST if is_last else 0),
            bytes(fragment),
            is_whole=is_last,
        )

    def _respond(self, command: bytes) -> None:
        for pdu in p_data(self._context_id, command, self._peer_maximum_pdu_bytes):
            self._stream.send(pdu)


def p_data(context_id: int, command: bytes, maximum_pdu_bytes: int) -> list[bytes]:
    """Return the P-DATA-TF PDUs that carry a command set, none longer than the peer takes.

    Parameters
    ----------
    context_id : int
        Presentation context ID.
    command : bytes
        The whole command set.
    maximum_pdu_bytes : int
        Without the six bytes of the PDU's head (PS3.8 D.1); 0 means any length.
    """
    room = max(maximum_pdu_bytes - _VALUE_HEAD.size, 1) if maximum_pdu_bytes else len(command)
    pdus = []
    for start in range(0, len(command), room):
        fragment = command[start : start + room]
        is_last = start + room >= len(command)
        control = _LAST_COMMAND if is_last else _IS_COMMAND
        value = _VALUE_HEAD.pack(len(fragment) + _CONTEXT_AND_CONTROL, context_id, control)
        length = len(value) + len(fragment)
        pdus.append(_PDU_HEAD.pack(_P_DATA_TF, 0, length) + value + fragment)
    return pdus


def _value_head(data: memoryview, left: int) -> tuple[int, int, int]:
    """Return length of the fragment, context and control of the value that begins here."""
    if left < _VALUE_HEAD.size:
        raise ProtocolFault("a PDU ends within a presentation data value")
    length, context_id, control = _VALUE_HEAD.unpack_from(data)
    if not _CONTEXT_AND_CONTROL <= length <= left - 4:
        raise ProtocolFault(f"a presentation data value says {length} bytes, {left - 4} are left")
    return length - _CONTEXT_AND_CONTROL, context_id, control
