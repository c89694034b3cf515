"""The changes to films under the name the first training script knows them by.

Owns nothing; see ``model.training.augmentation``.
"""

from __future__ import annotations

import numpy as np

from model.training.augmentation import AugmentationRanges, augment_batch, augment_input
from model.training.augmentation_geometry import FloatArray

__all__ = ["AugmentationRanges", "augment_batch", "augment_film"]


def augment_film(
    film: FloatArray, ranges: AugmentationRanges, rng: np.random.Generator
) -> FloatArray:
    """Return one film (rows, columns) moved, re-exposed, softened and partly hidden."""
    return augment_input(film[..., None], ranges, rng)[..., 0]
