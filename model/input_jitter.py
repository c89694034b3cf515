"""Thumbnails changed as other rooms and hospitals would change them.

Owns the ranges that a distribution of inputs is made to tolerate: position, size, border, turn,
mirror, exposure, sharpness, noise, and something lying on the picture. Independent of a training's
own augmentation, so that a package whose training changed nothing tolerates as much.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter

from model.input_descriptors import FloatArray

ROTATION_DEGREES = 8.0
SHIFT = 0.06
ZOOM = 0.12
ASPECT = 0.10
BORDER_CUT = 0.12
BORDER_ADDED = 0.15
"""The last five are shares of an edge."""
CONTRAST = 0.20
BRIGHTNESS = 0.10
"""Matter where they clip; what they do to the values in between is unseen anyway."""
BLUR_POINTS = 1.5
NOISE = 0.03
HIDDEN = 0.25
"""Edge of a box of one grey value, as a share; half of the inputs get one."""


def jittered(thumbs: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Change every thumbnail in its own way.

    Parameters
    ----------
    thumbs : ndarray
        (n, [slices,] rows, columns), float32 in [0, 1]; not modified.
    rng : Generator
        Decides.

    Returns
    -------
    ndarray
        The same shape and range.
    """
    return np.stack([_hidden(_exposed(_moved(one, rng), rng), rng) for one in thumbs])


def _moved(thumb: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Turn, mirror and shift within the plane; cut or add border; stretch every axis."""
    axes = thumb.ndim
    low, high = rng.uniform(-BORDER_ADDED, BORDER_CUT, (2, axes))
    stretch = 1 + rng.uniform(-ZOOM, ZOOM) + rng.uniform(-ASPECT / 2, ASPECT / 2, axes)
    scale = (1 - low - high) * stretch
    scale[-1] *= rng.choice([-1.0, 1.0])
    angle = np.deg2rad(rng.uniform(-ROTATION_DEGREES, ROTATION_DEGREES))
    turn = np.eye(axes)
    turn[-2:, -2:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    edges = np.array(thumb.shape, dtype=np.float64)
    middle = 0.5 + (low - high) / 2 + rng.uniform(-SHIFT, SHIFT, axes)
    matrix = np.diag(edges) @ turn @ np.diag(scale / edges)
    offset = middle * edges - 0.5 - matrix @ ((edges - 1) / 2)
    moved: FloatArray = affine_transform(thumb, matrix, offset, order=1, mode="constant")
    return moved


def _exposed(thumb: FloatArray, rng: np.random.Generator) -> FloatArray:
    contrast = 1 + rng.uniform(-CONTRAST, CONTRAST)
    brightness = rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    softened = gaussian_filter(thumb, rng.uniform(0, BLUR_POINTS))
    noise = rng.uniform(0, NOISE) * rng.standard_normal(thumb.shape, dtype=np.float32)
    exposed = (softened - 0.5) * contrast + 0.5 + brightness + noise
    clipped: FloatArray = np.clip(exposed, 0, 1).astype(np.float32)
    return clipped


def _hidden(thumb: FloatArray, rng: np.random.Generator) -> FloatArray:
    if rng.random() < 0.5:
        edges = np.array(thumb.shape)
        lengths = np.maximum(1, edges * rng.uniform(0.05, HIDDEN, thumb.ndim)).astype(int)
        starts = rng.integers(0, edges - lengths + 1)
        box = tuple(slice(s, s + n) for s, n in zip(starts, lengths, strict=True))
        thumb[box] = rng.random()
    return thumb
