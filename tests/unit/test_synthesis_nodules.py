"""Lungs found in a phantom, and nodules and vessels put where they are said to be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from model.training.synthesis.lungs import Grain, depth_mm, grain_of, lung_mask
from model.training.synthesis.nodules import (
    KindValues,
    Nodule,
    Vessel,
    with_nodule,
    with_vessel,
)
from model.training.synthesis.shapes import random_centre, random_nodule, random_vessel

SPACING = (2.5, 1.0, 1.0)
QUIET = Grain(0.0, 0.0)
LUNG_HU, TISSUE_HU = -850.0, 40.0
BALL = Nodule((4.0, 60.0, 42.0), (8.0, 8.0, 8.0), np.eye(3), 30.0, soft_mm=0.4)


def disc(rows: int, columns: int, centre: tuple[int, int], radii: tuple[int, int]) -> np.ndarray:
    down, right = np.mgrid[:rows, :columns]
    return ((down - centre[0]) / radii[0]) ** 2 + ((right - centre[1]) / radii[1]) ** 2 <= 1


@pytest.fixture(scope="module")
def phantom() -> np.ndarray:
    """A body of 8 slices with two lungs, a vessel in one, a trachea, air and padding around."""
    plane = np.full((120, 160), -1000.0)
    plane[:2] = -3024
    plane[disc(120, 160, (60, 80), (52, 72))] = TISSUE_HU
    plane[disc(120, 160, (60, 45), (34, 24))] = LUNG_HU
    plane[disc(120, 160, (60, 115), (34, 24))] = LUNG_HU
    plane[disc(120, 160, (45, 80), (6, 6))] = -1000
    plane[disc(120, 160, (60, 115), (3, 3))] = 150
    return np.repeat(plane[None], 8, axis=0).astype(np.float32)


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_lungs_are_found_with_their_vessels_and_without_airway_and_air(phantom) -> None:
    found = lung_mask(phantom, SPACING)

    assert found[3, 60, 45]
    assert found[3, 60, 115], "the vessel belongs to the lung it runs through"
    assert not found[3, 45, 80], "the trachea is no lung"
    assert not found[3, 10, 5]
    assert not found[3, 60, 80]
    lungs = disc(120, 160, (60, 45), (34, 24)) | disc(120, 160, (60, 115), (34, 24))
    assert abs(int(found[3].sum()) - int(lungs.sum())) < 0.03 * lungs.sum()


def test_a_volume_without_a_body_or_without_lungs_has_none(phantom) -> None:
    assert not lung_mask(np.full((2, 40, 40), -1000, np.float32), SPACING).any()
    assert not lung_mask(np.full((2, 120, 160), TISSUE_HU, np.float32), SPACING).any()
    assert grain_of(np.full((2, 40, 40), -1000, np.float32)) == QUIET


def test_what_holds_air_and_nothing_else_is_no_lung_however_large(phantom) -> None:
    with_gas = phantom.copy()
    with_gas[:, disc(120, 160, (60, 45), (34, 24))] = -1000

    found = lung_mask(with_gas, SPACING)

    assert not found[3, 60, 45]
    assert found[3, 60, 120]


def test_depth_is_measured_in_millimetres(phantom) -> None:
    mask = lung_mask(phantom, SPACING)

    depth = depth_mm(mask, (2.5, 2.0, 2.0))

    assert depth[3, 60, 45] == pytest.approx(2 * 24, abs=3)
    assert depth[3, 60, 80] == 0


def test_grain_is_measured_where_tissue_is_even(phantom) -> None:
    noisy = phantom + np.random.default_rng(0).normal(0, 20, phantom.shape).astype(np.float32)

    grain = grain_of(noisy)

    assert grain.deviation_hu == pytest.approx(20, rel=0.2)
    assert grain.correlation_pixels < 0.35


def test_a_ball_adds_as_much_as_its_volume(phantom) -> None:
    changed, truth = with_nodule(phantom, SPACING, BALL, QUIET, rng())

    added = (changed - phantom).astype(np.float64).sum() * np.prod(SPACING)
    expected = 4 / 3 * np.pi * 8.0**3 * (BALL.density_hu - LUNG_HU)
    assert added == pytest.approx(expected, rel=0.03)
    assert truth.radius_mm == pytest.approx(8.0)
    assert truth.box == (1, 7, 53, 67, 35, 49)


def test_nothing_changes_away_from_the_nodule(phantom) -> None:
    changed, _ = with_nodule(phantom, SPACING, BALL, Grain(30.0, 0.4), rng())

    touched = np.argwhere(np.abs(changed - phantom) > 1)
    assert changed.dtype == np.float32
    assert np.abs(touched - np.array(BALL.centre)).max(axis=0) == pytest.approx((4, 9, 9), abs=2)
    assert (phantom[:, 60, 42] == LUNG_HU).all(), "the volume handed in stays as it was"


def test_the_middle_is_as_dense_as_asked_and_the_edge_shares_its_voxels(phantom) -> None:
    changed, _ = with_nodule(phantom, SPACING, BALL, QUIET, rng())

    assert changed[4, 60, 42] == pytest.approx(30, abs=1)
    assert LUNG_HU + 100 < changed[4, 60, 50] < -100, "half of this voxel is nodule"


def test_axes_turn_with_the_nodule(phantom) -> None:
    quarter = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
    long = replace(BALL, radii_mm=(4.0, 12.0, 4.0))

    lying = with_nodule(phantom, SPACING, long, QUIET, rng())[1].box
    turned = with_nodule(phantom, SPACING, replace(long, turn=quarter), QUIET, rng())[1].box

    assert (lying[3] - lying[2], lying[5] - lying[4]) == (22, 6)
    assert (turned[3] - turned[2], turned[5] - turned[4]) == (6, 22)


def test_a_vessel_keeps_its_density_inside_a_veil(phantom) -> None:
    veil = replace(BALL, centre=(4.0, 60.0, 121.0), density_hu=-500.0, kind=KindValues.PART_SOLID)

    changed, truth = with_nodule(phantom, SPACING, veil, QUIET, rng())

    assert changed[4, 60, 115] == 150
    assert truth.kind == "part-solid"
    assert changed[4, 60, 121] == pytest.approx(20, abs=30), "its core is solid"
    assert changed[4, 60, 127] == pytest.approx(-500, abs=80)


def test_a_nodule_may_reach_beyond_the_scan_but_not_lie_outside(phantom) -> None:
    _, truth = with_nodule(phantom, SPACING, replace(BALL, centre=(0.0, 60.0, 42.0)), QUIET, rng())

    assert truth.box[:2] == (0, 3)
    with pytest.raises(ValueError, match="too far outside"):
        with_nodule(phantom, SPACING, replace(BALL, centre=(40.0, 60.0, 42.0)), QUIET, rng())


def test_texture_and_waves_change_density_and_edge(phantom) -> None:
    waves = np.array([[2.0, 1.0, 0.0, 0.0, 0.15]])
    smooth = with_nodule(phantom, SPACING, BALL, QUIET, rng())[0]
    rough = with_nodule(phantom, SPACING, replace(BALL, texture_hu=60.0), QUIET, rng())[0]
    lobed = with_nodule(phantom, SPACING, replace(BALL, waves=waves), QUIET, rng())[0]

    inside = (slice(3, 6), slice(57, 63), slice(39, 45))
    assert smooth[inside].std() < 1
    assert rough[inside].std() > 15
    assert np.abs(lobed - smooth).max() > 200


def test_a_vessel_is_seen_in_the_lung_only(phantom) -> None:
    vessel = Vessel((4.0, 60.0, 45.0), (0, 0, 1.0), (0, 0, 0), 60.0, 3.0, 1.0, 180.0)
    lungs = lung_mask(phantom, SPACING)

    changed = with_vessel(phantom, SPACING, vessel, QUIET, rng(), lungs)

    assert changed[4, 60, 45] > 100
    assert (changed[4, 60, 22:66] > -100).all()
    assert (changed[~lungs] == phantom[~lungs]).all()


def test_a_vessel_across_the_slices_looks_round(phantom) -> None:
    vessel = Vessel((4.0, 60.0, 45.0), (1.0, 0, 0), (0, 0, 0), 60.0, 3.0, 1.0, 180.0)

    changed = with_vessel(phantom, SPACING, vessel, QUIET, rng())

    section = changed[4] > -300
    rows, columns = np.nonzero(section & disc(120, 160, (60, 45), (20, 20)))
    assert abs(int(np.ptp(rows)) - int(np.ptp(columns))) <= 1
    assert 4 <= np.ptp(rows) <= 7


def test_random_shapes_keep_their_ranges() -> None:
    drawn = rng()

    nodules = [random_nodule((0, 0, 0), drawn) for _ in range(200)]
    vessels = [random_vessel((0, 0, 0), drawn) for _ in range(100)]

    assert all(4 <= nodule.radius_mm <= 12 for nodule in nodules)
    assert {nodule.kind for nodule in nodules} == set(KindValues)
    assert any(nodule.waves is None for nodule in nodules)
    assert all(np.linalg.norm(vessel.direction) == pytest.approx(1) for vessel in vessels)
    assert max(vessel.radius_mm for vessel in vessels) <= 3, "smaller than any nodule"
    assert all(abs(np.dot(v.direction, v.bend)) < 1e-6 for v in vessels)


def test_places_lie_in_the_lung_and_not_where_something_is(phantom) -> None:
    depth = depth_mm(lung_mask(phantom, SPACING), SPACING)
    taken = np.ones(depth.shape, bool)
    taken[2, 60, 45] = False

    anywhere = [random_centre(depth, 5.0, rng()) for _ in range(20)]
    left_over = random_centre(depth, 5.0, rng(), taken)

    assert all(depth[tuple(np.rint(place).astype(int))] >= 4 for place in anywhere)
    np.testing.assert_allclose(left_over, (2, 60, 45), atol=0.5)
    assert random_centre(depth, 500.0, rng()) is None
