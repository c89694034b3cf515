"""The bytes of one connection, read exactly and without copies, plain or through TLS.

Owns socket options, waiting and the bounds of a peer's silence. Must not know what the bytes mean.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_LOOK_UP_SECONDS = 0.25
"""How often a waiting thread looks whether it should still wait."""


class PeerGone(Exception):
    """The peer closed the connection, or the network did."""


class PeerSilent(Exception):
    """Nothing came for longer than the peer may be silent."""


class ReadingEnded(Exception):
    """Somebody on this side wants the connection back."""


class PeerStream:
    """Reads from a connected socket into a caller's buffer; one thread at a time.

    Parameters
    ----------
    connection : socket.socket
        Connected; an `ssl.SSLSocket` once its handshake is done.
    silence_seconds : float
        The longest pause between PDUs, and the longest time one read of a PDU's part may take:
        a peer that sends a byte now and then is as silent as one that sends nothing.
    is_wanted : callable
        Asked every quarter of a second while waiting; False ends the reading.
    """

    def __init__(
        self, connection: socket.socket, silence_seconds: float, is_wanted: Callable[[], bool]
    ) -> None:
        self._connection = connection
        self._silence_seconds = silence_seconds
        self._is_wanted = is_wanted
        self._is_plain = not isinstance(connection, ssl.SSLSocket)
        if self._is_plain:
            # The kernel waits and counts: a Python timeout would cost a poll before every read.
            connection.settimeout(None)
            _set_kernel_timeout(connection, socket.SO_RCVTIMEO, _LOOK_UP_SECONDS)
            _set_kernel_timeout(connection, socket.SO_SNDTIMEO, silence_seconds)
        else:
            connection.settimeout(_LOOK_UP_SECONDS)

    def give_back(self) -> None:
        """Leave the socket with Python's own timeout, as pynetdicom expects it."""
        try:
            if self._is_plain:
                _set_kernel_timeout(self._connection, socket.SO_RCVTIMEO, 0)
                _set_kernel_timeout(self._connection, socket.SO_SNDTIMEO, 0)
            self._connection.settimeout(self._silence_seconds)
        except OSError:
            return  # Closed already.

    def read(self, view: memoryview) -> None:
        """Fill `view` to its last byte.

        Raises
        ------
        PeerGone, PeerSilent, ReadingEnded
            What was read before is lost.
        """
        deadline = time.monotonic() + self._silence_seconds
        at = 0
        while at < len(view):
            at += self._read_some(view[at:] if at else view)
            if at < len(view):
                if not self._is_wanted():
                    raise ReadingEnded
                if time.monotonic() > deadline:
                    raise PeerSilent

    def send(self, data: bytes) -> None:
        """Send all of `data`.

        Raises
        ------
        PeerGone
            The peer is gone, or did not read for as long as it may be silent.
        """
        with self.sending():
            try:
                self._connection.sendall(data)
            except OSError as error:
                raise PeerGone from error

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Let the peer take its time to read what is sent on the connection within this block."""
        if self._is_plain:  # The kernel keeps a time for each direction.
            yield
            return
        self._connection.settimeout(self._silence_seconds)
        try:
            yield
        finally:
            with suppress(OSError):  # Closed within the block.
                self._connection.settimeout(_LOOK_UP_SECONDS)

    def _read_some(self, view: memoryview) -> int:
        """Read what there is, 0 when nothing came within the time of one look."""
        try:
            if self._is_plain:
                count = self._connection.recv_into(view, 0, socket.MSG_WAITALL)
                # A sender with Nagle's algorithm holds its last segment until we acknowledge; the
                # kernel forgets this option with everything we send.
                self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            else:
                count = self._connection.recv_into(view)
        except (BlockingIOError, TimeoutError, ssl.SSLWantReadError):
            return 0
        except (OSError, ValueError) as error:
            raise PeerGone from error
        if not count:
            raise PeerGone
        return count


def _set_kernel_timeout(connection: socket.socket, option: int, seconds: float) -> None:
    whole = int(seconds)
    microseconds = int((seconds - whole) * 1_000_000)
    connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", whole, microseconds))
