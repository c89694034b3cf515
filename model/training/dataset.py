"""Labelled images as records: what they show, whose they are, and in which split.

Owns the vocabulary that data sources, the gate, training and evaluation share. Opens no file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType


class SplitValues(StrEnum):
    """What an image may be used for."""

    TRAIN = "train"
    """To fit weights."""
    VALIDATION = "validation"
    """To choose: epochs, thresholds, calibration."""
    TEST = "test"
    """To measure, once; nothing may be chosen on it."""


SPLIT_NAMES: Mapping[str, SplitValues] = MappingProxyType(
    {
        "train": SplitValues.TRAIN,
        "training": SplitValues.TRAIN,
        "validation": SplitValues.VALIDATION,
        "val": SplitValues.VALIDATION,
        "valid": SplitValues.VALIDATION,
        "test": SplitValues.TEST,
    }
)
"""How folders and manifests call the splits, in lower case."""

NO_LABEL = "none"
"""What a manifest writes for an image that shows none of the classes."""


class PatientSourceValues(StrEnum):
    """Where the patient key of an image comes from."""

    MANIFEST = "manifest"
    HEADER = "DICOM PatientID"
    FILE_NAME = "file name"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image, or one series of slices, with what is known of it."""

    name: str
    """As the data set calls it: the path below its root."""
    files: tuple[Path, ...]
    """One file, or all slices of a series."""
    split: SplitValues
    labels: frozenset[str]
    """Names of the classes that apply; several where labels do not exclude each other, and none
    for an image that shows none of them."""
    patient: str = ""
    """The same for all images of one patient; empty when nobody said. Never shown as it is when
    it comes from a header: see ``patient_source``."""
    patient_source: PatientSourceValues = PatientSourceValues.UNKNOWN
    columns: Mapping[str, str] = field(default_factory=dict)
    """Further columns of the manifest."""
    is_dicom: bool = False
    is_series: bool = False

    @property
    def cluster(self) -> str:
        """What is drawn as one by a bootstrap: the patient, or the image where none is known."""
        return f"patient {self.patient}" if self.patient else f"image {self.name}"


@dataclass(frozen=True, slots=True)
class Dataset:
    """Every image of a data set, in the order of its names."""

    images: tuple[LabelledImage, ...]
    classes: tuple[str, ...]
    """Every class that some image has, in alphabetical order."""
    columns: tuple[str, ...] = ()
    """Names of the manifest's further columns."""
    strays: tuple[str, ...] = ()
    """Files among the images that are none, by their contents."""

    @property
    def splits(self) -> tuple[SplitValues, ...]:
        """The splits that hold images, in their natural order."""
        held = {image.split for image in self.images}
        return tuple(split for split in SplitValues if split in held)

    def images_of(self, split: SplitValues) -> tuple[LabelledImage, ...]:
        """Return the images of one split."""
        return tuple(image for image in self.images if image.split is split)

    def class_counts(self, split: SplitValues) -> dict[str, int]:
        """Return how many images of a split have each class; absent classes count zero."""
        found = Counter(label for image in self.images_of(split) for label in image.labels)
        return {name: found[name] for name in self.classes}
