"""Random changes to a film that do not change its diagnosis.

Owns the list of changes and their ranges, all drawn from one seeded generator. The training
films of a hospital differ from the next ones in exposure, sharpness, border and position; each
change below stands for one such difference, so that the network cannot use it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import cv2
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class AugmentationRanges:
    """How far each change may go; written into the package as part of its provenance."""

    rotation_degrees: float = 8.0
    shift_fraction: float = 0.06
    zoom: float = 0.12
    """Zoom factor within 1 ± this, the same for both axes."""
    aspect: float = 0.10
    """Further stretch of one axis within 1 ± this: films were squashed to squares."""
    border_crop_fraction: float = 0.12
    """Up to this share of each side is cut off: the field of view differs between rooms."""
    border_add_fraction: float = 0.08
    """Up to this share is added to each side, black: collimators leave such borders."""
    flip_probability: float = 0.5
    gamma: float = 0.40
    """Exponent within exp(± this): tube voltage and the manufacturer's curve."""
    brightness: float = 0.10
    contrast: float = 0.20
    blur_probability: float = 0.5
    blur_sigma_pixels: float = 1.2
    """Sharpness follows the original matrix size, which differs between the classes."""
    noise: float = 0.03
    erase_probability: float = 0.5
    erase_fraction: float = 0.25
    """Side of an erased rectangle as share of the film: markers, tubes, text."""
    mixup_alpha: float = 0.2

    def as_mapping(self) -> dict[str, float]:
        """Return the ranges for a manifest."""
        return asdict(self)


def augment_batch(
    values: FloatArray, labels: FloatArray, ranges: AugmentationRanges, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Change every film of a batch and blend neighbours.

    Parameters
    ----------
    values : ndarray
        (batch, rows, columns, 1), float32 in [0, 1]; not modified.
    labels : ndarray
        (batch,), 0 or 1.

    Returns
    -------
    tuple of ndarray
        The same shapes; labels become weights in [0, 1] where two films were blended.
    """
    changed = np.stack([augment_film(film[..., 0], ranges, rng) for film in values])[..., None]
    if ranges.mixup_alpha <= 0:
        return changed, labels
    share = np.float32(rng.beta(ranges.mixup_alpha, ranges.mixup_alpha))
    order = rng.permutation(len(changed))
    return (
        share * changed + (1 - share) * changed[order],
        share * labels + (1 - share) * labels[order],
    )


def augment_film(
    film: FloatArray, ranges: AugmentationRanges, rng: np.random.Generator
) -> FloatArray:
    """Return one film (rows, columns) moved, re-exposed, softened and partly hidden."""
    moved = _moved(film, ranges, rng)
    exposed = _exposed(moved, ranges, rng)
    return _hidden(_softened(exposed, ranges, rng), ranges, rng)


def _moved(film: FloatArray, ranges: AugmentationRanges, rng: np.random.Generator) -> FloatArray:
    """Crop the border, rotate, shift, zoom, stretch and flip in one resampling."""
    rows, columns = film.shape
    top, bottom, left, right = rng.uniform(
        -ranges.border_add_fraction, ranges.border_crop_fraction, 4
    )
    across, down = 1 - left - right, 1 - top - bottom
    zoom = 1 + rng.uniform(-ranges.zoom, ranges.zoom)
    stretch = 1 + rng.uniform(-ranges.aspect, ranges.aspect)
    angle = np.deg2rad(rng.uniform(-ranges.rotation_degrees, ranges.rotation_degrees))
    flip = -1.0 if rng.random() < ranges.flip_probability else 1.0
    # From target to source, both with the origin in the middle and sides of length one.
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    scale = np.diag([flip * across * zoom * stretch, down * zoom / stretch])
    middle = np.array([0.5 + (left - right) / 2, 0.5 + (top - bottom) / 2])
    middle += rng.uniform(-ranges.shift_fraction, ranges.shift_fraction, 2)
    size = np.array([columns, rows], dtype=np.float64)
    matrix = np.diag(size) @ turn @ scale @ np.diag(1 / size)
    offset = middle * size - matrix @ (size / 2)
    moved = cv2.warpAffine(
        film,
        np.hstack([matrix, offset[:, None]]).astype(np.float32),
        (columns, rows),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0.0,
    )
    return moved.astype(np.float32, copy=False)


def _exposed(film: FloatArray, ranges: AugmentationRanges, rng: np.random.Generator) -> FloatArray:
    gamma = np.exp(rng.uniform(-ranges.gamma, ranges.gamma))
    contrast = 1 + rng.uniform(-ranges.contrast, ranges.contrast)
    brightness = rng.uniform(-ranges.brightness, ranges.brightness)
    curved = np.power(np.clip(film, 0.0, 1.0), gamma)
    return np.asarray((curved - 0.5) * contrast + 0.5 + brightness, dtype=np.float32)


def _softened(film: FloatArray, ranges: AugmentationRanges, rng: np.random.Generator) -> FloatArray:
    if rng.random() < ranges.blur_probability:
        sigma = rng.uniform(0.2, ranges.blur_sigma_pixels)
        film = np.asarray(cv2.GaussianBlur(film, (0, 0), sigma), dtype=np.float32)
    level = rng.uniform(0, ranges.noise)
    noisy = film + level * rng.standard_normal(film.shape, dtype=np.float32)
    return np.clip(noisy, 0.0, 1.0).astype(np.float32)


def _hidden(film: FloatArray, ranges: AugmentationRanges, rng: np.random.Generator) -> FloatArray:
    if rng.random() < ranges.erase_probability:
        rows, columns = film.shape
        height = int(rows * rng.uniform(0.05, ranges.erase_fraction))
        width = int(columns * rng.uniform(0.05, ranges.erase_fraction))
        top, left = rng.integers(0, rows - height), rng.integers(0, columns - width)
        film[top : top + height, left : left + width] = rng.random()
    return film
