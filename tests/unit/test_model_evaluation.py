"""An evaluation from images to files, with a predictor whose answers are known: nothing hides."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import CTImageStorage

import model.evaluation
from dicom_io.vocabulary import PresenceValues
from model.errors import DataGateFault, EvaluationFault, UnusableOutput
from model.evaluation.html_report import html_page
from model.evaluation.records import Question
from model.evaluation.report import as_json, data_digest, report_mapping
from model.evaluation.running import Finished, Wishes, run_evaluation
from model.evaluation.subgroups import values_by_column
from model.evaluation.thresholds import parse_rule
from model.evaluation_report import contradictions, read_evaluation_report
from model.package import ModelPackage, load_package
from model.training.dataset import SplitValues
from model.training.gate_report import CheckValues
from model.training.inspection import inspect_images
from model.training.sources import open_dataset
from tests.labelled_images import MeanPredictor, grey, put_dicom, put_film
from tests.tiny_models import BRIGHT, DARK, TinyLabel, write_package

SCHEMA = json.loads(
    Path(model.evaluation.__file__).with_name("report_schema.json").read_text(encoding="utf-8")
)
BAND = TinyLabel("Bright", 8.0, -4.0, ("TINY-1", "99MEDIMGD", "Bright image"), 0.5, (0.3, 0.5))


def package(folder: Path, **options: Any) -> ModelPackage:
    options.setdefault("labels", (BAND,))
    tiny = write_package(
        folder / "package", intensity={"kind": "full"}, weights=b"not read here", **options
    )
    return load_package(tiny.folder)


def evaluated(
    folder: Path,
    source: Path | None = None,
    *,
    predictor: Any = None,
    wishes: Wishes | None = None,
    split: SplitValues = SplitValues.TEST,
    made: ModelPackage | None = None,
    **question: Any,
) -> Finished:
    question.setdefault("rounds", 200)
    with open_dataset(source or folder / "data") as dataset:
        return run_evaluation(
            made or package(folder),
            predictor or MeanPredictor(),
            dataset,
            Question(split, **question),
            wishes,
        )


def films(folder: Path, split: str, brightness: dict[str, list[float]], seed: int = 0) -> None:
    """Write one film per brightness, each of its own patient."""
    for place, (label, values) in enumerate(brightness.items()):
        for number, value in enumerate(values):
            key = 1000 * seed + 100 * place + number
            put_film(folder / "data" / split / label / f"person{key}_virus_1.png", value, key)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Bright films at 0.9, 0.42 (undetermined), 0.2 (missed); dull ones at 0.1, 0.2, 0.6."""
    films(tmp_path, "test", {"bright": [0.9, 0.42, 0.2], "dull": [0.1, 0.2, 0.6]})
    return tmp_path


def report(done: Finished) -> dict[str, Any]:
    return json.loads(as_json(report_mapping(done.evaluation, done.split, done.known)))


def page(done: Finished) -> str:
    return html_page(done.evaluation, done.split, done.known)


def test_every_image_is_counted_where_it_belongs(folder):
    label = evaluated(folder).evaluation.labels[0]

    positive, negative = label.confusion.positive, label.confusion.negative
    assert (positive.present, positive.undetermined, positive.absent) == (1, 1, 1)
    assert (negative.present, negative.undetermined, negative.absent) == (1, 0, 2)
    assert label.figures["sensitivity"].value == pytest.approx(1 / 3)
    assert label.figures["specificity"].value == pytest.approx(2 / 3)


def test_open_answers_are_counted_in_three_ways(folder):
    by_threshold, decided, worst = evaluated(folder).evaluation.labels[0].readings

    assert (by_threshold.images, decided.images, worst.images) == (6, 5, 6)
    assert by_threshold.figures["accuracy"].value == pytest.approx(3 / 6)
    assert decided.figures["sensitivity"].value == pytest.approx(1 / 2)
    assert worst.figures["sensitivity"].value == pytest.approx(1 / 3)


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """DICOM films: two judged, one outside the contract, one of another modality, one cut short."""
    place = tmp_path / "data" / "test"
    put_dicom(place / "bright" / "in.dcm", grey(0.9, 1), PatientAge="030Y", PatientSex="F")
    put_dicom(place / "bright" / "old.dcm", grey(0.9, 2), PatientAge="090Y")
    put_dicom(place / "bright" / "mr.dcm", grey(0.9, 3), PatientAge="030Y", Modality="MR")
    put_dicom(place / "dull" / "in2.dcm", grey(0.1, 4), PatientAge="040Y", PatientSex="M")
    cut = put_dicom(place / "dull" / "cut.dcm", grey(0.1, 5), PatientAge="030Y")
    cut.write_bytes(cut.read_bytes()[:-500])
    return tmp_path


