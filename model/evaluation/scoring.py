"""Every image of a split through selection, contract, tensor and network, as in service.

Owns what became of each image: a score, a refusal with its reason, or not selected. Judges no
figure, and no image is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

import numpy as np

from dicom_io.errors import CannotDecode, Refusal, RefusalReason, UnreadableInstance
from dicom_io.header import read_attributes
from dicom_io.tensors import image_values_to_tensor, read_film
from model.conditions import AttributeValue, evaluate, evaluate_what_is_stated, keywords
from model.errors import UnusableOutput
from model.package import ModelPackage
from model.runtimes.port import FloatArray, Predictor
from model.selection import Judge, StudyInstance, select, wanted_keywords
from model.selection import OutcomeValues as SelectionOutcomeValues
from model.training.dataset import LabelledImage
from model.training.reading import read_image

IMAGE_BATCH = 32
VOLUME_BATCH = 4
SUBGROUP_KEYWORDS = ("PatientSex", "age_years", "Manufacturer")
_FILM_KEYWORDS = frozenset({"Rows", "Columns"})
"""What is known of a PNG or JPEG, which has no header."""


class OutcomeValues(StrEnum):
    """What became of an image."""

    SCORED = "scored"
    REFUSED = "refused"
    """Outside the contract, not decodable, or no usable output: never a negative."""
    NOT_SELECTED = "not selected"
    """The package is not for such images at all."""


@dataclass(frozen=True, slots=True)
class ScoredImage:
    """One image and what the package said of it."""

    image: LabelledImage
    outcome: OutcomeValues
    scores: tuple[float, ...] = ()
    """One per label; empty unless scored."""
    reason: str = ""
    """The coded reason of a refusal."""
    sentence: str = ""
    """Why there is no score, for people."""
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    """Of the header, for subgroups; empty for films without one."""
    has_whole_contract: bool = True
    """False when a clause could not be judged, for want of a header or of a value in it."""


def score_images(
    package: ModelPackage,
    predictor: Predictor,
    images: Sequence[LabelledImage],
    on_image: Callable[[int], None] | None = None,
    *,
    deidentified: bool = False,
) -> tuple[ScoredImage, ...]:
    """Score images as the daemon would.

    Parameters
    ----------
    package : ModelPackage
    predictor : Predictor
        Loaded, for this package.
    images : sequence of LabelledImage
    on_image : callable, optional
        Called with the number of images done.
    deidentified : bool
        Headers were emptied: what only an absent attribute could tell is not held against an
        image, as the contract is not against one without a header.

    Returns
    -------
    tuple of ScoredImage
        One for each image, in the order of `images`.

    Raises
    ------
    InstanceUnavailable, DeviceOutOfMemory
        The machine failed, not the image; there is no result then.
    """
    done: list[ScoredImage] = []
    judge = evaluate_what_is_stated if deidentified else evaluate
    for batch in _batches(package, images, judge):
        done.extend(_scored(predictor, batch))
        if on_image is not None:
            on_image(len(done))
    return tuple(done)


_Prepared = tuple[ScoredImage, FloatArray | None]


def _batches(
    package: ModelPackage, images: Iterable[LabelledImage], judge: Judge
) -> Iterator[list[_Prepared]]:
    """Yield images with their tensors, few enough to be held, those of a batch of one shape."""
    size = VOLUME_BATCH if package.recipe.kind == "volume" else IMAGE_BATCH
    batch: list[_Prepared] = []
    for image in images:
        prepared = _prepared(package, image, judge)
        shapes = {t.shape for _, t in (*batch, prepared) if t is not None}
        if len(batch) == size or len(shapes) > 1:
            yield batch
            batch = []
        batch.append(prepared)
    if batch:
        yield batch


def _prepared(package: ModelPackage, image: LabelledImage, judge: Judge) -> _Prepared:
    """Ask the package whether it reads the image, and make the tensor when it does."""
    found = ScoredImage(image, OutcomeValues.SCORED)
    try:
        found = _selected(package, image, judge) if image.is_dicom else found
        if found.outcome is not OutcomeValues.SCORED:
            return found, None
        if image.is_dicom or package.recipe.kind == "volume":
            tensor: FloatArray | None = read_image(image, package.recipe)
        else:
            found, tensor = _film(package, found)
        if tensor is not None and package.input_distribution is not None:
            package.input_distribution.check(tensor)
        return found, tensor
    except (Refusal, UnreadableInstance) as error:
        reason = error.reason if isinstance(error, Refusal) else CannotDecode.reason
        return _refused(found, reason, _without_folder(str(error), image)), None


def _selected(package: ModelPackage, image: LabelledImage, judge: Judge) -> ScoredImage:
    """Return what selection and contract say of a DICOM image or series."""
    wanted = wanted_keywords([package]) | set(SUBGROUP_KEYWORDS)
    instances = [
        StudyInstance(f"{image.name}#{number}", image.name, read_attributes(path, wanted))
        for number, path in enumerate(image.files)
    ]
    selection = select(package, instances, judge)
    shown = {name: instances[0].attributes.get(name) for name in SUBGROUP_KEYWORDS}
    found = ScoredImage(image, OutcomeValues.SCORED, attributes=shown)
    if selection.outcome is SelectionOutcomeValues.NO_MATCH:
        return replace(found, outcome=OutcomeValues.NOT_SELECTED, sentence=selection.sentence)
    stated = select(package, instances, evaluate_what_is_stated).chosen
    found = replace(found, has_whole_contract=stated is None or stated.is_wholly_judged)
    if selection.refusal_reason is not None:
        return _refused(found, selection.refusal_reason, selection.sentence)
    return found


def _film(package: ModelPackage, found: ScoredImage) -> _Prepared:
    """Judge the clauses that a film without a header can answer, and make its tensor."""
    grey = read_film(found.image.files[0])
    size = {"Rows": float(grey.shape[0]), "Columns": float(grey.shape[1])}
    answerable = [c for c in package.contract if keywords(c.require) <= _FILM_KEYWORDS]
    whole = len(answerable) == len(package.contract)
    found = replace(found, has_whole_contract=whole)
    for clause in answerable:
        judged = evaluate(clause.require, size)
        if not judged.passed:
            why = "; ".join(judged.failures())
            return _refused(found, clause.reason, f"{why}. {clause.text}"), None
    return found, image_values_to_tensor(grey, package.recipe)


def _refused(found: ScoredImage, reason: RefusalReason, sentence: str) -> ScoredImage:
    return replace(found, outcome=OutcomeValues.REFUSED, reason=str(reason), sentence=sentence)


def _without_folder(sentence: str, image: LabelledImage) -> str:
    """Name the image as the data set does: reports must not depend on where the data lie."""
    for path in image.files:
        sentence = sentence.replace(str(path), _shown(path, image))
    return sentence


def _shown(path: Path, image: LabelledImage) -> str:
    return f"{image.name}/{path.name}" if image.is_series else image.name


def _scored(predictor: Predictor, batch: Sequence[_Prepared]) -> list[ScoredImage]:
    asked = [(found, tensor) for found, tensor in batch if tensor is not None]
    answers = iter(_predicted(predictor, asked))
    return [found if tensor is None else next(answers) for found, tensor in batch]


def _predicted(
    predictor: Predictor, asked: Sequence[tuple[ScoredImage, FloatArray]]
) -> list[ScoredImage]:
    if not asked:
        return []
    try:
        rows = predictor.predict(np.stack([tensor for _, tensor in asked]))
    except UnusableOutput as error:
        if len(asked) == 1:
            return [_refused(asked[0][0], RefusalReason.SOFTWARE_FAILURE, str(error))]
        # One input of the batch is at fault: the others have their answer without it.
        return [answer for pair in asked for answer in _predicted(predictor, [pair])]
    return [
        replace(found, scores=tuple(float(score) for score in row))
        for (found, _), row in zip(asked, rows, strict=True)
    ]
