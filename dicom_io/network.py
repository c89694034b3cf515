"""How this process uses pynetdicom, whichever side of an association it is on.

Owns pynetdicom's process-wide settings and the small facts both sides share. Imported by every
module that talks to a peer; must not know what is sent or received.
"""

from __future__ import annotations

import contextlib
import logging
import socket

from pydicom.config import IGNORE, settings
from pynetdicom import _config


def _settle_pynetdicom() -> None:
    # Per-message text is built even when nobody logs it, and would hold query identifiers.
    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = False
    _config.LOG_RESPONSE_IDENTIFIERS = False
    # Private and unknown SOP classes are storage; every offered transfer syntax is taken.
    _config.UNRESTRICTED_STORAGE_SERVICE = True
    # Files are sent byte for byte as they are; without this pynetdicom decodes and re-encodes.
    _config.STORE_SEND_CHUNKED_DATASET = True
    # UIDs of a negotiation are judged here, in words of our own; pydicom would check each by a
    # pattern, which takes longer than the rest of the negotiation, and log it with its value.
    settings.reading_validation_mode = IGNORE
    logger = logging.getLogger("pynetdicom")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)


_settle_pynetdicom()


def disable_nagle(connection: socket.socket) -> None:
    """Send small PDUs at once: a delayed acknowledgement otherwise costs 40 ms per instance."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def close(connection: socket.socket) -> None:
    """Close a connection at once, waking whoever waits on it; harmless when already closed."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