def test_refusals_and_images_not_selected_are_no_negatives_and_are_listed(hospital, tmp_path):
    made = package(
        hospital,
        where={"attribute": "Modality", "equals": "CR"},
        contract=[{"text": "Adults.", "require": {"attribute": "age_years", "range": {"max": 65}}}],
    )
    wishes = Wishes(frozenset({CheckValues.TRUNCATED}))

    done = evaluated(hospital, made=made, wishes=wishes)

    found = done.evaluation
    assert (found.outcomes.scored, found.outcomes.refused, found.outcomes.not_selected) == (2, 2, 1)
    positive, negative = found.labels[0].confusion.positive, found.labels[0].confusion.negative
    assert (positive.present, positive.refused, positive.not_selected) == (1, 1, 1)
    assert (negative.absent, negative.refused) == (1, 1)
    worst = found.labels[0].readings[-1]
    assert worst.figures["sensitivity"].value == pytest.approx(1 / 3)
    assert [len(one.scores) for one in done.split.scored] == [1, 0, 0, 0, 1]
    listed = report(done)["without_score"]
    assert [(one["image"], one["outcome"], one["reason"]) for one in listed] == [
        ("test/bright/mr.dcm", "not selected", ""),
        ("test/bright/old.dcm", "refused", "outside the model's input contract"),
        ("test/dull/cut.dcm", "refused", "cannot decode"),
    ]
    shown = page(done)
    assert "2 of 5 images were refused and 1 not selected" in shown
    assert "truncated" in shown
    assert str(hospital) not in shown + json.dumps(listed)


def test_data_that_fail_the_gate_are_not_evaluated(hospital):
    with pytest.raises(DataGateFault, match="truncated"):
        evaluated(hospital)


def test_films_without_a_header_are_said_to_lack_the_contract(folder, tmp_path):
    clauses = [
        {"text": "Adults.", "require": {"attribute": "age_years", "range": {"min": 18}}},
        {"text": "Large.", "require": {"attribute": "Rows", "range": {"min": 80}}},
    ]

    without_size = evaluated(folder, made=package(folder, contract=clauses[:1]))
    assert without_size.evaluation.outcomes.without_whole_contract == 6

    # What a film does tell, its size, is held to the contract.
    with pytest.raises(EvaluationFault, match=r"no score for any of 6 images.*Rows is 72"):
        evaluated(folder, made=package(folder, contract=clauses))


CHEST = {"any": [
    {"attribute": "BodyPartExamined", "in": ["CHEST", "THORAX"]},
    {"attribute": "StudyDescription", "regex": ".*chest.*"},
]}  # fmt: skip
ADULTS = [{"text": "Adults.", "require": {"attribute": "age_years", "range": {"min": 18}}}]


@pytest.fixture
def emptied(tmp_path: Path) -> Path:
    """Films from whose headers age and body part were removed, but for two that state others."""
    place = tmp_path / "data" / "test"
    put_dicom(place / "bright" / "1.dcm", grey(0.9, 1))
    put_dicom(place / "bright" / "child.dcm", grey(0.9, 2), PatientAge="004Y")
    put_dicom(place / "dull" / "2.dcm", grey(0.1, 3))
    put_dicom(place / "dull" / "hand.dcm", grey(0.1, 4), BodyPartExamined="HAND",
              StudyDescription="Hand", PatientAge="030Y")  # fmt: skip
    return tmp_path


