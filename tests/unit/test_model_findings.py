"""Outputs become probabilities, probabilities become findings, nonsense becomes neither."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_io.vocabulary import Code, PresenceValues
from model.errors import UnusableOutput
from model.findings import judge, probabilities
from model.labels import Label, Output, OutputKindValues

PROBABILITY, LOGIT, SOFTMAX = OutputKindValues
CODE = Code("233604007", "SCT", "Pneumonia")


def label(
    index: int = 0, threshold: float = 0.5, low: float | None = None, high: float | None = None
) -> Label:
    return Label(
        name=f"Label {index}",
        code=CODE,
        site=None,
        threshold=threshold,
        undetermined_low=threshold if low is None else low,
        undetermined_high=threshold if high is None else high,
        index=index,
    )


def test_logit_goes_through_the_sigmoid():
    result = probabilities([[0.0, np.log(3.0)]], Output(LOGIT, 2), [label(0), label(1)])

    np.testing.assert_allclose(result, [[0.5, 0.75]], atol=1e-6)
    assert result.dtype == np.float32


def test_softmax_makes_classes_share_one():
    result = probabilities([[0.0, np.log(3.0)]], Output(SOFTMAX, 2), [label(0), label(1)])

    np.testing.assert_allclose(result, [[0.25, 0.75]], atol=1e-6)


def test_label_takes_the_output_its_index_names():
    result = probabilities([[0.0, np.log(3.0)]], Output(SOFTMAX, 2), [label(1)])

    np.testing.assert_allclose(result, [[0.75]], atol=1e-6)


@pytest.mark.parametrize("kind", [LOGIT, SOFTMAX])
def test_huge_scores_do_not_overflow(kind):
    result = probabilities([[-1e30, 1e30]], Output(kind, 2), [label(0), label(1)])

    np.testing.assert_allclose(result, [[0.0, 1.0]], atol=1e-6)


def test_probability_passes_and_rounding_beyond_the_ends_is_clipped():
    result = probabilities([[-1e-6, 1.000001]], Output(PROBABILITY, 2), [label(0), label(1)])

    assert result.tolist() == [[0.0, 1.0]]


def test_scores_called_probabilities_are_refused_with_a_hint():
    with pytest.raises(UnusableOutput, match="the kind is logit"):
        probabilities([[3.2]], Output(PROBABILITY, 1), [label()])


@pytest.mark.parametrize("kind", list(OutputKindValues))
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_never_become_a_finding(kind, broken):
    with pytest.raises(UnusableOutput, match="1 of 2 predictions") as caught:
        probabilities([[0.1, 0.2], [0.3, broken]], Output(kind, 2), [label(0), label(1)])
    assert caught.value.rows == (1,)


def test_output_of_another_shape_is_refused():
    with pytest.raises(UnusableOutput, match=r"\(batch, 2\), received \(1, 1\)"):
        probabilities([[0.1]], Output(PROBABILITY, 2), [label()])


@pytest.mark.parametrize(
    ("probability", "presence"),
    [
        (0.0, PresenceValues.ABSENT),
        (0.2999, PresenceValues.ABSENT),
        (0.3, PresenceValues.UNDETERMINED),
        (0.5, PresenceValues.UNDETERMINED),
        (0.5999, PresenceValues.UNDETERMINED),
        (0.6, PresenceValues.PRESENT),
        (1.0, PresenceValues.PRESENT),
    ],
)
def test_band_holds_its_low_end_and_not_its_high_end(probability, presence):
    (finding,) = judge([probability], [label(threshold=0.5, low=0.3, high=0.6)])

    assert finding.presence is presence


@pytest.mark.parametrize(
    ("probability", "presence"),
    [(0.4999, PresenceValues.ABSENT), (0.5, PresenceValues.PRESENT)],
)
def test_score_on_the_threshold_is_present_without_a_band(probability, presence):
    (finding,) = judge([probability], [label(threshold=0.5)])

    assert finding.presence is presence


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_every_label_is_in_the_result_in_its_order(scores):
    labels = [label(index) for index in range(len(scores))]

    findings = judge(scores, labels)

    assert [finding.label for finding in findings] == [item.name for item in labels]
    assert [finding.probability for finding in findings] == scores


@pytest.mark.parametrize("row", [[0.5, 0.5], [], [np.nan], [1.5], [-0.1]])
def test_row_that_is_no_probability_per_label_is_refused(row):
    with pytest.raises(UnusableOutput):
        judge(row, [label()])
