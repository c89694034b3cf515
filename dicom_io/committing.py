"""Reporting on storage commitment over an association of our own.

Owns the N-EVENT-REPORT as requestor of the association and provider of the service at once. Must
not know what was asked for, nor how often a report is tried.
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom.association import Association

from dicom_io.association import Context, Destination, hold_reactor, open_association
from dicom_io.commitment import (
    STORAGE_COMMITMENT_CLASS_UID,
    STORAGE_COMMITMENT_INSTANCE_UID,
    CommitmentReport,
    ReportAnswer,
    event_information,
)

NOT_ACCEPTED = "the requester takes no reports on new associations: context not accepted"
NO_ANSWER = "no answer: the requester was silent or broke the association"

_CONTEXT = Context(STORAGE_COMMITMENT_CLASS_UID, ImplicitVRLittleEndian, provides=True)


def send_report(destination: Destination, report: CommitmentReport) -> ReportAnswer:
    """Tell a requester what is committed to, in the role of the service's provider.

    A requester that does not answer the proposal of roles is reported to all the same: many
    accept the context and the report, and ignore the roles.

    Raises
    ------
    AssociationFailed
        If no association could be opened.

    References
    ----------
    PS3.4 section J.3.3 (N-EVENT-REPORT), PS3.7 section D.3.3.4 (role selection).
    """
    with open_association(destination, [_CONTEXT]) as assoc:
        return ReportAnswer(None, NOT_ACCEPTED) if assoc is None else _sent(assoc, report)


def _sent(assoc: Association, report: CommitmentReport) -> ReportAnswer:
    try:
        hold_reactor(assoc)
        answer, _ = assoc.send_n_event_report(
            event_information(report),
            report.event_type,
            STORAGE_COMMITMENT_CLASS_UID,
            STORAGE_COMMITMENT_INSTANCE_UID,
        )
    except RuntimeError:  # What pynetdicom raises on an association that has ended.
        answer = Dataset()
    if "Status" not in answer:
        return ReportAnswer(None, NO_ANSWER)
    return ReportAnswer(int(answer.Status), str(answer.get("ErrorComment", "") or ""))
