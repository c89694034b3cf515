"""How well a film model tells films from what is none: refused shares of real and wrong inputs.

The expectation is stated before measuring: at most 1 % of the validation films are refused, also
when they are wrapped or exposed otherwise, and every film whose greys are inverted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from dicom_io.tensors import build_image_tensor, read_film
from model.catalogue import read_catalogue
from model.input_distribution import InputDistribution
from model.input_distribution_fitting import fit_distribution
from model.package import ModelPackage
from model.training.dataset import Dataset, SplitValues
from model.training.reading import read_image
from model.training.sources import open_dataset
from tests.benchmarks.figures import Table
from tests.benchmarks.material import Workshop
from tests.benchmarks.unlike_films import Arrays, altered_films, other_images
from tests.wrapped_films import FRAMES, WRAPS, lied_about, write_film

PACKAGE = "cxr-pneumonia"
WRAPPED_EVERY = 8
"""Every so manyth validation film is wrapped in all ways."""


def measure(workshop: Workshop) -> Iterator[Table]:
    """Yield one table: rows are kinds of input, columns what became of them."""
    package = read_catalogue([]).find(PACKAGE)
    with open_dataset(workshop.testdata / "chest-xray-224.zip") as dataset:
        step = 20 if workshop.quick else 1
        validation = _tensors(package, dataset, SplitValues.VALIDATION, step)
        distribution, origin = _distribution(package, dataset, validation, step)
        some = dataset.images_of(SplitValues.VALIDATION)[:: WRAPPED_EVERY * step]
        films = [np.rint(read_film(image.files[0])) for image in some]
    wrapped = _wrapped(package, films, workshop.room("films"))
    table = Table(
        f"Inputs that {PACKAGE} refuses by their looks",
        ["input", "images", "refused %", "distance, median", "least", "most"],
    )
    table.rows.append(_row("validation films", validation, distribution))
    for kinds in (wrapped, altered_films(validation), other_images(workshop, package.recipe)):
        table.rows += [_row(name, values, distribution) for name, values in kinds]
    table.notes = [
        f"limit {distribution.limit:g}; {origin}",
        "adults and lateral views: no film is at hand, nothing is measured; the header's rules act",
    ]
    yield table


def _row(name: str, values: Arrays, distribution: InputDistribution) -> Sequence[str | int | float]:
    distances = distribution.distances(values)
    refused = 100 * float((distances > distribution.limit).mean())
    spread = (np.median(distances), distances.min(), distances.max())
    return [name, len(values), refused, *(float(value) for value in spread)]


def _tensors(package: ModelPackage, dataset: Dataset, split: SplitValues, step: int) -> Arrays:
    images = dataset.images_of(split)[::step]
    return np.stack([read_image(image, package.recipe) for image in images])


def _distribution(
    package: ModelPackage, dataset: Dataset, validation: Arrays, step: int
) -> tuple[InputDistribution, str]:
    if package.input_distribution is not None:
        return package.input_distribution, "the package's own"
    training = _tensors(package, dataset, SplitValues.TRAIN, step)
    fitted = fit_distribution(training, validation, preprocessing_digest=package.recipe.digest)
    return fitted, f"fitted here on {len(training)} training films: the package has none"


def _wrapped(
    package: ModelPackage, films: Sequence[np.ndarray], room: Path
) -> Iterator[tuple[str, Arrays]]:
    def tensors(wrap: Callable[[np.ndarray], dict[str, object]]) -> Arrays:
        paths = [
            write_film(room / f"{number}.dcm", wrap(film)) for number, film in enumerate(films)
        ]
        return np.stack([build_image_tensor(path, package.recipe).values for path in paths])

    for wrap in (*WRAPS, *FRAMES):
        yield f"wrapped: {wrap.__name__.replace('_', ' ')}", tensors(wrap)
    yield "header lies about inverted greys", tensors(lied_about)
