"""A request keeps its own rules, and says in words what the result says in codes."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_io.errors import CannotCompose, InvalidUID, RefusalReason
from dicom_io.results.request import (
    SR_CLASS_PREFERENCE,
    OutcomeValues,
    PredecessorReference,
    RefusalDetail,
    SRClassValues,
    operating_point,
)
from dicom_io.vocabulary import PresenceValues
from tests.results_material import (
    MODEL,
    NEGATIVE,
    POSITIVE,
    REFUSAL,
    UNCLEAR,
    make_finding,
    make_request,
)

FILM = Path("1.dcm")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evidence": ()}, "evidence must name at least one"),
        ({"cited": ()}, "cited must name at least one"),
        ({"cited": (Path("9.dcm"),)}, "cited must be part of evidence"),
        ({"findings": ()}, "either findings or a refusal"),
        ({"findings": (POSITIVE,), "refusal": REFUSAL}, "either findings or a refusal"),
        ({"findings": (POSITIVE, POSITIVE)}, "labels of findings must differ"),
        ({"findings": (replace(POSITIVE, probability=1.2),)}, "must lie in 0..1"),
        ({"findings": (replace(POSITIVE, probability=float("nan")),)}, "must lie in 0..1"),
        ({"version_number": 0}, "version_number must be 1 or more"),
        ({"analysis_started": datetime(2026, 1, 2)}, "must carry a time zone"),  # noqa: DTZ001
        ({"result_digest": "XYZ"}, "hexadecimal"),
        ({"model": replace(MODEL, name="a\\b")}, "no backslash"),
        ({"findings": (replace(POSITIVE, label="a\nb"),)}, "no backslash"),
    ],
)
def test_a_request_that_breaks_a_rule_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CannotCompose, match=said):
        make_request(FILM, **changes)


@pytest.mark.parametrize(
    ("findings", "outcome"),
    [
        ((POSITIVE, NEGATIVE, UNCLEAR), OutcomeValues.POSITIVE),
        ((NEGATIVE, UNCLEAR), OutcomeValues.UNDETERMINED),
        ((NEGATIVE,), OutcomeValues.NEGATIVE),
    ],
)
def test_the_flag_is_the_worst_finding(findings: Any, outcome: OutcomeValues) -> None:
    assert make_request(FILM, findings=findings).outcome is outcome


def test_a_refusal_is_never_flagged_as_a_negative() -> None:
    request = make_request(FILM, refusal=REFUSAL)

    assert request.series_description == "AI NOT ANALYSED - NOT VERIFIED (cxr-pneumonia)"
    assert "NEGATIVE" not in request.series_description
    assert request.summary == (
        "AI result, not verified by a physician. The analysis by cxr-pneumonia 1.0.0 was not "
        "performed (cannot decode): JPEG Extended 12 bit cannot be decoded. "
        "No statement about any finding is made."
    )


def test_a_failure_is_told_apart_from_a_refusal() -> None:
    failed = RefusalDetail(RefusalReason.SOFTWARE_FAILURE, "Out of\nmemory", failed=True)

    assert "failed (software failure): Out of memory." in make_request(FILM, refusal=failed).summary


def test_the_summary_says_every_finding() -> None:
    assert make_request(FILM).summary == (
        "AI result, not verified by a physician. cxr-pneumonia 1.0.0: Pneumonia PRESENT (83 %), "
        "Pneumothorax absent (4.1 %), Effusion UNDETERMINED (50 %)."
    )


def test_a_demonstration_model_is_labelled_as_such() -> None:
    request = make_request(FILM, model=replace(MODEL, demonstration=True))

    assert request.series_description == "AI POSITIVE - NOT VERIFIED (DEMO cxr-pneumonia)"
    assert "Demonstration model, no clinical claim." in request.summary


@given(st.text(st.characters(categories=["L", "N", "P"], exclude_characters="\\"), max_size=90))
def test_the_series_description_fits_and_keeps_its_flag(name: str) -> None:
    for refusal in (None, REFUSAL):
        changes = {} if refusal is None else {"refusal": refusal}
        request = make_request(FILM, model=replace(MODEL, name=name), **changes)

        assert len(request.series_description) <= 64
        assert "NOT VERIFIED (" in request.series_description


def test_the_operating_point_names_the_band_only_where_there_is_one() -> None:
    sharp = replace(POSITIVE, undetermined_low=0.5, undetermined_high=0.5)

    assert operating_point(sharp) == "operating threshold 50 %"
    assert operating_point(POSITIVE) == (
        "operating threshold 50 %, undetermined from 40 % to below 60 %"
    )


def test_a_predecessor_needs_real_uids() -> None:
    with pytest.raises(InvalidUID, match="SeriesInstanceUID of the predecessor"):
        PredecessorReference("1.2", "", "1.2", "1.2")


def test_the_fall_back_order_holds_every_class_once() -> None:
    assert SR_CLASS_PREFERENCE[0] is SRClassValues.COMPREHENSIVE_3D
    assert sorted(SR_CLASS_PREFERENCE) == sorted(SRClassValues)


def test_certainty_is_rounded_to_what_a_decimal_string_holds() -> None:
    third = make_finding("Pneumonia", PresenceValues.ABSENT, 1 / 3)

    assert str(third.certainty_percent) == "33.3"


@pytest.mark.parametrize(("score", "stated"), [(1.0, 99.9), (0.9997, 99.9), (0.0, 0.1), (0.5, 50)])
def test_no_certainty_reads_as_if_a_model_could_be_certain(score: float, stated: float) -> None:
    finding = make_finding("Pneumonia", PresenceValues.PRESENT, score)

    assert finding.certainty_percent == stated
