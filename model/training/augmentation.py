"""Random changes to an input that do not change its diagnosis.

Owns their order and the blending of a batch; everything is drawn from one seeded generator. The
training images of a hospital differ from the next ones in exposure, sharpness, border and
position; each change stands for one such difference, so that the network cannot use it.
"""

from __future__ import annotations

import numpy as np

from model.training.augmentation_geometry import FloatArray, moved
from model.training.augmentation_grey import exposed, hidden, softened
from model.training.augmentation_ranges import AugmentationRanges

__all__ = ["AugmentationRanges", "augment_batch", "augment_input"]


def augment_batch(
    values: FloatArray, labels: FloatArray, ranges: AugmentationRanges, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Change every input of a batch and blend neighbours.

    Parameters
    ----------
    values : ndarray
        (batch, rows, columns, channels) or (batch, slices, rows, columns, channels), one to four
        channels, float32 in [0, 1]; not modified.
    labels : ndarray
        (batch, outputs), in [0, 1]; not modified.
    ranges : AugmentationRanges
    rng : numpy.random.Generator
        The same state gives the same batch.

    Returns
    -------
    tuple of ndarray
        The same shapes, values again in [0, 1]; labels become weights in [0, 1] where two inputs
        were blended.
    """
    if ranges == AugmentationRanges.none() or not len(values):
        return values, labels
    changed = np.stack([augment_input(each, ranges, rng) for each in values])
    if ranges.mixup_alpha <= 0:
        return changed, labels
    share = np.float32(rng.beta(ranges.mixup_alpha, ranges.mixup_alpha))
    order = rng.permutation(len(changed))
    return (
        share * changed + (1 - share) * changed[order],
        share * labels + (1 - share) * labels[order],
    )


def augment_input(
    values: FloatArray, ranges: AugmentationRanges, rng: np.random.Generator
) -> FloatArray:
    """Return one image (rows, columns, channels) or volume (slices, ...) changed.

    It is moved, re-exposed, softened and partly hidden, in this order.
    """
    volume = values if values.ndim == 4 else values[np.newaxis]
    changed = exposed(moved(volume, ranges, rng), ranges, rng)
    return hidden(softened(changed, ranges, rng), ranges, rng).reshape(values.shape)
