"""What a model's inputs look like: told from what they become when something is wrong."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dicom_io.errors import RefusalReason, UnlikeTraining
from dicom_io.tensors import TensorRecipe
from model import input_distribution_fitting
from model.errors import PackageFault, TrainingDataFault
from model.input_descriptors import VOLUME_GRID, descriptors, thumbnails
from model.input_distribution import DISTRIBUTION_NAME, InputDistribution, read_distribution
from model.input_distribution_fitting import fit_distribution
from model.package import load_package
from model.package_files import sha256_of
from tests.tiny_models import write_package

EDGE = 48
DIGEST = "ab" * 32


def scenes(count: int, seed: int, slices: int = 0) -> np.ndarray:
    """Two dark ovals on a bright ground with a stripe at the top, never twice the same."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[:EDGE, :EDGE] / EDGE
    made = []
    for _ in range(count):
        scene = 0.8 - 0.3 * (down - 0.5)
        for middle in (0.28, 0.72):
            x, y = middle + rng.normal(0, 0.02), 0.55 + rng.normal(0, 0.02)
            width, height = 0.15 + rng.normal(0, 0.01), 0.28 + rng.normal(0, 0.015)
            oval = ((across - x) / width) ** 2 + ((down - y) / height) ** 2 < 1
            scene = np.where(oval, 0.2 + 0.2 * rng.random(), scene)
        scene = np.where(down < 0.12, 1.0, scene)
        scene = scene + 0.02 * rng.standard_normal((EDGE, EDGE))
        if slices:
            depth = 0.3 + 0.7 * np.linspace(0, 1, slices)[:, None, None]
            scene = scene * depth + 0.02 * rng.standard_normal((slices, EDGE, EDGE))
        made.append(scene)
    return np.clip(np.stack(made), 0, 1).astype(np.float32)[..., None]


@pytest.fixture(scope="module")
def distribution() -> InputDistribution:
    return fit_distribution(scenes(150, 1), scenes(60, 2), preprocessing_digest=DIGEST)


@pytest.fixture(scope="module")
def volumes() -> InputDistribution:
    return fit_distribution(scenes(28, 1, 10), scenes(20, 2, 10))


def test_inputs_like_those_of_training_pass(distribution: InputDistribution) -> None:
    distances = distribution.distances(scenes(100, 3))

    assert (distances > distribution.limit).mean() <= 0.02
    assert distances.min() > 0


@pytest.mark.parametrize(
    "changed",
    [
        lambda films: films**0.5,
        lambda films: films**2,
        lambda films: 0.2 + 0.5 * films,
        lambda films: films[:, :, ::-1],
        lambda films: np.pad(films, ((0, 0), (4, 4), (4, 4), (0, 0))),
        lambda films: np.repeat(films, 3, axis=3),
        lambda films: np.repeat(np.repeat(films, 2, axis=1), 2, axis=2),
    ],
    ids=["lighter", "darker", "flatter", "mirrored", "bordered", "three channels", "larger"],
)
def test_what_says_nothing_about_the_contents_is_passed_over(distribution, changed) -> None:
    distances = distribution.distances(changed(scenes(50, 4)))

    assert (distances > distribution.limit).mean() <= 0.04


