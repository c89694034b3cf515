"""Storage commitment in words of its own: who asks for what, and what may be promised.

Owns the records and the two data sets of the service (PS3.4 Annex J). Must not know where
instances lie, nor how a message travels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from dicom_io.errors import MedimgdError
from dicom_io.statuses import ActionStatusValues, FailureReasonValues
from dicom_io.vocabulary import checked_uid

STORAGE_COMMITMENT_CLASS_UID = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model SOP Class."""
STORAGE_COMMITMENT_INSTANCE_UID = "1.2.840.10008.1.20.1.1"
"""Its one well-known instance (PS3.4 J.3.5)."""

REQUEST_COMMITMENT = 1
"""Action Type ID of a request (PS3.4 Table J.3-1)."""
ALL_COMMITTED = 1
FAILURES_EXIST = 2
"""Event Type IDs of a report (PS3.4 Table J.3-2)."""

MAXIMUM_REFERENCES = 100_000
"""In one request: more than any study has; a report of this size is some 15 MB."""


class CommitmentRefused(MedimgdError):
    """A request for commitment is answered with a failure; nothing of it is kept.

    Parameters
    ----------
    status : ActionStatusValues
        Of the N-ACTION response.
    message : str
        Attribute, rule, what was received.
    """

    retryable = False

    def __init__(self, status: ActionStatusValues, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Reference:
    """One instance that a requester asks about."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class CommitmentRequest:
    """One N-ACTION: these instances, under this transaction, asked for by this peer."""

    transaction_uid: str
    references: tuple[Reference, ...]
    calling_ae_title: str
    called_ae_title: str
    """How the requester calls us, and so how we call ourselves there."""
    address: str
    """Source IP address of the request."""
    association_id: str


@dataclass(frozen=True, slots=True)
class FailedReference:
    """An instance that is not committed to, and why."""

    reference: Reference
    reason: FailureReasonValues


@dataclass(frozen=True, slots=True)
class CommitmentReport:
    """What one N-EVENT-REPORT says."""

    transaction_uid: str
    committed: tuple[Reference, ...]
    failed: tuple[FailedReference, ...]

    @property
    def event_type(self) -> int:
        """All committed, or failures exist."""
        return FAILURES_EXIST if self.failed else ALL_COMMITTED


@dataclass(frozen=True, slots=True)
class ReportAnswer:
    """What became of one attempt to report."""

    status: int | None
    """Of the N-EVENT-REPORT response, verbatim; None when there was none."""
    comment: str = ""
    """Error Comment of the response, or why there is none."""


def read_action_information(information: Dataset) -> tuple[str, tuple[Reference, ...]]:
    """Return the transaction UID and what is asked for, each instance once, in order.

    Raises
    ------
    CommitmentRefused
        Invalid argument value: an attribute is missing, empty or no UID. Resource limitation:
        more references than one transaction may have.

    References
    ----------
    PS3.4 section J.3.2.1.1 (Action Information).
    """
    transaction_uid = _uid(information, "TransactionUID")
    sequence = information.get("ReferencedSOPSequence")
    if not sequence:
        raise _invalid("ReferencedSOPSequence (0008,1199) is missing or empty: name the instances")
    if len(sequence) > MAXIMUM_REFERENCES:
        raise CommitmentRefused(
            ActionStatusValues.RESOURCE_LIMITATION,
            f"{len(sequence)} references, {MAXIMUM_REFERENCES} at most: ask in several requests",
        )
    references = (
        Reference(_uid(item, "ReferencedSOPClassUID"), _uid(item, "ReferencedSOPInstanceUID"))
        for item in sequence
    )
    return transaction_uid, tuple(dict.fromkeys(references))


def event_information(report: CommitmentReport) -> Dataset:
    """Return the data set of the N-EVENT-REPORT (PS3.4 Table J.3-2).

    Retrieve AE Title is left out: this program answers no retrieval.
    """
    ds = Dataset()
    ds.TransactionUID = report.transaction_uid
    if report.committed:
        ds.ReferencedSOPSequence = _items(report.committed)
    if report.failed:
        ds.FailedSOPSequence = _items([failed.reference for failed in report.failed])
        for item, failed in zip(ds.FailedSOPSequence, report.failed, strict=True):
            item.FailureReason = int(failed.reason)
    return ds


def _items(references: Sequence[Reference]) -> DicomSequence:
    items = DicomSequence()
    for reference in references:
        item = Dataset()
        item.ReferencedSOPClassUID = reference.sop_class_uid
        item.ReferencedSOPInstanceUID = reference.sop_instance_uid
        items.append(item)
    return items


def _uid(ds: Dataset, keyword: str) -> str:
    value = ds.get(keyword)
    if not value:
        raise _invalid(f"{keyword} is missing or empty")
    try:
        return checked_uid(str(value), keyword)
    except MedimgdError as error:
        raise _invalid(str(error)) from error


def _invalid(message: str) -> CommitmentRefused:
    return CommitmentRefused(ActionStatusValues.INVALID_ARGUMENT_VALUE, message)
