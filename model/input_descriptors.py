"""What an input looks like from afar, as a few hundred numbers that exposure does not change.

Owns the two descriptions of an image or volume that ``model.input_distribution`` judges by: where
it is lighter and darker, and which way its edges run. Both are made of ranks, so that gamma,
contrast and window play no part; neither sees detail, so that sharpness plays little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dicom_io.resampling import resampled_slices, resized

FloatArray = npt.NDArray[np.float32]

DESCRIPTOR_VERSION = 1
"""Written into every file: figures of other descriptors are not comparable."""

IMAGE_GRID = (80, 80)
VOLUME_GRID = (24, 64, 64)
"""What an input is shrunk to first; all descriptors are made of that."""

_IMAGE_EDGES_GRID, _IMAGE_CELLS = (40, 40), (5, 5)
_VOLUME_EDGES_GRID, _VOLUME_CELLS = (12, 32, 32), (3, 4, 4)
_IMAGE_TONES_GRID, _VOLUME_TONES_GRID = (20, 20), (4, 8, 8)
_DIRECTIONS = 8
_CHUNK = 64
_TONES_WEIGHT = np.float32(0.3)
"""Shares' roots vary some three times less than ranks do."""


def shrunk(values: FloatArray, grid: Sequence[int]) -> FloatArray:
    """Bring arrays to a grid, each axis by the rule of ``dicom_io.resampling``.

    Parameters
    ----------
    values : ndarray
        (n, [slices,] rows, columns), float32.
    grid : sequence of int
        One edge for each axis but the first.
    """
    planes = values.reshape(-1, *values.shape[-2:])
    fitted = np.stack([resized(plane, grid[-2], grid[-1]) for plane in planes])
    brought = fitted.reshape(*values.shape[:-2], *grid[-2:])
    if values.ndim == 4:
        brought = np.stack([resampled_slices(volume, grid[0]) for volume in brought])
    return np.ascontiguousarray(brought, dtype=np.float32)


def thumbnails(values: FloatArray) -> FloatArray:
    """Shrink inputs to the grid that everything else is made of.

    Parameters
    ----------
    values : ndarray
        (n, rows, columns, channels) or (n, slices, rows, columns, channels), float32 in [0, 1].

    Returns
    -------
    ndarray
        (n, *IMAGE_GRID) or (n, *VOLUME_GRID), float32.
    """
    grey = np.asarray(values, dtype=np.float32).mean(axis=-1, dtype=np.float32)
    return shrunk(grey, VOLUME_GRID if grey.ndim == 4 else IMAGE_GRID)


def descriptors(thumbs: FloatArray) -> dict[str, FloatArray]:
    """Describe thumbnails.

    Parameters
    ----------
    thumbs : ndarray
        As ``thumbnails`` returns them.

    Returns
    -------
    dict of str to ndarray
        (n, numbers) for ``edges`` and ``tones``.
    """
    # What lies between holds many times as much: of thousands of volumes it would fill the memory.
    chunks = [_described(thumbs[n : n + _CHUNK]) for n in range(0, len(thumbs), _CHUNK)]
    return {name: np.concatenate([each[name] for each in chunks]) for name in chunks[0]}


def _described(thumbs: FloatArray) -> dict[str, FloatArray]:
    volume = thumbs.ndim == 4
    ranks = _ranks(shrunk(thumbs, _VOLUME_EDGES_GRID if volume else _IMAGE_EDGES_GRID))
    tones = shrunk(ranks, _VOLUME_TONES_GRID if volume else _IMAGE_TONES_GRID)
    return {
        "edges": _edges(ranks, _VOLUME_CELLS if volume else _IMAGE_CELLS),
        "tones": tones.reshape(len(tones), -1) - np.float32(0.5),
    }


def joined(described: Mapping[str, FloatArray]) -> FloatArray:
    """Return all descriptions as one, (n, numbers), with weights that make them count alike."""
    return np.concatenate([described["edges"], _TONES_WEIGHT * described["tones"]], axis=1)


def described_numbers(dimensions: int) -> dict[str, int]:
    """Return how many numbers each description of a tensor of so many axes has."""
    grid = VOLUME_GRID if dimensions == 4 else IMAGE_GRID
    described = descriptors(np.zeros((1, *grid), dtype=np.float32))
    return {name: numbers.shape[1] for name, numbers in described.items()}


def _ranks(thumbs: FloatArray) -> FloatArray:
    """Replace every grey value by its rank among those of its image, in (0, 1]; ties share one."""
    flat = thumbs.reshape(len(thumbs), -1)
    ranked = np.stack([_ranked(one) for one in flat])
    return ranked.reshape(thumbs.shape)


def _ranked(values: FloatArray) -> FloatArray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(middle[place] / len(values), dtype=np.float32)


def _edges(ranks: FloatArray, cells: Sequence[int]) -> FloatArray:
    """Say how much edge of which direction lies in which cell, dark to light.

    The shares of one image sum to one; their roots are returned, so that the Euclidean distance
    of two images is the Hellinger distance of their distributions.
    """
    slopes = np.gradient(_smoothed(ranks), axis=tuple(range(1, ranks.ndim)))
    parts = _directed(slopes[-2], slopes[-1])
    if len(slopes) == 3:
        parts += [np.maximum(slopes[0], 0), np.maximum(-slopes[0], 0)]
    counted = np.stack([_summed(part, cells) for part in parts], axis=1)
    flat = counted.reshape(len(counted), -1)
    shares: FloatArray = flat / (flat.sum(axis=1, keepdims=True) + np.float32(1e-6))
    return np.sqrt(shares)


def _smoothed(values: FloatArray) -> FloatArray:
    """Mix every point with its neighbours, 1 to 2 to 1 along each axis but the first."""
    for axis in range(1, values.ndim):
        ends = [(0, 0)] * values.ndim
        ends[axis] = (1, 1)
        wide = np.moveaxis(np.pad(values, ends, mode="edge"), axis, 0)
        mixed = (wide[:-2] + 2 * wide[1:-1] + wide[2:]) * np.float32(0.25)
        values = np.moveaxis(mixed, 0, axis)
    return values


def _directed(down: FloatArray, across: FloatArray) -> list[FloatArray]:
    """Share every slope's length among the two nearest of the directions around the circle."""
    length = np.hypot(down, across)
    place = np.arctan2(down, across) * (_DIRECTIONS / (2 * np.pi))
    half = _DIRECTIONS / 2
    distances = (np.abs(np.mod(place - n + half, _DIRECTIONS) - half) for n in range(_DIRECTIONS))
    return [length * np.maximum(0, 1 - distance) for distance in distances]


def _summed(values: FloatArray, cells: Sequence[int]) -> FloatArray:
    """Sum over equal boxes, as many as `cells` says along each axis."""
    shape = [len(values)]
    for edge, count in zip(values.shape[1:], cells, strict=True):
        shape += [count, edge // count]
    summed: FloatArray = values.reshape(shape).sum(axis=tuple(range(2, len(shape), 2)))
    return summed
