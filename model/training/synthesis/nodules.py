"""Nodules and vessels put into a CT, in Hounsfield units, at places that are known afterwards.

Owns pure functions from volume to volume: shapes in millimetres, partial volume, blur, grain.
Decides nothing about which shapes or where; reads and writes no file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from model.training.synthesis.lungs import Grain, Hounsfield, Mask

SUBDIVISION = (5, 3, 3)
"""Points per voxel along slices, rows and columns at which a shape is asked: voxels at its edge
hold a part of it (partial volume). Slices are thick, so they are cut more finely."""

BLUR_MM = (0.7, 0.5, 0.5)
"""Standard deviation of the scanner's point spread beyond the voxel itself."""

MARGIN_MM = 3.0
"""Around a shape: blur and soft edges end within."""

Vector = tuple[float, float, float]
"""Along slices, rows and columns."""

Points = npt.NDArray[np.float32]
"""(..., 3) in millimetres from the shape's centre, along slices, rows and columns."""

Depth = Callable[[Points], npt.NDArray[np.float32]]
"""How far inside a shape points lie, in millimetres; negative outside."""


class KindValues(StrEnum):
    """What a nodule is made of."""

    SOLID = "solid"
    PART_SOLID = "part-solid"
    """A solid core in a veil that vessels shine through."""


@dataclass(frozen=True, slots=True)
class Nodule:
    """An ellipsoid with a soft, uneven edge."""

    centre: Vector
    """In voxels, the middle of the first voxel being (0, 0, 0)."""
    radii_mm: Vector
    """Of the three half axes, before turning."""
    turn: npt.NDArray[np.float64]
    """(3, 3), the rotation from half axes to slices, rows and columns."""
    density_hu: float
    kind: KindValues = KindValues.SOLID
    soft_mm: float = 0.6
    """Over how much the edge fades."""
    texture_hu: float = 0.0
    """How much the density varies inside, standard deviation."""
    waves: npt.NDArray[np.float64] | None = None
    """(n, 5): three wave numbers, a phase and an amplitude each; how the radius varies with
    direction, as a share of it. None for an even edge."""

    @property
    def radius_mm(self) -> float:
        """The radius of a ball of the same volume."""
        return float(np.cbrt(np.prod(self.radii_mm)))


@dataclass(frozen=True, slots=True)
class Vessel:
    """A bent tube that grows thinner: from one side it looks round, and is no nodule."""

    centre: Vector
    """In voxels; the middle of the tube."""
    direction: Vector
    """A unit vector."""
    bend: Vector
    """At right angles to it; how far the ends are pulled aside, in millimetres."""
    length_mm: float
    radius_mm: float
    taper: float
    """What is left of the radius at the thin end."""
    density_hu: float


@dataclass(frozen=True, slots=True)
class Truth:
    """Where something was put."""

    centre: Vector
    """In voxels."""
    box: tuple[int, int, int, int, int, int]
    """First and last slice, row and column of what is at least half covered, ends included."""
    radius_mm: float
    kind: str


def with_nodule(
    volume: Hounsfield,
    spacing_mm: Vector,
    nodule: Nodule,
    grain: Grain,
    rng: np.random.Generator,
) -> tuple[Hounsfield, Truth]:
    """Return a copy of a volume with a nodule in it, and where it is.

    Denser things keep their density where they cross it: a vessel runs on through the veil of a
    part-solid nodule.

    Parameters
    ----------
    volume : numpy.ndarray
        (slices, rows, columns) in Hounsfield units.
    spacing_mm : tuple of float
        Between slices, rows and columns.
    nodule : Nodule
        May reach beyond the volume, as a scan may end inside one.
    grain : Grain
        Noise of the scan, put over what is new.
    rng : numpy.random.Generator
        Draws texture and noise.

    Raises
    ------
    ValueError
        Nothing of it lies inside the volume.
    """
    reach = max(nodule.radii_mm) * 1.4 + MARGIN_MM
    patch = _patch(volume.shape, spacing_mm, nodule.centre, (reach,) * 3)
    covered = _coverage(_nodule_depth(nodule), patch, spacing_mm, nodule.centre, nodule.soft_mm)
    density = _nodule_density(nodule, patch, spacing_mm, covered.shape, rng)
    changed = _blended(volume, patch, covered, density, grain, rng)
    box = _box(covered, patch)
    return changed, Truth(nodule.centre, box, nodule.radius_mm, str(nodule.kind))


