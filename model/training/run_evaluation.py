"""The finished package, measured on validation and, once and last, on test.

Owns which splits are measured and where the reports lie. The figures are ``model.evaluation``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from model.durable import make_folders, sync
from model.errors import TrainingDataFault, TrainingPlanFault
from model.evaluation.evaluation import evaluate_split
from model.evaluation.records import Evaluation, Question, ScoredSplit
from model.evaluation.report import ReportFacts, data_digest
from model.evaluation.running import LIBRARIES, PAGE_NAME, REPORT_NAME, Finished
from model.evaluation.scoring import score_images
from model.evaluation.truth import ClassMap, match_classes
from model.package import ModelPackage
from model.runtimes.opening import RuntimeOptions, open_predictor
from model.runtimes.port import Predictor
from model.training.dataset import SplitValues
from model.training.plan import TrainingPlan
from model.training.plan_fit import FoldOverValues, FoldUseValues
from model.training.run_folder import RunFolder
from model.training.run_images import RunImages
from model.training.watching import Watch


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """The report that the package carries."""

    json: Path
    page: Path


def measured_splits(images: RunImages, plan: TrainingPlan) -> tuple[SplitValues, ...]:
    """Return what the package is measured on: validation unless its networks learned from it."""
    splits = () if _has_learned_from_validation(plan) else (SplitValues.VALIDATION,)
    return (*splits, *(split for split in images.dataset.splits if split is SplitValues.TEST))


def _has_learned_from_validation(plan: TrainingPlan) -> bool:
    folds = plan.folds
    is_over_both = folds is not None and folds.over is FoldOverValues.BOTH
    return is_over_both and folds is not None and folds.use is FoldUseValues.ENSEMBLE


def require_measurable(images: RunImages, package: ModelPackage, plan: TrainingPlan) -> None:
    """Refuse images by which no threshold could be chosen, or the package not be measured.

    Parameters
    ----------
    images : RunImages
    package : ModelPackage
        With the labels that the finished one will have; its weights play no part.
    plan : TrainingPlan

    Raises
    ------
    TrainingPlanFault
        Nothing is left to measure on.
    TrainingDataFault
        All images that a label's threshold is chosen by have it, or none has.
    EvaluationFault
        A label is in no image of a split that is to be measured.
    """
    if not measured_splits(images, plan):
        fault = (
            "folds.over: networks that learned from train and validation between them can be "
            "measured on a test split only; the data have none"
        )
        raise TrainingPlanFault(f"training configuration {plan.path.name}", [fault])
    places = images.places(SplitValues.VALIDATION)
    targets = images.targets if _has_learned_from_validation(plan) else images.targets[places]
    for label in package.labels:
        if len(np.unique(targets[:, label.index])) == 1:
            raise TrainingDataFault(
                f"{label.name}: its threshold is chosen by images with and without it; of those "
                f"that it is chosen by {'every one has' if targets[0, label.index] else 'none has'}"
                f" it"
            )
    for split in measured_splits(images, plan):
        _classes(images, package, plan, split)


def _classes(
    images: RunImages, package: ModelPackage, plan: TrainingPlan, split: SplitValues
) -> ClassMap:
    """Return which label each class of a split means."""
    listed = images.dataset.images_of(split)
    found = {name for image in listed for name in image.labels}
    renamed = {c: label.name for label in plan.labels for c in label.classes if c in found}
    return match_classes(package, listed, renamed)


def evaluate_splits(
    images: RunImages, package: ModelPackage, plan: TrainingPlan, folder: RunFolder, watch: Watch
) -> ReportFiles | None:
    """Measure the package and write a report for each split.

    Returns
    -------
    ReportFiles or None
        Of the test split where there is one, else of validation; None where neither is left.
    """
    predictor = open_predictor(package, RuntimeOptions())
    predictor.load()
    files: ReportFiles | None = None
    for split in measured_splits(images, plan):
        done = _measured(images, package, predictor, plan, split, watch)
        place = make_folders(folder.evaluation / str(split))
        for written in done.write(place):
            sync(written)
        sync(place)
        files = ReportFiles(place / REPORT_NAME, place / PAGE_NAME)
        _tell(done.evaluation, split, watch)
    return files


def _measured(
    images: RunImages,
    package: ModelPackage,
    predictor: Predictor,
    plan: TrainingPlan,
    split: SplitValues,
    watch: Watch,
) -> Finished:
    listed = images.dataset.images_of(split)
    classes = _classes(images, package, plan, split)
    with watch.progress(f"scoring {split}", len(listed)) as done:
        said = score_images(package, predictor, listed, done, deidentified=plan.data.deidentified)
        scored = ScoredSplit(said, classes.truth(listed))
    question = Question(split, seed=plan.fit.seed)
    evaluation = evaluate_split(package, classes, scored, question)
    inspected = [one for one in images.gate.inspected if one.image.split is split]
    facts = ReportFacts(
        package, images.gate, data_digest(inspected), predictor.description,
        {name: version(name) for name in LIBRARIES},
    )  # fmt: skip
    return Finished(evaluation, scored, facts)


def _tell(evaluation: Evaluation, split: SplitValues, watch: Watch) -> None:
    for label in evaluation.labels:
        words = ", ".join(
            f"{name} {label.figures[name].value:.4f}"
            for name in ("roc_auc", "sensitivity", "specificity", "accuracy")
            if label.figures[name].value is not None
        )
        watch.say(f"{split}: {label.name} at {label.threshold:g}: {words}")
        if label.figures["specificity"].value == 0 or label.figures["sensitivity"].value == 0:
            watch.say(
                f"{split}: {label.name}: images with and without it are answered alike: the "
                f"network tells nothing apart at this threshold, and is no model to serve"
            )
