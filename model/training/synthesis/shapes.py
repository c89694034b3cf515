"""Random nodules and vessels, and places in the lungs for them.

Owns the ranges they are drawn from. Pure but for the generator that is handed in.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import special_ortho_group

from model.training.synthesis.lungs import Mask
from model.training.synthesis.nodules import KindValues, Nodule, Vector, Vessel

NODULE_RADIUS_MM = (4.0, 12.0)
PART_SOLID_SHARE = 0.25
TEXTURED_SHARE = 0.5
UNEVEN_SHARE = 0.6
SOLID_HU = (-40.0, 80.0)
VEIL_HU = (-600.0, -350.0)
VESSEL_RADIUS_MM = (1.0, 3.0)
VESSEL_LENGTH_MM = (12.0, 40.0)
VESSEL_HU = (40.0, 260.0)
WAVES = 4


def random_nodule(centre: Vector, rng: np.random.Generator) -> Nodule:
    """Draw a nodule: radius even in its logarithm, so that small ones are as frequent as large."""
    low, high = NODULE_RADIUS_MM
    radius = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    stretch = np.exp(rng.normal(0.0, 0.15, size=3))
    radii = radius * stretch / np.prod(stretch) ** (1 / 3)
    is_veiled = rng.random() < PART_SOLID_SHARE
    return Nodule(
        centre=centre,
        radii_mm=(float(radii[0]), float(radii[1]), float(radii[2])),
        turn=special_ortho_group.rvs(3, random_state=rng),
        density_hu=float(rng.uniform(*(VEIL_HU if is_veiled else SOLID_HU))),
        kind=KindValues.PART_SOLID if is_veiled else KindValues.SOLID,
        soft_mm=float(rng.uniform(0.4, 1.6)),
        texture_hu=float(rng.uniform(15, 60)) if rng.random() < TEXTURED_SHARE else 0.0,
        waves=_waves(rng) if rng.random() < UNEVEN_SHARE else None,
    )


def _waves(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw what makes an edge lobed: few long waves, each a tenth of the radius at most."""
    numbers = rng.normal(0.0, 2.5, size=(WAVES, 3))
    phases = rng.uniform(0, 2 * np.pi, size=(WAVES, 1))
    heights = rng.uniform(0.03, 0.11, size=(WAVES, 1))
    return np.concatenate([numbers, phases, heights], axis=1)


def random_vessel(centre: Vector, rng: np.random.Generator) -> Vessel:
    """Draw a vessel; every third runs across the slices, where it looks like a nodule."""
    direction = rng.normal(size=3)
    if rng.random() < 1 / 3:
        direction = np.array([1.0, 0.0, 0.0]) + rng.normal(0.0, 0.15, size=3)
    direction /= np.linalg.norm(direction)
    aside = np.cross(direction, rng.normal(size=3))
    bend = aside / max(float(np.linalg.norm(aside)), 1e-6) * rng.uniform(0, 5)
    return Vessel(
        centre=centre,
        direction=_vector(direction),
        bend=_vector(bend),
        length_mm=float(rng.uniform(*VESSEL_LENGTH_MM)),
        radius_mm=float(rng.uniform(*VESSEL_RADIUS_MM)),
        taper=float(rng.uniform(0.4, 1.0)),
        density_hu=float(rng.uniform(*VESSEL_HU)),
    )


def _vector(values: npt.NDArray[np.float64]) -> Vector:
    return float(values[0]), float(values[1]), float(values[2])


def random_centre(
    depth_mm: npt.NDArray[np.float32],
    least_depth_mm: float,
    rng: np.random.Generator,
    taken: Mask | None = None,
) -> Vector | None:
    """Return a place in the lungs, anywhere within a voxel; None where there is none.

    Parameters
    ----------
    depth_mm : numpy.ndarray
        (slices, rows, columns), distance to the lung's edge, 0 outside it.
    least_depth_mm : float
        Nearer to the edge nothing is placed.
    rng : numpy.random.Generator
    taken : numpy.ndarray, optional
        True where nothing may be placed any more.
    """
    usable = depth_mm >= least_depth_mm
    if taken is not None:
        usable &= ~taken
    places = np.flatnonzero(usable)
    if not len(places):
        return None
    voxel = np.unravel_index(int(rng.choice(places)), depth_mm.shape)
    within = rng.uniform(-0.5, 0.5, size=3)
    return _vector(np.array(voxel, dtype=np.float64) + within)
