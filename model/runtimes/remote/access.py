"""How a site reaches a server: address, trust, token, patience.

Owns the rule that a token never crosses a network readable. Opens no connection.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from model.errors import RemoteUnavailable, RuntimeFault
from model.runtime_plan import SchemeValues, url_fault

DEFAULT_TIMEOUT_SECONDS = 30.0
"""A batch takes well under a second; a server that is silent for this long is stuck."""

_DEFAULT_PORTS = {SchemeValues.HTTP: 80, SchemeValues.HTTPS: 443}
_LARGEST_TOKEN_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class RemoteAccess:
    """What a site decides about the server of a model."""

    url: str = ""
    """Replaces the address in the package's manifest; empty keeps that."""
    token_file: Path | None = None
    """Holds the bearer token in one line; read again for each request, so that it can rotate."""
    ca_file: Path | None = None
    """PEM: who vouches for the server; the system's authorities when None."""
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    """For one request, from connecting to the last byte of the answer."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    scheme: SchemeValues
    host: str
    port: int
    path: str
    """Before ``/v2``; empty as a rule."""

    @property
    def text(self) -> str:
        """The address as people write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def address_of(url: str) -> Address:
    """Read the address of a server.

    Raises
    ------
    RuntimeFault
        It is none.
    """
    fault = url_fault(url)
    if fault:
        raise RuntimeFault(f"url: {fault}; received {url!r}")
    parts = urlsplit(url)
    scheme = SchemeValues(parts.scheme)
    port = parts.port or _DEFAULT_PORTS[scheme]
    return Address(scheme, str(parts.hostname), port, parts.path.rstrip("/"))


def checked_access(access: RemoteAccess, address: Address) -> None:
    """Refuse what would give a token away or can trust nobody.

    Raises
    ------
    RuntimeFault
        With what to change.
    """
    if access.token_file is not None and not (address.scheme.is_encrypted or _is_here(address)):
        raise RuntimeFault(
            f"{address.text}: the token would cross the network readable: use https or grpcs, or "
            "remove token_file from the site's models.remote"
        )
    if access.ca_file is not None and not address.scheme.is_encrypted:
        raise RuntimeFault(
            f"{address.text}: ca_file means nothing without TLS: use https or grpcs, or remove it"
        )
    if access.ca_file is not None and not access.ca_file.is_file():
        raise RuntimeFault(f"ca_file: there is no file {access.ca_file}")


def bearer_token(access: RemoteAccess) -> str:
    """Return the token; empty where none is asked for.

    Raises
    ------
    RemoteUnavailable
        The file cannot be read or holds no token; once it does, work goes on.
    """
    path = access.token_file
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_TOKEN_BYTES + 1)
    except OSError as error:
        raise RemoteUnavailable(
            f"token_file {path} cannot be read: {error.strerror}; put the token there"
        ) from error
    token = content.strip()
    if not token or len(content) > _LARGEST_TOKEN_BYTES or not _is_visible(token):
        raise RemoteUnavailable(f"token_file {path} must hold one token in one line of ASCII")
    return token.decode("ascii")


def _is_visible(token: bytes) -> bool:
    return all(0x21 <= byte <= 0x7E for byte in token)


def _is_here(address: Address) -> bool:
    if address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False
