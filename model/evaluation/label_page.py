"""The part of the page about one label: figures, plots, readings, subgroups, mistakes.

Owns the words beside the numbers, so that no table has to be guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from model.evaluation.html_parts import (
    FIGURE_WORDS,
    SHORT_WORDS,
    Cell,
    Markup,
    bar_start,
    element,
    interval_bar,
    interval_of,
    picture,
    section,
    table,
    value_of,
)
from model.evaluation.metrics import ConfusionRow
from model.evaluation.plots import (
    confusion_plot,
    histogram_plot,
    precision_recall_plot,
    reliability_plot,
    roc_plot,
)
from model.evaluation.records import Evaluation, LabelResult, Mistake, ScoredSplit
from model.evaluation.subgroups import SUBGROUP_FIGURES, Gap, Group, Subgroups

_SAID = ("Present", "Absent", "Undetermined", "refused", "not selected")


def label_section(number: int, evaluation: Evaluation, split: ScoredSplit) -> Markup:
    """Return everything about one label."""
    label = evaluation.labels[number]
    return section(
        label.name,
        element("p", _threshold_words(label), css="soft"),
        _figures(label),
        element("div", *_plots(number, label, split), css="plots"),
        _confusion(label),
        _readings(label),
        _calibration(label),
        _chosen(label),
        *(_subgroups(part) for part in label.subgroups),
        _mistakes(label),
    )


def _threshold_words(label: LabelResult) -> str:
    band = ""
    if label.undetermined_low < label.undetermined_high:
        band = (
            f" Scores from {label.undetermined_low:g} to below {label.undetermined_high:g} are "
            f"undetermined."
        )
    return (
        f"At the packaged threshold of {label.threshold:g}; the figures below judge every scored "
        f"image by it.{band}"
    )


def _figures(label: LabelResult) -> Markup:
    start = bar_start(f for name, f in label.figures.items() if name != "brier")
    rows: list[tuple[Cell, ...]] = [
        (
            FIGURE_WORDS[name],
            value_of(figure),
            element("span", interval_of(figure.low, figure.high), css="interval"),
            "" if name == "brier" else interval_bar(figure, start),
            figure.images,
            figure.patients,
            figure.note if figure.value is not None else "",
        )
        for name, figure in label.figures.items()
    ]
    drawn = f"from {start:g} to 1"
    headings = ["figure", "value", "95 % interval", drawn, "images", "patients", "note"]
    if not any(row[-1] for row in rows):
        return table(headings[:-1], [row[:-1] for row in rows])
    return table(headings, rows)


def _plots(number: int, label: LabelResult, split: ScoredSplit) -> Iterator[Markup]:
    has_score = split.has_score
    truth, scores = split.truth[has_score, number], split.scores()[:, number]
    counts = (_said(label.confusion.positive), _said(label.confusion.negative))
    kept = [place for place in range(len(_SAID)) if place < 2 or any(row[place] for row in counts)]
    yield picture(
        confusion_plot(
            label.name,
            tuple(_SAID[place] for place in kept),
            tuple(tuple(row[place] for place in kept) for row in counts),
        ),
        "Confusion",
        "The counts are in the table below.",
    )
    band = (label.undetermined_low, label.undetermined_high)
    yield picture(
        histogram_plot(truth, scores, label.threshold, band),
        "Scores",
        f"Histogram of {len(scores)} scores, with and without {label.name}.",
    )
    if truth.any() and not truth.all():
        area = label.figures["roc_auc"].value
        yield picture(
            roc_plot(truth, scores, label.threshold), "ROC", f"ROC curve, area {area:.3f}."
        )
        precise = label.figures["pr_auc"].value
        yield picture(
            precision_recall_plot(truth, scores, label.threshold),
            "Precision and recall",
            f"Precision over recall, area {precise:.3f}.",
        )
    yield picture(
        reliability_plot(label.calibration),
        "Reliability",
        f"Share with the label over the score; expected calibration error "
        f"{label.calibration.ece:.3f}. Numbers at the points are images.",
    )


def _said(row: ConfusionRow) -> tuple[int, ...]:
    return (row.present, row.absent, row.undetermined, row.refused, row.not_selected)


def _confusion(label: LabelResult) -> Markup:
    rows: list[tuple[Cell, ...]] = [
        (f"{words} {label.name}", *_said(row), row.total)
        for words, row in (
            ("with", label.confusion.positive),
            ("without", label.confusion.negative),
        )
    ]
    return element("div", element("h3", "What was said"), table(("truth", *_SAID, "all"), rows))


def _readings(label: LabelResult) -> Markup:
    rows: list[tuple[Cell, ...]] = [
        (
            reading.name, reading.words, reading.images,
            *(
                _with_interval(value_of(figure), interval_of(figure.low, figure.high))
                for figure in reading.figures.values()
            ),
        )
        for reading in label.readings
    ]  # fmt: skip
    return element(
        "div",
        element("h3", "Counting open answers"),
        table(
            ("reading", "which images", "images", "accuracy", "sensitivity", "specificity"),
            rows,
            numbers_from=2,
        ),
    )


def _with_interval(value: Cell, interval: str) -> Cell:
    return element(
        "span", value, " ", element("span", f"({interval})" * bool(interval), css="soft")
    )


def _calibration(label: LabelResult) -> Markup:
    found = label.calibration
    rows: list[tuple[Cell, ...]] = [("as packaged", found.ece, found.brier, found.log_loss, "")]
    for one in label.scaled:
        words = f"scale {one.scaling.scale:.4g}, offset {one.scaling.offset:.4g}"
        if one.scaling.offset == 0.0:
            words = f"temperature {one.scaling.temperature:.4g}"
        after = one.after
        name = f"after {one.scaling.method}, fitted on {one.fitted_on}"
        rows.append((name, after.ece, after.brier, after.log_loss, words))
    return element(
        "div",
        element("h3", "Calibration"),
        element(
            "p",
            f"Mean score {found.mean_score:.3f}, share with the label {found.share:.3f}. A score "
            f"is no probability where the share differs from that of these images.",
            css="soft",
        ),
        table(("scores", "ECE", "Brier", "log loss", "fitted"), rows),
    )


def _chosen(label: LabelResult) -> Markup:
    chosen = label.chosen
    if chosen is None:
        return Markup("")
    return element(
        "div",
        element("h3", "A threshold by rule"),
        element(
            "p",
            f"{chosen.rule.capitalize()}: {chosen.threshold}, with a sensitivity of "
            f"{chosen.sensitivity:.3f} and a specificity of {chosen.specificity:.3f} on the "
            f"{chosen.images} images it was chosen on. Nothing was changed in the package.",
        ),
    )


def _subgroups(part: Subgroups) -> Markup:
    return element(
        "div",
        element("h3", f"By {part.column}"),
        table(
            (
                "group",
                "images",
                "patients",
                "with label",
                *map(SHORT_WORDS.__getitem__, SUBGROUP_FIGURES),
            ),
            [_group_row(group) for group in part.groups],
        ),
        *(_gap_words(gap) for gap in part.gaps),
    )


def _group_row(group: Group) -> tuple[Cell, ...]:
    cells: list[Cell] = []
    for name in SUBGROUP_FIGURES:
        figure = group.figures.get(name)
        if figure is None:
            cells.append(element("span", "too few", css="missing"))
        else:
            cells.append(_with_interval(value_of(figure), interval_of(figure.low, figure.high)))
    return (group.value, group.images, group.patients, group.positives, *cells)


def _gap_words(gap: Gap) -> Markup:
    words = (
        f"{SHORT_WORDS[gap.figure]}: {gap.gap:.3f} between {gap.best} and {gap.worst} "
        f"(95 % interval {interval_of(gap.low, gap.high)})"
    )
    if not gap.is_beyond_limit:
        return element("p", words, css="soft")
    chance = " It may be chance: the interval holds zero." if gap.may_be_chance else ""
    flag = element("span", "gap beyond the limit", css="flag")
    return element("p", flag, f": {words}.{chance}")


def _mistakes(label: LabelResult) -> Markup:
    if not (label.missed or label.false_alarms):
        return Markup("")
    return element(
        "div",
        element("h3", "Worst mistakes"),
        *(
            element("details", element("summary", words), _mistake_table(mistakes))
            for words, mistakes in (
                (f"Missed: {label.name} with the lowest scores", label.missed),
                (f"False alarms: no {label.name}, with the highest scores", label.false_alarms),
            )
            if mistakes
        ),
    )


def _mistake_table(mistakes: Sequence[Mistake]) -> Markup:
    return table(("image", "score"), [(one.image, f"{one.score:.4f}") for one in mistakes])