def test_emptied_headers_are_judged_by_what_they_still_state_if_that_is_asked_for(emptied):
    made = package(emptied, where=CHEST, contract=ADULTS)

    done = evaluated(emptied, made=made, wishes=Wishes(deidentified=True))

    said = {one.image.name.rpartition("/")[2]: one.outcome for one in done.split.scored}
    assert said == {
        "1.dcm": "scored", "child.dcm": "refused", "2.dcm": "scored", "hand.dcm": "not selected"
    }  # fmt: skip
    assert done.evaluation.outcomes.without_whole_contract == 2
    assert "could not be judged whole for them" in page(done)


def test_emptied_headers_refuse_otherwise_and_the_way_out_is_named(emptied):
    made = package(emptied, where={"attribute": "Modality", "equals": "CR"}, contract=ADULTS)
    for film in ("bright/child.dcm", "dull/hand.dcm"):
        (emptied / "data" / "test" / film).unlink()

    with pytest.raises(EvaluationFault, match=r"age_years is absent.*--deidentified"):
        evaluated(emptied, made=made)


def test_film_that_cannot_be_decoded_is_refused_by_its_name_in_the_data_set(folder):
    broken = put_film(folder / "data" / "test" / "bright" / "broken.jpeg", 0.9, 99)
    broken.write_bytes(broken.read_bytes()[:40] + b"\xff\xd9")
    wishes = Wishes(frozenset({CheckValues.TRUNCATED, CheckValues.UNREADABLE}))

    (one,) = report(evaluated(folder, wishes=wishes))["without_score"]

    assert (one["image"], one["reason"]) == ("test/bright/broken.jpeg", "cannot decode")
    assert one["sentence"].startswith("test/bright/broken.jpeg ")


def test_digest_of_the_data_depends_on_contents_and_not_on_their_order(folder):
    with open_dataset(folder / "data") as dataset:
        inspected = inspect_images(dataset.images)

    assert data_digest(inspected) == data_digest(reversed(inspected))
    assert data_digest(inspected) != data_digest(inspected[1:])


class Moody(MeanPredictor):
    """Gives NaN for very bright images, as damaged weights would."""

    def predict(self, batch):
        if (batch.mean(axis=(1, 2, 3)) > 0.85).any():
            raise UnusableOutput("output: NaN")
        return super().predict(batch)


def test_unusable_output_costs_no_other_image_its_score(folder):
    found = evaluated(folder, predictor=Moody()).evaluation

    assert (found.outcomes.scored, found.outcomes.refused) == (5, 1)
    assert found.outcomes.refusals_by_reason == {"software failure": 1}