def with_vessel(
    volume: Hounsfield,
    spacing_mm: Vector,
    vessel: Vessel,
    grain: Grain,
    rng: np.random.Generator,
    inside: Mask | None = None,
) -> Hounsfield:
    """Return a copy of a volume with a vessel in it; parameters as for ``with_nodule``.

    Parameters
    ----------
    inside : numpy.ndarray, optional
        Where it may be seen, the lung for example; what reaches beyond is left out.
    """
    along = np.abs(np.array(vessel.direction)) * vessel.length_mm / 2 + np.abs(vessel.bend)
    reach = along + vessel.radius_mm + MARGIN_MM
    patch = _patch(volume.shape, spacing_mm, vessel.centre, tuple(reach.tolist()))
    covered = _coverage(_vessel_depth(vessel), patch, spacing_mm, vessel.centre, 0.4)
    if inside is not None:
        covered = covered * inside[patch]
    density = np.full(covered.shape, vessel.density_hu, dtype=np.float32)
    return _blended(volume, patch, covered, density, grain, rng)


Patch = tuple[slice, slice, slice]


def _patch(
    shape: tuple[int, ...], spacing_mm: Vector, centre: Vector, reach_mm: tuple[float, ...]
) -> Patch:
    """Return the part of a volume that a shape can reach."""
    parts = []
    for edge, spacing, middle, reach in zip(shape, spacing_mm, centre, reach_mm, strict=True):
        first = max(int(np.floor(middle - reach / spacing)), 0)
        last = min(int(np.ceil(middle + reach / spacing)) + 1, edge)
        if last <= first:
            raise ValueError(f"centre: {centre} lies too far outside a volume of {shape}")
        parts.append(slice(first, last))
    return parts[0], parts[1], parts[2]


def _coverage(
    depth: Depth, patch: Patch, spacing_mm: Vector, centre: Vector, soft_mm: float
) -> npt.NDArray[np.float32]:
    """Return which share of each voxel a shape fills, blurred as the scanner blurs."""
    axes = [
        ((np.arange((part.stop - part.start) * cuts) + 0.5) / cuts - 0.5 + part.start - middle)
        * spacing
        for part, cuts, spacing, middle in zip(patch, SUBDIVISION, spacing_mm, centre, strict=True)
    ]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32)
    filled = 1 / (1 + np.exp(-np.clip(depth(points) * 4 / soft_mm, -30, 30)))
    pitch = [spacing / cuts for spacing, cuts in zip(spacing_mm, SUBDIVISION, strict=True)]
    sigma = [blur / step for blur, step in zip(BLUR_MM, pitch, strict=True)]
    blurred = ndimage.gaussian_filter(filled, sigma, mode="nearest")
    (slices, rows, columns), (cut_s, cut_r, cut_c) = _extent(patch), SUBDIVISION
    cells = blurred.reshape(slices, cut_s, rows, cut_r, columns, cut_c)
    share: npt.NDArray[np.float32] = cells.mean(axis=(1, 3, 5)).astype(np.float32)
    return share


def _extent(patch: Patch) -> tuple[int, int, int]:
    slices, rows, columns = (part.stop - part.start for part in patch)
    return slices, rows, columns


