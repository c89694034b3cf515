"""Handing a new connection to the receiver of the same port that has the least to do.

Owns the passing of sockets between the processes that share a port. The kernel deals connections
out by a hash, so that of two senders often both meet the same process while another idles. Knows
nothing of associations.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
from array import array
from collections.abc import Callable
from contextlib import suppress

from dicom_io.receiving.port_claim import PortClaim
from dicom_io.receiving.shared_places import SharedPlaces

LOGGER = logging.getLogger(__name__)

STALE_SECONDS = 2.0
"""A process that was silent for longer is stopped or starved: it is given nothing more."""
_POLL_SECONDS = 0.2
_NO_WORK_PLEASE = 0xFFFFFFFF
_CREDENTIALS = struct.Struct("3i")
_DESCRIPTOR_BYTES = array("i").itemsize


class Handover:
    """One process's part in sharing out the connections of a port.

    Parameters
    ----------
    claim : PortClaim
        Entered; its socket carries the connections.
    places : SharedPlaces
        Where the processes tell each other how many connections they serve.
    """

    def __init__(self, claim: PortClaim, places: SharedPlaces) -> None:
        self._claim = claim
        self._places = places
        self._is_leaving = False
        self._is_deaf = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, take: Callable[[socket.socket], None]) -> None:
        """Begin to take what others hand over; `take` is called in a thread of its own."""
        # Before anybody is invited: what was sent earlier would come without its sender's user.
        self._claim.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._claim.socket.settimeout(_POLL_SECONDS)
        self.announce(0)
        self._thread = threading.Thread(
            target=self._take_until_stopped, args=(take,), name="dicom-handover", daemon=True
        )
        self._thread.start()

    def leave(self) -> None:
        """Ask for no more connections, and give every new one away from now on."""
        self._is_leaving = True
        self.announce(_NO_WORK_PLEASE)

    def stop(self) -> None:
        """Take no more, but what is on its way."""
        self.leave()
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def announce(self, connections: int) -> None:
        """Tell the others how many connections this process serves, and that it is alive."""
        with suppress(OSError):  # Without it they hand over nothing, and all goes on.
            said = _NO_WORK_PLEASE if self._is_deaf else self._work(connections)
            self._places.announce(self._claim.port, said)

    def give_away(self, connection: socket.socket, connections: int) -> bool:
        """Hand a new connection to another process that serves fewer, if there is one.

        Returns
        -------
        bool
            True when another process has it and ours is closed.
        """
        try:
            others = self._places.others_at_work(self._claim.port, STALE_SECONDS)
            idlest = min(others, key=lambda each: each.connections, default=None)
            if idlest is None or idlest.connections >= self._work(connections):
                return False
            descriptors = array("i", [connection.fileno()])
            self._claim.socket.sendmsg(
                [b"\0"],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)],
                socket.MSG_DONTWAIT,
                self._claim.name_of(idlest.pid),
            )
        except OSError:  # It ended a moment ago, or has more than it can take.
            return False
        connection.close()
        return True

    def _work(self, connections: int) -> int:
        return _NO_WORK_PLEASE if self._is_leaving else connections

    def _take_until_stopped(self, take: Callable[[socket.socket], None]) -> None:
        while True:
            was_stopped = self._stop.is_set()
            try:
                connection = self._next()
            except (TimeoutError, BlockingIOError):
                if was_stopped:
                    return
                continue
            except OSError as error:
                LOGGER.error(
                    "connections of other receivers are no longer taken over: %s",
                    error.strerror or error,
                    extra={"action": "handover ended"},
                )
                self._is_deaf = True
                self.announce(0)
                return
            if connection is not None:
                take(connection)

    def _next(self) -> socket.socket | None:
        """Receive one message; None for one that is not a sibling's connection."""
        _, ancillary, _, _ = self._claim.socket.recvmsg(
            1, socket.CMSG_SPACE(_DESCRIPTOR_BYTES) + socket.CMSG_SPACE(_CREDENTIALS.size)
        )
        descriptors, user = array("i"), -1
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data[: len(data) - len(data) % _DESCRIPTOR_BYTES])
            elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                user = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[1]
        # The name of our socket is public: only our own user may hand us anything, and nothing
        # that others send is even looked at.
        if user == os.geteuid() and len(descriptors) == 1:
            return self._connection(descriptors[0])
        for each in descriptors:
            _close(each)
        return None

    def _connection(self, descriptor: int) -> socket.socket | None:
        try:
            connection = socket.socket(fileno=descriptor)
        except OSError:  # It is no socket.
            _close(descriptor)
            return None
        if self._is_of_our_port(connection):
            return connection
        connection.close()
        return None

    def _is_of_our_port(self, connection: socket.socket) -> bool:
        try:
            connection.getpeername()
            is_tcp = connection.family in (socket.AF_INET, socket.AF_INET6)
            return is_tcp and bool(connection.getsockname()[1] == self._claim.port)
        except OSError:  # A listening one, or the peer is gone.
            return False


def _close(descriptor: int) -> None:
    with suppress(OSError):  # Whatever it is, its fault is not ours.
        os.close(descriptor)
