"""Which image or series is read, in which order, and the reason given for each decision."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import pytest

from dicom_io.errors import OutsideContract, RefusalReason
from model.package import ModelPackage, load_package
from model.selection import (
    LevelValues,
    OutcomeValues,
    StudyInstance,
    select,
    wanted_keywords,
)
from tests.tiny_models import write_package

CT = {"attribute": "Modality", "equals": "CT"}
THIN = {
    "text": "Thick slices hide what the model looks for.",
    "reason": "unsuitable geometry",
    "require": {"attribute": "SliceThickness", "range": {"max": 3}},
}
CHILD = {"text": "Children only.", "require": {"attribute": "age_years", "range": {"max": 5}}}


@pytest.fixture
def make_package(tmp_path: Path):
    """Write and load a package that needs no network."""
    count = 0

    def make(**options: object) -> ModelPackage:
        nonlocal count
        count += 1
        folder = tmp_path / f"package-{count}"
        write_package(folder, weights=b"weights", **options)  # type: ignore[arg-type]
        return load_package(folder)

    return make


def instance(uid: str, series: str = "1.9", **attributes: object) -> StudyInstance:
    return StudyInstance(uid, series, {"Modality": "CT", **attributes})  # type: ignore[arg-type]


def series(uid: str, count: int, **attributes: object) -> list[StudyInstance]:
    return [
        instance(f"{uid}.{number}", uid, InstanceNumber=float(number), **attributes)
        for number in range(1, count + 1)
    ]


def test_image_package_chooses_the_instance_that_matches(make_package):
    package = make_package(where=CT)

    selection = select(package, [instance("1.1", Modality="MR"), instance("1.2")])

    assert selection.outcome is OutcomeValues.MATCHED
    assert selection.level is LevelValues.INSTANCE
    assert selection.chosen is not None
    assert selection.chosen.sop_instance_uids == ("1.2",)
    assert selection.sentence == "tiny@1.0.0 reads instance 1.2"


def test_study_without_a_match_says_what_was_found(make_package):
    package = make_package(where=CT)

    selection = select(package, [instance("1.1", Modality="MR"), instance("1.2", Modality="MR")])

    assert selection.outcome is OutcomeValues.NO_MATCH
    assert selection.chosen is None
    assert selection.sentence == (
        "tiny@1.0.0 matches none of 2 instance candidates: "
        "Modality is 'MR', must be CT (and 1 more)"
    )


def test_empty_study_matches_nothing(make_package):
    selection = select(make_package(), [])

    assert selection.outcome is OutcomeValues.NO_MATCH
    assert selection.sentence == "tiny@1.0.0 matches nothing: the study holds no image"


def test_volume_package_chooses_among_series_and_counts_their_images(make_package):
    # Given a long and a short series and a rank by their length,
    package = make_package(
        kind="volume", rank=[{"attribute": "instance_count", "order": "descending"}]
    )
    study = [*series("1.1", 2), *series("1.2", 3)]

    # when the study is offered,
    selection = select(package, study)

    # then the longer one is chosen, with all its instances in order.
    assert selection.level is LevelValues.SERIES
    assert selection.chosen is not None
    assert selection.chosen.sop_instance_uids == ("1.2.1", "1.2.2", "1.2.3")
    assert [c.rank_values for c in selection.candidates] == [(3.0,), (2.0,)]


def test_frames_of_multi_frame_instances_count_as_images(make_package):
    package = make_package(
        kind="volume", where={"attribute": "instance_count", "range": {"min": 60}}
    )

    selection = select(package, [instance("1.1", NumberOfFrames=60.0)])

    assert selection.outcome is OutcomeValues.MATCHED


def test_series_is_judged_by_its_first_instance(make_package):
    # Given a series whose localiser-like last instance has another thickness,
    package = make_package(kind="volume", contract=[THIN])
    study = [
        instance("1.1.1", "1.1", SliceThickness=9.0),
        instance("1.1.2", "1.1", InstanceNumber=2.0, SliceThickness=9.0),
        instance("1.1.3", "1.1", InstanceNumber=1.0, SliceThickness=1.0),
    ]

    selection = select(package, study)

    assert selection.outcome is OutcomeValues.MATCHED
    assert selection.chosen is not None
    assert selection.chosen.sop_instance_uids == ("1.1.3", "1.1.2", "1.1.1")


def test_input_outside_the_contract_is_refused_with_value_rule_and_reason(make_package):
    package = make_package(contract=[CHILD, THIN])

    selection = select(package, [instance("1.1", age_years=3.0, SliceThickness=5.0)])

    assert selection.outcome is OutcomeValues.OUTSIDE_CONTRACT
    assert selection.refusal_reason is RefusalReason.GEOMETRY
    assert selection.sentence == (
        "tiny@1.0.0 abstains: SliceThickness is 5, must be at most 3. "
        "Thick slices hide what the model looks for."
    )
    refusal = selection.refusal()
    assert isinstance(refusal, OutsideContract)
    assert refusal.reason is RefusalReason.GEOMETRY


def test_absent_value_the_contract_asks_for_is_refused(make_package):
    selection = select(make_package(contract=[CHILD]), [instance("1.1")])

    assert selection.outcome is OutcomeValues.OUTSIDE_CONTRACT
    assert "age_years is absent or empty, must be at most 5" in selection.sentence


def test_lower_ranked_candidate_inside_the_contract_is_preferred_to_an_outside_one(make_package):
    package = make_package(contract=[THIN], rank=[{"attribute": "Rows", "order": "descending"}])
    study = [
        instance("1.1", Rows=512.0, SliceThickness=5.0),
        instance("1.2", Rows=256.0, SliceThickness=1.0),
    ]

    selection = select(package, study)

    assert selection.chosen is not None
    assert selection.chosen.sop_instance_uids == ("1.2",)
    assert selection.chosen.rank == 2


def test_only_a_refused_selection_gives_a_refusal(make_package):
    with pytest.raises(ValueError, match="received matched"):
        select(make_package(), [instance("1.1")]).refusal()


def test_rank_orders_by_each_key_in_turn_with_absent_values_last(make_package):
    package = make_package(
        rank=[
            {"prefer": {"attribute": "ViewPosition", "equals": "PA"}},
            {"attribute": "SliceThickness"},
            {"attribute": "SeriesDescription", "order": "descending"},
        ]
    )
    study = [
        instance("1.1"),
        instance("1.2", SliceThickness=2.0, SeriesDescription="a"),
        instance("1.3", SliceThickness=2.0, SeriesDescription="ab"),
        instance("1.4", SliceThickness=1.0),
        instance("1.5", ViewPosition="PA", SliceThickness=9.0),
    ]

    selection = select(package, study)

    order = [candidate.sop_instance_uids[0] for candidate in selection.candidates]
    assert order == ["1.5", "1.4", "1.3", "1.2", "1.1"]
    assert selection.ranked_by == (
        "first those where ViewPosition must be PA",
        "by SliceThickness, ascending, absent last",
        "by SeriesDescription, descending, absent last",
        "equal candidates by lowest UID",
    )


def test_same_study_in_any_order_gives_the_same_decision(make_package):
    package = make_package(kind="volume", rank=[{"attribute": "Rows"}])
    study = [*series("1.2", 2), *series("1.1", 1), instance("1.3.1", "1.3", Rows=9.0)]

    decisions = {json.dumps(select(package, list(p)).as_mapping()) for p in permutations(study)}

    assert len(decisions) == 1


def test_record_names_equal_failures_once_with_their_number(make_package):
    package = make_package(where=CT)
    study = [instance(f"1.{n}", Modality="MR") for n in range(500)]

    plain = json.loads(json.dumps(select(package, study).as_mapping()))

    assert [group["count"] for group in plain["not_matching"]] == [500]
    assert plain["chosen"] is None
    assert len(json.dumps(plain)) < 2000


def test_record_of_a_choice_explains_itself_as_plain_data(make_package):
    package = make_package(contract=[CHILD], where=CT)

    plain = json.loads(json.dumps(select(package, [instance("1.1", age_years=3.0)]).as_mapping()))

    assert plain["outcome"] == "matched"
    assert plain["candidates"][0]["contract"][0]["evaluation"]["found"] == 3.0
    assert plain["chosen"]["where"]["sentence"] == "Modality is 'CT', must be CT"


def test_every_package_decides_for_itself(make_package):
    packages = [make_package(name="ct", where=CT), make_package(name="any")]

    selections = [select(each, [instance("1.1", Modality="MR")]) for each in packages]

    assert [(s.model, s.outcome) for s in selections] == [
        ("ct@1.0.0", OutcomeValues.NO_MATCH),
        ("any@1.0.0", OutcomeValues.MATCHED),
    ]


def test_keywords_to_read_are_those_of_all_packages_and_of_selection_itself(make_package):
    packages = [
        make_package(where=CT, contract=[CHILD]),
        make_package(kind="volume", rank=[{"attribute": "instance_count"}]),
    ]

    assert wanted_keywords(packages) == {
        "Modality", "age_years", "InstanceNumber", "NumberOfFrames",
    }  # fmt: skip
