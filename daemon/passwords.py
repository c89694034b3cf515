"""Passwords as the configuration keeps them: hashed, memory-hard to guess.

Owns the hash format. scrypt from the standard library, because it needs no further dependency; the
password itself is never stored or logged.
"""

from __future__ import annotations

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


def _digest(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=_COST, r=_BLOCK, p=_LANES)
