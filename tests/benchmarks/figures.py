"""Figures: medians over rounds, and the tables they are shown in.

Owns rounding and layout; measures nothing itself.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

Cell = str | int | float | None

_CONSOLE_WIDTH = 118


@dataclass
class Table:
    """One table: what was measured, beside what was expected where that can be said."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)
    """Every single round, for the stored figures only."""

    def show(self) -> None:
        """Print it."""
        drawn = RichTable(title=self.title, box=box.SIMPLE, title_justify="left")
        for number, column in enumerate(self.columns):
            drawn.add_column(column, justify="right" if number else "left", no_wrap=not number)
        for row in self.rows:
            drawn.add_row(*map(_text, row))
        console = Console(width=_CONSOLE_WIDTH, highlight=False)
        console.print(drawn)
        for note in self.notes:
            console.print(f"  {note}", markup=False)

    def as_json(self) -> dict[str, object]:
        """Return everything, unrounded."""
        return {
            "title": self.title,
            "rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows],
            "notes": self.notes,
            "samples": self.samples,
        }


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if not isinstance(cell, float):
        return str(cell)
    if abs(cell) >= 100:
        return f"{cell:.0f}"
    return f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}"


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return float(statistics.median(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100).__int__() - 1)]


def timed(call: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def rounds_of(call: Callable[[], object], rounds: int) -> list[float]:
    """Return the seconds of `rounds` calls, after one that is not counted."""
    call()
    return [timed(call) for _ in range(rounds)]
