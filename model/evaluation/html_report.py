"""The report as one page that needs nothing else: no script, no address, pictures inside.

Owns what is said in which order. What an expert would ask first stands first: how many images
had no answer, then the figures, then where they differ.
"""

from __future__ import annotations

import html
from pathlib import Path

from model.evaluation.html_parts import (
    FIGURE_WORDS,
    Cell,
    Markup,
    bullets,
    element,
    escaped,
    facts,
    interval_bar,
    interval_of,
    picture,
    section,
    table,
    value_of,
)
from model.evaluation.label_page import label_section
from model.evaluation.plots import matrix_plot
from model.evaluation.records import Evaluation, ScoredSplit
from model.evaluation.report import ReportFacts
from model.evaluation.scoring import OutcomeValues
from model.training.dataset import SplitValues

CSS_PATH = Path(__file__).with_name("report.css")
MOST_REFUSALS = 40
_METHOD = (
    "Values are computed by scikit-learn. Where no image or every image counts, the interval is "
    "the exact binomial one, of a ROC area over pairs of patients. An interval speaks of other "
    "patients of the same origin, not of other hospitals. Among many groups some gap is to be "
    "expected; best and worst were picked after the fact."
)
SPLIT_WORDS = {
    SplitValues.TRAIN: "Measured on the images the weights were fitted on: these figures say "
    "nothing about other images.",
    SplitValues.VALIDATION: "Measured on validation, on which thresholds and epochs are chosen: "
    "these figures are for development and make no test claim.",
    SplitValues.TEST: "",
}


def html_page(evaluation: Evaluation, split: ScoredSplit, known: ReportFacts) -> str:
    """Return the whole page.

    Parameters
    ----------
    split : ScoredSplit
        For the curves.
    known : ReportFacts
        Package, data, gate and libraries.
    """
    title = f"Evaluation of {known.package.at_version} on {evaluation.question.split}"
    body = [
        _header(title, known),
        _notices(evaluation, known),
        _tiles(evaluation),
        *(_overall(evaluation) if len(evaluation.labels) > 1 else []),
        *(label_section(number, evaluation, split) for number in range(len(evaluation.labels))),
        _refusals(split),
        _data(evaluation, known),
        _limits(known),
        _provenance(evaluation, known),
    ]
    return (
        '<!doctype html>\n<html lang="en-GB">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n"
        f"<style>\n{CSS_PATH.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        + "\n".join(escaped(part) for part in body)
        + "\n</body>\n</html>\n"
    )


def _header(title: str, known: ReportFacts) -> Markup:
    identity = known.package.identity
    return element(
        "header",
        element("h1", identity.title),
        element("p", title, css="soft"),
        element("p", f"Intended use: {identity.intended_use}"),
    )


def _notices(evaluation: Evaluation, known: ReportFacts) -> Markup:
    """Return what a reader must not overlook."""
    outcomes = evaluation.outcomes
    allowed = sorted({str(finding.check) for finding in known.gate.findings})
    sentences: list[Cell] = [
        "Demonstration: this package makes no clinical claim."
        * known.package.identity.demonstration,
        SPLIT_WORDS[evaluation.question.split],
        f"{outcomes.refused} of {outcomes.images} images were refused and "
        f"{outcomes.not_selected} not selected; they have no score and are counted apart."
        if outcomes.refused or outcomes.not_selected
        else "",
        f"{outcomes.without_whole_contract} scored images have no DICOM header, or lack values "
        f"in it: the package's input contract (age, view, ...) could not be judged whole for them."
        if outcomes.without_whole_contract
        else "",
        f"The patient of {outcomes.images_without_patient} images is unknown; intervals take "
        f"each of them for a patient and are too narrow if some belong together."
        if outcomes.images_without_patient
        else "",
        f"The data did not pass these checks, which were allowed: {', '.join(allowed)}."
        if allowed
        else "",
        f"The data were checked against lower limits than usual: {known.gate.limits.in_words()}."
        if known.gate.limits.are_lowered
        else "",
        f"{evaluation.gaps_beyond_limit} gaps between subgroups are larger than "
        f"{evaluation.question.gap_limit:g}."
        if evaluation.gaps_beyond_limit
        else "",
    ]
    kept = [sentence for sentence in sentences if sentence]
    return element("div", bullets(kept), css="notice") if kept else Markup("")


