"""Labelled sets made from the real CT and MR: what training and evaluation find in them."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

from dicom_io.tensors import TensorRecipe
from dicom_io.volume import assemble_volume
from model.errors import TrainingDataFault
from model.training.dataset import Dataset, SplitValues
from model.training.gate import check_data
from model.training.gate_report import CheckValues
from model.training.inspection import inspect_images
from model.training.run_tensors import tensors_of
from model.training.sources import open_dataset
from model.training.synthesis import __main__ as command
from model.training.synthesis.ct_nodule import RANGES, make_ct_nodule
from model.training.synthesis.mr_motion import ERRORS, SeverityValues, make_mr_motion

COUNTS = {"train": 4, "validation": 2, "test": 2}


@pytest.fixture(scope="module")
def nodules(unpacked, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "ct"
    return make_ct_nodule(unpacked("ct-chest-60"), out, 7, COUNTS)


@pytest.fixture(scope="module")
def motion(unpacked, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "mr"
    return make_mr_motion(unpacked("mr-head-t1-60"), out, 7, COUNTS)


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def volume_of(manifest: Path, row: dict[str, str]) -> np.ndarray:
    return assemble_volume(sorted((manifest.parent / row["path"]).iterdir())).values


def read(manifest: Path) -> Dataset:
    with open_dataset(manifest) as dataset:
        return dataset


@pytest.mark.parametrize(("which", "label"), [("nodules", "nodule"), ("motion", "motion")])
def test_the_gate_finds_one_thing_only_that_there_is_one_subject(which, label, request) -> None:
    dataset = read(request.getfixturevalue(which))

    report = check_data(dataset)

    assert label in dataset.classes
    assert [dataset.class_counts(split)[label] for split in SplitValues] == [2, 1, 1]
    assert {finding.check for finding in report.findings} == {CheckValues.PATIENTS}
    assert all(image.is_series and image.is_dicom for image in dataset.images)


def test_slabs_lie_in_the_slices_of_their_split(nodules: Path) -> None:
    for row in rows_of(nodules):
        first, last = (int(part) for part in row["slices"].split("-"))
        assert any(low <= first and last <= high for low, high in RANGES[row["split"]])
    used = [{n for low, high in ranges for n in range(low, high + 1)} for ranges in RANGES.values()]
    assert sum(map(len, used)) == len(set.union(*used)), "no slice is in two splits"
    assert not set.union(*used) & set(range(26, 37)), "the density of 25 mm is in none"


def test_a_nodule_is_all_that_tells_a_pair_apart(nodules: Path) -> None:
    rows = rows_of(nodules)
    for clear, with_them in zip(rows[::2], rows[1::2], strict=True):
        assert (clear["labels"], with_them["labels"]) == ("clear", "nodule")
        assert clear["background"] == with_them["background"]
        changed = np.abs(volume_of(nodules, with_them) - volume_of(nodules, clear)) > 150
        boxes = [[int(n) for n in box.split("/")] for box in with_them["boxes"].split()]
        assert len(boxes) == len(with_them["nodules"].split()) > 0
        for first, last, top, bottom, left, right in boxes:
            inside = (slice(first, last + 1), slice(top, bottom + 1), slice(left, right + 1))
            assert changed[inside].mean() > 0.3
            changed[first : last + 1, top - 5 : bottom + 6, left - 5 : right + 6] = False
        # Its poles may show in the slices beside its box.
        assert changed.mean() < 1e-4


def test_copies_are_no_patients_images_and_say_so(nodules: Path, motion: Path) -> None:
    for manifest in (nodules, motion):
        headers = [
            pydicom.dcmread(path, stop_before_pixels=True)
            for path in sorted(manifest.parent.rglob("*.dcm"))
        ]
        assert all(ds.ImageType[0] == "DERIVED" for ds in headers)
        assert all(ds.SeriesDescription.startswith("SYNTHETIC ") for ds in headers)
        assert all(ds.DerivationDescription.startswith("Synthetic: ") for ds in headers)
        assert len({ds.SOPInstanceUID for ds in headers}) == len(headers)
        assert len({ds.SeriesInstanceUID for ds in headers}) == sum(COUNTS.values())


def test_motion_is_as_severe_as_the_manifest_says(motion: Path) -> None:
    moved = [row for row in rows_of(motion) if row["labels"] == "motion"]
    assert len(moved) == 4
    for row in moved:
        low, high = ERRORS[SeverityValues(row["severity"])]
        assert 0.85 * low <= float(row["error"]) <= 1.15 * high
        assert row["phase"] in {"rows", "columns"}
    assert {row["severity"] for row in rows_of(motion) if row["labels"] == "still"} == {"none"}


def test_the_same_seed_gives_the_same_files_and_another_one_others(
    motion: Path, unpacked, tmp_path: Path
) -> None:
    source = unpacked("mr-head-t1-60")
    again = make_mr_motion(source, tmp_path / "again", 7, {"train": 2})
    other = make_mr_motion(source, tmp_path / "other", 8, {"train": 2})

    files = sorted(path.relative_to(again.parent) for path in again.parent.rglob("*.dcm"))
    assert len(files) == 8
    for name in files:
        assert (again.parent / name).read_bytes() == (motion.parent / name).read_bytes()
    assert other.read_text() != again.read_text()


def test_series_are_learned_from_with_their_own_number_of_slices(
    nodules: Path, tmp_path: Path
) -> None:
    recipe = TensorRecipe.from_mapping(
        {"kind": "volume", "rows": 64, "columns": 64,
         "intensity": {"kind": "window", "centre": -600, "width": 1500}}
    )  # fmt: skip
    dataset = read(nodules)
    learned = [image for image in dataset.images if image.split is not SplitValues.TEST]

    values = tensors_of(inspect_images(learned), recipe, tmp_path)

    assert values.shape == (6, 2, 64, 64, 1)
    assert 0 <= values.min() < values.max() <= 1


def test_series_of_different_lengths_are_named(nodules: Path, tmp_path: Path) -> None:
    recipe = TensorRecipe.from_mapping({"kind": "volume", "rows": 64, "columns": 64})
    dataset = read(nodules)
    images = [*dataset.images_of(SplitValues.TRAIN), *dataset.images_of(SplitValues.TEST)]

    with pytest.raises(TrainingDataFault, match=r"2 images .* has 5 slices and the first series 2"):
        tensors_of(inspect_images(images), recipe, tmp_path)


def test_another_series_is_refused(unpacked, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(p for p in unpacked("mr-head-t1-60").rglob("*") if p.is_file())[:5]:
        shutil.copy(path, few)

    with pytest.raises(TrainingDataFault, match="a series of 60, received 5"):
        make_mr_motion(few, tmp_path / "out", 1)
    with pytest.raises(TrainingDataFault, match="a series of 60, received 5"):
        make_ct_nodule(few, tmp_path / "out", 1)
    (tmp_path / "empty").mkdir()
    assert command.main(["ct-nodule", "--data", str(tmp_path / "empty"), "--out", "/no/such"]) == 1


def test_the_command_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()

    assert command.main(["mr-motion", "--data", "x", "--out", str(tmp_path / "there")]) == 1
