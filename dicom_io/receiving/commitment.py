"""The Storage Commitment SCP on an accepted association: N-ACTION in, N-EVENT-REPORT back.

Owns the answer to each request and the sending of a report on the association it came on. Must not
know what is held, nor how long a report is owed: that is the keeper's business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from io import BytesIO
from itertools import count
from typing import Any, Protocol, cast

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.dimse_messages import N_EVENT_REPORT_RQ, N_EVENT_REPORT_RSP
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.events import EventHandlerType
from pynetdicom.presentation import PresentationContext, PresentationContextTuple, build_context

from dicom_io.commitment import (
    REQUEST_COMMITMENT,
    STORAGE_COMMITMENT_CLASS_UID,
    STORAGE_COMMITMENT_INSTANCE_UID,
    CommitmentRefused,
    CommitmentReport,
    CommitmentRequest,
    ReportAnswer,
    event_information,
    read_action_information,
)
from dicom_io.errors import MedimgdError
from dicom_io.receiving.accepted import AcceptedAssociation
from dicom_io.receiving.commands import error_comment
from dicom_io.receiving.instances import StoreAnswer
from dicom_io.statuses import ActionStatusValues

LOGGER = logging.getLogger(__name__)

OnAnswer = Callable[[ReportAnswer], None]
"""Told what the requester says to a report; called by the association's thread, so be quick."""


class CommitmentKeeper(Protocol):
    """Where requests go. Called by several threads at once."""

    def accept(self, request: CommitmentRequest, channel: ReportChannel) -> None:
        """Keep the request; once this returns the report is owed, whatever happens.

        Raises
        ------
        CommitmentRefused, MedimgdError
            Nothing was kept, and the requester is told so.
        """
        ...


class ReportChannel:
    """The association that a request came on, as long as it is open; any thread may use it.

    Parameters
    ----------
    assoc : AcceptedAssociation
        Of the request.
    context : PresentationContextTuple
        The presentation context of the request.
    awaited : dict
        Where answers are looked up by association and message.
    """

    _message_ids = count(1)

    def __init__(
        self,
        assoc: AcceptedAssociation,
        context: PresentationContextTuple,
        awaited: dict[tuple[str, int], OnAnswer],
    ) -> None:
        self._assoc = assoc
        self._context = context
        self._awaited = awaited
        self._key: tuple[str, int] | None = None

    @property
    def is_open(self) -> bool:
        """False once the association ended or is ending."""
        return bool(self._assoc.is_established and self._assoc.is_alive())

    def send(self, report: CommitmentReport, on_answer: OnAnswer) -> bool:
        """Queue a report for the requester; False when the association has ended.

        Nothing waits: `on_answer` is called when the answer comes, and never when none does.
        """
        if not self.is_open:
            return False
        self.withdraw()
        self._key = self._assoc.association_id, next(self._message_ids) % 0xFFFF + 1
        self._awaited[self._key] = on_answer
        self._queue(self._encoded(report, self._key[1]))
        return self.is_open

    def withdraw(self) -> None:
        """Listen no more for the answer to the last report."""
        if self._key is not None:
            self._awaited.pop(self._key, None)

    def _encoded(self, report: CommitmentReport, message_id: int) -> N_EVENT_REPORT_RQ:
        request = N_EVENT_REPORT()
        request.MessageID = message_id
        request.AffectedSOPClassUID = STORAGE_COMMITMENT_CLASS_UID
        request.AffectedSOPInstanceUID = STORAGE_COMMITMENT_INSTANCE_UID
        request.EventTypeID = report.event_type
        syntax = self._context.transfer_syntax
        information = encode(
            event_information(report),
            syntax.is_implicit_VR,
            syntax.is_little_endian,
            syntax.is_deflated,
        )
        request.EventInformation = BytesIO(information or b"")
        message = N_EVENT_REPORT_RQ()
        message.primitive_to_message(request)
        return message

    def _queue(self, message: N_EVENT_REPORT_RQ) -> None:
        """Queue all fragments in one step.

        Otherwise the association's own thread might send an answer of its own between two of them,
        and fragments of two messages must not mix (PS3.7 6.3.1).
        """
        room = self._assoc.dimse.maximum_pdu_size
        fragments = list(message.encode_msg(self._context.context_id, room))
        waiting = self._assoc.dul.to_provider_queue
        with waiting.mutex:
            waiting.queue.extend(fragments)
            waiting.not_empty.notify_all()