def test_same_input_and_seed_give_the_same_bytes_in_another_folder(folder, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(folder / "data", moved)
    here, there = evaluated(folder, seed=3), evaluated(folder, moved, seed=3)

    assert as_json(report(here)) == as_json(report(there))
    assert page(here) == page(there)
    assert report(evaluated(folder, seed=4))["labels"] != report(here)["labels"]


class _Addresses(HTMLParser):
    """Gathers everything a browser would fetch or run, and the tags left open."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.fetched += [v for k, v in attrs if k in ("src", "href", "data", "srcset", "action")]
        self.fetched += [tag] if tag in ("script", "link", "iframe", "object") else []
        if tag not in ("meta", "img", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag == "rect" or self.open.pop() == tag


def test_page_needs_nothing_else(folder):
    text = page(evaluated(folder))
    found = _Addresses()
    found.feed(text)

    assert found.fetched
    assert all(address.startswith("data:image/svg+xml;base64,") for address in found.fetched)
    assert found.open == []
    assert "url(" not in text
    assert "@import" not in text
    assert all('alt="' in image for image in re.findall(r"<img [^>]*>", text))


def test_words_of_data_and_package_are_escaped_on_the_page(tmp_path):
    films(tmp_path, "test", {"bright": [0.9, 0.2], "<b>dull": [0.1, 0.2]})
    made = package(tmp_path, changes={"limits": ["<script>alert(1)</script>"]})

    text = page(evaluated(tmp_path, made=made))

    assert "<script" not in text
    assert "<b>dull" not in text
    assert "&lt;b&gt;dull" in text


def check(value: Any, schema: dict[str, Any], place: str = "report") -> None:
    """Hold a value to the part of JSON Schema that the report's schema uses."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    assert schema["description"], place
    if "enum" in schema:
        assert value in schema["enum"], place
        return
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
    wanted = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    fits = [
        value is None
        if kind == "null"
        else isinstance(value, int | float) and not isinstance(value, bool)
        if kind == "number"
        else isinstance(value, kinds[kind])
        for kind in wanted
    ]
    assert any(fits), f"{place}: {value!r} is no {wanted}"
    if isinstance(value, dict):
        known, further = schema.get("properties", {}), schema["additionalProperties"]
        assert set(schema.get("required", ())) <= set(value), place
        for name, item in value.items():
            assert name in known or further, f"{place}.{name} is not in the schema"
            check(item, known.get(name, further), f"{place}.{name}")
    if isinstance(value, list):
        for number, item in enumerate(value):
            check(item, schema["items"], f"{place}[{number}]")


def test_report_of_one_label_keeps_its_schema_with_everything_asked_for(folder, tmp_path):
    films(folder, "validation", {"bright": [0.9, 0.6, 0.3], "dull": [0.1, 0.2, 0.7]}, seed=5)
    done = evaluated(
        folder, split=SplitValues.VALIDATION, rule=parse_rule("youden"),
        wishes=Wishes(fit_calibration=True),
    )  # fmt: skip

    found = report(done)

    check(found, SCHEMA)
    assert found["kind"] == "binary"
    assert found["labels"][0]["chosen"]["rule"].startswith("the threshold with the largest sum")


def test_report_is_understood_by_whoever_admits_the_model(folder, tmp_path):
    done = evaluated(folder)
    done.write(tmp_path / "out")

    read = read_evaluation_report(tmp_path / "out" / "report.json")

    assert contradictions(read, done.known.package) == []
    assert (read.split, read.images, read.patients) == ("test", 6, 6)
    assert (read.output_kind, read.labels[0].index) == ("logit", 0)
    figure, measured = (
        label.figures["roc_auc"] for label in (read.labels[0], done.evaluation.labels[0])
    )
    assert (figure.value, figure.low) == pytest.approx((measured.value, measured.low))


def test_independent_labels_are_measured_each_by_itself(tmp_path):
    data = tmp_path / "images.csv"
    lines = ["path,labels,split"]
    for number, (value, labels) in enumerate(
        [
            (0.9, "Bright"),
            (0.8, "Bright"),
            (0.1, "Dark"),
            (0.2, "Dark"),
            (0.5, "Bright;Dark"),
            (0.45, "none"),
        ]
    ):
        put_film(tmp_path / f"{number}.png", value, number)
        lines.append(f"{number}.png,{labels},test")
    data.write_text("\n".join(lines))
    made = package(tmp_path, labels=(BRIGHT, DARK))

    done = evaluated(tmp_path, data, made=made, predictor=MeanPredictor((8, -4), (-8, 4)))

    found = report(done)
    check(found, SCHEMA)
    assert found["kind"] == "multi-label"
    bright, dark = (label["figures"]["roc_auc"]["value"] for label in found["labels"])
    # The dull film that is Dark as well ranks above the one that is neither; for Dark below it.
    assert (bright, dark) == (1.0, pytest.approx(8 / 9))
    mean = found["averages"]["roc_auc"]
    assert mean["value"] == pytest.approx((1 + 8 / 9) / 2)
    # Rounds know no other area of the one whose classes do not overlap: its exact end counts.
    ends = [label["figures"]["roc_auc"]["low"] for label in found["labels"]]
    assert ends[0] ** 3 == pytest.approx(0.025)
    assert mean["low"] == pytest.approx(sum(ends) / 2)
    assert found["matrix"] is None


def test_labels_that_exclude_each_other_get_a_matrix(tmp_path):
    films(tmp_path, "test", {"Bright": [0.9, 0.8, 0.3], "Dark": [0.1, 0.2, 0.15]})
    made = package(tmp_path, labels=(BRIGHT, DARK), output="softmax")

    done = evaluated(tmp_path, made=made, predictor=MeanPredictor((8, -4), (-8, 4)))

    found = report(done)
    check(found, SCHEMA)
    assert found["kind"] == "multi-class"
    assert found["matrix"]["names"] == ["Bright", "Dark"]
    assert found["matrix"]["counts"] == [[2, 1], [0, 3]]
    assert found["matrix"]["accuracy"]["value"] == pytest.approx(5 / 6, abs=1e-9)
    assert "Class against class" in page(done)


def test_image_with_several_labels_contradicts_labels_that_exclude_each_other(tmp_path):
    lines = ["path,labels,split", "0.png,Bright;Dark,test", "1.png,Dark,test"]
    for number in range(2):
        put_film(tmp_path / f"{number}.png", 0.5, number)
    (tmp_path / "images.csv").write_text("\n".join(lines))
    made = package(tmp_path, labels=(BRIGHT, DARK), output="softmax")

    with pytest.raises(EvaluationFault, match="1 image has several labels"):
        evaluated(tmp_path, tmp_path / "images.csv", made=made)


def test_volume_is_a_folder_of_slices_and_counts_as_one(tmp_path):
    # Given four series of six slices, each series brighter or darker than one half,
    uids = (f"1.2.826.0.1.3680043.8.498.{number}" for number in range(100))
    for number, (label, value) in enumerate(
        [("bright", 0.8), ("bright", 0.7), ("dull", 0.2), ("dull", 0.3)]
    ):
        series = {
            "PatientID": f"P{number}", "Modality": "CT", "PixelSpacing": [1.0, 1.0],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "SeriesInstanceUID": next(uids),
            "SOPClassUID": CTImageStorage, "FrameOfReferenceUID": next(uids),
        }  # fmt: skip
        for place in range(6):
            put_dicom(
                tmp_path / "data" / "test" / label / f"s{number}" / f"{place}.dcm",
                grey(value, 10 * number + place),
                ImagePositionPatient=[0, 0, 2.0 * place],
                **series,
            )

    # when a package for volumes is measured, then each series has one score.
    done = evaluated(tmp_path, made=package(tmp_path, kind="volume", slices=None))

    outcomes = done.evaluation.outcomes
    assert (outcomes.images, outcomes.patients, outcomes.scored) == (4, 4, 4)
    assert done.evaluation.labels[0].figures["accuracy"].value == 1.0


def test_class_with_another_name_is_said_to_mean_a_label(tmp_path):
    films(tmp_path, "test", {"shiny": [0.9, 0.8], "dull": [0.1, 0.2]})

    with pytest.raises(EvaluationFault, match=r"no image has the label Bright.*--class"):
        evaluated(tmp_path)
    done = evaluated(tmp_path, wishes=Wishes(renamed={"shiny": "Bright"}))

    assert done.evaluation.classes.label_of == {"shiny": "Bright"}
    assert done.evaluation.classes.negatives == ("dull",)
    assert done.evaluation.labels[0].figures["accuracy"].value == 1.0


@pytest.mark.parametrize(
    ("renamed", "words"),
    [({"shine": "Bright"}, "no class shine"), ({"bright": "Brite"}, "no label Brite")],
)
def test_unknown_name_in_a_renaming_is_refused(folder, renamed, words):
    with pytest.raises(EvaluationFault, match=words):
        evaluated(folder, wishes=Wishes(renamed=renamed))


def test_split_that_the_data_lack_is_named(folder):
    with pytest.raises(EvaluationFault, match=r"no split validation; there is test"):
        evaluated(folder, split=SplitValues.VALIDATION)


class NeverLoaded(MeanPredictor):
    """Fails as soon as somebody means to use it."""

    def load(self):
        raise AssertionError("loaded")


def test_threshold_is_refused_on_the_test_split_before_anything_is_loaded(folder):
    with pytest.raises(EvaluationFault, match="on validation only"):
        evaluated(folder, predictor=NeverLoaded(), rule=parse_rule("youden"))


def test_calibration_is_fitted_on_validation_and_never_touches_the_package(folder, tmp_path):
    films(folder, "validation", {"bright": [0.9, 0.6, 0.3], "dull": [0.1, 0.2, 0.7]}, seed=5)
    made = package(folder)
    before = {path: path.read_bytes() for path in made.folder.iterdir()}

    evaluated(folder, made=made, wishes=Wishes(fit_calibration=True)).write(tmp_path / "out")

    fitted = json.loads((tmp_path / "out" / "calibration.json").read_text(encoding="utf-8"))
    methods = [one["method"] for one in fitted["labels"][0]["fits"]]
    assert methods == ["temperature", "platt"]
    assert all(one["fitted_on"] == "6 validation images" for one in fitted["labels"][0]["fits"])
    assert {path: path.read_bytes() for path in made.folder.iterdir()} == before


def test_class_that_only_validation_has_is_matched_and_never_negative_in_silence(folder):
    # Given validation images of a class that the evaluated split does not have,
    films(folder, "validation", {"shiny": [0.9, 0.6, 0.3], "dull": [0.1, 0.2, 0.7]}, seed=5)

    allowed = frozenset({CheckValues.BALANCE})
    films(folder, "validation", {"bright": [0.8]}, seed=6)

    # when nothing says what it means, then it is said to count as negative,
    unnamed = evaluated(folder, wishes=Wishes(allowed, fit_calibration=True))
    assert unnamed.evaluation.classes.negatives == ("dull", "shiny")

    # and when it is named, it is what the scaling is fitted to.
    named = evaluated(folder, wishes=Wishes(allowed, {"shiny": "Bright"}, fit_calibration=True))
    assert named.evaluation.classes.negatives == ("dull",)
    without, by_name = (done.evaluation.labels[0].scaled for done in (unnamed, named))
    assert by_name[-1].scaling.apply(np.array([0.5])) > without[-1].scaling.apply(np.array([0.5]))


def test_label_that_only_validation_has_is_not_measured(tmp_path):
    films(tmp_path, "test", {"dull": [0.1, 0.2, 0.6]})
    films(tmp_path, "validation", {"bright": [0.9, 0.6], "dull": [0.15, 0.3]}, seed=5)

    with pytest.raises(EvaluationFault, match="no image has the label Bright"):
        evaluated(tmp_path, wishes=Wishes(frozenset({CheckValues.BALANCE}), fit_calibration=True))


def test_files_hold_report_page_and_every_image_and_nothing_that_was_not_asked_for(
    folder, tmp_path
):
    files = evaluated(folder).write(tmp_path / "out")

    assert sorted((tmp_path / "out").iterdir()) == sorted(files)
    assert {path.name for path in files} == {"report.html", "report.json", "scores.csv"}
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "scores.csv").read_text())))
    assert len(lines) == 6
    assert [line["Bright finding"] for line in lines].count(str(PresenceValues.UNDETERMINED)) == 1
    assert {line["Bright true"] for line in lines} == {"0", "1"}


