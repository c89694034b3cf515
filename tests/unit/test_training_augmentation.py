"""What is done to inputs while training: in range, by seed, alike in all slices."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.manifest import ManifestTable
from model.training.augmentation import AugmentationRanges, augment_batch, augment_input

NONE = AugmentationRanges.none()


def values_of(*shape: int, seed: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def changed(values: np.ndarray, seed: int = 0, **ranges: float) -> np.ndarray:
    """One input after the named changes only."""
    return augment_input(values, replace(NONE, **ranges), np.random.default_rng(seed))


def read(**table: object) -> tuple[AugmentationRanges, list[str]]:
    faults: list[str] = []
    return AugmentationRanges.from_table(ManifestTable(table, "augmentation", faults)), faults


def test_films_get_what_the_shipped_network_was_trained_with():
    # Given two batches of the recipe as it was when cxr-pneumonia 1.0.0 was trained,
    rng = np.random.default_rng(20240611)
    films = rng.random((6, 40, 36, 1), dtype=np.float32)
    labels = (rng.random(6) < 0.5).astype(np.float32)

    # when the same seed draws them now,
    rng = np.random.default_rng(11)
    augment_batch(films, labels, AugmentationRanges(), rng)
    values, blended = augment_batch(films, labels, AugmentationRanges(), rng)

    # then every 360th value, the labels and the next number drawn are what they were.
    np.testing.assert_allclose(
        values.ravel()[::360],
        [0.46445, 0.6321, 0.30669, 0.56592, 2e-05, 1e-05, 1e-05, 1e-05, 0.5103, 0.51092, 0.64256,
         0.66257, 0.59578, 0.26974, 0.36226, 0.44443, 0.37979, 0.8305, 0.4552, 0.97582, 0.32122,
         0.73709, 0.42151, 0.20501],
        atol=2e-5,
    )  # fmt: skip
    assert blended.tolist() == [
        3.177495455020107e-05, 3.177495455020107e-05, 0.0, 0.9999682307243347, 0.9999682307243347,
        1.0,
    ]  # fmt: skip
    assert rng.random() == 0.06098199208508992


@pytest.mark.parametrize("shape", [(16, 16, 1), (16, 12, 3), (5, 16, 16, 1), (4, 16, 12, 3)])
def test_ranges_of_none_leave_an_input_as_it_is(shape):
    values = values_of(*shape)

    np.testing.assert_allclose(
        augment_input(values, NONE, np.random.default_rng(0)), values, atol=1e-6
    )
    batch, _ = augment_batch(values[None], np.ones((1, 2)), NONE, np.random.default_rng(0))
    np.testing.assert_array_equal(batch[0], values)


def test_flip_mirrors_left_and_right():
    film = values_of(16, 16, 1)

    # The outermost column maps onto the border between film and surround.
    mirrored = changed(film, flip_probability=1.0)
    np.testing.assert_allclose(mirrored[:, 1:], film[:, ::-1][:, :-1], atol=1e-4)


def test_other_flips_and_turns_are_exact():
    volume = values_of(5, 16, 16, 1)

    close = {"atol": 1e-6}
    top = changed(volume, vertical_flip_probability=1.0)
    np.testing.assert_allclose(top, volume[:, ::-1], **close)
    first = changed(volume, slice_flip_probability=1.0)
    np.testing.assert_allclose(first, volume[::-1], **close)
    turns = {
        turn
        for seed in range(12)
        for turn in (1, 2, 3)
        if np.allclose(
            changed(volume, seed, quarter_turn_probability=1.0),
            np.rot90(volume, turn, (1, 2)),
            **close,
        )
    }
    assert turns == {1, 2, 3}


def test_what_is_not_square_is_turned_upside_down_only():
    image = values_of(12, 20, 3)

    for seed in range(4):
        turned = changed(image, seed, quarter_turn_probability=1.0)
        np.testing.assert_allclose(turned, image[::-1, ::-1], atol=1e-6)


def test_rotation_turns_about_the_middle():
    # A bright bar across the middle; turned by 90 degrees it stands upright.
    image = np.zeros((32, 32, 1), np.float32)
    image[14:18, 4:28] = 1.0

    shares = [
        float(changed(image, seed, rotation_degrees=180.0)[4:28, 14:18].mean())
        for seed in range(60)
    ]

    assert max(shares) > 0.85
    assert min(shares) < 0.25


@pytest.mark.parametrize(
    ("ranges", "low", "high"),
    [
        ({"zoom": 0.2}, 0.6, 1.6),
        ({"border_crop_fraction": 0.2}, 1.0, 2.9),
        ({"border_add_fraction": 0.2}, 0.5, 1.0),
    ],
)
def test_zoom_and_borders_change_the_size_within_their_range(ranges, low, high):
    # A bright square of 16 by 16 in the middle of 64 by 64; how many pixels does it cover after?
    image = np.zeros((64, 64, 1), np.float32)
    image[24:40, 24:40] = 1.0

    sizes = [changed(image, seed, **ranges).sum() / 256 for seed in range(60)]

    assert low * 0.93 <= min(sizes) < max(sizes) <= high * 1.07
    assert max(sizes) - min(sizes) > 0.2


def test_shift_moves_within_its_range():
    image = np.zeros((40, 40, 1), np.float32)
    image[19:21, 19:21] = 1.0

    centres = []
    for seed in range(60):
        moved = changed(image, seed, shift_fraction=0.1)[..., 0]
        rows, columns = np.indices(moved.shape)
        centres.append([(moved * axis).sum() / moved.sum() for axis in (rows, columns)])

    offsets = np.array(centres) - 19.5
    assert np.abs(offsets).max() <= 4.01
    assert (offsets.max(axis=0) > 3).all()
    assert (offsets.min(axis=0) < -3).all()


def test_aspect_stretches_one_axis_at_the_cost_of_the_other():
    image = np.zeros((64, 64, 1), np.float32)
    image[24:40, 24:40] = 1.0

    ratios = []
    for seed in range(40):
        stretched = changed(image, seed, aspect=0.2)[..., 0]
        ratios.append(stretched[:, 32].sum() / stretched[32].sum())

    assert 1 / 1.5 / 1.05 <= min(ratios) < 0.8
    assert 1.25 < max(ratios) <= 1.5 * 1.05


def test_exposure_changes_grey_values_by_their_formula():
    image = np.full((4, 4, 1), 0.25, np.float32)

    gammas = [np.log(changed(image, seed, gamma=0.5)[0, 0, 0]) / np.log(0.25) for seed in range(80)]
    assert np.exp(-0.5) - 1e-3 <= min(gammas) < 0.7
    assert 1.5 < max(gammas) <= np.exp(0.5) + 1e-3
    contrasts = [(0.5 - changed(image, seed, contrast=0.4)[0, 0, 0]) / 0.25 for seed in range(80)]
    assert 0.6 - 1e-3 <= min(contrasts) < 0.65
    assert 1.35 < max(contrasts) <= 1.4 + 1e-3
    lights = [changed(image, seed, brightness=0.2)[0, 0, 0] - 0.25 for seed in range(80)]
    assert -0.2 - 1e-3 <= min(lights) < -0.17
    assert 0.17 < max(lights) <= 0.2 + 1e-3


def test_blur_softens_and_noise_stays_below_its_deviation():
    image = values_of(40, 40, 1)

    assert changed(image, blur_probability=1.0, blur_sigma_pixels=1.2).std() < 0.9 * image.std()
    middle = np.full((64, 64, 1), 0.5, np.float32)
    deviations = [changed(middle, seed, noise=0.1).std() for seed in range(40)]
    assert 0.09 < max(deviations) <= 0.103


def test_noise_is_the_same_in_all_channels():
    grey = np.repeat(values_of(12, 12, 1), 3, axis=-1)

    noisy = changed(grey, noise=0.2, blur_probability=1.0, blur_sigma_pixels=1.0)

    np.testing.assert_allclose(noisy[..., 0], noisy[..., 2], atol=1e-6)
    assert not np.allclose(noisy, grey, atol=0.01)


def test_a_rectangle_is_erased_and_in_a_volume_a_box():
    image, volume = (np.full(shape, 0.5, np.float32) for shape in [(40, 40, 1), (10, 40, 40, 1)])

    for seed in range(30):
        ranges = {"erase_probability": 1.0, "erase_fraction": 0.5}
        rows, columns, _ = np.nonzero(changed(image, seed, **ranges) != 0.5)
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert 2 <= np.ptp(rows) + 1 <= 20
        slices, rows, columns, _ = np.nonzero(changed(volume, seed, **ranges) != 0.5)
        assert len(rows) == (np.ptp(slices) + 1) * (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert np.ptp(slices) + 1 <= 5


def test_all_slices_of_a_volume_move_alike():
    # Given a volume whose slices are all the same film,
    volume = np.repeat(values_of(1, 24, 24, 1), 6, axis=0)

    # when it is moved in every way there is in the plane,
    moved = changed(
        volume, 3, rotation_degrees=20, zoom=0.2, shift_fraction=0.1, aspect=0.1,
        border_crop_fraction=0.1, flip_probability=1.0, gamma=0.3, quarter_turn_probability=1.0,
    )  # fmt: skip

    # then they still are, and not as they were.
    np.testing.assert_array_equal(moved, np.repeat(moved[:1], 6, axis=0))
    assert not np.allclose(moved, volume, atol=0.1)


def test_a_volume_of_one_slice_is_changed_as_its_image_is():
    image = values_of(24, 20, 3)

    as_image, as_volume = (
        augment_input(values, AugmentationRanges(), np.random.default_rng(4))
        for values in (image, image[None])
    )

    np.testing.assert_array_equal(as_image, as_volume[0])


@given(st.integers(0, 10_000), st.sampled_from([(24, 20, 1), (20, 24, 3), (3, 20, 20, 1)]))
@settings(max_examples=60)
def test_changed_inputs_stay_inputs(seed, shape):
    values = values_of(*shape, seed=seed)
    kept = values.copy()
    ranges = replace(
        AugmentationRanges(), vertical_flip_probability=0.5, slice_flip_probability=0.5,
        quarter_turn_probability=0.5,
    )  # fmt: skip

    after = augment_input(values, ranges, np.random.default_rng(seed))

    assert (after.shape, after.dtype) == (shape, np.float32)
    assert np.isfinite(after).all()
    assert 0 <= after.min() <= after.max() <= 1
    np.testing.assert_array_equal(values, kept)


@pytest.mark.parametrize("shape", [(4, 16, 16, 1), (3, 5, 16, 16, 3)])
def test_same_seed_gives_the_same_batch(shape):
    values, labels = values_of(*shape), values_of(shape[0], 2, seed=1)

    first, second, other = (
        augment_batch(values, labels, AugmentationRanges(), np.random.default_rng(seed))
        for seed in (7, 7, 8)
    )

    digests = [hashlib.sha256(batch[0].tobytes() + batch[1].tobytes()).digest() for batch in
               (first, second, other)]  # fmt: skip
    assert digests[0] == digests[1] != digests[2]
    assert first[0].dtype == first[1].dtype == np.float32


def test_blending_keeps_labels_and_inputs_together():
    # Given inputs that are all black or all white, with labels that say which,
    labels = np.array([[0, 1], [1, 0], [1, 0], [0, 1]], dtype=np.float32)
    values = np.broadcast_to(labels[:, :1, None, None], (4, 6, 6, 1)).astype(np.float32)

    # when they are blended,
    blended, shares = augment_batch(
        values, labels, replace(NONE, mixup_alpha=1.0), np.random.default_rng(2)
    )

    # then how white an input is says what its label became.
    np.testing.assert_allclose(blended.mean(axis=(1, 2, 3)), shares[:, 0], atol=1e-6)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    assert ((shares > 0.01) & (shares < 0.99)).any()


def test_an_empty_table_means_the_changes_of_films():
    ranges, faults = read()

    assert (ranges, faults) == (AugmentationRanges(), [])


def test_a_table_on_the_base_of_none_changes_only_what_it_names():
    ranges, faults = read(base="none", rotation_degrees=12, noise=0.05)

    assert (ranges, faults) == (replace(NONE, rotation_degrees=12.0, noise=0.05), [])


def test_every_wrong_range_is_named_at_its_place():
    _, faults = read(
        base="nothing", zoom=1.5, flip_probability=-1, rotate=3, blur_sigma_pixels=0.1,
        erase_fraction=0.01,
    )  # fmt: skip

    assert [fault.partition(":")[0] for fault in faults] == [
        "augmentation.base",
        "augmentation.zoom",
        "augmentation.flip_probability",
        "augmentation.blur_sigma_pixels",
        "augmentation.erase_fraction",
        "augmentation.rotate",
    ]
    assert "between 0 and 0.9; received 1.5" in faults[1]


@pytest.mark.parametrize("field", [field.name for field in fields(AugmentationRanges)])
def test_every_range_can_be_stated_and_is_written_down(field):
    ranges, faults = read(**{field: 0.25})

    assert faults == []
    assert ranges.as_mapping()[field] == 0.25