@pytest.mark.parametrize(
    "changed",
    [
        lambda films: 1 - films,
        lambda films: np.rot90(films, 1, (1, 2)),
        lambda films: np.rot90(films, 2, (1, 2)),
        lambda films: films[:, ::-1],
        lambda films: films[:, : EDGE // 2, : EDGE // 2],
        lambda films: np.random.default_rng(0).random(films.shape, dtype=np.float32),
        lambda films: np.linspace(0, 1, films.size, dtype=np.float32).reshape(films.shape),
        np.zeros_like,
        lambda films: np.full_like(films, np.nan),
    ],
    ids=["inverted", "on its side", "half turn", "upside down", "a quarter", "noise", "gradient",
         "blank", "no numbers"],
)  # fmt: skip
def test_what_is_wrong_with_an_input_is_told(distribution, changed) -> None:
    wrong = np.ascontiguousarray(changed(scenes(30, 5)))

    passed = distribution.distances(wrong) <= distribution.limit

    assert passed.mean() <= 0.05


def test_a_refusal_says_how_far_and_how_far_it_may_be(distribution: InputDistribution) -> None:
    film = scenes(1, 6)[0]
    distribution.check(film)

    with pytest.raises(UnlikeTraining) as caught:
        distribution.check(1 - film)

    assert caught.value.reason is RefusalReason.UNLIKE_TRAINING
    assert str(caught.value) == (
        "This image does not look like the images the model was trained on "
        f"(distance {distribution.distance(1 - film):.2f}, limit {distribution.limit:.2f})."
    )


@pytest.mark.parametrize(
    ("distance", "said"),
    [
        (1.72, "distance 1.72, limit 1.26"),
        (1.2566, "distance 1.257, limit 1.255"),
        (1.25511, "distance 1.25511, limit 1.25510"),
        (np.inf, "distance inf, limit 1.26"),
    ],
)
def test_a_refused_distance_never_reads_like_the_limit(distance: float, said: str) -> None:
    assert said in str(UnlikeTraining(distance, 1.2551))


def test_volumes_are_told_like_images(volumes: InputDistribution) -> None:
    fresh = scenes(12, 3, 10)
    thicker = np.repeat(fresh, 3, axis=1)

    assert (volumes.distances(fresh) > volumes.limit).mean() <= 0.1
    assert (volumes.distances(thicker) > volumes.limit).mean() <= 0.1
    for wrong in (1 - fresh, np.rot90(fresh, 1, (2, 3)), fresh[:, ::-1]):
        assert (volumes.distances(np.ascontiguousarray(wrong)) > volumes.limit).all()


def test_exposure_leaves_no_trace_in_the_descriptions() -> None:
    films = scenes(3, 7)
    plain, lighter = (descriptors(thumbnails(values)) for values in (films, 0.3 + 0.5 * films))

    for name, described in plain.items():
        np.testing.assert_allclose(described, lighter[name], atol=0.02, err_msg=name)


def test_the_same_seed_gives_the_same_file(tmp_path: Path, distribution) -> None:
    again = fit_distribution(scenes(150, 1), scenes(60, 2), preprocessing_digest=DIGEST)
    for name, each in (("a", distribution), ("b", again)):
        each.write(tmp_path / name)
    written = sorted(tmp_path.iterdir())

    assert written[0].read_bytes() == written[1].read_bytes()
    assert written[0].stat().st_size < 400_000


def test_what_is_written_is_read_back(tmp_path: Path, distribution, volumes) -> None:
    for each, films in ((distribution, scenes(5, 8)), (volumes, scenes(5, 8, 10))):
        each.write(tmp_path / DISTRIBUTION_NAME)
        read = read_distribution(tmp_path / DISTRIBUTION_NAME)

        np.testing.assert_array_equal(read.distances(films), each.distances(films))
        assert replace(read, clouds={}, contrasts=None, units=None) == replace(
            each, clouds={}, contrasts=None, units=None
        )
        assert (tmp_path / DISTRIBUTION_NAME).stat().st_size < 400_000


def test_a_fault_that_cannot_be_told_is_no_contrast() -> None:
    # Given inputs that look the same from every side,
    rng = np.random.default_rng(0)
    down, across = np.mgrid[:EDGE, :EDGE] / EDGE - 0.5
    ring = np.abs(np.hypot(down, across) - 0.3)[None] < 0.08 + rng.normal(0, 0.01, (110, 1, 1))
    values = (0.8 * ring + 0.02 * rng.random((110, EDGE, EDGE))).astype(np.float32)[..., None]

    # when their distribution is fitted, without a validation split,
    found = fit_distribution(values)

    # then a turn is no fault, and inversion still is.
    assert len(found.contrasts.directions) < 4
    assert (found.distances(np.rot90(values, 1, (1, 2)).copy()) <= found.limit).mean() > 0.9
    assert (found.distances(1 - values) > found.limit).all()


def test_many_volumes_are_described_in_little_memory() -> None:
    thumbs = np.random.default_rng(1).random((320, *VOLUME_GRID), dtype=np.float32)
    tracemalloc.start()

    descriptors(thumbs)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < thumbs.nbytes


def test_of_very_many_inputs_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_distribution_fitting, "MOST_VOLUMES", 24)
    monkeypatch.setattr(input_distribution_fitting, "MOST_FITTED", 40)

    assert fit_distribution(scenes(28, 1, 10), scenes(20, 2, 10)).fitted == 24
    assert fit_distribution(scenes(44, 1), scenes(20, 2)).fitted == 40


def test_too_few_inputs_fit_nothing() -> None:
    with pytest.raises(TrainingDataFault, match="needs 20 inputs to fit"):
        fit_distribution(scenes(19, 1), scenes(30, 2))
    with pytest.raises(TrainingDataFault, match="received 32 and 8"):
        fit_distribution(scenes(40, 1))


