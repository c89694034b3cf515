"""Which images a training learns from, as its ``[data]`` and ``[input]`` say it.

Owns those tables and the rule that finds patients in file names. Opens no image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from dicom_io.errors import MedimgdError
from dicom_io.tensors import TensorRecipe
from model.errors import TrainingDataFault
from model.manifest import ManifestTable
from model.training.dataset import Dataset, LabelledImage, PatientSourceValues
from model.training.gate_report import CheckValues, GateLimits, checks_named

_TRUSTED = (PatientSourceValues.MANIFEST, PatientSourceValues.HEADER)


@dataclass(frozen=True, slots=True)
class DataPlan:
    """Where the images are, and what of them is used."""

    source: Path | None
    """A folder, a zip or a CSV manifest; None leaves it to the command line."""
    classes: tuple[str, ...]
    """In the order of the network's outputs where it has one for each."""
    allowed: Mapping[CheckValues, str] = field(default_factory=dict)
    """Checks of the gate that are passed over, each with the reason."""
    limits: GateLimits = field(default_factory=GateLimits)
    deidentified: bool = False
    """Headers were emptied: the contract is judged by what they still state."""
    patients: tuple[str, ...] = ()
    """Patterns whose first group is the patient, searched for in an image's name."""


def read_data_plan(table: ManifestTable, folder: Path) -> DataPlan:
    """Read ``[data]``; a relative source starts in `folder`."""
    source = table.text("source", default="")
    classes = table.texts("classes")
    if not classes or len(set(classes)) != len(classes):
        table.add_fault("classes", "must name the classes of the data, each once")
    plan = DataPlan(
        source=folder / source if source else None,
        classes=classes,
        allowed=_read_allowed(table.table("allow", required=False)),
        limits=GateLimits(
            table.whole_number("smallest_edge", 1, 4096, GateLimits().smallest_edge_pixels),
            table.number("smallest_class", 0.0, 1.0, GateLimits().smallest_class_share),
        ),
        deidentified=table.flag("deidentified", default=False),
        patients=_read_patterns(table),
    )
    table.refuse_unknown()
    return plan


def _read_allowed(table: ManifestTable) -> Mapping[CheckValues, str]:
    allowed: dict[CheckValues, str] = {}
    for name in table.plain():
        try:
            (check,) = checks_named([name])
        except TrainingDataFault:
            table.add_fault(name, f"must be a check: {', '.join(CheckValues)}")
            continue
        allowed[check] = table.text(name, rule="must say in a sentence why it is passed over")
    return MappingProxyType(allowed)


def _read_patterns(table: ManifestTable) -> tuple[str, ...]:
    patterns = table.texts("patients")
    for pattern in patterns:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            table.add_fault("patients", f"{pattern!r} is no regular expression: {error}")
            continue
        if groups != 1:
            table.add_fault("patients", f"{pattern!r} must have one group: the patient")
    return patterns


def read_recipe(root: ManifestTable) -> TensorRecipe:
    """Read ``[input]``, as the package's manifest will; a faulty one gives another recipe.

    Where `slices` of a volume is open, the package reads series of any length; those it learns
    from must all have the same number of slices, which decoding finds out.
    """
    table = root.table("input")
    try:
        return TensorRecipe.from_mapping(dict(table.plain()))
    except (MedimgdError, ValueError, TypeError, KeyError) as error:
        root.faults.append(f"input: {error}")
        return TensorRecipe("image", 1, 1)


def with_patients(dataset: Dataset, patterns: Sequence[str]) -> Dataset:
    """Return the data with patients found in names, where neither header nor manifest says them.

    A name that no pattern fits is nobody's: the image counts as a patient of its own.
    """
    if not patterns:
        return dataset
    compiled = [re.compile(pattern) for pattern in patterns]
    return replace(dataset, images=tuple(_named(image, compiled) for image in dataset.images))


def _named(image: LabelledImage, patterns: Sequence[re.Pattern[str]]) -> LabelledImage:
    if image.patient_source in _TRUSTED:
        return image
    for pattern in patterns:
        match = pattern.search(image.name)
        if match is not None and match[1]:
            return replace(image, patient=match[1], patient_source=PatientSourceValues.FILE_NAME)
    return replace(image, patient="", patient_source=PatientSourceValues.UNKNOWN)
