"""User identity negotiation: whether a requestor is who it says it is.

Owns the reading of the identity item and the words of a refusal. Must not know which users there
are or how passcodes are kept: whoever configures the server passes a function for that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from pynetdicom.pdu_primitives import UserIdentityNegotiation

Authenticates = Callable[[str, str], bool]
"""Told user name and passcode (empty when none was given), says whether this user is admitted.
Raises `IdentityUnchecked` when it cannot say now."""

_LONGEST_NAME_SHOWN = 64


class UserIdentityTypeValues(IntEnum):
    """How a requestor identifies itself (PS3.7 Table D.3-14)."""

    USERNAME = 1
    USERNAME_AND_PASSCODE = 2
    KERBEROS = 3
    SAML = 4
    JWT = 5


_PLAIN_TYPES = (
    UserIdentityTypeValues.USERNAME,
    UserIdentityTypeValues.USERNAME_AND_PASSCODE,
)
_NAMES_OF_OTHERS: Mapping[int, str] = {
    UserIdentityTypeValues.KERBEROS: "a Kerberos ticket",
    UserIdentityTypeValues.SAML: "a SAML assertion",
    UserIdentityTypeValues.JWT: "a JSON Web Token",
}


@dataclass(frozen=True, slots=True)
class Identification:
    """Whether a requestor may go on."""

    refusal: str = ""
    """Why not, and what would admit it; empty when it may. Never holds a passcode."""
    user_name: str = ""
    answer: UserIdentityNegotiation | None = None
    """What the acceptance has to carry; the requestor asked for it."""


def identify(
    item: UserIdentityNegotiation | None, authenticates: Authenticates | None
) -> Identification:
    """Judge what a requestor says of its user.

    Parameters
    ----------
    item : UserIdentityNegotiation or None
        As received; None when the requestor says nothing.
    authenticates : callable or None
        Knows the users. None asks for no identity: whatever is said is then passed over without
        an answer, as the standard has it for acceptors without user identification.

    Raises
    ------
    IdentityUnchecked
        If `authenticates` cannot say now.

    References
    ----------
    PS3.7 section D.3.3.7.
    """
    if authenticates is None:
        return Identification()
    if item is None:
        return Identification(
            "it names no user, and only those in receiver.users may send: give the sender a user "
            "name and passcode (user identity type 2)"
        )
    if item.user_identity_type not in _PLAIN_TYPES:
        return Identification(_unsupported(item.user_identity_type))
    name, passcode = _text(item.primary_field), _passcode(item)
    if name is None or passcode is None:
        return Identification("its user name or passcode is not UTF-8 text: correct the sender")
    if not name.isprintable():
        # Not shown: with a wrong length in the item, the passcode runs into the name.
        return Identification("its user name holds control characters: correct the sender")
    if not authenticates(name, passcode):
        return Identification(_not_admitted(name, bool(passcode)), name)
    return Identification(user_name=name, answer=_answer(item))


def _passcode(item: UserIdentityNegotiation) -> str | None:
    # A passcode beside type 1 means nothing (PS3.7 Table D.3-14).
    if item.user_identity_type == UserIdentityTypeValues.USERNAME:
        return ""
    return _text(item.secondary_field)


def _text(value: bytes | None) -> str | None:
    try:
        return (value or b"").decode("utf-8")
    except UnicodeDecodeError:
        return None


def _answer(item: UserIdentityNegotiation) -> UserIdentityNegotiation | None:
    if not item.positive_response_requested:
        return None
    answer = UserIdentityNegotiation()
    # Empty for these types; that the item is there is the answer (PS3.7 Table D.3-15).
    answer.server_response = b""
    return answer


def _unsupported(kind: int | None) -> str:
    what = _NAMES_OF_OTHERS.get(kind or 0, "something unknown")
    return (
        f"it identifies its user by {what} (user identity type {kind}), which is not checked "
        "here: let the sender use user name and passcode (type 2)"
    )


def _not_admitted(name: str, has_passcode: bool) -> str:
    shown = name if len(name) <= _LONGEST_NAME_SHOWN else f"{name[:_LONGEST_NAME_SHOWN]}..."
    entry = f'{{ name = {json.dumps(shown)}, password_hash = "..." }}'
    given = "with a passcode that does not admit it" if has_passcode else "without a passcode"
    return (
        f"user {shown!r} came {given}: correct the sender, or add to receiver.users {entry} "
        "with the hash that 'medimgd config hash-password' prints"
    )
