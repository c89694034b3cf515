"""Conditions: what passes, what is said about it, and what a manifest may not ask."""

from __future__ import annotations

import json
import time

import pytest

from model.condition_reading import parse_condition
from model.conditions import Evaluation, evaluate, evaluate_what_is_stated, keywords
from model.errors import ConditionFault

CHEST = {"attribute": "BodyPartExamined", "in": ["CHEST", "THORAX"]}


def judged(condition: object, **attributes: object) -> Evaluation:
    return evaluate(parse_condition(condition), attributes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("test", "value", "passes"),
    [
        ({"exists": True}, "CHEST", True),
        ({"exists": True}, None, False),
        ({"exists": True}, "  ", False),
        ({"empty": True}, None, True),
        ({"empty": True}, ("", " "), True),
        ({"empty": True}, 0.0, False),
        ({"equals": "chest"}, " CHEST ", True),
        ({"equals": "CHEST"}, "CHEST WALL", False),
        ({"equals": "CHEST"}, None, False),
        ({"equals": 2}, 2.0, True),
        ({"equals": 2}, "2", True),
        ({"equals": "2"}, 2.0, True),
        ({"equals": "two"}, 2.0, False),
        ({"in": ["CHEST", "THORAX"]}, "thorax", True),
        ({"in": ["CHEST"]}, ("HAND", "CHEST"), True),
        ({"in": ["CHEST"]}, None, False),
        ({"not_in": ["LL"]}, "PA", True),
        ({"not_in": ["LL"]}, "ll", False),
        ({"not_in": ["LL"]}, ("PA", "LL"), False),
        ({"not_in": ["LL"]}, None, True),
        ({"regex": ".*chest.*"}, "XR Chest PA", True),
        ({"regex": "chest"}, "XR Chest PA", False),
        ({"regex": ".*"}, None, False),
        ({"regex": "[0-9]+"}, 512.0, True),
        ({"regex": "10000000"}, (3.0, 1e7), True),
        ({"regex": "0\\.5"}, 0.5, True),
        ({"regex": ".*0"}, 5.0, False),
        ({"range": {"min": 1, "max": 5}}, 1.0, True),
        ({"range": {"min": 1, "max": 5}}, 5.0, True),
        ({"range": {"min": 1, "max": 5}}, 5.01, False),
        ({"range": {"min": 1}}, 1e9, True),
        ({"range": {"max": 5}}, -1e9, True),
        ({"range": {"max": 5}}, "3", True),
        ({"range": {"max": 5}}, "three", False),
        ({"range": {"max": 5}}, (3.0, 6.0), False),
        ({"range": {"max": 5}}, None, False),
    ],
)
def test_each_test_passes_exactly_what_its_rule_says(test, value, passes):
    evaluation = judged({"attribute": "StudyDescription", **test}, StudyDescription=value)

    assert evaluation.passed is passes


def test_attribute_that_was_not_read_counts_as_absent():
    assert judged({"attribute": "ViewPosition", "empty": True}).passed


def test_failed_test_says_value_found_and_rule_in_one_line():
    evaluation = judged(CHEST, BodyPartExamined="HAND")

    assert evaluation.sentence == "BodyPartExamined is 'HAND', must be one of CHEST, THORAX"
    assert evaluation.words == "BodyPartExamined must be one of CHEST, THORAX"
    assert evaluation.found == "HAND"


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        (
            {"attribute": "age_years", "range": {"min": 1, "max": 5.5}},
            "age_years is 42, must be between 1 and 5.5",
        ),
        ({"attribute": "Rows", "range": {"min": 150}}, "Rows is absent or empty, must be at least"),
        ({"attribute": "Modality", "exists": True}, "Modality is absent or empty, must be present"),
    ],
)
def test_sentences_name_bounds_and_absence(condition, sentence):
    assert judged(condition, age_years=42.0).sentence.startswith(sentence)


