"""Reports of refused requests: the first at once, then one a minute with the number left out."""

from __future__ import annotations

from dicom_io.receiving.limits import OpenAssociations, ReceiverLimits
from dicom_io.receiving.refusals import (
    MAXIMUM_KINDS,
    REPORT_EVERY_SECONDS,
    TOO_MANY_KINDS,
    RefusalReport,
    RefusalReports,
)

REPORT = RefusalReport("CT1", "OTHER", "10.0.0.5", "not ours")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_equal_reports_within_a_minute_are_counted_and_told_with_the_next():
    told: list[RefusalReport] = []
    clock = Clock()
    reports = RefusalReports(told.append, clock)

    for _ in range(5):
        reports.add(REPORT)
    assert told == [REPORT]
    clock.now = REPORT_EVERY_SECONDS
    reports.add(REPORT)
    clock.now = 2 * REPORT_EVERY_SECONDS
    reports.add(REPORT)

    assert [report.reason for report in told] == [
        "not ours",
        "not ours (4 more like it since the last report)",
        "not ours",
    ]


def test_reports_that_differ_in_anything_are_told_apart():
    told: list[RefusalReport] = []
    reports = RefusalReports(told.append, Clock())
    different = [
        REPORT,
        RefusalReport("CT2", "OTHER", "10.0.0.5", "not ours"),
        RefusalReport("CT1", "OTHER2", "10.0.0.5", "not ours"),
        RefusalReport("CT1", "OTHER", "10.0.0.6", "not ours"),
        RefusalReport("CT1", "OTHER", "10.0.0.5", "stopping"),
    ]

    for report in different * 2:
        reports.add(report)

    assert told == different


def test_inventing_titles_floods_nobody_and_ends_after_a_minute():
    told: list[RefusalReport] = []
    clock = Clock()
    reports = RefusalReports(told.append, clock)

    for number in range(3 * MAXIMUM_KINDS):
        reports.add(RefusalReport(f"CT{number}", "OTHER", "10.0.0.5", "not ours"))

    assert len(told) == MAXIMUM_KINDS + 1
    assert told[-1].reason == TOO_MANY_KINDS
    assert told[-1].address == "10.0.0.5"
    clock.now = REPORT_EVERY_SECONDS
    reports.add(REPORT)
    assert told[-1] == REPORT


def test_an_address_has_three_quarters_of_the_associations_unless_told_otherwise():
    assert ReceiverLimits().maximum_associations_per_address == 48
    assert ReceiverLimits(maximum_associations=1).maximum_associations_per_address == 1
    assert ReceiverLimits(maximum_associations_per_address=9).maximum_associations_per_address == 9


def test_a_place_given_back_can_be_taken_again():
    places = OpenAssociations(ReceiverLimits(maximum_associations=4))
    taken = [places.enter(name, "10.0.0.5") for name in "abc"]

    assert taken == ["", "", ""]
    assert "from 10.0.0.5" in places.enter("d", "10.0.0.5")
    assert places.enter("e", "10.0.0.6") == ""
    assert "4 associations are open" in places.enter("f", "10.0.0.7")
    places.leave("a")
    places.leave("never entered")
    assert places.enter("g", "10.0.0.5") == ""
