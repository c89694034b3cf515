"""One C-STORE from its request to its answer, whatever goes wrong in between.

Owns the promise that every request is answered and that a failure leaves nothing behind. Must not
know how the bytes arrive: the data plane and pynetdicom's own path both come here.
"""

from __future__ import annotations

import logging
import traceback

from dicom_io.errors import InvalidUID, MedimgdError
from dicom_io.reading import is_machine_fault
from dicom_io.receiving.instances import (
    IncomingInstance,
    InstanceSink,
    StoreAnswer,
    StoreRequest,
    TurnedAway,
)
from dicom_io.statuses import StoreStatusValues, describe
from dicom_io.vocabulary import checked_uid

LOGGER = logging.getLogger(__name__)

_WITHOUT_DATA_SET = StoreAnswer(
    StoreStatusValues.CANNOT_UNDERSTAND, "C-STORE request without data set"
)


class StoreInProgress:
    """Takes one data set and answers; never raises what the sink raises.

    Parameters
    ----------
    sink : InstanceSink
        Where the instance goes.
    request : StoreRequest
        UIDs as received; a bad one is answered, not raised.
    """

    def __init__(self, sink: InstanceSink, request: StoreRequest) -> None:
        self._request = request
        self._received = 0
        self._incoming: IncomingInstance
        try:
            checked_uid(request.sop_class_uid, "SOPClassUID")
            checked_uid(request.sop_instance_uid, "SOPInstanceUID")
            self._incoming = sink.begin(request)
        except Exception as error:  # noqa: BLE001 - the DIMSE handler must always answer
            self._incoming = TurnedAway(self._answer_to(error))

    def write(self, fragment: memoryview) -> None:
        """Pass the next bytes on; after a failure they are dropped."""
        self._received += len(fragment)
        try:
            self._incoming.write(fragment)
        except Exception as error:  # noqa: BLE001 - the DIMSE handler must always answer
            self._incoming.discard()
            self._incoming = TurnedAway(self._answer_to(error))

    def finish(self) -> StoreAnswer:
        """Return the answer; Success only if the sink gave it."""
        if not self._received:
            self._incoming.discard()
            return _WITHOUT_DATA_SET
        try:
            return self._incoming.finish()
        except Exception as error:  # noqa: BLE001 - the DIMSE handler must always answer
            return self._answer_to(error)
        finally:
            self._incoming.discard()

    def discard(self) -> None:
        """End without an answer: the association is gone."""
        self._incoming.discard()

    def _answer_to(self, error: Exception) -> StoreAnswer:
        answer = _answer_to_failure(error)
        _log_failure(self._request, error, answer)
        return answer


def _answer_to_failure(error: Exception) -> StoreAnswer:
    if isinstance(error, InvalidUID):
        return StoreAnswer(StoreStatusValues.CANNOT_UNDERSTAND, str(error))
    if is_machine_fault(error):
        return StoreAnswer(StoreStatusValues.OUT_OF_RESOURCES, "out of resources, send again later")
    if isinstance(error, MedimgdError):
        status = (
            StoreStatusValues.OUT_OF_RESOURCES
            if error.retryable
            else StoreStatusValues.CANNOT_STORE
        )
        return StoreAnswer(status, str(error))
    return StoreAnswer(StoreStatusValues.CANNOT_STORE, "internal error, see the receiver's log")


def _log_failure(request: StoreRequest, error: Exception, answer: StoreAnswer) -> None:
    # Our own messages hold no patient data; a foreign one may quote the data set, so only its
    # kind and the place it came from are written.
    if isinstance(error, MedimgdError):
        cause = str(error)
    else:
        places = traceback.extract_tb(error.__traceback__)[-3:]
        where = " < ".join(f"{p.filename}:{p.lineno} {p.name}" for p in reversed(places))
        cause = f"{type(error).__name__} at {where}"
    LOGGER.error(
        "an instance from %r (%s) was not stored, answered %s: %s",
        request.calling_ae_title,
        request.address,
        describe(answer.status),
        cause,
        extra={"action": "instance not stored", "association_id": request.association_id},
    )
