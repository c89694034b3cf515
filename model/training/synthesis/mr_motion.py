"""The labelled set ``mr-motion``: slices of one real head MR, half of them with simulated motion.

Owns which slices belong to which split, what is drawn for each series, and how severe it is.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicom_io.derived import Derivation
from model.errors import TrainingDataFault
from model.training.synthesis.confounders import Confounders, confounded, random_confounders
from model.training.synthesis.motion import (
    Motion,
    PhaseAxis,
    drifting,
    periodic,
    sudden,
    with_motion,
)
from model.training.synthesis.series import (
    SeriesRow,
    SourceSeries,
    Volume,
    placed,
    random_placement,
    source_series,
    write_manifest,
    write_series,
)

logger = logging.getLogger(__name__)

MOTION, STILL = "motion", "still"
SLICES_NEEDED = 60
SERIES_SLICES = 4
STEP = 2
"""Every second slice: neighbours of 0.67 mm show nearly the same."""

RANGES = {"train": (0, 29), "validation": (36, 44), "test": (51, 59)}
"""First and last slice of the source, counted from the feet; six slices (4 mm) lie between."""

COUNTS = {"train": 240, "validation": 80, "test": 100}
"""Series of each split; every second one with motion."""


class SeverityValues(StrEnum):
    """How much of the image motion has changed."""

    MILD = "mild"
    MODERATE = "moderate"
    SEVERE = "severe"


ERRORS = {
    SeverityValues.MILD: (0.10, 0.17),
    SeverityValues.MODERATE: (0.17, 0.28),
    SeverityValues.SEVERE: (0.28, 0.50),
}
"""Root mean square of what motion changed in the middle slice, as a share of its own."""

FIRST_MM = 0.5
SCALING_STEPS = 5
ERROR_TOLERANCE = 0.15
"""Of the error wanted; five halvings seldom end further away."""

LARGEST_MM = 16.0
"""A head coil allows no more."""


@dataclass(frozen=True, slots=True)
class Moved:
    """The motion of one series and how it is described."""

    motion: Motion
    kind: str
    phase_axis: PhaseAxis
    severity: SeverityValues
    error: float
    """Reached in the middle slice."""


def make_mr_motion(
    source: Path, out: Path, seed: int, counts: dict[str, int] | None = None
) -> Path:
    """Write the set into a folder: series of DICOM files and ``manifest.csv``.

    The manifest's columns: ``severity`` and ``error`` say how much motion has changed, ``kind``
    how the head moved, ``extent_mm`` how far, ``phase`` which axis is phase-encoded;
    ``confounders`` what else was done, with motion and without; ``slices``, ``placement`` and
    ``background`` as for ``ct-nodule``.

    Parameters
    ----------
    source : Path
        Folder or zip with the series ``mr-head-t1-60``.
    out : Path
        Must not be there yet.
    seed : int
        The same seed gives the same files.
    counts : dict, optional
        Series by split, even numbers; ``COUNTS`` when absent.

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
        for number, (split, count) in enumerate((counts or COUNTS).items()):
            for pair in range(count // 2):
                rng = np.random.default_rng([seed, number, pair])
                rows += _write_pair(series, out, f"{split}/{pair:04}", split, seed, rng)
            logger.info("%s: %d series written", split, count // 2 * 2)
    return write_manifest(out, rows)


def _write_pair(
    series: SourceSeries, out: Path, name: str, split: str, seed: int, rng: np.random.Generator
) -> list[SeriesRow]:
    """Write some slices twice: still, and with motion; each with confounders of its own."""
    low, high = RANGES[split]
    first = int(rng.integers(low, high - STEP * (SERIES_SLICES - 1) + 1))
    chosen = slice(first, first + STEP * SERIES_SLICES, STEP)
    placement = random_placement(rng)
    planes = placed(series.values[chosen], placement, 0.0)
    rows = []
    for what in (STILL, MOTION):
        full = f"{name}-{what}"
        moved = random_motion(planes, series.spacing_mm[1:], rng) if what == MOTION else None
        disturbances = random_confounders(rng)
        values = acquired(planes, series.spacing_mm[1:], moved, disturbances, rng)
        said = f"{moved.severity} {moved.kind} motion was simulated" if moved else "no motion"
        derivation = Derivation(
            name=f"mr-motion {seed} {full}",
            series_description="SYNTHETIC",
            how=f"Synthetic: {said} by a program, {_in_words(disturbances)}; "
            f"slices {placement.in_words}. Says nothing of a patient.",
        )
        write_series(out / full, series.paths[chosen], values, derivation)
        rows.append(
            SeriesRow(
                full, MOTION if moved else STILL, split, series.patient,
                {**_motion_columns(moved), "confounders": _in_words(disturbances),
                 "slices": f"{first}-{first + STEP * (SERIES_SLICES - 1)}",
                 "placement": placement.in_words, "background": name},
            )
        )  # fmt: skip
    return rows


def acquired(
    planes: Volume,
    spacing_mm: tuple[float, float],
    moved: Moved | None,
    disturbances: Confounders,
    rng: np.random.Generator,
) -> Volume:
    """Return slices as a scanner might have made them: all with the same motion, then the rest."""
    if moved is not None:
        planes = np.stack(
            [with_motion(plane, moved.motion, spacing_mm, moved.phase_axis) for plane in planes]
        )
    return np.stack([confounded(plane, disturbances, rng) for plane in planes])


def random_motion(
    planes: Volume, spacing_mm: tuple[float, float], rng: np.random.Generator
) -> Moved:
    """Draw a course of motion and scale it until it changes as much as its severity says.

    A course that changes too little however far it goes, such as a jerk at the very end, is
    drawn again.
    """
    plane = planes[len(planes) // 2]
    severity = list(SeverityValues)[int(rng.integers(len(SeverityValues)))]
    while True:
        phase_axis: PhaseAxis = 0 if rng.random() < 0.5 else 1
        wanted = float(rng.uniform(*ERRORS[severity]))
        kind, motion = _random_course(plane.shape[phase_axis], rng)
        scaled, error = _scaled(motion, plane, spacing_mm, phase_axis, wanted)
        if abs(error - wanted) < ERROR_TOLERANCE * wanted:
            return Moved(scaled, kind, phase_axis, severity, error)


def _random_course(lines: int, rng: np.random.Generator) -> tuple[str, Motion]:
    """Draw a course whose largest way is about a millimetre or degree."""
    way = rng.normal(size=3)
    way /= np.linalg.norm(way)
    chance = rng.random()
    if chance < 0.45:
        jerks = int(rng.integers(1, 5))
        at = sorted(rng.uniform(0.1, 0.9, size=jerks).tolist())
        ways = rng.normal(size=(jerks, 3))
        return "sudden", sudden(lines, at, ways / np.linalg.norm(ways, axis=1, keepdims=True))
    if chance < 0.8:
        cycles, phase = float(rng.uniform(2, 25)), float(rng.uniform(0, 2 * np.pi))
        return "periodic", periodic(lines, cycles, phase, way)
    steps = rng.gamma(0.3, size=lines)
    return "drifting", drifting(lines, way, np.cumsum(steps) / max(float(steps.sum()), 1e-9))


def _scaled(
    motion: Motion,
    plane: npt.NDArray[np.float32],
    spacing_mm: tuple[float, float],
    phase_axis: PhaseAxis,
    wanted: float,
) -> tuple[Motion, float]:
    """Return the motion, larger or smaller, and the error it makes.

    The head is at rest while the middle of k-space is acquired: the image then lies where it
    lay, and the error is not that of a mere shift.
    """
    rest = motion.at_rest_in_the_middle()

    def error_of(factor: float) -> float:
        return _error(plane, with_motion(plane, rest.times(factor), spacing_mm, phase_axis))

    # From small to large: far turns cost most, and few need them.
    low, high = 0.0, FIRST_MM / max(rest.extent, 1e-6)
    while error_of(high) < wanted and high * rest.extent < LARGEST_MM:
        low, high = high, 2 * high
    for _ in range(SCALING_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if error_of(middle) < wanted else (low, middle)
    factor = (low + high) / 2
    return rest.times(factor), error_of(factor)


def _error(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32]) -> float:
    return float(np.linalg.norm(after - before) / max(float(np.linalg.norm(before)), 1e-9))


def _motion_columns(moved: Moved | None) -> dict[str, str]:
    if moved is None:
        return {"severity": "none", "kind": "", "error": "", "extent_mm": "", "phase": ""}
    return {
        "severity": str(moved.severity),
        "kind": moved.kind,
        "error": f"{moved.error:.3f}",
        "extent_mm": f"{moved.motion.extent:.1f}",
        "phase": ("rows", "columns")[moved.phase_axis],
    }


def _in_words(chosen: Confounders) -> str:
    parts = {
        f"noise {chosen.noise:.3f}": chosen.noise > 0,
        f"blur {chosen.blur_pixels:.2f} pixels": chosen.blur_pixels > 0,
        f"{chosen.kept_share:.2f} of k-space": chosen.kept_share < 1,
        "uneven coils": bool(chosen.field),
        f"contrast to the power of {chosen.power:.2f}": True,
    }
    return ", ".join(words for words, holds in parts.items() if holds)
