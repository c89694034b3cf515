"""From a package and a data set to the files of a report.

Owns the order: gate, classes, scores, figures, files. The caller brings the predictor, so that
the network runs behind the same port as in the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from model.errors import EvaluationFault
from model.evaluation.evaluation import evaluate_split
from model.evaluation.html_report import html_page
from model.evaluation.records import Evaluation, Question, ScoredSplit
from model.evaluation.report import (
    ReportFacts,
    as_json,
    calibration_mapping,
    data_digest,
    report_mapping,
    scores_csv,
)
from model.evaluation.scoring import score_images
from model.evaluation.thresholds import require_validation
from model.evaluation.truth import ClassMap, match_classes
from model.package import ModelPackage
from model.runtimes.port import Predictor
from model.training.dataset import Dataset, LabelledImage, SplitValues
from model.training.gate import check_data
from model.training.gate_report import CheckValues, GateLimits, GateReport
from model.training.inspection import InspectedImage

REPORT_NAME = "report.json"
PAGE_NAME = "report.html"
SCORES_NAME = "scores.csv"
CALIBRATION_NAME = "calibration.json"
LIBRARIES = ("scikit-learn", "numpy", "scipy", "matplotlib")

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Takes what is done and how often; yields what takes the number done."""


@contextmanager
def _silent(_what: str, _total: int) -> Iterator[Callable[[int], None]]:
    yield lambda _done: None


@dataclass(frozen=True, slots=True)
class Wishes:
    """How an evaluation is to be done, besides the question itself."""

    allowed: frozenset[CheckValues] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Label by class, where the names differ."""
    fit_calibration: bool = False
    limits: GateLimits | None = None
    """Of the gate; the usual ones when None."""
    deidentified: bool = False
    """Headers were emptied: a contract is judged by what they still state."""


@dataclass(frozen=True, slots=True)
class Finished:
    """An evaluation that was done, ready to be written."""

    evaluation: Evaluation
    split: ScoredSplit
    known: ReportFacts

    def write(self, folder: Path) -> tuple[Path, ...]:
        """Write report, page and scores into a folder; return the files.

        Raises
        ------
        EvaluationFault
            The folder cannot be written to.
        """
        labels = self.known.package.labels
        documents = {
            REPORT_NAME: as_json(report_mapping(self.evaluation, self.split, self.known)),
            PAGE_NAME: html_page(self.evaluation, self.split, self.known),
            SCORES_NAME: scores_csv(self.split, labels),
        }
        if any(label.scaled for label in self.evaluation.labels):
            documents[CALIBRATION_NAME] = as_json(calibration_mapping(self.evaluation, self.known))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in documents.items():
                (folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise EvaluationFault(
                f"the report cannot be written to {folder}: {error.strerror}; name another "
                f"folder with --out"
            ) from error
        return tuple(folder / name for name in documents)


def run_evaluation(
    package: ModelPackage,
    predictor: Predictor,
    dataset: Dataset,
    question: Question,
    wishes: Wishes | None = None,
    progress: Progress = _silent,
) -> Finished:
    """Check the data, score a split and measure.

    Parameters
    ----------
    package : ModelPackage
    predictor : Predictor
        For this package; not loaded yet.
    dataset : Dataset
        With all its splits, so that the gate sees what leaks between them.
    question : Question
    wishes : Wishes, optional
    progress : callable, optional

    Raises
    ------
    DataGateFault
        The data fail checks that were not allowed.
    EvaluationFault
        Package, data and question do not fit.
    RuntimeFault
        The weights do not load.
    """
    wished = wishes or Wishes()
    if question.rule is not None:
        require_validation(question.split)
    images = _images_of(dataset, question.split)
    is_fitted_elsewhere = wished.fit_calibration and question.split is not SplitValues.VALIDATION
    others = _images_of(dataset, SplitValues.VALIDATION) if is_fitted_elsewhere else ()
    classes = match_classes(package, images, wished.renamed, others)
    gate = _checked(dataset, wished, progress)
    predictor.load()
    split = _scored(package, predictor, images, classes, wished, progress)
    fitting = split if wished.fit_calibration else None
    if others:
        fitting = _scored(package, predictor, others, classes, wished, progress)
    evaluation = evaluate_split(package, classes, split, question, fitting)
    inspected = _of_split(gate.inspected, question.split)
    libraries = {name: version(name) for name in LIBRARIES}
    known = ReportFacts(package, gate, data_digest(inspected), predictor.description, libraries)
    return Finished(evaluation, split, known)


def _images_of(dataset: Dataset, split: SplitValues) -> tuple[LabelledImage, ...]:
    images = dataset.images_of(split)
    if not images:
        raise EvaluationFault(
            f"the data hold no split {split}; there is {', '.join(dataset.splits)}"
        )
    return images


def _checked(dataset: Dataset, wished: Wishes, progress: Progress) -> GateReport:
    with progress("checking the data", len(dataset.images)) as done:
        gate = check_data(dataset, limits=wished.limits, allowed=wished.allowed, on_image=done)
    gate.require()
    return gate


def _scored(
    package: ModelPackage,
    predictor: Predictor,
    images: Sequence[LabelledImage],
    classes: ClassMap,
    wished: Wishes,
    progress: Progress,
) -> ScoredSplit:
    with progress(f"scoring {images[0].split}", len(images)) as done:
        scored = score_images(package, predictor, images, done, deidentified=wished.deidentified)
    return ScoredSplit(scored, classes.truth(images))


def _of_split(inspected: Iterable[InspectedImage], split: SplitValues) -> list[InspectedImage]:
    return [one for one in inspected if one.image.split is split]
