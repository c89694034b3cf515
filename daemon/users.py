"""Who the senders' users are, and whether one gave the right password.

Owns the check and its price: scrypt takes time and memory on purpose, so it runs one at a time and
what it found is remembered for a while. Knows nothing of DICOM.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
import time
from collections.abc import Callable, Iterable

from daemon.passwords import hash_password, password_matches
from daemon.receiver_settings import UserSection
from dicom_io.errors import IdentityUnchecked

RIGHT_SECONDS = 300.0
"""How long a password that was right is not hashed again: a modality opens an association for each
series."""
WRONG_SECONDS = 60.0
"""How long one that was wrong is not: a misconfigured modality repeats it for days."""
LONGEST_WAIT_SECONDS = 5.0
"""For the checks of others. A hash takes some 50 ms, so only a flood makes anybody wait longer."""
MOST_REMEMBERED = 1024
"""Passwords, right and wrong; who guesses makes up new ones without end."""


class Users:
    """The users that may send.

    Parameters
    ----------
    sections : iterable of UserSection
        As configured; a user without a hash is admitted by name.
    clock : callable
        Seconds, never going back.
    """

    def __init__(
        self, sections: Iterable[UserSection], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._hashes = {each.name: each.password_hash.get_secret_value() for each in sections}
        # Unknown users are checked as well: the time taken must not tell who exists.
        self._decoy = hash_password(os.urandom(16).hex())
        self._clock = clock
        # Passwords are remembered as a keyed hash only; the key dies with the process.
        self._key = os.urandom(32)
        self._remembered: dict[bytes, tuple[bool, float]] = {}
        self._checking = threading.Lock()

    def admits(self, name: str, password: str) -> bool:
        """Return True when this user may send.

        Raises
        ------
        IdentityUnchecked
            If too many checks are waiting for one another.
        """
        if self._hashes.get(name) == "":
            return True
        token = self._token(name, password)
        known = self._recall(token)
        if known is not None:
            return known
        if not self._checking.acquire(timeout=LONGEST_WAIT_SECONDS):
            raise IdentityUnchecked(
                "too many users wait for the check of their password: send again later, and find "
                "out who guesses passwords"
            )
        try:
            # Whoever waited may have waited for the very same check.
            known = self._recall(token)
            return self._check(token, name, password) if known is None else known
        finally:
            self._checking.release()

    def _check(self, token: bytes, name: str, password: str) -> bool:
        matches = password_matches(password, self._hashes.get(name, self._decoy))
        is_right = matches and name in self._hashes
        if len(self._remembered) >= MOST_REMEMBERED:
            self._remembered.clear()
        lasts = RIGHT_SECONDS if is_right else WRONG_SECONDS
        self._remembered[token] = (is_right, self._clock() + lasts)
        return is_right

    def _recall(self, token: bytes) -> bool | None:
        is_right, until = self._remembered.get(token, (False, 0.0))
        return is_right if self._clock() < until else None

    def _token(self, name: str, password: str) -> bytes:
        # The length keeps name and password apart, whatever characters they hold.
        said = f"{len(name)}:{name}{password}".encode()
        return hmac.digest(self._key, said, hashlib.sha256)
