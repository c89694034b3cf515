"""HTTP Basic authentication against one hashed password.

Owns the hash format. scrypt from the standard library, because it needs no further dependency and
is memory-hard; the password itself is never stored or logged.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os

_SALT_BYTES = 16
_COST, _BLOCK, _LANES = 2**14, 8, 1


def hash_password(password: str) -> str:
    """Return ``scrypt$<salt>$<digest>`` for the configuration file."""
    salt = os.urandom(_SALT_BYTES)
    return f"scrypt${salt.hex()}${_digest(password, salt).hex()}"


def password_matches(password: str, stored: str) -> bool:
    """True when `password` gives the stored hash; False for a malformed hash as well."""
    try:
        scheme, salt, digest = stored.split("$")
        expected = bytes.fromhex(digest)
        given = _digest(password, bytes.fromhex(salt))
    except ValueError:
        return False
    return scheme == "scrypt" and hmac.compare_digest(given, expected)


def credentials_of(header: str) -> tuple[str, str] | None:
    """Return user and password of an ``Authorization: Basic`` header, or None."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except ValueError:  # not base64, not ASCII, or not UTF-8 inside
        return None
    return (user, password) if colon else None


def _digest(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=_COST, r=_BLOCK, p=_LANES)
