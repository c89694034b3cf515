"""Regions held against known places, and figures by split and severity, with hand-made answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dicom_io.vocabulary import Code, Finding, PresenceValues, Region, RegionOutline
from model.training.synthesis.measuring import Answer, figures, holds, places_of

NODULE = Code("27925004", "SCT", "Nodule")
UIDS = ("1.1", "1.2", "1.3", "1.4")


def region(uid: str, rows: tuple[float, float], columns: tuple[float, float]) -> Region:
    (top, bottom), (left, right) = rows, columns
    points = ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
    outline = RegionOutline(uid, points, 0.9)
    return Region("Nodule", 1, "Nodule", NODULE, None, 0.9, 0.5, (outline,))


def answer(
    label: str, probability: float, hits: tuple[bool, ...] = (), strays: int = 0, **row: str
) -> Answer:
    present = PresenceValues.PRESENT if probability >= 0.5 else PresenceValues.ABSENT
    finding = Finding("Nodule", NODULE, None, present, probability, 0.5, 0.5, 0.5)
    return Answer({"labels": label, **row}, finding, (), hits, strays)


@pytest.mark.parametrize(
    ("uid", "rows", "columns", "found"),
    [
        ("1.2", (95, 110), (195, 210), True),
        ("1.1", (95, 110), (195, 210), True),  # the slice beside it
        ("1.4", (95, 110), (195, 210), False),  # two slices away
        ("1.2", (101, 110), (195, 210), False),
        ("1.2", (95, 110), (150, 200), False),
    ],
)
def test_a_region_holds_a_place_when_its_box_on_that_slice_does(uid, rows, columns, found) -> None:
    assert holds(region(uid, rows, columns), (1.2, 100.0, 200.0), UIDS) is found


def test_places_are_read_from_the_manifest_and_kept_inside_the_series() -> None:
    row = {"slices": "14-17", "nodules": "-0.4/100.0/200.5/6.2 3.4/30.0/40.0/9.0"}

    assert places_of(row) == [(0.0, 100.0, 200.5), (3.0, 30.0, 40.0)]
    assert places_of({"slices": "14-17", "nodules": ""}) == []


def test_figures_count_series_nodules_and_strays() -> None:
    found = figures(
        [
            answer("nodule", 0.9, (True, False), strays=1),
            answer("nodule", 0.4, (False,)),
            answer("clear", 0.6, strays=3),
            answer("clear", 0.1),
        ]
    )

    assert found == {
        "series": 4, "positive": 2, "roc_auc": 0.75, "sensitivity": 0.5, "specificity": 0.5,
        "nodules": 3, "nodules_hit": 0.3333, "strays_per_series": 1.0,
    }  # fmt: skip


def test_undetermined_answers_count_by_the_threshold() -> None:
    open_answer = answer("motion", 0.45)
    finding = replace(open_answer.finding, presence=PresenceValues.UNDETERMINED)
    still = answer("still", 0.2)

    below = figures([replace(open_answer, finding=finding), still])
    above = figures([replace(open_answer, finding=replace(finding, probability=0.55)), still])

    assert (below["sensitivity"], above["sensitivity"]) == (0.0, 1.0)
    assert "nodules" not in below


def test_series_of_one_kind_have_no_area() -> None:
    assert figures([answer("still", 0.2)]) == {"series": 1, "positive": 0, "specificity": 1.0}
