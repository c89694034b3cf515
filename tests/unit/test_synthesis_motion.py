"""Motion in k-space, held against what shifts, turns and swings are known to do to an image."""

from __future__ import annotations

import numpy as np
import pytest

from model.training.synthesis.confounders import Confounders, confounded, random_confounders
from model.training.synthesis.motion import (
    Motion,
    drifting,
    periodic,
    still,
    sudden,
    with_motion,
)

SPACING = (0.5, 2.0)


@pytest.fixture
def head() -> np.ndarray:
    """A small smooth blot beside the middle of 64 rows and 48 columns."""
    down, right = np.mgrid[:64, :48]
    blot = 100 * np.exp(-(((down - 28) / 2) ** 2 + ((right - 26) / 2) ** 2))
    return blot.astype(np.float32)


def course(motion: Motion) -> np.ndarray:
    return np.stack([motion.rows_mm, motion.columns_mm, motion.degrees])


@pytest.mark.parametrize("phase_axis", [0, 1])
def test_a_still_head_gives_the_image_itself(head, phase_axis) -> None:
    seen = with_motion(head, still(head.shape[phase_axis]), SPACING, phase_axis)

    np.testing.assert_allclose(seen, head, atol=1e-4)


@pytest.mark.parametrize("phase_axis", [0, 1])
def test_a_head_that_lies_elsewhere_all_the_time_is_seen_there(head, phase_axis) -> None:
    lines = head.shape[phase_axis]
    elsewhere = sudden(lines, [0.0], np.array([[1.5, -4.0, 0.0]]))

    seen = with_motion(head, elsewhere, SPACING, phase_axis)

    # 1.5 mm are three rows down, -4 mm are two columns to the left.
    np.testing.assert_allclose(seen, np.roll(head, (3, -2), (0, 1)), atol=1e-3)


def test_a_head_that_is_turned_all_the_time_is_seen_turned(head) -> None:
    square = head[8:56]
    turned = sudden(48, [0.0], np.array([[0.0, 0.0, 90.0]]))

    seen = with_motion(square, turned, (1.0, 1.0), 0)

    np.testing.assert_allclose(seen, np.rot90(square), atol=0.1)


@pytest.mark.parametrize("phase_axis", [0, 1])
def test_a_swing_makes_ghosts_along_the_phase_axis(head, phase_axis) -> None:
    lines = head.shape[phase_axis]
    way = np.array([0.1, 0.0, 0.0]) if phase_axis == 0 else np.array([0.0, 0.4, 0.0])

    # As many swings as move a ghost by a quarter of the field of view.
    seen = with_motion(head, periodic(lines, lines / 4, 0.3, way), SPACING, phase_axis)

    profile = np.abs(seen - head).sum(axis=1 - phase_axis)
    place = 28 if phase_axis == 0 else 26
    ghost, opposite = (
        profile.take(range(middle - 5, middle + 6), mode="wrap").sum()
        for middle in (place + lines // 4, place + lines // 2)
    )
    assert ghost > 10 * opposite
    across = np.abs(seen - head).sum(axis=phase_axis)
    assert across[2] < 0.02 * across.max(), "nothing goes aside"


def test_shifts_keep_the_energy_of_the_image(head) -> None:
    jerks = sudden(64, [0.3, 0.6], np.array([[2.0, 1.0, 0.0], [-3.0, 5.0, 0.0]]))

    seen = with_motion(head, jerks, SPACING, 0)

    # Only phases change in k-space (Parseval).
    assert np.linalg.norm(seen) == pytest.approx(np.linalg.norm(head), rel=1e-5)
    assert np.linalg.norm(seen - head) > 0.1 * np.linalg.norm(head)


def test_motion_at_the_edge_of_k_space_changes_less_than_in_the_middle(head) -> None:
    def changed(at: float) -> float:
        jerk = sudden(64, [at], np.array([[1.0, 0.0, 0.0]]))
        return float(np.linalg.norm(with_motion(head, jerk, SPACING, 0) - head))

    assert changed(0.95) < 0.05 * changed(0.5)


def test_motion_for_another_number_of_lines_is_refused(head) -> None:
    with pytest.raises(ValueError, match="must cover 64 phase-encoding lines, received 48"):
        with_motion(head, still(48), SPACING, 0)


def test_courses_are_what_they_are_called() -> None:
    way = np.array([1.0, 2.0, 3.0])

    jerk = course(sudden(10, [0.2, 0.7], np.stack([way, -way])))
    swing = course(periodic(8, 2, 0.0, way))
    drift = course(drifting(5, way, np.linspace(0, 1, 5)))

    np.testing.assert_array_equal(jerk[1], [0, 0, 2, 2, 2, 2, 2, -2, -2, -2])
    np.testing.assert_allclose(swing[2], [0, 3, 0, -3, 0, 3, 0, -3], atol=1e-9)
    np.testing.assert_allclose(drift[0], [0, 0.25, 0.5, 0.75, 1])
    with pytest.raises(ValueError, match="one value for each of 6 lines"):
        drifting(6, way, np.linspace(0, 1, 5))


def test_a_course_can_be_scaled_and_seen_from_the_middle() -> None:
    jerk = sudden(10, [0.4], np.array([[1.0, 2.0, 3.0]]))

    rest = jerk.at_rest_in_the_middle().times(2)

    assert course(rest)[:, 5].tolist() == [0, 0, 0]
    assert course(rest)[:, 0].tolist() == [-2, -4, -6]
    assert rest.extent == pytest.approx(2 * jerk.extent)


def test_confounders_do_what_they_say(head) -> None:
    drawn = np.random.default_rng(3)

    def changed(chosen: Confounders) -> np.ndarray:
        return confounded(head, chosen, drawn)

    np.testing.assert_allclose(changed(Confounders()), head, rtol=1e-5, atol=1e-5)
    assert changed(Confounders(noise=0.05))[0].mean() > 0.02 * np.percentile(head, 99)
    assert changed(Confounders(blur_pixels=2.0)).max() < 0.9 * head.max()
    spectrum = np.abs(np.fft.fft2(changed(Confounders(kept_share=0.25))))
    assert spectrum[20:44].max() < 0.05 * spectrum.max()
    uneven = changed(Confounders(field=(0.5,)))[28, 24:29] / head[28, 24:29]
    assert uneven == pytest.approx(uneven[0]), "the first weight varies from row to row only"
    assert changed(Confounders(power=2.0))[28, 26] > changed(Confounders(power=1.0))[28, 26]


def test_confounders_are_drawn_with_and_without_each() -> None:
    drawn = [random_confounders(np.random.default_rng(seed)) for seed in range(60)]

    assert {one.noise > 0 for one in drawn} == {True, False}
    assert {one.blur_pixels > 0 for one in drawn} == {True, False}
    assert {one.kept_share < 1 for one in drawn} == {True, False}
    assert {bool(one.field) for one in drawn} == {True, False}
