"""What the receiver hands over and what it expects back.

Owns the records that cross from the Storage SCP to the place where instances are kept, and the
port between them. Knows neither pynetdicom nor any way of storing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from dicom_io.statuses import StoreStatusValues


@dataclass(frozen=True, slots=True)
class ReceivedInstance:
    """One C-STORE request, its data set still encoded exactly as it was sent."""

    association_id: str
    calling_ae_title: str
    called_ae_title: str
    address: str
    """Source IP address."""
    sop_class_uid: str
    """From the command, not from the data set; checked to be a UID."""
    sop_instance_uid: str
    """From the command, not from the data set; checked to be a UID, so safe in a path."""
    transfer_syntax_uid: str
    """Of the presentation context the request came on."""
    data_set: memoryview = field(repr=False)
    """The encoded data set, byte for byte; valid only until ``store`` returns."""


@dataclass(frozen=True, slots=True)
class StoreAnswer:
    """The status of a C-STORE response and, for anything but Success, why."""

    status: int
    comment: str = ""
    """Error Comment (0000,0902); cut to the 64 characters of its LO."""


STORED = StoreAnswer(StoreStatusValues.SUCCESS)


class InstanceSink(Protocol):
    """Where received instances go. Called by several threads at once."""

    def store(self, received: ReceivedInstance) -> StoreAnswer:
        """Keep the instance and say so; Success only when it is as durable as promised."""
        ...


class AssociationObserver:
    """Told of associations as they come and go; override what is of interest.

    For every association exactly one `on_opened` is followed by exactly one `on_closed`, whether
    it ends by release, abort, a lost connection or a timeout. Methods are called by the
    association's own thread, `on_refused` by the listener's as well; they must be quick and must
    not raise.
    """

    def on_opened(
        self, association_id: str, calling_ae_title: str, called_ae_title: str, address: str
    ) -> None:
        """Hear that an association was accepted; nothing has been stored on it yet."""

    def on_closed(self, association_id: str) -> None:
        """Hear that an association ended; nothing more will be stored on it."""

    def on_refused(
        self, calling_ae_title: str, called_ae_title: str, address: str, reason: str
    ) -> None:
        """Hear that a request was rejected, and what would admit it.

        AE titles are empty when the connection was closed before it could ask. Equal reports come
        once a minute; the next one's reason says how many were left out.
        """
