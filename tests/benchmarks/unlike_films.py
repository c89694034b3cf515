"""Inputs that a film model should refuse, and films changed in ways that it should not mind.

Owns the list. Everything is a tensor of the model's own steps; blank images never become one,
because the steps themselves refuse them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pydicom
from scipy.ndimage import gaussian_filter, rotate
from sklearn.datasets import load_sample_images

from dicom_io.errors import Refusal
from dicom_io.tensors import TensorRecipe, build_image_tensor, image_values_to_tensor
from model.training.augmentation import AugmentationRanges, augment_batch
from tests.benchmarks.material import Workshop

Arrays = npt.NDArray[np.float32]
Named = tuple[str, Arrays]

CT_WINDOWS = {"lung": (-600, 1500), "soft tissue": (40, 400), "bone": (300, 1500)}
"""Centre and width in Hounsfield units."""
PHOTO_CROPS = 60
"""Of each photograph, squares of 120 pixels and more."""


def altered_films(films: Arrays) -> Iterator[Named]:
    """Yield films (n, rows, columns, 1) after changes, those that do not matter first."""
    rng = np.random.default_rng(1)
    edge = films.shape[1]
    labels = np.zeros((len(films), 1), np.float32)
    ranges = AugmentationRanges(mixup_alpha=0.0)
    yield "changed as in training", augment_batch(films, labels, ranges, rng)[0]
    for gamma in (0.5, 2.0):
        yield f"gamma {gamma:g}", films**gamma
    yield "blurred, sigma 2 pixels", gaussian_filter(films, (0, 2, 2, 0))
    noisy = films + 0.03 * rng.standard_normal(films.shape, dtype=np.float32)
    yield "noise, 3 % of the range", np.clip(noisy, 0, 1)
    cut = edge // 10
    yield "a tenth cut off every side", _resized(films[:, cut:-cut, cut:-cut], edge)
    yield "black border of 15 % added", _resized(_bordered(films, 0.15), edge)
    yield "turned by 5 degrees", rotate(films, 5, (1, 2), reshape=False, order=1)
    yield "mirrored (cannot be told)", films[:, :, ::-1].copy()
    yield "turned by 30 degrees", rotate(films, 30, (1, 2), reshape=False, order=1)
    for quarters, words in ((1, "a quarter to the left"), (3, "a quarter to the right")):
        yield f"turned by {words}", np.rot90(films, quarters, (1, 2)).copy()
    yield "turned by half", films[:, ::-1, ::-1].copy()
    yield "upside down", films[:, ::-1].copy()
    yield "greys inverted", 1 - films
    half = edge // 2
    quarters = [films[:, a : a + half, b : b + half] for a in (0, half) for b in (0, half)]
    yield "one quarter of it only", _resized(np.concatenate(quarters), edge)


def _bordered(films: Arrays, share: float) -> Arrays:
    width = round(share * films.shape[1])
    return np.pad(films, ((0, 0), (width, width), (width, width), (0, 0)))


def _resized(films: Arrays, edge: int) -> Arrays:
    resized = [cv2.resize(f[..., 0], (edge, edge), interpolation=cv2.INTER_AREA) for f in films]
    return np.stack(resized)[..., None]


def other_images(workshop: Workshop, recipe: TensorRecipe) -> Iterator[Named]:
    """Yield what is no chest film."""
    slices = np.stack([_stored(path) for path in workshop.ct_series])
    for name, (centre, width) in CT_WINDOWS.items():
        yield f"CT slices, {name} window", _made(_windowed(slices, centre, width), recipe)
    lung = _windowed(slices, *CT_WINDOWS["lung"])
    planes = [lung[:, at] for at in range(60, 450, 8)]
    planes += [lung[:, :, at] for at in range(60, 450, 8)]
    yield "CT, coronal and sagittal planes", _made(planes, recipe)
    head = np.stack([_stored(path) for path in workshop.mr_series])
    yield "MR slices, head", _made(head, recipe)
    yield "MR, planes across the slices", _made(_across(head), recipe)
    dx = workshop.testdata / "single" / "dx_image.dcm"
    yield "DX of single/ (another body part)", build_image_tensor(dx, recipe).values[None]
    photos = _photographs()
    yield "photographs", _made(photos, recipe)
    yield "photographs, squares cut out", _made(_crops(photos), recipe)
    yield "pages of text", _made(_pages(), recipe)
    yield "test patterns", _made(_patterns(), recipe)
    yield "gradients", _made(_gradients(), recipe)
    yield "noise, fine to coarse", _made(_noise(), recipe)


def _made(images: Sequence[Arrays] | Arrays, recipe: TensorRecipe) -> Arrays:
    tensors = []
    for image in images:
        try:
            tensors.append(image_values_to_tensor(np.asarray(image, dtype=np.float32), recipe))
        except Refusal:
            continue  # A blank plane at the edge of a series: never reaches a model.
    return np.stack(tensors)


def _stored(path: Path) -> Arrays:
    ds = pydicom.dcmread(path)
    slope, intercept = float(ds.get("RescaleSlope", 1)), float(ds.get("RescaleIntercept", 0))
    return ds.pixel_array.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _windowed(values: Arrays, centre: float, width: float) -> Arrays:
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _across(volume: Arrays) -> list[Arrays]:
    rows, columns = volume.shape[1:]
    planes = [volume[:, at] for at in range(40, rows - 40, 6)]
    return planes + [volume[:, :, at] for at in range(40, columns - 40, 6)]


def _photographs() -> list[Arrays]:
    """Return what scikit-learn and matplotlib bring along."""
    folder = Path(mpl.get_data_path()) / "sample_data"
    portrait = cv2.imread(str(folder / "grace_hopper.jpg"), cv2.IMREAD_GRAYSCALE)
    found = [cv2.cvtColor(each, cv2.COLOR_RGB2GRAY) for each in load_sample_images().images]
    return [photo.astype(np.float32) for photo in (*found, portrait)]


def _crops(photos: Sequence[Arrays]) -> list[Arrays]:
    rng = np.random.default_rng(2)
    crops = []
    for photo in photos:
        for _ in range(PHOTO_CROPS):
            edge = int(rng.integers(120, min(photo.shape)))
            top, left = (int(rng.integers(0, length - edge + 1)) for length in photo.shape)
            crops.append(photo[top : top + edge, left : left + edge])
    return crops


def _pages() -> list[Arrays]:
    rng = np.random.default_rng(3)
    pages = []
    for number in range(40):
        page = np.full((800, 600), 255 * (number % 2), np.uint8)
        for top in range(30, 780, 16 + number % 20):
            words = "".join(rng.choice(list("abcdef ghijkl mnop ABC 123"), 46))
            ink = 255 * (1 - number % 2)
            cv2.putText(page, words, (20, top), cv2.FONT_HERSHEY_SIMPLEX, 0.5, ink)
        pages.append(page.astype(np.float32))
    return pages


def _plane() -> tuple[Arrays, Arrays]:
    down, across = np.mgrid[0:160, 0:160].astype(np.float32) / 160
    return down, across


def _patterns() -> list[Arrays]:
    down, across = _plane()
    radius = np.hypot(down - 0.5, across - 0.5)
    patterns = []
    for k in range(1, 11):
        checked = ((across * 2 * k).astype(int) + (down * 2 * k).astype(int)) % 2
        waves = [np.sin(2 * np.pi * k * across), np.sin(2 * np.pi * k * down)]
        patterns += [*waves, checked, radius < k / 25, np.cos(2 * np.pi * k * radius)]
    return patterns


def _gradients() -> list[Arrays]:
    down, across = _plane()
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    straight = [np.cos(angle) * across + np.sin(angle) * down for angle in angles]
    places = [(a, b) for a in (0.3, 0.5, 0.7) for b in (0.3, 0.5, 0.7)]
    round_ones = [s * np.hypot(across - a, down - b) for a, b in places for s in (1, -1)]
    return straight + round_ones


def _noise() -> list[Arrays]:
    rng = np.random.default_rng(4)
    return [
        gaussian_filter(rng.standard_normal((160, 160)), sigma)
        for sigma in (0, 1, 2, 4, 8, 16, 32)
        for _ in range(20)
    ]
