"""What a site asks before a version serves: every criterion, and every way to miss it."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.admission import GAP_FIGURES, AdmissionLimits, judge_admission
from model.catalogue import BUNDLED_FOLDER
from model.errors import PackageFault
from model.evaluation_report import contradictions, read_evaluation_report
from model.manifest_writing import write_manifest
from model.package import ModelPackage, load_package
from model.package_files import sha256_of
from model.probes import write_probes
from model.runtimes.check import CheckReport
from tests.tiny_models import write_package

LIMITS = AdmissionLimits(
    minimum_auc=0.9, minimum_sensitivity=0.8, minimum_specificity=0.7, maximum_subgroup_gap=0.1
)


def figure(value: float | None, low: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": None}


def group(value: str, patients: int, *figures: str) -> dict[str, Any]:
    given = {name: figure(0.9) for name in figures or GAP_FIGURES}
    return {"value": value, "patients": patients, "figures": given}


def document(package: ModelPackage, **changes: Any) -> dict[str, Any]:
    """Return a report about this package that meets the limits."""
    label = package.labels[0]
    gaps = [{"figure": name, "best": "F", "worst": "M", "gap": 0.05} for name in GAP_FIGURES]
    plain: dict[str, Any] = {
        "format": 1,
        "model": {
            "name": "tiny", "version": "1.0.0",
            "weights_sha256": package.identity.weights_sha256,
            "preprocessing_digest": package.preprocessing_digest,
        },
        "data": {"split": "test", "gate": {"allowed": [], "findings": []}},
        "outcomes": {"images": 100, "patients": 80, "refused": 3, "not_selected": 1},
        "labels": [
            {
                "name": label.name, "threshold": label.threshold,
                "undetermined_low": label.undetermined_low,
                "undetermined_high": label.undetermined_high,
                "figures": {
                    "roc_auc": figure(0.95, 0.91), "sensitivity": figure(0.85, 0.79),
                    "specificity": figure(0.75, 0.70),
                },
                "subgroups": [
                    {"column": "sex", "groups": [group("F", 30), group("M", 30)], "gaps": gaps}
                ],
            }
        ],
    }  # fmt: skip
    for path, value in changes.items():
        *places, last = path.split("__")
        inner: Any = plain
        for place in places:
            inner = inner[int(place) if place.isdigit() else place]
        inner[last] = value
    return plain


def package_with(folder: Path, *, probes: bool = True, report: bool = True, **changes: Any):
    """Write a package with probes and a report; `changes` make the report lie."""
    write_package(folder, weights=b"never loaded")
    plain = tomllib.loads((folder / "manifest.toml").read_text())
    if report:
        path = folder / "evaluation.json"
        path.write_text(json.dumps(document(load_package(folder), **changes)))
        plain["evaluation"] = {"file": path.name, "sha256": sha256_of(path)}
    if probes:
        path = folder / "probes.npz"
        write_probes(path, [np.zeros((16, 16, 1), np.float32)])
        plain["probes"] = {
            "file": path.name, "sha256": sha256_of(path), "tolerance": 0.001, "scores": [[0.018]],
        }  # fmt: skip
    write_manifest(folder, plain)
    return load_package(folder)


def trial(*faults: str, difference: float | None = 0.0) -> CheckReport:
    return CheckReport("tiny@1.0.0", faults, probe_difference=difference)


def unmet(package: ModelPackage, limits: AdmissionLimits = LIMITS, **given: Any) -> list[str]:
    report = trial(**given)
    return [c.sentence for c in judge_admission(package, report, limits) if not c.met]


def test_a_version_that_meets_every_limit_is_admitted(tmp_path: Path) -> None:
    package = package_with(tmp_path)

    criteria = judge_admission(package, trial(), LIMITS)

    assert all(criterion.met for criterion in criteria)
    assert [criterion.name for criterion in criteria] == [
        "preprocessing", "trial", "probes", "evaluation", "evaluated split", "evaluated images",
        "Bright AUC", "Bright sensitivity", "Bright specificity",
        "Bright AUC by sex", "Bright sensitivity by sex", "Bright specificity by sex",
    ]  # fmt: skip


NOBODY_COMPARED = {
    "column": "sex", "groups": [group("F", 30), group("M", 9, "specificity")], "gaps": []
}  # fmt: skip
"""Of the two groups one has too few patients."""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels__0__figures__roc_auc": figure(0.89)}, "Bright AUC: wanted at least 0.9, found"),
        ({"labels__0__figures__sensitivity": figure(0.79)}, "Bright sensitivity"),
        ({"labels__0__figures__specificity": figure(None)}, "found no such figure"),
        ({"labels__0__subgroups": []}, "no two groups of enough patients"),
        ({"labels__0__subgroups": [NOBODY_COMPARED]}, "no two groups of enough patients"),
        ({"labels__0__subgroups__0__gaps__0__gap": 0.2}, "found 0.2000 between F and M"),
        ({"labels__0__threshold": 0.6}, "used the threshold 0.6, the package has 0.5"),
        ({"labels__0__threshold": 0.5000009}, "used the threshold 0.5000009, the package has 0.5"),
        ({"labels__0__undetermined_low": 0.1}, "undetermined from 0.1"),
        ({"labels__0__name": "Dark"}, "about the labels Dark"),
        ({"model__weights_sha256": "ab" * 32}, "about weights"),
        ({"model__output_kind": "probability"}, "about outputs of kind probability"),
        ({"labels__0__index": 1}, "output 1 speaks for it, in the package output 0"),
        ({"model__preprocessing_digest": "ab" * 32}, "about preprocessing"),
        ({"model__name": "giant"}, "about the model giant"),
        ({"data__split": "train"}, "evaluated split: wanted validation or test, found train"),
        ({"data__gate": {}}, "data.gate.findings: must be a list of objects"),
        ({"format": 2}, "format: must be 1"),
        ({"labels__0__figures": []}, "labels[0].figures: must be an object"),
    ],
)
def test_what_misses_a_limit_is_refused_with_what_was_found(tmp_path: Path, changes, said) -> None:
    package = package_with(tmp_path, **changes)

    sentences = unmet(package)

    assert len(sentences) == 1
    assert said in sentences[0]


def leaking(folder: Path, *checks: str, demonstration: bool = False) -> ModelPackage:
    """Return a package whose report tells what the gate let pass, in words that name a patient."""
    findings = [{"check": each, "sentence": "patient P-17 is in test and train"} for each in checks]
    gate = {"allowed": list(checks), "findings": findings}
    plain = package_with(folder, data__gate=gate)
    return replace(plain, identity=replace(plain.identity, demonstration=demonstration))


@pytest.mark.parametrize("check", ["patients", "duplicates", "same-pixels", "label-conflicts"])
def test_figures_of_images_that_another_split_may_hold_too_are_refused(
    tmp_path: Path, check: str
) -> None:
    (sentence,) = unmet(leaking(tmp_path, "balance", check, check))

    assert sentence.startswith("evaluated images: wanted no patient in two splits and no image")
    assert sentence.endswith(f"found {check} (2)")


def test_data_that_is_no_more_than_poor_is_no_fault(tmp_path: Path) -> None:
    assert unmet(leaking(tmp_path, "balance", "tiny")) == []


def test_a_demonstration_may_share_patients_between_splits_and_says_so(tmp_path: Path) -> None:
    criteria = judge_admission(leaking(tmp_path, "patients", demonstration=True), trial(), LIMITS)

    assert all(each.met for each in criteria)
    (told,) = [each for each in criteria if each.name == "evaluated images"]
    assert told.found == "patients (1); a demonstration only"


def test_how_many_images_got_no_score_is_told(tmp_path: Path) -> None:
    criteria = judge_admission(package_with(tmp_path), trial(), LIMITS)

    (told,) = [each for each in criteria if each.name == "evaluation"]
    assert told.found == "test: 100 images of 80 patients, 3 refused, 1 not selected"


def test_every_missed_criterion_is_named_at_once(tmp_path: Path) -> None:
    package = package_with(
        tmp_path,
        labels__0__figures={name: figure(0.1) for name in ("roc_auc", "sensitivity")},
        labels__0__subgroups=[],
    )

    assert len(unmet(package, difference=0.5)) == 5


def test_lower_bounds_count_where_the_site_says_so(tmp_path: Path) -> None:
    package = package_with(tmp_path)
    strict = AdmissionLimits(minimum_auc=0.9, minimum_sensitivity=0.8, lower_bounds_count=True)

    (sentence,) = unmet(package, strict)

    assert sentence.startswith("Bright sensitivity: wanted a lower bound of at least 0.8")
    assert "lower bound 0.7900" in sentence


def test_a_figure_without_interval_has_no_lower_bound_to_count(tmp_path: Path) -> None:
    package = package_with(tmp_path, labels__0__figures__roc_auc=figure(0.99))

    (sentence,) = unmet(package, AdmissionLimits(minimum_auc=0.9, lower_bounds_count=True))

    assert "without interval" in sentence


def test_a_gap_that_nobody_can_judge_is_not_met_beside_those_that_can_be(tmp_path: Path) -> None:
    """Women were evaluated, but too few of them with the label: their sensitivity is unknown."""
    sex = {
        "column": "sex",
        "groups": [group("F", 30, "specificity"), group("M", 30), group("O", 2, "unknown")],
        "gaps": [{"figure": "specificity", "best": "F", "worst": "M", "gap": 0.05}],
    }

    sentences = unmet(package_with(tmp_path, labels__0__subgroups=[sex]))

    said = "found cannot be judged; too few patients with or without the label to tell of F, O"
    assert sentences == [
        f"Bright AUC by sex: wanted at most 0.1, {said}",
        f"Bright sensitivity by sex: wanted at most 0.1, {said}",
    ]


def test_a_group_that_could_not_be_compared_is_named_beside_those_that_were(
    tmp_path: Path,
) -> None:
    age = {
        "column": "age",
        "groups": [
            group("18-39", 40), group("40-64", 40), group("80 and over", 12, "specificity"),
            group("unknown", 50, "specificity"),
        ],
        "gaps": [{"figure": "sensitivity", "best": "18-39", "worst": "40-64", "gap": 0.05}],
    }  # fmt: skip
    package = package_with(tmp_path, labels__0__subgroups=[age])

    (criterion,) = [
        each
        for each in judge_admission(package, trial(), LIMITS)
        if each.name == "Bright sensitivity by age"
    ]

    assert criterion.met
    assert criterion.found.startswith("0.0500 between 18-39 and 40-64; too few patients")
    assert criterion.found.endswith("to tell of 80 and over")


@pytest.mark.parametrize(
    ("limits", "refused"),
    [
        (AdmissionLimits(), True),
        (AdmissionLimits(evaluation_required=False), False),
        # Figures that nobody reported cannot reach a limit.
        (AdmissionLimits(evaluation_required=False, minimum_auc=0.5), True),
        (AdmissionLimits(evaluation_required=False, maximum_subgroup_gap=0.5), True),
    ],
)
def test_a_package_without_evaluation(tmp_path: Path, limits, refused) -> None:
    package = package_with(tmp_path, report=False)

    assert bool(unmet(package, limits)) is refused


@pytest.mark.parametrize("difference", [0.0011, None])
def test_weights_that_do_not_reproduce_the_recorded_scores_are_refused(
    tmp_path: Path, difference
) -> None:
    (sentence,) = unmet(package_with(tmp_path), difference=difference)

    assert sentence.startswith("probes: wanted the recorded scores of 1 probe within 0.001")


@pytest.mark.parametrize(
    ("scores", "is_telling"),
    [(((0.018,),), True), (((0.003,), (0.9995,)), False), (((0.003, 0.4),), True)],
)
def test_probes_whose_scores_all_lie_at_an_end_are_said_to_tell_little(
    tmp_path: Path, scores: Any, is_telling: bool
) -> None:
    package = package_with(tmp_path)
    assert package.probes is not None
    package = replace(package, probes=replace(package.probes, scores=scores))

    (told,) = [c for c in judge_admission(package, trial(), LIMITS) if c.name == "probes"]

    assert told.met
    assert ("tell little" in told.found) is not is_telling


def test_a_package_without_probes_and_one_whose_trial_failed_are_refused(tmp_path: Path) -> None:
    bare = package_with(tmp_path / "bare", probes=False)
    broken = package_with(tmp_path / "broken")

    assert "pack it again" in unmet(bare, difference=None)[0]
    criteria = judge_admission(broken, trial("weights are truncated"), LIMITS)
    assert [c.found for c in criteria if not c.met] == ["weights are truncated"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no JSON"), ("[]", "must be a JSON object"), ("[" * 100_000, "no JSON"),
        ('{"format": 1}', "labels: must be a list of objects"),
    ],
)  # fmt: skip
def test_a_report_that_is_none_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(text)

    with pytest.raises(PackageFault, match=said):
        read_evaluation_report(path)


def test_fields_of_later_reports_are_no_fault(tmp_path: Path) -> None:
    package = package_with(tmp_path, labels__0__colour="blue", outcomes__moons=2)
    assert package.evaluation is not None

    report = read_evaluation_report(package.evaluation.path)

    assert contradictions(report, package) == []
    assert (report.images, report.patients, report.split) == (100, 80, "test")


def test_the_bundled_package_agrees_with_its_own_report() -> None:
    (folder,) = BUNDLED_FOLDER.glob("cxr-pneumonia-*")
    package = load_package(folder)
    assert package.evaluation is not None
    assert package.probes is not None

    assert contradictions(read_evaluation_report(package.evaluation.path), package) == []


def test_an_evaluation_of_the_source_counts_for_the_converted_package(tmp_path: Path) -> None:
    # Given a package whose report is about other weights,
    source = "c" * 64
    package = package_with(tmp_path, model__weights_sha256=source)
    assert package.evaluation is not None
    report = read_evaluation_report(package.evaluation.path)
    assert "about weights" in contradictions(report, package)[0]

    # then it is accepted from the package whose weights were converted from these, and no other.
    own = package.identity.weights_sha256
    for conversion, is_proven in (
        ({"source_weights_sha256": source, "converted_weights_sha256": own}, True),
        ({"source_weights_sha256": "d" * 64, "converted_weights_sha256": own}, False),
        ({"source_weights_sha256": source, "converted_weights_sha256": "0" * 64}, False),
        ({"source_weights_sha256": source}, False),
        # Of a chain of conversions every link was proven.
        ({"source_weights_sha256": "d" * 64, "earlier_weights_sha256": [source],
          "converted_weights_sha256": own}, True),
        ({"source_weights_sha256": "d" * 64, "earlier_weights_sha256": source,
          "converted_weights_sha256": own}, False),
    ):  # fmt: skip
        faults = contradictions(report, replace(package, conversion=conversion))
        assert [fault for fault in faults if "about weights" in fault] == faults
        assert bool(faults) is not is_proven


def test_an_evaluation_of_the_converted_package_itself_counts(tmp_path: Path) -> None:
    package = package_with(tmp_path)
    assert package.evaluation is not None
    report = read_evaluation_report(package.evaluation.path)

    # The report is about these very weights, whatever they were converted from.
    converted = replace(package, conversion={"source_weights_sha256": "d" * 64})

    assert contradictions(report, converted) == []
