"""A few inputs for a package, by which it can be shown later that it still computes the same.

Owns their choice: patterns that show nobody, or validation images where the configuration says
that they may be passed on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from model.training.plan import TrainingPlan
from model.training.run_choice import Chosen
from model.training.run_images import RunImages
from model.training.targets import FloatArray

WAVES = 4
HIGHEST_FREQUENCY = 6.0


def write_probe_tensors(
    folder: Path, images: RunImages, chosen: Chosen, plan: TrainingPlan
) -> tuple[Path, ...]:
    """Write the probes as arrays; return their files."""
    folder.mkdir(parents=True, exist_ok=True)
    if plan.probes.show_images:
        rows = nearest(chosen, plan.probes.count)
        tensors = [np.asarray(images.values[row]) for row in rows]
    else:
        shape = images.values.shape[1:]
        rng = np.random.default_rng(plan.fit.seed)
        tensors = [pattern(shape, rng) for _ in range(plan.probes.count)]
    paths = tuple(folder / f"probe-{number:02d}.npy" for number in range(len(tensors)))
    for path, tensor in zip(paths, tensors, strict=True):
        np.save(path, tensor)
    return paths


def nearest(chosen: Chosen, count: int) -> list[int]:
    """Return the rows of the images whose scores lie nearest to a threshold.

    A score near the threshold tells more of a changed weight than one near its end.
    """
    thresholds = np.array([float(str(label["threshold"])) for label in chosen.labels])
    outputs = [int(str(label["index"])) for label in chosen.labels]
    distance = np.abs(chosen.scores[:, outputs] - thresholds).min(axis=1)
    order = np.argsort(distance, kind="stable")[:count]
    return [int(row) for row in chosen.places[order]]


def pattern(shape: tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    """Return a smooth pattern of waves, alike in all channels; float32 in [0, 1]."""
    edges = shape[:-1]
    place = np.stack(
        np.meshgrid(*(np.linspace(0, 1, edge) for edge in edges), indexing="ij"), axis=-1
    )
    waves = [
        np.sin(2 * np.pi * (place @ rng.uniform(-HIGHEST_FREQUENCY, HIGHEST_FREQUENCY, len(edges))
                            + rng.random()))
        for _ in range(WAVES)
    ]  # fmt: skip
    whole = 0.5 + np.sum(waves, axis=0) / (2 * WAVES)
    return np.repeat(whole[..., np.newaxis], shape[-1], axis=-1).astype(np.float32)
