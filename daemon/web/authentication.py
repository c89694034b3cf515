"""HTTP Basic authentication: the header that carries user and password.

Owns its decoding. Knows nothing of who is admitted.
"""

from __future__ import annotations

import base64


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