def test_folder_that_cannot_be_written_to_is_named(folder, tmp_path):
    (tmp_path / "taken").write_text("a file")

    with pytest.raises(EvaluationFault, match=r"cannot be written to .*taken.*--out"):
        evaluated(folder).write(tmp_path / "taken")


def subgroup_data(tmp_path: Path, rows: list[tuple[float, str, str]]) -> Path:
    lines = ["path,labels,split,patient,sex,age"]
    for number, (value, label, sex) in enumerate(rows):
        put_film(tmp_path / f"{number}.png", value, number)
        lines.append(f"{number}.png,{label},test,p{number},{sex},{20 + number % 30}")
    data = tmp_path / "images.csv"
    data.write_text("\n".join(lines))
    return data


def test_gap_between_subgroups_is_flagged_and_small_groups_are_called_too_few(tmp_path):
    # Given women of whom all are found, men of whom half are missed, and three others,
    rows = [(0.9, "bright", "F")] * 10 + [(0.1, "dull", "F")] * 10
    rows += [(0.9, "bright", "M")] * 5 + [(0.1, "bright", "M")] * 5 + [(0.1, "dull", "M")] * 10
    rows += [(0.9, "bright", "O")] * 3

    done = evaluated(tmp_path, subgroup_data(tmp_path, rows), subgroups=("sex",))

    (part,) = done.evaluation.labels[0].subgroups
    women, men, others = part.groups
    assert (women.figures["sensitivity"].value, men.figures["sensitivity"].value) == (1.0, 0.5)
    assert others.figures == {}
    assert "sensitivity: too few, 3 of at least 10 patients" in others.too_few
    gap = next(gap for gap in part.gaps if gap.figure == "sensitivity")
    assert (gap.best, gap.worst, gap.gap) == ("F", "M", 0.5)
    assert gap.is_beyond_limit
    assert not gap.may_be_chance
    same = next(gap for gap in part.gaps if gap.figure == "specificity")
    assert (same.gap, same.is_beyond_limit) == (0.0, False)
    assert {same.best, same.worst} == {"F", "M"}
    text = page(done)
    assert "gap beyond the limit" in text
    assert "too few" in text


