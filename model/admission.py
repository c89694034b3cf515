"""Whether a model version may serve at a site: each criterion with what was wanted and found.

Owns the judgement, a pure function of the package, its trial, its evaluation report and the
site's limits. Knows no setting's file and no database.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dicom_io.wording import number_of
from model.errors import PackageFault
from model.evaluation.subgroups import FEWEST, UNKNOWN
from model.evaluation_report import (
    EvaluationReport,
    ReportedLabel,
    ReportedSubgroups,
    contradictions,
    read_evaluation_report,
)
from model.package import ModelPackage
from model.package_files import ProbeFile
from model.runtimes.check import CheckReport

GAP_FIGURES = ("roc_auc", "sensitivity", "specificity")
UNSEEN_SPLITS = frozenset({"validation", "test"})
LEAKS = ("patients", "duplicates", "same-pixels", "label-conflicts")
"""Checks of the data whose findings may let a model answer images that it was fitted to."""

_LITTLE_TOLD = (
    "no score is ten tolerances away from 0 and 1, so they tell little: pack it again with other "
    "images, 'medimgd models pack --probe'"
)
_WORDS = {"roc_auc": "AUC", "sensitivity": "sensitivity", "specificity": "specificity"}


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What a site asks of a version before it serves."""

    evaluation_required: bool = True
    minimum_auc: float = 0.0
    minimum_sensitivity: float = 0.0
    minimum_specificity: float = 0.0
    maximum_subgroup_gap: float = 1.0
    lower_bounds_count: bool = False

    @property
    def minima(self) -> dict[str, float]:
        """The figures that have a limit."""
        limits = {
            "roc_auc": self.minimum_auc,
            "sensitivity": self.minimum_sensitivity,
            "specificity": self.minimum_specificity,
        }
        return {name: limit for name, limit in limits.items() if limit > 0}

    @property
    def asks_for_figures(self) -> bool:
        """True when a report is needed whatever ``evaluation_required`` says."""
        return bool(self.minima) or self.maximum_subgroup_gap < 1


@dataclass(frozen=True, slots=True)
class Criterion:
    """One thing that was looked at."""

    name: str
    wanted: str
    found: str
    met: bool

    @property
    def sentence(self) -> str:
        """The criterion in words, for a refusal and for the audit trail."""
        return f"{self.name}: wanted {self.wanted}, found {self.found}"


def judge_admission(
    package: ModelPackage, trial: CheckReport, limits: AdmissionLimits
) -> tuple[Criterion, ...]:
    """Return every criterion; the version may serve when all are met.

    Parameters
    ----------
    package : ModelPackage
        As loaded: its digests are right, that of the preprocessing included.
    trial : CheckReport
        Of this very folder, with its probes.
    limits : AdmissionLimits
        The site's.
    """
    return (
        *_of_trial(package, trial),
        *_of_evaluation(package, limits),
    )


def _of_trial(package: ModelPackage, trial: CheckReport) -> Iterator[Criterion]:
    yield Criterion(
        "preprocessing",
        "the steps of this installation",
        f"digest {package.preprocessing_digest[:12]}…, the same",
        met=True,
    )
    yield Criterion(
        "trial", "loads, computes, no fault", "; ".join(trial.faults) or "no fault", trial.passed
    )
    if package.probes is None:
        yield Criterion(
            "probes",
            "recorded scores to reproduce",
            "none in the package: pack it again with 'medimgd models pack --probe'",
            met=False,
        )
        return
    difference = trial.probe_difference
    found = "no scores" if difference is None else f"a largest difference of {difference:.2g}"
    yield Criterion(
        "probes",
        f"the recorded scores of {number_of(len(package.probes.scores), 'probe')} within "
        f"{package.probes.tolerance:g}",
        found if _is_telling(package.probes) else f"{found}; {_LITTLE_TOLD}",
        met=difference is not None and difference <= package.probes.tolerance,
    )


def _is_telling(probes: ProbeFile) -> bool:
    """Return False when other weights might give the same scores: all lie at 0 or 1."""
    end = 10 * probes.tolerance
    return any(end < score < 1 - end for scores in probes.scores for score in scores)


