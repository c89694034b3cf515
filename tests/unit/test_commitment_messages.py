"""The two data sets of storage commitment: what a request must hold, and what a report says."""

from __future__ import annotations

import pytest
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dicom_io import commitment
from dicom_io.commitment import (
    CommitmentRefused,
    CommitmentReport,
    FailedReference,
    Reference,
    event_information,
    read_action_information,
)
from dicom_io.statuses import ActionStatusValues, FailureReasonValues

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"


def item(sop_class: str | None = CT, sop_instance: str | None = "1.2.3.1") -> Dataset:
    ds = Dataset()
    if sop_class is not None:
        ds.ReferencedSOPClassUID = sop_class
    if sop_instance is not None:
        ds[0x00081155] = DataElement(0x00081155, "UI", sop_instance, validation_mode=IGNORE)
    return ds


def information(*items: Dataset, transaction: str | None = "1.2.3") -> Dataset:
    ds = Dataset()
    if transaction is not None:
        ds.TransactionUID = transaction
    ds.ReferencedSOPSequence = list(items)
    return ds


def test_a_request_names_its_transaction_and_each_instance_once_in_order() -> None:
    asked = information(item(MR, "1.2.9"), item(CT, "1.2.1"), item(MR, "1.2.9"))

    transaction, references = read_action_information(asked)

    assert transaction == "1.2.3"
    assert references == (Reference(MR, "1.2.9"), Reference(CT, "1.2.1"))


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (information(item(), transaction=None), "TransactionUID is missing"),
        (information(item(), transaction=""), "TransactionUID is missing"),
        (information(), "ReferencedSOPSequence"),
        (Dataset(), "TransactionUID is missing"),
        (information(item(sop_class=None)), "ReferencedSOPClassUID is missing"),
        (information(item(), item(sop_instance=None)), "ReferencedSOPInstanceUID is missing"),
        (information(item(sop_instance="../../etc")), "ReferencedSOPInstanceUID is not a UID"),
    ],
)
def test_a_request_that_lacks_something_is_told_what(asked: Dataset, named: str) -> None:
    with pytest.raises(CommitmentRefused, match=named) as refused:
        read_action_information(asked)

    assert refused.value.status is ActionStatusValues.INVALID_ARGUMENT_VALUE


def test_a_request_for_more_than_any_study_has_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(commitment, "MAXIMUM_REFERENCES", 2)
    asked = information(*(item(sop_instance=f"1.2.{n}") for n in range(3)))

    with pytest.raises(CommitmentRefused, match="3 references, 2 at most") as refused:
        read_action_information(asked)

    assert refused.value.status is ActionStatusValues.RESOURCE_LIMITATION


def test_a_report_of_success_names_what_is_committed_and_has_no_failures() -> None:
    report = CommitmentReport("1.2.3", (Reference(CT, "1"), Reference(MR, "2")), ())

    ds = event_information(report)

    assert report.event_type == 1
    assert ds.TransactionUID == "1.2.3"
    assert [(i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID) for i in ds[0x00081199]] == [
        (CT, "1"),
        (MR, "2"),
    ]
    assert {element.keyword for element in ds} == {"TransactionUID", "ReferencedSOPSequence"}


def test_a_report_with_failures_names_both_and_the_reason_of_each() -> None:
    failed = (
        FailedReference(Reference(CT, "2"), FailureReasonValues.NO_SUCH_INSTANCE),
        FailedReference(Reference(CT, "3"), FailureReasonValues.CLASS_INSTANCE_CONFLICT),
    )
    report = CommitmentReport("1.2.3", (Reference(CT, "1"),), failed)

    ds = event_information(report)

    assert report.event_type == 2
    assert [i.ReferencedSOPInstanceUID for i in ds.ReferencedSOPSequence] == ["1"]
    assert [(i.ReferencedSOPInstanceUID, i.FailureReason) for i in ds.FailedSOPSequence] == [
        ("2", 0x0112),
        ("3", 0x0119),
    ]


def test_a_report_of_failures_alone_has_no_empty_sequence() -> None:
    failed = FailedReference(Reference(CT, "2"), FailureReasonValues.PROCESSING_FAILURE)

    ds = event_information(CommitmentReport("1.2.3", (), (failed,)))

    assert "ReferencedSOPSequence" not in ds