def test_subgroups_that_are_known_are_shown_without_being_asked_for(tmp_path):
    rows = [(0.9, "bright", "F"), (0.1, "dull", "M"), (0.8, "bright", ""), (0.2, "dull", "F")]

    done = evaluated(tmp_path, subgroup_data(tmp_path, rows))

    columns = {part.column: part.groups for part in done.evaluation.labels[0].subgroups}
    assert set(columns) == {"sex", "age"}
    assert [group.value for group in columns["sex"]] == ["F", "M", "unknown"]
    assert [group.value for group in columns["age"]] == ["18-39"]


def test_header_tells_sex_age_and_manufacturer(hospital):
    for number, path in enumerate(sorted((hospital / "data").rglob("*.dcm"))):
        put_dicom(path, grey(0.1 * number, number), PatientAge="004Y", PatientSex="F",
                  Manufacturer="ACME")  # fmt: skip

    done = evaluated(hospital)

    found = values_by_column(done.split.scored, ())
    assert {name: set(values) for name, values in found.items()} == {
        "sex": {"F"}, "age": {"1-5"}, "manufacturer": {"ACME"},
    }  # fmt: skip


def test_column_that_nobody_has_is_refused(tmp_path):
    rows = [(0.9, "bright", "F"), (0.1, "dull", "M")]

    with pytest.raises(EvaluationFault, match="subgroup scanner: no image has it"):
        evaluated(tmp_path, subgroup_data(tmp_path, rows), subgroups=("scanner",))


