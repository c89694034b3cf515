"""A training's configuration: read whole, refused whole, and the same for the same words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from model.catalogue import BUNDLED_FOLDER
from model.errors import TrainingPlanFault
from model.package import load_package
from model.training.dataset import Dataset, LabelledImage, PatientSourceValues, SplitValues
from model.training.gate_report import CheckValues
from model.training.heads import HeadValues
from model.training.plan import TrainingPlan, read_plan
from model.training.plan_data import with_patients
from model.training.plan_fit import DrawingValues, FoldUseValues
from model.training.run_config import write_config as write_config_of_run
from model.training.run_folder import RunFolder
from tests.tiny_training import CONFIG, changed, write_config

BUNDLED = Path(__file__).resolve().parents[2] / "model" / "training" / "configs"
THREE = [
    {"name": name.title(), "class": name, "code": [str(number), "99T", name]}
    for number, name in enumerate(("DARK", "MIDDLE", "BRIGHT"))
]


def plan_of(folder: Path, **tables: object) -> TrainingPlan:
    return read_plan(write_config(folder, changed(**tables)))  # type: ignore[arg-type]


def faults_of(folder: Path, values: dict[str, object]) -> tuple[str, ...]:
    with pytest.raises(TrainingPlanFault) as caught:
        read_plan(write_config(folder, values))
    return caught.value.faults


@pytest.mark.parametrize("path", sorted(BUNDLED.glob("*.toml")), ids=lambda path: path.stem)
def test_every_configuration_that_is_shipped_can_be_carried_out(path):
    plan = read_plan(path)

    assert plan.words.name == path.stem
    assert plan.outputs >= 1


def test_configuration_of_the_films_holds_its_recipe():
    plan = read_plan(BUNDLED / "cxr-pneumonia.toml")

    assert (plan.members, plan.fit.epochs, plan.fit.batch_size) == (3, 22, 32)
    assert (plan.network.dropout, plan.head.label_smoothing) == (0.4, 0.05)
    assert plan.fit.drawing is DrawingValues.BALANCED
    assert plan.fit.judged_share == 0.4
    assert plan.optimiser.as_mapping() == {
        "name": "adamw", "schedule": "one-cycle", "learning_rate": 0.002, "warmup_epochs": 1.0,
        "weight_decay": 0.02, "clip_norm": 1.0,
    }  # fmt: skip
    assert plan.augmentation.mixup_alpha == 0.2
    assert plan.calibration is not None
    assert (plan.calibration.highest_scale, plan.calibration.is_balanced) == (2.0, True)
    assert (plan.threshold.rule, plan.threshold.band) == ("sensitivity=0.96", "sensitivity=0.985")


@pytest.mark.parametrize("folder", sorted(BUNDLED_FOLDER.iterdir()), ids=lambda path: path.name)
def test_every_bundled_package_was_trained_by_the_configuration_that_is_shipped(folder):
    package = load_package(folder)

    plan = read_plan(BUNDLED / f"{package.identity.name}.toml")

    assert package.training["configuration_sha256"] == plan.digest
    assert package.at_version == f"{plan.words.name}@{plan.words.version}"


@pytest.mark.parametrize("path", sorted(BUNDLED.glob("*.toml")), ids=lambda path: path.stem)
def test_configuration_in_a_run_folder_is_the_same_with_options_and_readme(path, tmp_path):
    plan = read_plan(path).with_options(epochs=3, seed=7)

    write_config_of_run(plan, tmp_path / "films.zip", RunFolder(tmp_path / "run"))

    again = read_plan(tmp_path / "run" / "config.toml")
    assert again.digest == plan.digest != read_plan(path).digest
    assert (again.fit, again.network, again.copied) == (plan.fit, plan.network, plan.copied)
    assert again.data.source == tmp_path / "films.zip"
    assert again.words.readme is not None
    assert again.words.readme.parent == tmp_path / "run"
    assert again.words.readme.read_bytes() == path.with_suffix(".md").read_bytes()


def test_file_of_a_backbone_counts_by_what_it_holds_and_not_by_its_place(tmp_path):
    network = {"kind": "application", "application": "MobileNetV2", "weights": "backbone.h5"}
    values = {**changed(data={"source": "films"}), "network": network}
    (tmp_path / "backbone.h5").write_bytes(b"some weights")
    plan = read_plan(write_config(tmp_path, values))
    digest = plan.digest

    write_config_of_run(plan, tmp_path / "films", RunFolder(tmp_path / "run"))
    again = read_plan(tmp_path / "run" / "config.toml")
    assert (again.digest, again.network.weights) == (digest, tmp_path / "backbone.h5")

    (tmp_path / "backbone.h5").write_bytes(b"other weights")
    assert again.digest == plan.digest != digest


def test_configuration_is_read_without_a_network_library(tmp_path):
    assert plan_of(tmp_path).outputs == 1
    code = (
        "import sys; from pathlib import Path; from model.training.plan import read_plan;"
        f"read_plan(Path({str(tmp_path / 'train.toml')!r}));"
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras', 'sklearn')))"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=BUNDLED.parents[2], check=False)
    assert done.returncode == 0


def test_every_fault_is_named_at_once_by_its_place(tmp_path):
    values = changed(
        package={"version": "one", "readme": "absent.md"},
        data={"allow": {"tiny": "", "hairy": "why not"}, "patients": ["(", "no group"]},
        input={"rows": 0},
        head={"kind": "ternary", "label_smoothing": 0.9},
        fit={"epochs": 0, "drawing": "by lot", "epocs": 3},
        folds={"count": 1},
        ensemble={"members": 0},
        calibration={"highest_scale": 0},
        threshold={"rule": "luck", "band": "sensitivity=2"},
        probes={"count": 99},
        selection={"where": {"attribute": "PatientName", "equals": "x"}},
        surprise={},
    )

    faults = "\n".join(faults_of(tmp_path, values))

    for place in (
        "package.version:", "package.readme:", "data.allow.tiny:", "data.allow.hairy:",
        "data.patients: '('", "data.patients: 'no group'", "input:", "head.kind:",
        "head.label_smoothing:", "fit.epochs:", "fit.drawing:", "fit.epocs: unknown field",
        "folds.count:", "ensemble.members:", "calibration.highest_scale:", "threshold.rule:",
        "threshold.band:", "probes.count:", "selection.where", "surprise: unknown field",
    ):  # fmt: skip
        assert place in faults, place


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"data": {"classes": ["DARK"]}}, "labels: there is no class BRIGHT in data.classes"),
        ({"data": {"classes": ["BRIGHT"]}, "head": {"class_weights": {"BRIGHT": 2.0}}},
         "head.class_weights: can be stated only where"),
        ({"data": {"classes": ["A", "A"]}}, "data.classes: must name the classes"),
        ({"ensemble": {"members": 2}, "folds": {"count": 3, "use": "ensemble"}},
         "ensemble.members: must be 1 where the folds are the ensemble"),
        ({"head": {"class_weights": {"DARK": 1.0}}}, "head.class_weights.BRIGHT: must be a number"),
        ({"head": {"class_weights": "heavy"}}, "head.class_weights: must be none, balanced or"),
        ({"regions": {"threshold": 0.5}}, "regions: need a network that says where"),
        ({"input_distribution": {"limit": 3}}, "input_distribution.limit: unknown field"),
        ({"package": {"limits": []}}, "package.limits: must name what the model is known not"),
        ({"network": {"application": "VGG16"}}, "network.application: unknown field"),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit_each_other_are_named(tmp_path, tables, words):
    assert any(words in fault for fault in faults_of(tmp_path, changed(**tables)))


def test_label_needs_one_way_to_name_its_classes(tmp_path):
    both = {"name": "B", "class": "BRIGHT", "classes": ["BRIGHT"], "code": ["1", "99T", "B"]}
    values = {**changed(), "labels": [both]}

    assert any("labels[0].class: must name" in fault for fault in faults_of(tmp_path, values))


def test_class_of_two_labels_is_refused(tmp_path):
    values = {**changed(head={"kind": "multi-label"}), "labels": [THREE[2], THREE[2]]}

    assert "labels: class BRIGHT belongs to several labels; name it once" in faults_of(
        tmp_path, values
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "bright"}, "labels: name must differ, twice is bright"),
        ({"code": THREE[2]["code"]}, "labels: code must differ, twice is 2 99T"),
    ],
)
def test_labels_that_could_be_taken_for_each_other_are_refused(tmp_path, changes, words):
    classes = {"classes": ["DARK", "MIDDLE", "BRIGHT"]}
    values = {**changed(data=classes, head={"kind": "multi-label"}),
              "labels": [{**THREE[1], **changes}, THREE[2]]}  # fmt: skip

    assert faults_of(tmp_path, values) == (words,)


def test_multi_class_head_answers_for_every_class_and_others_for_every_label(tmp_path):
    classes = {"classes": ["DARK", "MIDDLE", "BRIGHT"]}
    values = {**changed(data=classes, head={"kind": "multi-class"}), "labels": THREE[1:]}
    assert read_plan(write_config(tmp_path, values)).outputs == 3

    values["head"] = {"kind": "multi-label"}
    plan = read_plan(write_config(tmp_path, values))
    assert plan.outputs == 2
    assert plan.head.kind is HeadValues.MULTI_LABEL


def test_what_is_passed_over_keeps_its_reason(tmp_path):
    plan = plan_of(tmp_path, data={"allow": {"tiny": "Thumbnails are all there is."}})

    assert dict(plan.data.allowed) == {CheckValues.TINY: "Thumbnails are all there is."}


def test_folds_and_options_are_read(tmp_path):
    plan = plan_of(tmp_path, folds={"count": 3, "use": "ensemble"})
    assert plan.folds is not None
    assert (plan.folds.count, plan.folds.use) == (3, FoldUseValues.ENSEMBLE)

    other = plan.with_options(epochs=7, seed=8)
    assert (other.fit.epochs, other.fit.seed) == (7, 8)
    assert other.digest != plan.digest == plan.with_options().digest
    # Saying what the plan says already is no other training.
    same = plan.with_options(epochs=plan.fit.epochs, seed=plan.fit.seed)
    assert same.digest == plan.digest


def test_file_that_is_no_toml_is_refused(tmp_path):
    path = tmp_path / "train.toml"
    path.write_text("package = [", encoding="utf-8")

    with pytest.raises(TrainingPlanFault, match="is not TOML"):
        read_plan(path)


def image(name: str, patient: str, source: PatientSourceValues) -> LabelledImage:
    return LabelledImage(
        name, (Path(name),), SplitValues.TRAIN, frozenset({"DARK"}), patient, source
    )


def test_patients_in_names_fill_in_where_nobody_says_more():
    images = (
        image("train/DARK/p7_1.png", "", PatientSourceValues.UNKNOWN),
        image("train/DARK/x.png", "guess", PatientSourceValues.FILE_NAME),
        image("train/DARK/p8_1.dcm", "abc", PatientSourceValues.HEADER),
        image("train/DARK/p9_1.png", "stated", PatientSourceValues.MANIFEST),
    )

    found = with_patients(Dataset(images, ("DARK",)), [r"(p\d+)_"])

    assert [each.patient for each in found.images] == ["p7", "", "abc", "stated"]
    assert found.images[1].patient_source is PatientSourceValues.UNKNOWN
    assert with_patients(Dataset(images, ("DARK",)), []).images == images


def test_tiny_configuration_of_the_tests_is_right(tmp_path):
    assert read_plan(write_config(tmp_path, CONFIG)).words.at_version == "bright-0.1.0"
