"""The gate between a data set and whatever learns from it or is measured on it.

Owns the checks, their names and what to do about each. Every fault is listed; a check is passed
over only when somebody names it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TypeVar

from model.errors import DataGateFault, TrainingDataFault
from model.training.dataset import Dataset, LabelledImage
from model.training.inspection import InspectedImage, OnImage, inspect_images

SMALLEST_EDGE_PIXELS = 64
"""Smaller images hold too little to be read by people, let alone by a network."""

SMALLEST_CLASS_SHARE = 0.05
"""A rarer class is hardly learned, and its figures are too uncertain to be of use."""

MOST_FILES_IN_MESSAGE = 4
MOST_FINDINGS_IN_MESSAGE = 5


_One = TypeVar("_One")


class CheckValues(StrEnum):
    """The names by which a check can be passed over."""

    PATIENTS = "patients"
    DUPLICATES = "duplicates"
    SAME_PIXELS = "same-pixels"
    LABEL_CONFLICTS = "label-conflicts"
    BALANCE = "balance"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    NOT_IMAGES = "not-images"
    TINY = "tiny"
    BLANK = "blank"


ADVICE = MappingProxyType(
    {
        CheckValues.PATIENTS: "keep all images of a patient in one split",
        CheckValues.DUPLICATES: "keep one of the files and remove its copies",
        CheckValues.SAME_PIXELS: "keep one of the files: they show the same picture",
        CheckValues.LABEL_CONFLICTS: "find out which label is true, and remove the other",
        CheckValues.BALANCE: "add images of the class, or leave the class out",
        CheckValues.UNREADABLE: "fetch the file again, or remove it",
        CheckValues.TRUNCATED: "fetch the whole file again, or remove it",
        CheckValues.NOT_IMAGES: "remove it: it is no PNG, JPEG or DICOM file",
        CheckValues.TINY: "fetch the image in its own size, or remove it",
        CheckValues.BLANK: "remove it: every pixel has the same value",
    }
)


@dataclass(frozen=True, slots=True)
class GateLimits:
    """The numbers that the checks compare with."""

    smallest_edge_pixels: int = SMALLEST_EDGE_PIXELS
    smallest_class_share: float = SMALLEST_CLASS_SHARE
    """Of the images of a split that hold any class."""

    @property
    def are_lowered(self) -> bool:
        """True when less is asked for than by default, so that less may be found."""
        return (
            self.smallest_edge_pixels < SMALLEST_EDGE_PIXELS
            or self.smallest_class_share < SMALLEST_CLASS_SHARE
        )

    def in_words(self) -> str:
        """Return the limits as a person reads them."""
        return (
            f"no edge below {self.smallest_edge_pixels} pixels, "
            f"no class below {100 * self.smallest_class_share:g} %"
        )


@dataclass(frozen=True, slots=True)
class GateFinding:
    """One fault of the data."""

    check: CheckValues
    sentence: str
    files: tuple[str, ...]
    """Names of the images concerned; none where a whole class is."""

    @property
    def advice(self) -> str:
        """What to do about it."""
        return ADVICE[self.check]

    def as_mapping(self) -> dict[str, object]:
        """Return the record as plain data for JSON."""
        return {
            "check": str(self.check),
            "sentence": self.sentence,
            "files": list(self.files),
            "advice": self.advice,
        }


@dataclass(frozen=True, slots=True)
class GateReport:
    """What the gate found, and what it was told to let pass."""

    findings: tuple[GateFinding, ...]
    allowed: frozenset[CheckValues]
    counts: dict[str, dict[str, int]]
    """Images by split and class; ``images`` is the number of all of the split."""
    inspected: tuple[InspectedImage, ...]
    limits: GateLimits
    """What the checks compared with."""

    @property
    def failing(self) -> tuple[GateFinding, ...]:
        """The findings of checks that nobody passed over."""
        return tuple(f for f in self.findings if f.check not in self.allowed)

    @property
    def passed(self) -> bool:
        """True when nothing is wrong, or only what was allowed."""
        return not self.failing

    @property
    def without_patient(self) -> int:
        """How many images have no known patient: a leak between them is not seen."""
        return sum(1 for one in self.inspected if not one.image.patient)

    @property
    def split_in_words(self) -> str:
        """What the splits of data that pass are known to have apart."""
        if not self.without_patient:
            return "by patient; no patient and no identical image is in two splits"
        return (
            f"no known patient and no identical image is in two splits; {self.without_patient} of "
            f"{len(self.inspected)} images have no known patient"
        )

    def require(self) -> None:
        """Refuse the data unless the gate is passed.

        Raises
        ------
        DataGateFault
            With one sentence for each check that fails.
        """
        if not self.passed:
            raise DataGateFault(
                "data", [_in_words(*group) for group in self.by_check(self.failing)]
            )

    @staticmethod
    def by_check(
        findings: Iterable[GateFinding],
    ) -> list[tuple[CheckValues, list[GateFinding]]]:
        """Return findings grouped by check, in the order of the checks."""
        groups: dict[CheckValues, list[GateFinding]] = defaultdict(list)
        for finding in findings:
            groups[finding.check].append(finding)
        return [(check, groups[check]) for check in CheckValues if check in groups]

    def as_mapping(self) -> dict[str, object]:
        """Return the record as plain data for JSON."""
        return {
            "passed": self.passed,
            "allowed": sorted(self.allowed),
            "limits": asdict(self.limits),
            "counts": self.counts,
            "without_patient": self.without_patient,
            "findings": [finding.as_mapping() for finding in self.findings],
        }


def _in_words(check: CheckValues, findings: Sequence[GateFinding]) -> str:
    shown = "; ".join(finding.sentence for finding in findings[:MOST_FINDINGS_IN_MESSAGE])
    rest = len(findings) - MOST_FINDINGS_IN_MESSAGE
    more = f"; and {rest} more" if rest > 0 else ""
    return f"{check} ({len(findings)}): {shown}{more}. To do: {ADVICE[check]}"


def checks_named(names: Iterable[str]) -> frozenset[CheckValues]:
    """Return the checks of these names.

    Raises
    ------
    TrainingDataFault
        There is no check of a name.
    """
    wanted = [name.strip().casefold() for name in names]
    unknown = sorted({name for name in wanted if name not in list(CheckValues)})
    if unknown:
        raise TrainingDataFault(
            f"allow: there is no check named {', '.join(unknown)}; the checks are "
            f"{', '.join(CheckValues)}"
        )
    return frozenset(CheckValues(name) for name in wanted)


def check_data(
    dataset: Dataset,
    *,
    limits: GateLimits | None = None,
    allowed: Iterable[CheckValues] = (),
    on_image: OnImage | None = None,
) -> GateReport:
    """Look at every image of a data set and list what is wrong with it.

    Parameters
    ----------
    dataset : Dataset
        All splits at once: what leaks from one into the other is seen only together.
    limits : GateLimits, optional
    allowed : iterable of CheckValues
        Checks whose findings are listed and do not fail the gate.
    on_image : callable, optional
        Called after each image with the number done.

    Raises
    ------
    InstanceUnavailable
        A file cannot be read now.
    """
    inspected = inspect_images(dataset.images, on_image)
    used = limits or GateLimits()
    findings = [
        *_patients_in_splits(dataset.images),
        *_twins(inspected),
        *_label_conflicts(inspected),
        *_unbalanced(dataset, used),
        *_faulty(inspected, used),
        *(
            GateFinding(CheckValues.NOT_IMAGES, f"{name} is no image", (name,))
            for name in dataset.strays
        ),
    ]
    return GateReport(tuple(findings), frozenset(allowed), _counts(dataset), inspected, used)


def _counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    return {
        str(split): {"images": len(dataset.images_of(split)), **dataset.class_counts(split)}
        for split in dataset.splits
    }


def _patients_in_splits(images: Iterable[LabelledImage]) -> Iterator[GateFinding]:
    known = _grouped(images, lambda image: image.patient)
    for patient, group in known.items():
        splits = sorted({str(image.split) for image in group})
        if len(splits) > 1:
            yield _finding(
                CheckValues.PATIENTS, f"patient {patient} is in {' and '.join(splits)}", group
            )


def _twins(inspected: Sequence[InspectedImage]) -> Iterator[GateFinding]:
    for group, shared in _sharing(inspected, _contents):
        yield _twin_finding(CheckValues.DUPLICATES, "identical {}", group, shared)
    contents: dict[str, set[str]] = defaultdict(set)
    for file in (file for one in inspected for file in one.files):
        contents[file.picture_digest].add(file.content_digest)
    # Byte-identical files show the same picture: they are said once.
    unlike = {picture for picture, found in contents.items() if len(found) > 1}
    for group, shared in _sharing(inspected, lambda one: _pictures(one) & unlike):
        if _is_across_splits(group) or len({_whole_picture(one) for one in group}) < len(group):
            what = "{} with the same pixels"
            yield _twin_finding(CheckValues.SAME_PIXELS, what, group, shared)


def _is_across_splits(group: Iterable[InspectedImage]) -> bool:
    """True where learning and measuring share something.

    Within a split two series may show some of the same slices: a label is of a whole series, and
    what tells two of them apart may lie in the others.
    """
    return len({one.image.split for one in group}) > 1


def _twin_finding(
    check: CheckValues, what: str, group: Sequence[InspectedImage], shared: int
) -> GateFinding:
    images = [one.image for one in group]
    splits = " and ".join(sorted({str(image.split) for image in images}))
    if any(image.is_series for image in images):
        files = what.format("file" if shared == 1 else "files")
        return _finding(
            check, f"{shared} {files} in each of {len(group)} series in {splits}", images
        )
    return _finding(check, f"{len(group)} {what.format('files')} in {splits}", images)


def _label_conflicts(inspected: Sequence[InspectedImage]) -> Iterator[GateFinding]:
    """Yield what is labelled twice, and differently, under any sign that it is the same image."""
    said: set[frozenset[str]] = set()
    for what, signs in _SAME_IMAGE:
        for group, _ in _sharing(inspected, signs):
            images = [one.image for one in group]
            names = frozenset(f"{image.name} {sorted(image.labels)}" for image in images)
            if len({image.labels for image in images}) > 1 and names not in said:
                said.add(names)
                labels = sorted({_labels_in_words(image) for image in images})
                yield _finding(
                    CheckValues.LABEL_CONFLICTS,
                    f"{what} labelled {' and also '.join(labels)}",
                    images,
                )


def _sharing(
    inspected: Sequence[InspectedImage], signs: Callable[[InspectedImage], Iterable[str]]
) -> list[tuple[list[InspectedImage], int]]:
    """Return the images that share signs, with the number of signs that all of them share.

    Series need not be equal to share some of their slices.
    """
    holders: dict[str, list[int]] = defaultdict(list)
    for place, one in enumerate(inspected):
        for sign in signs(one):
            holders[sign].append(place)
    groups = Counter(tuple(places) for places in holders.values() if len(places) > 1)
    return [([inspected[place] for place in places], count) for places, count in groups.items()]


def _labels_in_words(image: LabelledImage) -> str:
    return ", ".join(sorted(image.labels)) or "as none of the classes"


def _contents(one: InspectedImage) -> set[str]:
    return {file.content_digest for file in one.files}


def _pictures(one: InspectedImage) -> set[str]:
    return {file.picture_digest for file in one.files} - {""}


def _whole_picture(one: InspectedImage) -> str:
    return "\\".join(sorted(_pictures(one)))


def _instances(one: InspectedImage) -> set[str]:
    return {file.sop_instance_uid for file in one.files} - {""}


def _patient_and_name(one: InspectedImage) -> set[str]:
    """Return what the same film of the same patient shares, wherever it was put."""
    image = one.image
    if not image.patient:
        return set()
    return {f"{image.patient}\\{image.name.rpartition('/')[2]}"}


_SAME_IMAGE: tuple[tuple[str, Callable[[InspectedImage], set[str]]], ...] = (
    ("identical files", _contents),
    ("the same pixels", lambda one: {_whole_picture(one)} - {""}),
    ("one SOP Instance UID", _instances),
    ("one file name of one patient", _patient_and_name),
)


def _unbalanced(dataset: Dataset, limits: GateLimits) -> Iterator[GateFinding]:
    for split in dataset.splits:
        counts = dataset.class_counts(split)
        labelled = sum(1 for image in dataset.images_of(split) if image.labels)
        for name, count in counts.items():
            if count == 0:
                yield GateFinding(CheckValues.BALANCE, f"{split} holds no {name}", ())
            elif count < limits.smallest_class_share * labelled:
                yield GateFinding(
                    CheckValues.BALANCE,
                    f"{split}: {count} of {labelled} images are {name}, a share of "
                    f"{count / labelled:.3f}; at least {limits.smallest_class_share:g} is wanted",
                    (),
                )


def _faulty(inspected: Iterable[InspectedImage], limits: GateLimits) -> Iterator[GateFinding]:
    for one in inspected:
        name = (one.image.name,)
        if one.truncation:
            yield GateFinding(CheckValues.TRUNCATED, f"{name[0]} {one.truncation}", name)
        elif one.fault:
            yield GateFinding(CheckValues.UNREADABLE, f"{name[0]}: {one.fault}", name)
        elif one.is_blank:
            yield GateFinding(CheckValues.BLANK, f"{name[0]} is blank", name)
        elif one.smallest_edge < limits.smallest_edge_pixels:
            yield GateFinding(
                CheckValues.TINY,
                f"{name[0]} has an edge of {one.smallest_edge} pixels, at least "
                f"{limits.smallest_edge_pixels} are wanted",
                name,
            )


def _finding(check: CheckValues, sentence: str, images: Sequence[LabelledImage]) -> GateFinding:
    names = tuple(image.name for image in images)
    shown = ", ".join(names[:MOST_FILES_IN_MESSAGE])
    more = f" and {len(names) - MOST_FILES_IN_MESSAGE} more" * (len(names) > MOST_FILES_IN_MESSAGE)
    return GateFinding(check, f"{sentence}: {shown}{more}", names)


def _grouped(items: Iterable[_One], key: Callable[[_One], str]) -> dict[str, list[_One]]:
    """Return items by key; those with an empty key are in no group."""
    groups: dict[str, list[_One]] = defaultdict(list)
    for item in items:
        if name := key(item):
            groups[name].append(item)
    return groups