def test_many_numbers_are_banded_by_quarters_and_many_names_joined(tmp_path):
    lines = ["path,labels,split,dose,site"]
    for number in range(16):
        put_film(tmp_path / f"{number}.png", 0.9 if number % 2 else 0.1, number)
        label = "bright" if number % 2 else "dull"
        lines.append(f"{number}.png,{label},test,{number / 2},site {number if number > 4 else 0}")
    data = tmp_path / "images.csv"
    data.write_text("\n".join(lines))

    done = evaluated(tmp_path, data, subgroups=("dose", "site"))

    dose, site = done.evaluation.labels[0].subgroups
    assert [group.images for group in dose.groups] == [4, 4, 4, 4]
    assert len(site.groups) == 12
    assert sum(group.images for group in site.groups) == 16


def test_numbers_that_differ_late_stay_apart_and_those_that_are_none_are_unknown(tmp_path):
    lines = ["path,labels,split,accession"]
    said = ["nan", "inf", *(str(20_260_100 + number) for number in range(16))]
    for number, value in enumerate(said):
        put_film(tmp_path / f"{number}.png", 0.9 if number % 2 else 0.1, number)
        lines.append(f"{number}.png,{'bright' if number % 2 else 'dull'},test,{value}")
    data = tmp_path / "images.csv"
    data.write_text("\n".join(lines))

    done = evaluated(tmp_path, data, subgroups=("accession",))

    (accession,) = done.evaluation.labels[0].subgroups
    assert {group.value: group.images for group in accession.groups} == {
        "20260100 to 20260104": 4, "20260104 to 20260108": 4, "20260108 to 20260111": 4,
        "20260111 to 20260115": 4, "unknown": 2,
    }  # fmt: skip


def test_patients_are_drawn_as_one_and_unknown_ones_are_said(tmp_path):
    lines = ["path,labels,split,patient"]
    for number in range(8):
        put_film(tmp_path / f"{number}.png", 0.9 if number % 2 else 0.1, number)
        label = "bright" if number % 2 else "dull"
        lines.append(f"{number}.png,{label},test,{'p' if number < 4 else ''}")
    data = tmp_path / "images.csv"
    data.write_text("\n".join(lines))

    done = evaluated(tmp_path, data)

    outcomes = done.evaluation.outcomes
    assert (outcomes.patients, outcomes.images_without_patient) == (5, 4)
    assert done.evaluation.labels[0].figures["accuracy"].patients == 5
    assert np.unique(done.split.clusters).size == 5