def _nodule_depth(nodule: Nodule, shrunk: float = 1.0) -> Depth:
    radii = np.array(nodule.radii_mm, dtype=np.float32) * shrunk
    turn = nodule.turn.astype(np.float32)

    def depth(points: Points) -> npt.NDArray[np.float32]:
        scaled = (points @ turn) / radii
        distance = np.linalg.norm(scaled, axis=-1)
        allowed = 1.0 + _waviness(scaled / np.maximum(distance, 1e-6)[..., None], nodule.waves)
        inside: npt.NDArray[np.float32] = (allowed - distance) * np.float32(
            nodule.radius_mm * shrunk
        )
        return inside

    return depth


def _waviness(directions: Points, waves: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float32]:
    if waves is None:
        return np.zeros(directions.shape[:-1], dtype=np.float32)
    angles = directions @ waves[:, :3].T.astype(np.float32) + waves[:, 3].astype(np.float32)
    wavy: npt.NDArray[np.float32] = np.cos(angles) @ waves[:, 4].astype(np.float32)
    return wavy


CORE = 0.55
"""Radius of a part-solid nodule's core, as a share of the whole."""

CORE_HU = 20.0


def _nodule_density(
    nodule: Nodule,
    patch: Patch,
    spacing_mm: Vector,
    shape: tuple[int, ...],
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    density = np.full(shape, nodule.density_hu, dtype=np.float32)
    if nodule.kind is KindValues.PART_SOLID:
        core = _coverage(_nodule_depth(nodule, CORE), patch, spacing_mm, nodule.centre, 0.8)
        density += core * (CORE_HU - density)
    if nodule.texture_hu > 0:
        sigma = [2.0 / spacing for spacing in spacing_mm]
        texture = ndimage.gaussian_filter(rng.standard_normal(shape), sigma)
        spread = max(float(texture.std()), 1e-6)
        density += (texture * (nodule.texture_hu / spread)).astype(np.float32)
    return density


def _vessel_depth(vessel: Vessel) -> Depth:
    direction, bend = np.array(vessel.direction), np.array(vessel.bend)
    half = vessel.length_mm / 2

    def depth(points: Points) -> npt.NDArray[np.float32]:
        along = np.clip(points @ direction.astype(np.float32), -half, half)
        share = along / half
        axis = along[..., None] * direction + (share**2)[..., None] * bend
        radius = vessel.radius_mm * (1 + (vessel.taper - 1) * (share + 1) / 2)
        inside: npt.NDArray[np.float32] = radius - np.linalg.norm(points - axis, axis=-1)
        return inside

    return depth


def _blended(
    volume: Hounsfield,
    patch: Patch,
    covered: npt.NDArray[np.float32],
    density: npt.NDArray[np.float32],
    grain: Grain,
    rng: np.random.Generator,
) -> Hounsfield:
    changed = volume.copy()
    before = volume[patch]
    added = covered * (np.maximum(density, before) - before)
    # Lung has noise of its own already: only what is new needs some.
    changed[patch] = before + added + covered * _noise(covered.shape, grain, rng) * (added > 0)
    return changed


def _noise(shape: tuple[int, ...], grain: Grain, rng: np.random.Generator) -> Hounsfield:
    width = grain.correlation_pixels
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), (0, width, width))
    spread = max(float(noise.std()), 1e-6)
    return np.asarray(noise * (grain.deviation_hu / spread), dtype=np.float32)


def _box(covered: npt.NDArray[np.float32], patch: Patch) -> tuple[int, int, int, int, int, int]:
    """Return the bounds of what is half covered; of the most covered voxel where nothing is."""
    half = covered >= min(0.5, float(covered.max()))
    bounds = []
    for axis, part in enumerate(patch):
        others = tuple(other for other in range(3) if other != axis)
        (found,) = np.nonzero(half.any(axis=others))
        bounds += [int(found[0]) + part.start, int(found[-1]) + part.start]
    first, last, top, bottom, left, right = bounds
    return first, last, top, bottom, left, right