def test_groups_combine_and_keep_every_part_in_the_record():
    # Given a condition where one part of each kind of group fails,
    condition = {
        "all": [
            {"attribute": "Modality", "equals": "CR"},
            {"any": [CHEST, {"attribute": "BodyPartExamined", "empty": True}]},
            {"not": {"attribute": "ViewPosition", "equals": "LL"}, "reason": "frontal only"},
        ]
    }

    # when it is judged for a lateral film of a hand,
    evaluation = judged(condition, Modality="CR", BodyPartExamined="HAND", ViewPosition="LL")

    # then the tree holds all parts, and the failures name only what failed.
    assert [part.passed for part in evaluation.parts] == [True, False, False]
    assert evaluation.failures() == (
        "BodyPartExamined is 'HAND', must be one of CHEST, THORAX",
        "BodyPartExamined is 'HAND', must be absent or empty",
        "not (ViewPosition is 'LL', must be LL)",
    )
    assert evaluation.parts[2].reason == "frontal only"


def test_passed_condition_has_no_failures_though_a_part_of_any_failed():
    condition = {"any": [CHEST, {"attribute": "Modality", "equals": "DX"}]}

    evaluation = judged(condition, BodyPartExamined="CHEST", Modality="CR")

    assert evaluation.passed
    assert evaluation.failures() == ()


def test_record_is_plain_data_for_json():
    evaluation = judged({"all": [CHEST]}, BodyPartExamined=("HAND", "FOOT"))

    plain = json.loads(json.dumps(evaluation.as_mapping()))

    assert plain["passed"] is False
    assert plain["parts"][0]["found"] == ["HAND", "FOOT"]


def test_keywords_are_gathered_from_every_depth():
    condition = parse_condition(
        {"all": [CHEST, {"not": {"any": [{"attribute": "age_years", "range": {"max": 1}}]}}]}
    )

    assert keywords(condition) == {"BodyPartExamined", "age_years"}


def test_all_faults_of_a_condition_are_named_at_once():
    with pytest.raises(ConditionFault) as caught:
        parse_condition(
            {
                "all": [
                    {"attribute": "BodyPart", "equals": "CHEST"},
                    {"attribute": "Modality", "in": []},
                    {"attribute": "Rows", "range": {"min": 9, "max": 1}},
                    {"attribute": "Modality", "equals": "CR", "exists": True},
                    {"attribute": "Modality", "like": "CR"},
                ]
            },
            "selection.where",
        )

    faults = caught.value.faults
    assert [fault.split(":")[0] for fault in faults] == [
        "selection.where.all[0].attribute",
        "selection.where.all[1].in",
        "selection.where.all[2].range",
        "selection.where.all[3]",
        "selection.where.all[4]",
    ]
    assert "received 'BodyPart'" in faults[0]
    assert "min 9 is above max 1" in faults[2]


@pytest.mark.parametrize(
    "value",
    [
        None,
        "Modality == 'CR'",
        {},
        {"all": []},
        {"all": {}},
        {"not": []},
        {"all": [CHEST], "any": [CHEST]},
        {"attribute": "Modality"},
        {"attribute": "Modality", "exists": False},
        {"attribute": "Modality", "equals": ""},
        {"attribute": "Modality", "equals": True},
        {"attribute": "Modality", "range": {}},
        {"attribute": "Modality", "range": {"least": 1}},
        {"attribute": "Modality", "range": {"min": "1"}},
        {"attribute": "Rows", "range": {"min": float("nan")}},
        {"attribute": "Rows", "range": {"max": float("inf")}},
        {"attribute": "Rows", "range": {"max": 10**400}},
        {"attribute": "Rows", "equals": float("nan")},
        {"attribute": "Rows", "in": [1, float("-inf")]},
        {"attribute": "Modality", "equals": "CR", "reason": 1},
        {"attribute": 1, "exists": True},
        {"attribute": "__class__", "exists": True},
        {"attribute": "age", "exists": True},
    ],
)
def test_malformed_condition_is_refused(value):
    with pytest.raises(ConditionFault, match="must"):
        parse_condition(value)


