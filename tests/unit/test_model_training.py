"""What training relies on: films without leaks, changes that stay in range, honest figures."""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from model.training.films import check_splits, list_films, opened, patient_key, read_films

from dicom_io.tensors import TensorRecipe, image_values_to_tensor, read_film
from model.errors import TrainingDataFault
from model.training.measures import figures_at, fitted_calibration, highest_threshold, measured

CLASSES = ("NORMAL", "PNEUMONIA")
RECIPE = TensorRecipe.from_mapping({"kind": "image", "rows": 16, "columns": 16})


def put_film(folder: Path, name: str, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20), dtype=np.uint8)
    cv2.imwrite(str(folder / name), pixels)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    put_film(tmp_path / "train" / "NORMAL", "IM-0001-0001.png", 1)
    put_film(tmp_path / "train" / "PNEUMONIA", "person1_virus_1.png", 2)
    put_film(tmp_path / "val" / "NORMAL", "NORMAL2-IM-0001-0001.png", 3)
    put_film(tmp_path / "val" / "PNEUMONIA", "person2_bacteria_2.png", 4)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("person12_bacteria_46.jpeg", "person12"),
        ("IM-0115-0001.jpeg", "IM-0115"),
        ("NORMAL2-IM-0115-0001-0002.jpeg", "NORMAL2-IM-0115"),
        ("anything.jpeg", "anything"),
    ],
)
def test_file_name_says_which_patient_it_is(name, key):
    assert patient_key(name) == key


def test_films_are_read_through_the_steps_of_the_service(data):
    films = read_films(list_films(data, "train", CLASSES), RECIPE)

    assert films.labels.tolist() == [0.0, 1.0]
    for film, values in zip(films.films, films.values, strict=True):
        expected = image_values_to_tensor(read_film(film.path), RECIPE)
        np.testing.assert_array_equal(values, expected)


def test_zip_is_read_as_its_folder_is(data, tmp_path):
    archive = tmp_path / "films.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in data.rglob("*.png"):
            target.write(path, path.relative_to(data))

    with opened(archive) as folder:
        names = [film.path.name for film in list_films(folder, "val", CLASSES)]

    assert names == ["NORMAL2-IM-0001-0001.png", "person2_bacteria_2.png"]
    assert not folder.exists()


def test_separate_splits_pass(data):
    check_splits(list_films(data, "train", CLASSES), list_films(data, "val", CLASSES))


def test_patient_in_both_splits_is_refused_by_name(data):
    put_film(data / "val" / "PNEUMONIA", "person1_virus_9.png", 9)

    with pytest.raises(TrainingDataFault, match="1 patients in both splits, for example person1"):
        check_splits(list_films(data, "train", CLASSES), list_films(data, "val", CLASSES))


def test_identical_film_in_both_splits_is_refused_whatever_its_name(data):
    put_film(data / "val" / "NORMAL", "IM-9999-0001.png", 1)

    with pytest.raises(TrainingDataFault, match="1 identical films"):
        check_splits(list_films(data, "train", CLASSES), list_films(data, "val", CLASSES))


def test_class_without_films_is_named(data):
    with pytest.raises(TrainingDataFault, match="train/TUBERCULOSIS: no film found"):
        list_films(data, "train", ("NORMAL", "TUBERCULOSIS"))


def test_figures_are_those_counted_by_hand():
    # Three positives at 0.9, 0.8, 0.3 and two negatives at 0.6, 0.1, judged at 0.5.
    labels = np.array([1, 1, 1, 0, 0], dtype=np.float32)
    scores = np.array([0.9, 0.8, 0.3, 0.6, 0.1], dtype=np.float32)

    figures = figures_at(labels, scores, 0.5)

    assert figures["accuracy"] == pytest.approx(3 / 5)
    assert figures["sensitivity"] == pytest.approx(2 / 3)
    assert figures["specificity"] == pytest.approx(1 / 2)
    assert figures["f1"] == pytest.approx(2 / 3)
    assert figures["roc_auc"] == pytest.approx(5 / 6)


def test_interval_surrounds_the_figure_and_repeats_with_its_seed():
    rng = np.random.default_rng(8)
    labels = (rng.random(60) < 0.5).astype(np.float32)
    scores = np.clip(labels * 0.3 + rng.random(60) * 0.7, 0, 1).astype(np.float32)

    first = measured(labels, scores, 0.5, seed=1, count=50)

    assert first == measured(labels, scores, 0.5, seed=1, count=50)
    for figure in first.values():
        assert figure.low <= figure.value <= figure.high
    assert first["accuracy"].low < first["accuracy"].high


def test_threshold_is_the_highest_that_keeps_the_sensitivity():
    labels = np.array([1, 1, 1, 1, 0, 0], dtype=np.float32)
    scores = np.array([0.9, 0.8, 0.7, 0.2, 0.6, 0.1], dtype=np.float32)

    assert highest_threshold(labels, scores, 0.75) == pytest.approx(0.65)
    assert highest_threshold(labels, scores, 1.0) == pytest.approx(0.15)


def test_threshold_needs_a_positive_film():
    with pytest.raises(ValueError, match="at least one positive"):
        highest_threshold(np.zeros(3, np.float32), np.zeros(3, np.float32), 0.9)


def test_calibration_undoes_a_known_scale_and_offset():
    # Given logits that were doubled and shifted away from the truth,
    rng = np.random.default_rng(9)
    truth = rng.normal(0, 2, 20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    logits = (2 * truth + 1).astype(np.float32)

    # when the calibration is fitted,
    scale, offset = fitted_calibration(labels, logits)

    # then it halves them and shifts them back.
    assert scale == pytest.approx(0.5, abs=0.03)
    assert offset == pytest.approx(-0.5, abs=0.06)


def test_calibration_keeps_below_the_highest_scale_it_is_given():
    labels = np.array([0, 0, 1, 1], dtype=np.float32)
    logits = np.array([-0.2, -0.1, 0.1, 0.2], dtype=np.float32)

    scale, _ = fitted_calibration(labels, logits, highest_scale=2.0)

    assert scale == pytest.approx(2.0, abs=1e-3)
