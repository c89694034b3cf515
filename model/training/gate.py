"""The gate between a data set and whatever learns from it or is measured on it.

Owns the checks. Every fault is listed; a check is passed over only when somebody names it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from model.training.dataset import Dataset, LabelledImage
from model.training.gate_report import CheckValues, GateFinding, GateLimits, GateReport
from model.training.inspection import InspectedImage, OnImage, inspect_images

MOST_FILES_IN_MESSAGE = 4

_One = TypeVar("_One")


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