def _tiles(evaluation: Evaluation) -> Markup:
    outcomes = evaluation.outcomes
    tiles: list[tuple[str, str]] = [
        (str(outcomes.images), "images"),
        (
            str(outcomes.patients),
            "patients or single images" if outcomes.images_without_patient else "patients",
        ),
        (str(outcomes.scored), "scored"),
        (str(outcomes.refused + outcomes.not_selected), "refused or not selected"),
    ]
    if len(evaluation.labels) == 1:
        only = evaluation.labels[0]
        undetermined = only.confusion.positive.undetermined + only.confusion.negative.undetermined
        tiles.append((str(undetermined), "undetermined"))
    return element(
        "div",
        *(
            element("div", element("b", value), element("span", words), css="tile")
            for value, words in tiles
        ),
        css="tiles",
    )


def _overall(evaluation: Evaluation) -> list[Markup]:
    """Return what spans all labels, where there are several."""
    rows = [
        (
            FIGURE_WORDS[name],
            "–" if mean.value is None else f"{mean.value:.3f}",
            interval_of(mean.low, mean.high),
        )
        for name, mean in evaluation.averages.items()
    ]
    parts = [
        section(
            "All labels",
            element("p", "Means over the labels, each weighing the same.", css="soft"),
            table(("figure", "mean", "95 % interval"), rows),
        )
    ]
    if evaluation.matrix is not None:
        accuracy = evaluation.matrix.accuracy
        row = (
            "accuracy over classes", value_of(accuracy),
            interval_of(accuracy.low, accuracy.high), interval_bar(accuracy),
        )  # fmt: skip
        parts.append(
            section(
                "Class against class",
                element("p", "The most likely class of each scored image; thresholds play no "
                        "part here.", css="soft"),
                table(("figure", "value", "95 % interval", ""), [row]),
                element("div", picture(matrix_plot(evaluation.matrix), "Confusion of classes",
                        "The counts are in the JSON report."), css="plots"),
            )
        )  # fmt: skip
    return parts


def _refusals(split: ScoredSplit) -> Markup:
    open_ones = [one for one in split.scored if one.outcome is not OutcomeValues.SCORED]
    if not open_ones:
        return Markup("")
    rows = [
        (one.image.name, str(one.outcome), one.reason, one.sentence)
        for one in open_ones[:MOST_REFUSALS]
    ]
    rest = len(open_ones) - len(rows)
    return section(
        "Images without a score",
        table(("image", "outcome", "reason", "why"), rows, numbers_from=4),
        element("p", f"And {rest} more; scores.csv lists all." if rest else "", css="soft"),
    )


def _data(evaluation: Evaluation, known: ReportFacts) -> Markup:
    classes = evaluation.classes
    names = [name for name in next(iter(known.gate.counts.values())) if name != "images"]
    rows: list[tuple[Cell, ...]] = [
        (split, *counts.values()) for split, counts in known.gate.counts.items()
    ]
    meant = [f"{name} is {label}" for name, label in classes.label_of.items()]
    found = [
        f"{finding.check}: {finding.sentence} (allowed)" for finding in known.gate.findings[:20]
    ]
    return section(
        "Data",
        table(("split", "images", *names), rows),
        facts(
            [
                ("classes with a label", ", ".join(meant)),
                ("classes taken as negative", ", ".join(classes.negatives) or "none"),
                ("checks of the data", "all passed" if not found else "passed, with exceptions"),
                ("limits of the checks", known.gate.limits.in_words()),
                ("digest of the split", known.data_digest),
            ]
        ),
        bullets(found) if found else "",
    )


def _limits(known: ReportFacts) -> Markup:
    if not known.package.limits:
        return Markup("")
    return section("Limits stated by the package", bullets(known.package.limits))


def _provenance(evaluation: Evaluation, known: ReportFacts) -> Markup:
    question, package = evaluation.question, known.package
    intervals = (
        f"95 % percentile bootstrap, {question.rounds} rounds, patients drawn with replacement, "
        f"seed {question.seed}"
    )
    return section(
        "How it was measured",
        facts(
            [
                ("package", package.at_version),
                ("weights (SHA-256)", package.identity.weights_sha256),
                ("preprocessing digest", package.preprocessing_digest),
                ("runtime", known.description.runtime),
                ("device, precision", f"{known.description.device}, {known.description.precision}"),
                ("intervals", intervals),
                ("libraries", ", ".join(f"{k} {v}" for k, v in known.libraries.items())),
            ]
        ),
        element("p", _METHOD, css="soft"),
    )
