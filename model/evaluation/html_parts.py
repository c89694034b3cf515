"""Pieces of a page: escaped text, tables, figures with their intervals drawn.

Owns HTML and nothing else. Every piece of text passes through ``escaped``.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from model.evaluation.metrics import Figure


@dataclass(frozen=True, slots=True)
class Markup:
    """Text that is HTML already."""

    text: str


Cell = str | int | float | Markup | None

FIGURE_WORDS = {
    "accuracy": "accuracy",
    "precision": "precision (positive predictive value)",
    "sensitivity": "sensitivity (recall)",
    "specificity": "specificity",
    "f1": "F1",
    "roc_auc": "area under the ROC curve",
    "pr_auc": "area under precision and recall",
    "brier": "Brier score (lower is better)",
}
SHORT_WORDS = {"sensitivity": "sensitivity", "specificity": "specificity", "roc_auc": "ROC area"}


def escaped(value: Cell) -> str:
    """Return any cell as HTML; None is a dash."""
    if isinstance(value, Markup):
        return value.text
    if value is None:
        return "–"
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def element(name: str, *children: Cell, css: str = "") -> Markup:
    """Return an element around its children."""
    attribute = f' class="{html.escape(css)}"' if css else ""
    return Markup(f"<{name}{attribute}>{''.join(escaped(child) for child in children)}</{name}>")


def section(title: str, *children: Cell) -> Markup:
    """Return a section with its heading."""
    return element("section", element("h2", title), *children)


def table(
    headings: Sequence[str], rows: Iterable[Sequence[Cell]], *, numbers_from: int = 1
) -> Markup:
    """Return a table that scrolls by itself on a narrow screen.

    Parameters
    ----------
    numbers_from : int
        Columns from this one on are aligned as numbers.
    """
    head = "".join(
        f'<th scope="col"{_number_class(place, numbers_from)}>{escaped(heading)}</th>'
        for place, heading in enumerate(headings)
    )
    body = "".join(_row(row, numbers_from) for row in rows)
    return Markup(
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _row(cells: Sequence[Cell], numbers_from: int) -> str:
    first = f'<th scope="row">{escaped(cells[0])}</th>'
    rest = (
        f"<td{_number_class(place, numbers_from)}>{escaped(cell)}</td>"
        for place, cell in enumerate(cells[1:], start=1)
    )
    return f"<tr>{first}{''.join(rest)}</tr>"


def _number_class(place: int, numbers_from: int) -> str:
    return ' class="number"' if place >= numbers_from else ""


def picture(address: str, title: str, description: str) -> Markup:
    """Return an embedded picture with a caption and a text for those who cannot see it."""
    return Markup(
        f'<figure><figcaption>{escaped(title)}</figcaption><img alt="{html.escape(description)}" '
        f'src="{address}"></figure>'
    )


def facts(pairs: Iterable[tuple[str, Cell]]) -> Markup:
    """Return a list of names and values."""
    inner = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in pairs)
    return Markup(f"<dl>{inner}</dl>")


def bullets(sentences: Iterable[Cell]) -> Markup:
    """Return a list of sentences."""
    return Markup("<ul>" + "".join(f"<li>{escaped(one)}</li>" for one in sentences) + "</ul>")


def value_of(figure: Figure) -> Cell:
    """Return the value as people read it, or why there is none."""
    if figure.value is None:
        return element("span", figure.note or "not defined", css="missing")
    return f"{figure.value:.3f}"


def interval_of(low: float | None, high: float | None) -> str:
    """Return the ends of an interval."""
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def interval_bar(figure: Figure, start: float = 0.0) -> Cell:
    """Draw the interval on a line from `start` to 1, the value as a tick."""
    if figure.value is None or figure.low is None or figure.high is None:
        return ""
    value, low, high = (
        100 * max(end - start, 0) / (1 - start) for end in (figure.value, figure.low, figure.high)
    )
    width = max(high - low, 0.6)
    left = min(low, 100 - width)
    return Markup(
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect x="0" y="4.4" width="100" height="1.2" class="track"/>'
        f'<rect x="{left:.2f}" y="2" width="{width:.2f}" height="6" class="reach"/>'
        f'<rect x="{min(value, 99.2):.2f}" y="0" width="0.8" height="10" class="tick"/></svg>'
    )


def bar_start(figures: Iterable[Figure]) -> float:
    """Return where bars of these figures begin, so that short intervals can be told apart."""
    lows = [figure.low for figure in figures if figure.low is not None]
    return math.floor(10 * min(lows, default=0.0)) / 10 if min(lows, default=0.0) < 1 else 0.9