def _of_evaluation(package: ModelPackage, limits: AdmissionLimits) -> Iterator[Criterion]:
    wanted = "a report of 'medimgd evaluate' about this very package"
    if package.evaluation is None:
        needed = limits.evaluation_required or limits.asks_for_figures
        yield Criterion("evaluation", wanted if needed else "nothing", "none", met=not needed)
        return
    try:
        report = read_evaluation_report(package.evaluation.path)
    except PackageFault as error:
        yield Criterion("evaluation", wanted, str(error), met=False)
        return
    faults = contradictions(report, package)
    found = (
        f"{report.split}: {number_of(report.images, 'image')} of "
        f"{number_of(report.patients, 'patient')}, "
        f"{report.refused} refused, {report.not_selected} not selected"
    )
    yield Criterion("evaluation", wanted, "; ".join(faults) or found, met=not faults)
    yield from _of_independence(report, demonstration=package.identity.demonstration)
    for label in report.labels:
        yield from _of_figures(label, limits)
        yield from _of_gaps(label, report, limits)


def _of_independence(report: EvaluationReport, *, demonstration: bool) -> Iterator[Criterion]:
    """Whether the figures are those of images that the weights were not fitted to."""
    yield Criterion(
        "evaluated split",
        "validation or test",
        report.split,
        met=report.split in UNSEEN_SPLITS,
    )
    leaks = {check: report.gate_findings.get(check, 0) for check in LEAKS}
    # Counted only: the sentences of the findings name patients.
    found = ", ".join(f"{check} ({count})" for check, count in leaks.items() if count)
    yield Criterion(
        "evaluated images",
        "no patient in two splits and no image twice, save for a demonstration",
        f"{found}; a demonstration only" if found and demonstration else found or "none such",
        met=demonstration or not found,
    )


def _of_figures(label: ReportedLabel, limits: AdmissionLimits) -> Iterator[Criterion]:
    for name, limit in limits.minima.items():
        figure = label.figures.get(name)
        value = None if figure is None else figure.value
        low = None if figure is None else figure.low
        counted = low if limits.lower_bounds_count else value
        found = "no such figure" if value is None else f"{value:.4f}"
        if value is not None:
            found += " without interval" if low is None else f", lower bound {low:.4f}"
        which = "a lower bound of at least" if limits.lower_bounds_count else "at least"
        yield Criterion(
            f"{label.name} {_WORDS[name]}",
            f"{which} {limit:g}",
            found,
            met=counted is not None and counted >= limit,
        )


def _of_gaps(
    label: ReportedLabel, report: EvaluationReport, limits: AdmissionLimits
) -> Iterator[Criterion]:
    limit = limits.maximum_subgroup_gap
    if limit >= 1:
        return
    compared = [
        criterion
        for part in label.subgroups
        for figure in GAP_FIGURES
        for criterion in _of_gap(label.name, part, figure, limit)
    ]
    yield from compared
    if not compared:
        columns = ", ".join(part.column for part in label.subgroups) or "none"
        yield Criterion(
            f"{label.name} gap between subgroups",
            f"at most {limit:g}",
            f"no two groups of enough patients to compare on {report.split} (columns: {columns}); "
            "'medimgd evaluate --subgroup' names others",
            met=False,
        )


def _of_gap(label: str, part: ReportedSubgroups, figure: str, limit: float) -> Iterator[Criterion]:
    """Judge one figure by one column; nothing where no two groups have enough patients.

    Of two groups that are large enough, and that are not compared because too few of their patients
    have the label or lack it, nobody knows how far they are apart.
    """
    known = [group for group in part.groups if group.value != UNKNOWN]
    large = [group for group in known if group.patients >= FEWEST]
    untold = ", ".join(group.value for group in known if figure not in group.figures)
    gap = next((gap for gap in part.gaps if gap.figure == figure), None)
    if gap is None and len(large) < 2:
        return
    found = (
        "cannot be judged" if gap is None else f"{gap.gap:.4f} between {gap.best} and {gap.worst}"
    )
    if untold:
        found += f"; too few patients with or without the label to tell of {untold}"
    yield Criterion(
        f"{label} {_WORDS[figure]} by {part.column}",
        f"at most {limit:g}",
        found,
        met=gap is not None and gap.gap <= limit,
    )
