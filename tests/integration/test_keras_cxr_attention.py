"""The maps of the bundled chest model depend on what it learned, and point at what it uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
from scipy.stats import spearmanr

from dicom_io.tensors import image_values_to_tensor, read_film
from model.catalogue import read_catalogue
from model.package import ModelPackage
from model.runtimes.keras_runtime import KerasPredictor

FILMS = 16
WINDOW = 48
"""Pixels a side of what is covered: 9 % of the model's plane of 160 by 160."""
RANDOM_WINDOWS = 6


@pytest.fixture(scope="module")
def package() -> ModelPackage:
    return read_catalogue([]).find("cxr-pneumonia")


@pytest.fixture(scope="module")
def predictor(package: ModelPackage) -> KerasPredictor:
    return loaded(package)


def loaded(package: ModelPackage) -> KerasPredictor:
    predictor = KerasPredictor(package, device="cpu", batch_sizes=(16,))
    predictor.load()
    return predictor


@pytest.fixture(scope="module")
def films(unpacked, package: ModelPackage, predictor: KerasPredictor) -> np.ndarray:
    """Films of the validation split that the model calls positive, (films, rows, columns, 1)."""
    root = next(p.parent for p in unpacked("chest-xray-224").rglob("val") if p.is_dir())
    paths = sorted((root / "val" / "PNEUMONIA").iterdir())[:: 420 // (FILMS + 4)]
    tensors = np.stack([image_values_to_tensor(read_film(each), package.recipe) for each in paths])
    positive = predictor.predict(tensors)[:, 0] >= package.labels[0].threshold
    assert positive.sum() >= FILMS
    return tensors[positive][:FILMS]


def maps_of(predictor: KerasPredictor, films: np.ndarray) -> np.ndarray:
    return predictor.explain(films, [0] * len(films)).values


def test_every_positive_film_has_a_map(predictor: KerasPredictor, films: np.ndarray) -> None:
    found = predictor.explain(films, [0] * len(films))

    assert found.method == "HiResCAM"
    assert found.values.shape == (FILMS, 10, 10)
    assert found.values.max(axis=(1, 2)).min() > 0


@contextmanager
def randomised(predictor: KerasPredictor, seed: int, layers: str = "") -> Iterator[None]:
    """Let the network hold nothing any more, for the while.

    Each weight is shuffled within its own array, so that scale and spread stay those of the
    trained network (Adebayo et al., Sanity Checks for Saliency Maps, 2018). `layers` begins the
    names of the layers that forget; all do when it is empty.
    """
    variables = [each for each in predictor._network.variables if layers in each.path]
    learned = [each.numpy() for each in variables]
    rng = np.random.default_rng(seed)
    assert variables
    try:
        for variable, values in zip(variables, learned, strict=True):
            variable.assign(rng.permutation(values.ravel()).reshape(values.shape))
        yield
    finally:
        for variable, values in zip(variables, learned, strict=True):
            variable.assign(values)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    pairs = list(zip(one.reshape(len(one), -1), other.reshape(len(other), -1), strict=True))
    found = [spearmanr(a, b).statistic for a, b in pairs if np.ptp(a) > 0 and np.ptp(b) > 0]
    # Maps that show nothing would agree with nothing, whatever the method draws.
    assert len(found) >= len(pairs) / 2
    return float(np.mean(found))


@pytest.mark.parametrize("layers", ["", "logits"], ids=["all layers", "last layer"])
def test_a_map_changes_with_the_weights(
    predictor: KerasPredictor, films: np.ndarray, layers: str
) -> None:
    learned = maps_of(predictor, films)
    correlations = []

    for seed in range(4):
        with randomised(predictor, seed, layers):
            correlations.append(rank_correlation(learned, maps_of(predictor, films)))

    # A method that draws the edges of the image whatever was learned stays near 1 here.
    assert np.mean(correlations) < 0.5, correlations
    assert rank_correlation(learned, maps_of(predictor, films)) == pytest.approx(1.0)


def logits(predictor: KerasPredictor, films: np.ndarray) -> np.ndarray:
    probabilities = np.clip(predictor.predict(films)[:, 0].astype(np.float64), 1e-7, 1 - 1e-7)
    return np.log(probabilities / (1 - probabilities))


def covered(films: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Replace one window of each film by its own blur, which adds no edge and keeps brightness."""
    result = films.copy()
    for film, (top, left) in zip(result, places, strict=True):
        blur = cv2.GaussianBlur(film[..., 0], (0, 0), 20)
        window = (slice(top, top + WINDOW), slice(left, left + WINDOW))
        film[..., 0][window] = blur[window]
    return result


def most_attended(values: np.ndarray, side: int) -> tuple[int, int]:
    """Return the upper left corner of the window that holds most of a map."""
    aligned = cv2.resize(values, (side, side), interpolation=cv2.INTER_LINEAR)
    sums = cv2.boxFilter(
        aligned, -1, (WINDOW, WINDOW), anchor=(0, 0), normalize=False,
        borderType=cv2.BORDER_CONSTANT,
    )[: side - WINDOW + 1, : side - WINDOW + 1]  # fmt: skip
    top, left = np.unravel_index(np.argmax(sums), sums.shape)
    return int(top), int(left)


def test_covering_what_it_attends_to_costs_more_than_covering_anything(
    predictor: KerasPredictor, films: np.ndarray
) -> None:
    side = films.shape[1]
    before = logits(predictor, films)
    attended = np.array([most_attended(each, side) for each in maps_of(predictor, films)])
    rng = np.random.default_rng(7)

    lost = before - logits(predictor, covered(films, attended))
    lost_at_random = np.mean(
        [
            before
            - logits(predictor, covered(films, rng.integers(0, side - WINDOW + 1, (len(films), 2))))
            for _ in range(RANDOM_WINDOWS)
        ],
        axis=0,
    )

    wins = (lost > lost_at_random).mean()
    assert lost.mean() > lost_at_random.mean() + 0.3, (lost.mean(), lost_at_random.mean())
    assert wins >= 0.7, wins
