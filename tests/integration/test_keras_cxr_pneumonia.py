"""The bundled chest X-ray model: one film, wrapped in several ways, has one score."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dicom_io.header import read_attributes
from dicom_io.tensors import build_image_tensor, image_values_to_tensor, read_film
from dicom_io.vocabulary import PresenceValues
from model.catalogue import BUNDLED_FOLDER, read_catalogue
from model.findings import judge
from model.package import ModelPackage
from model.runtimes.check import try_package
from model.runtimes.keras_runtime import KerasPredictor
from model.selection import OutcomeValues, StudyInstance, select, wanted_keywords
from tests.wrapped_films import WRAPS, eight_bit, write_film

FILMS_PER_CLASS = 3
SAME_SCORE = 1e-3


@pytest.fixture(scope="module")
def package() -> ModelPackage:
    return read_catalogue([]).find("cxr-pneumonia")


@pytest.fixture(scope="module")
def predictor(package: ModelPackage) -> KerasPredictor:
    predictor = KerasPredictor(package, device="cpu")
    predictor.load()
    return predictor


@pytest.fixture(scope="module")
def films(unpacked) -> list[tuple[str, Path]]:
    folder = unpacked("chest-xray-224")
    root = next(path.parent for path in folder.rglob("val") if path.is_dir())
    return [
        (name, path)
        for name in ("NORMAL", "PNEUMONIA")
        for path in sorted((root / "val" / name).iterdir())[::40][:FILMS_PER_CLASS]
    ]


def test_same_film_wrapped_differently_gives_the_same_score(tmp_path, package, predictor, films):
    # Given films as training reads them, and as DICOM in several encodings,
    for number, (_, path) in enumerate(films):
        film = read_film(path)
        reference = image_values_to_tensor(film, package.recipe)
        grey = np.rint(film)
        tensors = [
            build_image_tensor(
                write_film(tmp_path / f"{number}-{wrap.__name__}.dcm", wrap(grey)), package.recipe
            ).values
            for wrap in WRAPS
        ]

        # when the model scores them all,
        scores = predictor.predict(np.stack([reference, *tensors]))[:, 0]

        # then the score does not depend on the wrapping.
        differences = dict(
            zip([w.__name__ for w in WRAPS], np.abs(scores[1:] - scores[0]), strict=True)
        )
        assert max(differences.values()) < SAME_SCORE, (path.name, differences)


def test_films_of_both_classes_are_told_apart(package, predictor, films):
    values = np.stack([image_values_to_tensor(read_film(p), package.recipe) for _, p in films])

    scores = predictor.predict(values)[:, 0]

    normal = scores[:FILMS_PER_CLASS]
    assert normal.max() < scores[FILMS_PER_CLASS:].min()


def test_validation_figures_of_the_manifest_are_those_of_the_weights(package, predictor, films):
    # Given the whole validation split,
    root = films[0][1].parents[1]
    paths = {name: sorted((root / name).iterdir()) for name in ("NORMAL", "PNEUMONIA")}

    # when the shipped weights judge it at the shipped threshold,
    rates = {}
    for name, listed in paths.items():
        values = np.stack([image_values_to_tensor(read_film(p), package.recipe) for p in listed])
        present = [
            judge(row, package.labels)[0].presence is PresenceValues.PRESENT
            for row in predictor.predict(values)
        ]
        rates[name] = sum(present) / len(present)

    # then sensitivity and specificity are the ones the package claims.
    claimed = {name: package.metrics[name]["value"] for name in ("sensitivity", "specificity")}
    assert rates["PNEUMONIA"] == pytest.approx(claimed["sensitivity"], abs=0.003)
    assert 1 - rates["NORMAL"] == pytest.approx(claimed["specificity"], abs=0.01)


def test_bundled_package_is_small_states_its_source_and_passes_its_trial(package):
    report = try_package(package.folder, "cpu")

    assert report.faults == ()
    assert package.weights_path.stat().st_size < 5_000_000
    assert "10.17632/rscbjbr9sj.2" in (package.folder / "README.md").read_text()
    assert package.folder.parent == BUNDLED_FOLDER
    assert any("adults" in limit for limit in package.limits)


@pytest.mark.parametrize(
    ("attributes", "outcome"),
    [
        ({}, OutcomeValues.MATCHED),
        ({"ViewPosition": ""}, OutcomeValues.MATCHED),
        ({"PatientAge": "018M"}, OutcomeValues.MATCHED),
        ({"Modality": "CR", "BodyPartExamined": "THORAX"}, OutcomeValues.MATCHED),
        ({"BodyPartExamined": "", "StudyDescription": "XR Chest 1 view"}, OutcomeValues.MATCHED),
        ({"Modality": "MG"}, OutcomeValues.NO_MATCH),
        ({"BodyPartExamined": "HAND"}, OutcomeValues.NO_MATCH),
        ({"BodyPartExamined": ""}, OutcomeValues.NO_MATCH),
        ({"PatientAge": "042Y"}, OutcomeValues.OUTSIDE_CONTRACT),
        ({"PatientAge": "006Y"}, OutcomeValues.OUTSIDE_CONTRACT),
        ({"PatientAge": "003M"}, OutcomeValues.OUTSIDE_CONTRACT),
        ({"PatientAge": ""}, OutcomeValues.OUTSIDE_CONTRACT),
        ({"ViewPosition": "LL"}, OutcomeValues.OUTSIDE_CONTRACT),
        ({"ViewPosition": "", "SeriesDescription": "Lat"}, OutcomeValues.OUTSIDE_CONTRACT),
        ({"PresentationIntentType": "FOR PROCESSING"}, OutcomeValues.OUTSIDE_CONTRACT),
    ],
)
def test_films_the_model_was_not_made_for_get_no_score(tmp_path, package, attributes, outcome):
    film = np.arange(200 * 200, dtype=np.float32).reshape(200, 200) % 256
    path = write_film(tmp_path / "film.dcm", eight_bit(film), **attributes)

    found = read_attributes(path, wanted_keywords([package]))
    selection = select(package, [StudyInstance("1.2", "1.1", found)])

    assert selection.outcome is outcome, selection.sentence


def test_film_too_small_to_judge_is_refused_for_its_quality(tmp_path, package):
    film = cv2.resize(np.eye(64, dtype=np.float32) * 255, (100, 100))
    path = write_film(tmp_path / "film.dcm", eight_bit(film))

    found = read_attributes(path, wanted_keywords([package]))
    selection = select(package, [StudyInstance("1.2", "1.1", found)])

    assert selection.outcome is OutcomeValues.OUTSIDE_CONTRACT
    assert "Rows is 100, must be at least 150" in selection.sentence
