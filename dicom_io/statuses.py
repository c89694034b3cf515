"""The DIMSE C-STORE statuses medimgd answers with and understands (PS3.4 Annex B.2.3).

Owns the names; no other module writes a status as a number.
"""

from __future__ import annotations

from enum import IntEnum


class StoreStatusValues(IntEnum):
    """C-STORE response statuses by name (PS3.4 Table B.2-1, PS3.7 Annex C)."""

    SUCCESS = 0x0000
    NOT_AUTHORISED = 0x0124
    OUT_OF_RESOURCES = 0xA700
    DATA_SET_DOES_NOT_MATCH_SOP_CLASS = 0xA900
    WARNING_COERCION = 0xB000
    WARNING_ELEMENTS_DISCARDED = 0xB006
    WARNING_DATA_SET_DOES_NOT_MATCH = 0xB007
    CANNOT_UNDERSTAND = 0xC000
    CANNOT_STORE = 0xC001


_NAMED = frozenset(int(known) for known in StoreStatusValues)
_WARNINGS = range(0xB000, 0xC000)
TRANSIENT = range(0xA700, 0xA800)
"""Refused for want of resources: the peer may accept later."""


def is_delivered(status: int) -> bool:
    """True when the peer says it holds the instance: Success or a Bxxx warning."""
    return status == StoreStatusValues.SUCCESS or status in _WARNINGS


def is_transient(status: int) -> bool:
    """True when the peer refused for want of resources (A7xx) and may accept later."""
    return status in TRANSIENT


def describe(status: int) -> str:
    """Return a status as people read it, for example ``A700 out of resources``."""
    if status in _NAMED:
        name = StoreStatusValues(status).name.lower().replace("_", " ")
    elif status in _WARNINGS:
        name = "warning"
    elif status in TRANSIENT:
        name = "out of resources"
    elif 0xA900 <= status < 0xAA00:
        name = "data set does not match SOP class"
    else:
        name = "failure"
    return f"{status:04X} {name}"


class ActionStatusValues(IntEnum):
    """N-ACTION response statuses by name (PS3.7 section 10.1.4.1.10 and Annex C)."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    NO_SUCH_INSTANCE = 0x0112
    INVALID_ARGUMENT_VALUE = 0x0115
    NO_SUCH_CLASS = 0x0118
    NO_SUCH_ACTION = 0x0123
    RESOURCE_LIMITATION = 0x0213


class FailureReasonValues(IntEnum):
    """Why an instance is not committed to: Failure Reason (0008,1197), PS3.3 section C.14.1.1."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119
    DUPLICATE_TRANSACTION = 0x0131
