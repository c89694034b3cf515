"""The labelled set ``ct-nodule``: slabs of one real chest CT, half of them with nodules put in.

Owns which slices belong to which split, how many slabs are made, and what is drawn for each.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicom_io.derived import Derivation
from model.errors import TrainingDataFault
from model.training.synthesis.lungs import Grain, Hounsfield, Mask, depth_mm, grain_of, lung_mask
from model.training.synthesis.nodules import Truth, with_nodule, with_vessel
from model.training.synthesis.series import (
    Placement,
    SeriesRow,
    SourceSeries,
    placed,
    random_placement,
    source_series,
    write_manifest,
    write_series,
)
from model.training.synthesis.shapes import random_centre, random_nodule, random_vessel

logger = logging.getLogger(__name__)

NODULE, CLEAR = "nodule", "clear"
SLICES_NEEDED = 60
SLAB_SLICES = {"train": 2, "validation": 2, "test": 5}
"""Slices of a slab. What is learned from is short, so that a label says more about each slice."""


RANGES = {
    "train": ((0, 4), (14, 25), (37, 41)),
    "validation": ((7, 10),),
    "test": ((52, 58),),
}
"""First and last slice of the source, counted from the feet, by split. Left out are slices that
show something nodule-like by themselves (11 to 13, 26 to 36, 42 to 51, 59: a density of 25 mm in
the left lung among them), and two slices between training and validation."""

COUNTS = {"train": 320, "validation": 100, "test": 120}
"""Slabs of each split; every second one holds nodules."""

MOST_NODULES = {"train": 8, "validation": 2, "test": 2}
"""In one slab; the more there are to learn from, the fewer slabs it takes."""

MOST_VESSELS = 4
"""At least one: two slabs must not be the same slices untouched."""

OUTSIDE_HU = -1024.0
GRAIN_SLICES = 8
"""Slices whose noise is measured; all are of one acquisition."""

SEVERAL_APART_MM = 6.0


@dataclass(frozen=True, slots=True)
class Slab:
    """Neighbouring slices of the source, placed, with vessels put in and perhaps nodules."""

    first: int
    """Slice of the source."""
    placement: Placement
    values: Hounsfield
    depth_mm: npt.NDArray[np.float32]
    """Distance of each voxel to the edge of its lung."""
    truths: tuple[Truth, ...] = ()
    vessels: int = 0


def make_ct_nodule(
    source: Path, out: Path, seed: int, counts: dict[str, int] | None = None
) -> Path:
    """Write the set into a folder: series of DICOM files and ``manifest.csv``.

    The manifest's columns: ``nodules`` lists ``slice/row/column/radius in mm`` of each, in
    pixels of the written slices counted from 0; ``boxes`` the first and last slice, row and
    column; ``largest_mm`` the largest radius; ``vessels`` how many were put in; ``slices`` which
    slices of the source; ``placement`` how they were turned; ``background`` is the same for the
    two slabs that differ in nothing but nodules.

    Parameters
    ----------
    source : Path
        Folder or zip with the series ``ct-chest-60``.
    out : Path
        Must not be there yet.
    seed : int
        The same seed gives the same files.
    counts : dict, optional
        Slabs by split, even numbers; ``COUNTS`` when absent.

    Raises
    ------
    TrainingDataFault
        The source has another number of slices: the ranges are chosen for one series.
    """
    rows: list[SeriesRow] = []
    with source_series(source) as series:
        if len(series.paths) != SLICES_NEEDED:
            raise TrainingDataFault(
                f"{source.name}: the slices are chosen for a series of {SLICES_NEEDED}, "
                f"received {len(series.paths)}"
            )
        grain = grain_of(series.values[:GRAIN_SLICES])
        for number, (split, count) in enumerate((counts or COUNTS).items()):
            for pair in range(count // 2):
                rng = np.random.default_rng([seed, number, pair])
                name = f"{split}/{pair:04}"
                rows += _write_pair(series, out, name, split, seed, grain, rng)
            logger.info("%s: %d slabs written", split, count // 2 * 2)
    return write_manifest(out, rows)


def _write_pair(
    series: SourceSeries, out: Path, name: str, split: str, seed: int, grain: Grain,
    rng: np.random.Generator,
) -> list[SeriesRow]:  # fmt: skip
    """Write a slab twice: without nodules and with them."""
    extent = SLAB_SLICES[split]
    without = make_slab(series, _first_slice(split, rng), extent, grain, rng)
    count = int(rng.integers(1, MOST_NODULES[split] + 1))
    with_them = add_nodules(without, series.spacing_mm, count, grain, rng)
    rows = []
    for slab, what in ((without, CLEAR), (with_them, NODULE)):
        full = f"{name}-{what}"
        derivation = Derivation(
            name=f"ct-nodule {seed} {full}",
            series_description="SYNTHETIC",
            how=f"Synthetic: {len(slab.truths)} nodules and {slab.vessels} vessels were put in by "
            f"a program; slices {slab.placement.in_words}. No finding of a patient.",
        )
        sources = series.paths[slab.first : slab.first + extent]
        write_series(out / full, sources, slab.values, derivation)
        rows.append(_row(full, name, split, series.patient, slab))
    return rows


def _first_slice(split: str, rng: np.random.Generator) -> int:
    """Draw where a slab begins, so that all of it lies in one range of the split."""
    begins = [
        first for low, high in RANGES[split] for first in range(low, high - SLAB_SLICES[split] + 2)
    ]
    return int(rng.choice(begins))


def make_slab(
    series: SourceSeries, first: int, extent: int, grain: Grain, rng: np.random.Generator
) -> Slab:
    """Return so many slices with some vessels put in, which are no nodules."""
    placement = random_placement(rng)
    values = placed(series.values[first : first + extent], placement, OUTSIDE_HU)
    lungs = lung_mask(values, series.spacing_mm)
    depth = depth_mm(lungs, series.spacing_mm)
    vessels = 0
    for _ in range(int(rng.integers(1, MOST_VESSELS + 1))):
        centre = random_centre(depth, 4.0, rng)
        if centre is not None:
            vessel = random_vessel(centre, rng)
            values = with_vessel(values, series.spacing_mm, vessel, grain, rng, lungs)
            vessels += 1
    return Slab(first, placement, values, depth, (), vessels)


def add_nodules(
    slab: Slab,
    spacing_mm: tuple[float, float, float],
    count: int,
    grain: Grain,
    rng: np.random.Generator,
) -> Slab:
    """Return the slab with so many nodules, apart from each other; fewer where there is no room.

    Raises
    ------
    TrainingDataFault
        There is no lung to put them into.
    """
    values = slab.values
    taken = np.zeros(values.shape, dtype=np.bool_)
    truths: list[Truth] = []
    for _ in range(count):
        centre = random_centre(slab.depth_mm, float(rng.uniform(2.0, 8.0)), rng, taken)
        if centre is None:
            continue
        values, truth = with_nodule(values, spacing_mm, random_nodule(centre, rng), grain, rng)
        truths.append(truth)
        _take(taken, truth, spacing_mm)
    if not truths:
        raise TrainingDataFault(f"slices from {slab.first}: there is no lung for a nodule")
    return replace(slab, values=values, truths=tuple(truths))


def _take(taken: Mask, truth: Truth, spacing_mm: tuple[float, float, float]) -> None:
    """Mark the surroundings of a nodule, wide enough for the largest one beside it."""
    _, _, top, bottom, left, right = truth.box
    rows, columns = (round((SEVERAL_APART_MM + 12.0) / step) for step in spacing_mm[1:])
    taken[:, max(top - rows, 0) : bottom + rows, max(left - columns, 0) : right + columns] = True


def _row(name: str, background: str, split: str, patient: str, slab: Slab) -> SeriesRow:
    places = [
        "/".join([*(f"{part:.1f}" for part in truth.centre), f"{truth.radius_mm:.1f}"])
        for truth in slab.truths
    ]
    columns = {
        "nodules": " ".join(places),
        "boxes": " ".join("/".join(map(str, truth.box)) for truth in slab.truths),
        "kinds": " ".join(truth.kind for truth in slab.truths),
        "largest_mm": f"{max(t.radius_mm for t in slab.truths):.1f}" if slab.truths else "",
        "vessels": str(slab.vessels),
        "slices": f"{slab.first}-{slab.first + len(slab.values) - 1}",
        "placement": slab.placement.in_words,
        "background": background,
    }
    return SeriesRow(name, NODULE if slab.truths else CLEAR, split, patient, columns)