@pytest.mark.parametrize(
    "keyword",
    [
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientAddress",
        "OtherPatientIDs",
        "OtherPatientNames",
        "ReferringPhysicianName",
        "OperatorsName",
        "PatientMotherBirthName",
        "PatientBirthName",
        "PatientBirthTime",
        "PatientTelephoneNumbers",
        "PatientTelecomInformation",
        "PatientBirthDateInAlternativeCalendar",
        "PatientInstitutionResidence",
        "PatientComments",
        "OtherPatientIDsSequence",
        "ResponsiblePerson",
        "MilitaryRank",
        "RequestingPhysician",
        "NameOfPhysiciansReadingStudy",
        "PhysiciansOfRecord",
        "OrderEnteredBy",
        "ContentCreatorName",
        "ReferringPhysicianTelephoneNumbers",
        "PersonAddress",
        "AccessionNumber",
        "PixelData",
    ],
)
def test_attribute_that_names_a_person_cannot_be_a_condition(keyword):
    with pytest.raises(ConditionFault, match="names a person"):
        parse_condition({"attribute": keyword, "exists": True})


BOTH = [
    {"attribute": "Manufacturer", "equals": "x"},
    {"attribute": "StationName", "equals": "y"},
]
NOT_LATERAL = {"not": {"attribute": "ViewPosition", "regex": ".*lat.*"}}


@pytest.mark.parametrize(
    ("condition", "attributes", "passed", "is_open"),
    [
        ({"attribute": "age_years", "range": {"max": 5}}, {}, True, True),
        ({"attribute": "age_years", "range": {"max": 5}}, {"age_years": 4.0}, True, False),
        ({"attribute": "age_years", "range": {"max": 5}}, {"age_years": 54.0}, False, False),
        ({"attribute": "Modality", "exists": True}, {"Modality": " "}, True, True),
        ({"attribute": "Modality", "empty": True}, {}, True, False),
        ({"not": {"attribute": "Modality", "empty": True}}, {}, True, True),
        (NOT_LATERAL, {}, True, False),
        (NOT_LATERAL, {"ViewPosition": "LLAT"}, False, False),
        (
            {"all": BOTH},
            {"Manufacturer": "x"}, True, True,
        ),
        (
            {"all": BOTH},
            {"Manufacturer": "z"}, False, False,
        ),
        (
            {"any": BOTH},
            {"Manufacturer": "z"}, True, True,
        ),
        (
            {"any": BOTH},
            {"Manufacturer": "z", "StationName": "z"}, False, False,
        ),
    ],
)  # fmt: skip
def test_what_only_an_absent_value_could_tell_is_left_open(condition, attributes, passed, is_open):
    judged = evaluate_what_is_stated(parse_condition(condition), attributes)

    assert (judged.passed, judged.is_open) == (passed, is_open)


@pytest.mark.parametrize("keyword", ["PatientAge", "PatientSex", "PatientPosition"])
def test_attribute_that_describes_without_naming_is_allowed(keyword):
    assert keywords(parse_condition({"attribute": keyword, "exists": True})) == {keyword}


def test_nesting_is_bounded():
    condition: dict[str, object] = CHEST  # type: ignore[assignment]
    for _ in range(50):
        condition = {"not": condition}

    with pytest.raises(ConditionFault, match="nested 12 deep"):
        parse_condition(condition)


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)*b", "(?=a)a", r"(a)\1", ".*.*.*.*x", "[", "", "x" * 300, 5]
)
def test_pattern_that_could_take_for_ever_or_is_none_is_refused(pattern):
    with pytest.raises(ConditionFault, match=r"regex: must"):
        parse_condition({"attribute": "StudyDescription", "regex": pattern})


@pytest.mark.parametrize("pattern", [r"[*+]+\)\*", ".*(?:chest|thorax).*", r"a{2}b?", r"\d{1,3}Y"])
def test_harmless_pattern_is_accepted(pattern):
    assert parse_condition({"attribute": "StudyDescription", "regex": pattern})


def test_most_expensive_accepted_pattern_ends_quickly_on_hostile_text():
    condition = parse_condition({"attribute": "StudyDescription", "regex": ".*a.*a.*x"})

    started = time.perf_counter()
    evaluation = evaluate(condition, {"StudyDescription": "a" * 100_000})

    assert not evaluation.passed
    assert time.perf_counter() - started < 1.0
