"""What the receiver hands over and what it expects back.

Owns the records that cross from the Storage SCP to the place where instances are kept, and the
ports between them. Knows neither pynetdicom nor any way of storing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from dicom_io.statuses import StoreStatusValues


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """One C-STORE request: who sends what, how it is encoded, and by which association."""

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


@dataclass(frozen=True, slots=True)
class StoreAnswer:
    """The status of a C-STORE response and, for anything but Success, why."""

    status: int
    comment: str = ""
    """Error Comment (0000,0902); cut to the 64 characters of its LO."""


STORED = StoreAnswer(StoreStatusValues.SUCCESS)


class IncomingInstance(Protocol):
    """One instance on its way in, used by one thread.

    After `begin` come any number of `write` and then exactly one of `finish` and `discard`. What
    `write` or `finish` raises ends the instance: `discard` follows, and the sender is answered
    with a failure.
    """

    def write(self, fragment: memoryview) -> None:
        """Take the next bytes of the encoded data set; `fragment` is valid during the call only."""
        ...

    def finish(self) -> StoreAnswer:
        """Keep the instance and say so; Success only when it is as durable as promised."""
        ...

    def discard(self) -> None:
        """Leave nothing behind; harmless after `finish`. Must not raise."""
        ...


class InstanceSink(Protocol):
    """Where received instances go. Called by several threads at once."""

    def begin(self, request: StoreRequest) -> IncomingInstance:
        """Prepare for the data set of this request, or raise why it cannot be taken."""
        ...


class TurnedAway:
    """An instance whose fate is known beforehand: its data set is read and dropped."""

    def __init__(self, answer: StoreAnswer) -> None:
        self._answer = answer

    def write(self, fragment: memoryview) -> None:
        """Drop it; the sender must be heard to the end before it listens to the answer."""

    def finish(self) -> StoreAnswer:
        """Give the answer known beforehand."""
        return self._answer

    def discard(self) -> None:
        """There is nothing to leave behind."""


class AssociationEndValues(StrEnum):
    """How an association ended (PS3.8 7.2 to 7.4)."""

    RELEASED = "released"
    """As the peer asked: it has nothing left to send."""
    ABORTED_BY_PEER = "aborted by the peer"
    ABORTED = "aborted"
    """By us, for a reason the log names beside it."""
    LOST = "the connection was lost"
    """The peer or the network went away; an instance that was here in part was not stored."""


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

    def on_closed(self, association_id: str, end: AssociationEndValues) -> None:
        """Hear that an association ended, and how; nothing more will be stored on it."""

    def on_refused(
        self, calling_ae_title: str, called_ae_title: str, address: str, reason: str
    ) -> None:
        """Hear that a request was rejected, and what would admit it.

        AE titles are empty when the connection was closed before it could ask. Equal reports come
        once a minute; the next one's reason says how many were left out.
        """
