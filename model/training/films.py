"""Labelled films for training: found, checked against leaks, decoded once into one array.

Owns reading ``train/<CLASS>/`` and ``val/<CLASS>/`` from a folder or a zip. The decoding and
normalising is ``dicom_io.tensors``, as in service; this module must not touch pixel values.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dicom_io.tensors import TensorRecipe, image_values_to_tensor, read_film
from model.errors import TrainingDataFault

logger = logging.getLogger(__name__)

FILM_SUFFIXES = frozenset({".jpeg", ".jpg", ".png"})
_PATIENT_PATTERNS = (re.compile(r"(person\d+)_"), re.compile(r"((?:NORMAL2-)?IM-\d+)-"))


@dataclass(frozen=True, slots=True)
class Film:
    """One labelled film of one split."""

    path: Path
    label: int
    """1 when the film belongs to the positive class."""
    patient_key: str
    """The part of the file name that is the same for all films of one patient."""


@dataclass(frozen=True, slots=True)
class FilmSet:
    """The films of one split as one array."""

    films: tuple[Film, ...]
    values: npt.NDArray[np.float32]
    """(film, rows, columns, channels) in [0, 1]."""

    @property
    def labels(self) -> npt.NDArray[np.float32]:
        """1 for the positive class, 0 otherwise; (film,)."""
        return np.array([film.label for film in self.films], dtype=np.float32)


@contextlib.contextmanager
def opened(source: Path) -> Iterator[Path]:
    """Yield a folder with the splits: `source` itself, or a zip unpacked for the while."""
    if source.is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="medimgd-films-") as folder:
        with zipfile.ZipFile(source) as archive:
            archive.extractall(folder)
        yield Path(folder)


def list_films(folder: Path, split: str, classes: tuple[str, str]) -> tuple[Film, ...]:
    """List the films of a split, ordered by class and name.

    Parameters
    ----------
    folder : Path
        Holds ``<split>/<class>/``.
    split : str
        ``train`` or ``val``.
    classes : tuple of str
        Folder names of the negative and the positive class.

    Raises
    ------
    TrainingDataFault
        A class folder is absent or holds no film.
    """
    films: list[Film] = []
    for label, name in enumerate(classes):
        place = folder / split / name
        paths = sorted(path for path in place.glob("*") if path.suffix.lower() in FILM_SUFFIXES)
        if not paths:
            raise TrainingDataFault(
                f"{split}/{name}: no film found, needed at least one of "
                f"{', '.join(sorted(FILM_SUFFIXES))}; looked in {place}"
            )
        films.extend(Film(path, label, patient_key(path.name)) for path in paths)
    return tuple(films)


def patient_key(file_name: str) -> str:
    """Return what names the patient in a file name; the whole stem where no rule fits."""
    for pattern in _PATIENT_PATTERNS:
        match = pattern.match(file_name)
        if match is not None:
            return match.group(1)
    return Path(file_name).stem


def check_splits(train: Sequence[Film], validation: Sequence[Film]) -> None:
    """Refuse splits that share a patient or a byte-identical film.

    Raises
    ------
    TrainingDataFault
        With the number and the first few of what both splits hold.
    """
    patients = {film.patient_key for film in train} & {film.patient_key for film in validation}
    copies = _digests(train) & _digests(validation)
    faults = [
        f"{len(found)} {what} in both splits, for example {', '.join(sorted(found)[:3])}"
        for what, found in (("patients", patients), ("identical films (SHA-256)", copies))
        if found
    ]
    if faults:
        raise TrainingDataFault("; ".join(faults) + ". Move them into one split.")


def _digests(films: Sequence[Film]) -> set[str]:
    return {hashlib.sha256(film.path.read_bytes()).hexdigest() for film in films}


def read_films(films: Sequence[Film], recipe: TensorRecipe) -> FilmSet:
    """Decode films through the service's tensor steps.

    Returns
    -------
    FilmSet
        ``values`` is float32, (film, rows, columns, channels), in [0, 1].
    """
    shape = (len(films), recipe.rows, recipe.columns, recipe.channels)
    values = np.empty(shape, dtype=np.float32)
    for number, film in enumerate(films):
        values[number] = image_values_to_tensor(read_film(film.path), recipe)
    logger.info("decoded %d films to %s", len(films), shape[1:])
    return FilmSet(tuple(films), values)
