"""Who shares a port: the receivers of one installation, and nobody else.

Owns the claim that each of them makes. With ``SO_REUSEPORT`` the kernel lets every process of one
user listen on a port that another has, and a second installation would be given half of the studies
in silence. Knows nothing of associations.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from dicom_io.errors import ReceiverNotStarted

_SOCKETS = Path("/proc/net/unix")
_NAME = re.compile(
    r"@(?P<name>medimgd-receiver/(?P<port>\d+)/(?P<address>[^/\s]+)/(?P<group>[0-9a-f]+)/(?P<pid>\d+))"
)
_EVERYWHERE = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared with, not bound to


@dataclass(frozen=True, slots=True)
class _Claim:
    port: int
    address: str
    group: str
    pid: int

    @property
    def name(self) -> str:
        return f"medimgd-receiver/{self.port}/{self.address or '*'}/{self.group}/{self.pid}"

    def overlaps(self, other: _Claim) -> bool:
        """True when a connection could reach either."""
        return self.port == other.port and (
            self.address == other.address
            or self.address in _EVERYWHERE
            or other.address in _EVERYWHERE
        )


class PortClaim:
    """Claims a port for one process of an installation, from `__enter__` to the end of the process.

    A claim is a socket with an abstract name: like a port it belongs to a network namespace, every
    process can see it, and the kernel removes it when the process ends.

    Parameters
    ----------
    address, port : str, int
        What will be listened on.
    installation : str
        The same for the receivers that may share the port, and for no others.

    Attributes
    ----------
    socket : socket.socket
        What the others of the installation can reach this process by (see `Handover`).
    """

    def __init__(self, address: str, port: int, installation: str) -> None:
        group = hashlib.blake2b(installation.encode(), digest_size=8).hexdigest()
        self._claim = _Claim(port, address, group, os.getpid())
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    @property
    def port(self) -> int:
        """What is claimed."""
        return self._claim.port

    def name_of(self, pid: int) -> str:
        """Return the address of the socket by which another process of us claims the port."""
        return f"\0{replace(self._claim, pid=pid).name}"

    def __enter__(self) -> Self:
        try:
            # Claimed first and looked round after: of two that start at once, one sees the other.
            self.socket.bind(f"\0{self._claim.name}")
            self._refuse_strangers()
        except OSError as error:
            self.socket.close()
            raise ReceiverNotStarted(
                f"port {self._claim.port} cannot be claimed: {error.strerror or error}"
            ) from error
        except ReceiverNotStarted:
            self.socket.close()
            raise
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    def _refuse_strangers(self) -> None:
        """Raise ``ReceiverNotStarted`` when another than our own installation has the port."""
        own = self._claim
        others = [each for each in _claims() if each != own and each.overlaps(own)]
        strangers = [each for each in others if each.group != own.group]
        if strangers:
            raise ReceiverNotStarted(
                f"port {own.port} is used by another installation of medimgd (process "
                f"{strangers[0].pid}), and the two would share out the studies between them: stop "
                "it, or configure another port"
            )
        if not others and _is_listened_on(own.address, own.port):
            raise ReceiverNotStarted(
                f"cannot listen on {own.address} port {own.port}: another program does. Stop it, "
                "or configure another address or port"
            )


def _claims() -> Iterator[_Claim]:
    with suppress(FileNotFoundError):
        for found in _NAME.finditer(_SOCKETS.read_text(errors="replace")):
            address = found["address"].replace("*", "")
            yield _Claim(int(found["port"]), address, found["group"], int(found["pid"]))


def _is_listened_on(address: str, port: int) -> bool:
    """Try the port without the option that would share it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            # An address that is not ours, or no privilege: whoever listens says what it is.
            return error.errno == errno.EADDRINUSE
    return False
