"""Time from stored files to a tensor, by step, beside plain, SimpleITK's and highdicom's reading.

The expectation is stated before measuring: reading the pixels plainly is the floor, and all that
the model needs besides (range, geometry) should not cost more than that floor again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pydicom

from dicom_io.recipe import TensorRecipe
from dicom_io.tensors import build_tensor
from dicom_io.timing import Timings
from tests.benchmarks.figures import Table, median, rounds_of, timed
from tests.benchmarks.material import FILM, Workshop, write_large_film
from tests.series_readers import READERS

TENSOR = "medimgd, all the way to the tensor"
FILM_RECIPE = TensorRecipe.from_mapping(
    {"kind": "image", "rows": 160, "columns": 160, "channels": 1,
     "intensity": {"kind": "percentile", "low": 0.5, "high": 99.5}}
)  # fmt: skip
"""What the bundled cxr-pneumonia package reads."""

VOLUME_RECIPE = TensorRecipe.from_mapping(
    {"kind": "volume", "slices": 64, "rows": 128, "columns": 128, "channels": 1,
     "intensity": {"kind": "window", "centre": 40, "width": 400}}
)  # fmt: skip


def measure(workshop: Workshop) -> Iterator[Table]:
    """Yield the steps of each input, and how fast others read the same series."""
    large = write_large_film(workshop.folder / "large-film.dcm")
    cases: list[tuple[str, Sequence[Path], TensorRecipe, int]] = [
        ("film, 224 x 224, 8 bit", [FILM], FILM_RECIPE, 200),
        ("film, 5 megapixels, 12 bit", [large], FILM_RECIPE, 20),
        ("CT series, 60 x 512 x 512", workshop.ct_series, VOLUME_RECIPE, 7),
    ]
    measured = [_case(workshop, *case) for case in cases]
    steps = list(dict.fromkeys(step for _, timings in measured for step in timings))
    table = Table("Milliseconds to a tensor, median", ["step", *(name for name, *_ in cases)])
    for step in steps:
        table.rows.append([step, *(timings.get(step) for _, timings in measured)])
    totals = [median(samples["tensor"]) for samples, _ in measured]
    plain = [median(samples["plain"]) for samples, _ in measured]
    split = [sum(timings.values()) for _, timings in measured]
    pairs = list(zip(totals, plain, strict=True))
    table.rows += [
        ["between the steps", *(total - sum_ for total, sum_ in zip(totals, split, strict=True))],
        ["total", *totals],
        ["expected at most", *(2 * floor for floor in plain)],
        ["plain reading", *plain],
        ["total / plain reading", *(total / floor for total, floor in pairs)],
    ]
    for (name, *_), (samples, _) in zip(cases, measured, strict=True):
        table.samples |= {f"{name}: {which}": values for which, values in samples.items()}
    table.notes = [
        "films become 160 x 160 by percentiles, the series 64 x 128 x 128 by a window",
        (
            "plain reading: pydicom.dcmread, pixel_array, slope and intercept in float32; "
            "no sorting, no checks, no resampling"
        ),
        "expected: everything beyond the plain reading costs no more than that reading again",
    ]
    yield table
    yield _readers_table(workshop)


def _readers_table(workshop: Workshop) -> Table:
    """Return the time to the modality values of a series: the same values from every reader."""
    paths = workshop.ct_series
    ours = READERS["medimgd"](paths)
    samples: dict[str, list[float]] = {}
    for _ in range(workshop.rounds(9, 2)):
        for name, read in READERS.items():
            samples.setdefault(name, []).append(1000 * timed(lambda read=read: read(paths)))  # type: ignore[misc]
        samples.setdefault(TENSOR, []).append(
            1000 * timed(lambda: build_tensor(paths, VOLUME_RECIPE))
        )
    table = Table(
        "CT series, 60 x 512 x 512, milliseconds, median; the readers take turns",
        ["reader", "milliseconds", "times ours", "same values"],
        samples=samples,
        notes=[
            "from files to float32 values after the rescale, slices in order",
            f"SimpleITK {version('simpleitk')}, highdicom {version('highdicom')}",
        ],
    )
    base = median(samples["medimgd"])
    for name, found in samples.items():
        same = "" if name == TENSOR else str(np.array_equal(ours, READERS[name](paths)))
        table.rows.append([name, median(found), median(found) / base, same])
    return table


def _case(
    workshop: Workshop, name: str, paths: Sequence[Path], recipe: TensorRecipe, full_rounds: int
) -> tuple[dict[str, list[float]], Timings]:
    rounds = workshop.rounds(full_rounds, 3)
    build_tensor(paths, recipe)
    splits: list[Timings] = []
    totals: list[float] = []
    for _ in range(rounds):
        timings: Timings = {}
        totals.append(1000 * timed(lambda timings=timings: build_tensor(paths, recipe, timings)))
        splits.append(timings)
    plain = [1000 * each for each in rounds_of(lambda: _read_plainly(paths), rounds)]
    steps = {step: 1000 * median([each[step] for each in splits]) for step in splits[0]}
    return {"tensor": totals, "plain": plain}, steps


def _read_plainly(paths: Sequence[Path]) -> np.ndarray:
    planes = []
    for path in paths:
        ds = pydicom.dcmread(path)
        slope, intercept = ds.get("RescaleSlope", 1), ds.get("RescaleIntercept", 0)
        values = ds.pixel_array.astype(np.float32)
        planes.append(values * np.float32(slope) + np.float32(intercept))
    return np.stack(planes)