def changed_file(path: Path, **arrays: np.ndarray | None) -> Path:
    with np.load(path) as stored:
        known = {name: stored[name] for name in stored.files}
    known |= {name: array for name, array in arrays.items() if array is not None}
    gone = [name for name, array in arrays.items() if array is None]
    np.savez_compressed(path, **{name: known[name] for name in known if name not in gone})
    return path


@pytest.mark.parametrize(
    "arrays",
    [
        {"units": None},
        {"units": np.ones(3, np.float32)},
        {"edges_mean": np.full(200, np.nan, np.float32)},
        {"edges_axes": np.ones((40, 199), np.float32)},
        {"tones_variances": -np.ones(40, np.float32)},
        {"contrasts_mean": np.ones(7, np.float32)},
        {"about": np.frombuffer(b"{}", np.uint8)},
        {"about": np.frombuffer(b'{"version": 99}', np.uint8)},
        {"about": np.frombuffer(b'{"version": 1, "limit": 1, "dimensions": Infinity}', np.uint8)},
        {"more": np.ones(200_000, np.float32)},
    ],
    ids=str,
)
def test_a_damaged_file_is_named(tmp_path: Path, distribution, arrays) -> None:
    path = tmp_path / DISTRIBUTION_NAME
    distribution.write(path)
    changed_file(path, **arrays)

    with pytest.raises(PackageFault, match="no distribution of inputs, or is damaged"):
        read_distribution(path)


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / DISTRIBUTION_NAME
    path.write_bytes(b"PK\3\4 and no more")

    with pytest.raises(PackageFault, match="damaged"):
        read_distribution(path)


@pytest.mark.parametrize(("place", "value"), [(8, 1), (10, 98)], ids=["encrypted", "PPMd"])
def test_members_that_nobody_here_can_unpack_are_damage(
    tmp_path: Path, distribution, place: int, value: int
) -> None:
    path = tmp_path / DISTRIBUTION_NAME
    distribution.write(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + place] = value
    path.write_bytes(content)

    with pytest.raises(PackageFault, match="no distribution of inputs, or is damaged"):
        read_distribution(path)


def packaged(folder: Path, distribution: InputDistribution, **changes: object) -> Path:
    folder.mkdir()
    path = folder / DISTRIBUTION_NAME
    distribution.write(path)
    table = {"file": DISTRIBUTION_NAME, "sha256": sha256_of(path), **changes}
    write_package(folder, weights=b"never loaded", changes={"input_distribution": table})
    return folder


def recipe_digest() -> str:
    recipe = {"kind": "image", "rows": 16, "columns": 16, "channels": 1}
    recipe["intensity"] = {"kind": "percentile"}
    return TensorRecipe.from_mapping(recipe).digest


def test_a_package_carries_its_distribution(tmp_path: Path, distribution) -> None:
    fitting = replace(distribution, preprocessing_digest=recipe_digest())

    package = load_package(packaged(tmp_path / "tiny", fitting))

    assert package.input_distribution is not None
    assert package.input_distribution.limit == distribution.limit


def test_a_package_without_a_distribution_is_a_package(tmp_path: Path) -> None:
    write_package(tmp_path / "tiny", weights=b"never loaded")

    assert load_package(tmp_path / "tiny").input_distribution is None


@pytest.mark.parametrize(
    ("dimensions", "digest", "changes", "fault"),
    [
        (3, DIGEST, {}, "was fitted on tensors of the preprocessing digest abab"),
        (3, "", {}, "preprocessing digest not stated"),
        (4, None, {}, "fitted on tensors of 4 axes, not of a image"),
        (3, None, {"sha256": "cd" * 32}, "the file was changed or copied badly"),
        (3, None, {"file": "elsewhere.npz"}, "there is no such file"),
        (3, None, {"limit": 5}, "input_distribution.limit"),
    ],
)
def test_a_package_that_breaks_its_word_about_inputs_is_refused(
    tmp_path: Path, distribution, volumes, dimensions, digest, changes, fault
) -> None:
    of = distribution if dimensions == 3 else volumes
    stated = recipe_digest() if digest is None else digest
    folder = packaged(tmp_path / "tiny", replace(of, preprocessing_digest=stated), **changes)

    with pytest.raises(PackageFault) as caught:
        load_package(folder)

    assert any(fault in each for each in caught.value.faults), caught.value.faults