class CommitmentSCP:
    """Answers N-ACTION by the keeper's word and passes on what is said to reports.

    Parameters
    ----------
    keeper : CommitmentKeeper
        Decides on each request.

    References
    ----------
    PS3.4 Annex J (Storage Commitment), PS3.7 section 10.1.4 (N-ACTION).
    """

    def __init__(self, keeper: CommitmentKeeper) -> None:
        self._keeper = keeper
        self._awaited: dict[tuple[str, int], OnAnswer] = {}

    @property
    def context(self) -> PresentationContext:
        """What the receiver accepts because of this service."""
        return build_context(STORAGE_COMMITMENT_CLASS_UID)

    def handlers(self) -> list[EventHandlerType]:
        """Return what pynetdicom should call for each association."""
        return [(evt.EVT_N_ACTION, self._on_n_action), (evt.EVT_DIMSE_RECV, self._on_message)]

    def _on_n_action(self, event: evt.Event) -> tuple[Dataset, None]:
        assoc = cast("AcceptedAssociation", event.assoc)
        try:
            request = _request_of(event, assoc)
            self._keeper.accept(request, ReportChannel(assoc, event.context, self._awaited))
        except CommitmentRefused as error:
            return self._refusal(assoc, error.status, str(error))
        except MedimgdError as error:
            status = (
                ActionStatusValues.RESOURCE_LIMITATION
                if error.retryable
                else ActionStatusValues.PROCESSING_FAILURE
            )
            return self._refusal(assoc, status, str(error))
        except Exception as error:  # noqa: BLE001 - the DIMSE handler must always answer
            # The message of a foreign error may quote the data set.
            what = f"unexpected {type(error).__name__}, see the receiver's log"
            return self._refusal(assoc, ActionStatusValues.PROCESSING_FAILURE, what)
        return _status(ActionStatusValues.SUCCESS, ""), None

    def _refusal(
        self, assoc: AcceptedAssociation, status: ActionStatusValues, reason: str
    ) -> tuple[Dataset, None]:
        LOGGER.warning(
            "a request for storage commitment from %r (%s) was answered %04X: %s",
            assoc.calling_ae_title, assoc.address, status, reason,
            extra={"action": "commitment_refused", "association_id": assoc.association_id},
        )  # fmt: skip
        return _status(status, reason), None

    def _on_message(self, event: evt.Event) -> None:
        """Hear every message there is; only answers to our reports matter here."""
        message = event.message
        if not isinstance(message, N_EVENT_REPORT_RSP):
            return
        command = message.command_set
        key = (
            cast("AcceptedAssociation", event.assoc).association_id,
            int(command.get("MessageIDBeingRespondedTo", 0)),
        )
        on_answer = self._awaited.pop(key, None)
        if on_answer is not None:
            comment = str(command.get("ErrorComment", "") or "")
            on_answer(ReportAnswer(int(command.get("Status", 0x0110)), comment))


def _request_of(event: evt.Event, assoc: AcceptedAssociation) -> CommitmentRequest:
    """Return what is asked for, or raise with the status that says what is wrong with it."""
    _check_command(cast("N_ACTION", event.request), event.context.abstract_syntax)
    try:
        information = event.action_information
        transaction_uid, references = read_action_information(information)
    except CommitmentRefused:
        raise
    except Exception as error:
        raise CommitmentRefused(
            ActionStatusValues.INVALID_ARGUMENT_VALUE,
            f"the Action Information cannot be read ({type(error).__name__})",
        ) from error
    return CommitmentRequest(
        transaction_uid,
        references,
        assoc.calling_ae_title,
        assoc.called_ae_title,
        assoc.address,
        assoc.association_id,
    )


def _check_command(request: N_ACTION, abstract_syntax: Any) -> None:
    wanted = str(request.RequestedSOPClassUID)
    if wanted != STORAGE_COMMITMENT_CLASS_UID or abstract_syntax != STORAGE_COMMITMENT_CLASS_UID:
        raise CommitmentRefused(
            ActionStatusValues.NO_SUCH_CLASS,
            f"Requested SOP Class UID {wanted} has no actions here",
        )
    if request.RequestedSOPInstanceUID != STORAGE_COMMITMENT_INSTANCE_UID:
        raise CommitmentRefused(
            ActionStatusValues.NO_SUCH_INSTANCE,
            f"Requested SOP Instance UID must be {STORAGE_COMMITMENT_INSTANCE_UID}",
        )
    if request.ActionTypeID != REQUEST_COMMITMENT:
        raise CommitmentRefused(
            ActionStatusValues.NO_SUCH_ACTION,
            f"Action Type ID must be {REQUEST_COMMITMENT}: received {request.ActionTypeID}",
        )
    if request.ActionInformation is None:
        raise CommitmentRefused(
            ActionStatusValues.INVALID_ARGUMENT_VALUE, "the request has no Action Information"
        )


def _status(status: ActionStatusValues, comment: str) -> Dataset:
    ds = Dataset()
    ds.Status = int(status)
    if comment:
        ds.ErrorComment = error_comment(StoreAnswer(status, comment))
    return ds
