"""Names of the states and events of the upper layer protocol that reception speaks of.

Owns the words for pynetdicom's numbers, which are those of the standard (PS3.8 9.2). Must not know
what is done in a state.
"""

from __future__ import annotations

IDLE = "Sta1"
"""There is no association and no connection."""
AWAITING_REQUEST = "Sta2"
"""There is a connection, and nothing was requested yet."""
AWAITING_ANSWER = "Sta3"
"""An association was requested, and is neither accepted nor rejected yet."""
ESTABLISHED = "Sta6"
"""Association established and ready for data transfer."""
AWAITING_CLOSE = "Sta13"
"""Awaiting the close of the connection: the association has ended."""

REQUESTED = "Evt6"
"""A-ASSOCIATE-RQ received."""
ACCEPTED = "Evt7"
"""We accept the association."""
CONNECTION_CLOSED = "Evt17"
ARTIM_EXPIRED = "Evt18"
INVALID_PDU = "Evt19"
"""Unrecognised or invalid PDU received."""
