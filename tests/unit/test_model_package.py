"""A package folder keeps its manifest's word, or every broken promise is named at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_io.errors import RefusalReason
from model.errors import PackageFault
from model.labels import OutputKindValues
from model.package import ModelPackage, load_package
from model.selection_rules import OrderValues
from tests.tiny_models import BRIGHT, DARK, TinyLabel, write_package

LABEL = {"name": "Bright", "code": ["TINY-1", "99MEDIMGD", "Bright image"], "threshold": 0.5}


def loaded(folder: Path, **options: object) -> ModelPackage:
    write_package(folder, weights=b"weights", **options)  # type: ignore[arg-type]
    return load_package(folder)


def faults_of(folder: Path, **changes: object) -> tuple[str, ...]:
    write_package(folder, weights=b"weights", changes=changes)
    with pytest.raises(PackageFault) as caught:
        load_package(folder)
    return caught.value.faults


def test_every_field_of_the_manifest_is_read(tmp_path):
    band = TinyLabel("Dim", 1.0, 0.0, ("TINY-3", "99MEDIMGD", "Dim image"), 0.4, (0.2, 0.6))
    package = loaded(
        tmp_path / "p",
        name="ct-brightness",
        version="2.1.0-rc1",
        kind="volume",
        slices=4,
        output="softmax",
        labels=(BRIGHT, band),
        rank=[
            {"prefer": {"attribute": "ConvolutionKernel", "regex": "B.*"}},
            {"attribute": "instance_count", "order": "descending"},
        ],
        contract=[
            {
                "text": "Thick slices hide what the model looks for.",
                "reason": "unsuitable geometry",
                "require": {"attribute": "SliceThickness", "range": {"max": 3}},
            }
        ],
    )

    assert package.at_version == "ct-brightness@2.1.0-rc1"
    assert package.identity.demonstration
    assert package.recipe.shape == (4, 16, 16, 1)
    assert package.preprocessing_digest == package.recipe.digest
    assert package.output.kind is OutputKindValues.SOFTMAX
    assert [label.index for label in package.labels] == [0, 1]
    assert (package.labels[0].undetermined_low, package.labels[0].undetermined_high) == (0.5, 0.5)
    assert (package.labels[1].undetermined_low, package.labels[1].undetermined_high) == (0.2, 0.6)
    assert package.selection.rank[1].order is OrderValues.DESCENDING
    assert package.contract[0].reason is RefusalReason.GEOMETRY
    assert package.keywords == {
        "Modality", "ConvolutionKernel", "instance_count", "SliceThickness",
    }  # fmt: skip


def test_site_is_optional_and_read_when_given(tmp_path):
    site = ["39607008", "SCT", "Lung"]
    package = loaded(tmp_path / "p", changes={"labels": [{**LABEL, "site": site}]})

    assert package.labels[0].site is not None
    assert package.labels[0].site.meaning == "Lung"


def test_softmax_may_have_classes_nobody_reports(tmp_path):
    package = loaded(
        tmp_path / "p",
        output="softmax",
        changes={"output": {"size": 3}, "labels": [{**LABEL, "index": 2}]},
    )

    assert package.output.size == 3
    assert package.labels[0].index == 2


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"format": 2}, "format: must be a whole number between 1 and 1; received 2"),
        ({"name": None}, "name: must be lower case letters"),
        ({"name": "Bad Name"}, "received 'Bad Name'"),
        ({"name": "../escape"}, "name: must be lower case letters"),
        ({"version": "1"}, "version: must be a version such as 1.0.0"),
        ({"title": "x" * 65}, "title: must be one line of at most 64 characters"),
        ({"intended_use": " "}, "intended_use: must be text that is not empty"),
        ({"demonstration": "yes"}, "demonstration: must be true or false; received 'yes'"),
        ({"limits": "none"}, "limits: must be a list of texts"),
        ({"weights": {"file": "../weights.keras"}}, "weights.file: must be a plain file name"),
        ({"weights": {"file": "other.keras"}}, "weights.file: there is no such file"),
        ({"weights": {"sha256": "0" * 64}}, "the file was changed or copied badly"),
        ({"weights": {"sha256": "abc"}}, "weights.sha256: must be 64 hexadecimal digits"),
        ({"weights": {"runtime": "torch"}}, "weights.runtime: must be one of keras"),
        ({"weights": 5}, "weights: must be a table; received 5"),
        ({"output": {"kind": "score"}}, "output.kind: must be one of probability, logit, softmax"),
        ({"output": {"size": 0}}, "output.size: must be a whole number"),
        ({"output": {"kind": "softmax"}}, "output.size: softmax needs at least two outputs"),
        ({"input": {"rows": 0}}, "input: rows must be a whole number"),
        ({"input": {"colour": True}}, "unknown colour"),
        ({"input": None}, "input: must be a table; received nothing"),
        ({"preprocessing_digest": "0" * 64}, "trained on other pixels than it would be shown"),
        ({"selection": {"where": None}}, "selection.where: must be a table, received None"),
        ({"selection": {"rank": [{"attribute": "SliceThicknes"}]}}, "must be a DICOM keyword"),
        ({"selection": {"rank": [{"attribute": "Rows", "order": "up"}]}}, "must be one of asc"),
        ({"contract": [{"require": {"attribute": "Rows", "exists": True}}]}, "contract[0].text"),
        ({"contract": [{"text": "x"}]}, "contract[0].require: must be a table"),
        ({"contract": [{"text": "x", "reason": "bad"}]}, "contract[0].reason: must be one of"),
        ({"labels": []}, "labels: must be a list of tables, one at least"),
        ({"labels": [{**LABEL, "threshold": 1.5}]}, "threshold: must be a number between 0 and 1"),
        ({"labels": [{**LABEL, "undetermined": [0.6, 0.7]}]}, "threshold 0.5 between them"),
        ({"labels": [{**LABEL, "code": ["1", "SCT"]}]}, 'must be ["code value"'),
        ({"labels": [{**LABEL, "code": ["1", "S" * 17, "x"]}]}, 'must be ["code value"'),
        ({"labels": [{**LABEL, "index": 1}]}, "index: must be a whole number between 0 and 0"),
        ({"labels": [LABEL, LABEL]}, "labels: name must differ, twice is bright"),
        ({"thresold": 0.5}, "thresold: unknown field"),
    ],
)
def test_wrong_field_is_named_with_its_rule(tmp_path, changes, fault):
    assert any(fault in found for found in faults_of(tmp_path / "p", **changes))


def test_all_faults_are_named_at_once(tmp_path):
    faults = faults_of(
        tmp_path / "p",
        name="Bad Name",
        preprocessing_digest="0" * 64,
        weights={"sha256": "0" * 64},
        labels=[{**LABEL, "threshold": "half"}],
    )

    assert [fault.split(":")[0] for fault in faults] == [
        "weights.sha256", "name", "labels[0].threshold", "preprocessing_digest",
    ]  # fmt: skip


def test_weights_changed_after_packing_are_noticed(tmp_path):
    model = write_package(tmp_path / "p", weights=b"weights")
    (model.folder / "weights.keras").write_bytes(b"weightz")

    with pytest.raises(PackageFault, match=r"weights\.sha256"):
        load_package(model.folder)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"name = ", "is not TOML"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"a = " + b"[" * 5000, "manifest.toml: is n"),
        (b"x" * 1_000_001, "larger than"),
    ],
)
def test_manifest_that_cannot_be_read_is_one_fault(tmp_path, content, fault):
    (tmp_path / "manifest.toml").write_bytes(content)

    with pytest.raises(PackageFault, match=fault):
        load_package(tmp_path)


def test_folder_without_manifest_is_one_fault(tmp_path):
    with pytest.raises(PackageFault, match=r"manifest\.toml: cannot be read: No such file"):
        load_package(tmp_path / "nowhere")


def test_two_labels_may_not_share_an_output(tmp_path):
    labels = [{**LABEL, "index": 0}, {**LABEL, "name": "B", "code": ["b", "X", "y"], "index": 0}]

    faults = faults_of(tmp_path / "p", labels=labels, output={"size": 2})

    assert faults == ("labels: index must differ, twice is 0",)


def test_package_of_two_labels_is_sound(tmp_path):
    assert [label.name for label in loaded(tmp_path / "p", labels=(BRIGHT, DARK)).labels] == [
        "Bright",
        "Dark",
    ]
