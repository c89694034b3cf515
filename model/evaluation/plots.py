"""Curves and histograms as pictures for the report.

Owns matplotlib. Nothing is shown by colour alone: lines differ in their dashes, bars in their
hatching, and every axis says what it is. The same numbers give the same bytes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn import metrics

from model.evaluation.bootstrap import Array, BoolArray
from model.evaluation.calibration import Calibration
from model.evaluation.classes import ClassMatrix

BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#767676", "#222222"
"""Okabe and Ito's blue and vermilion, told apart with every kind of colour vision."""

_STYLE = {
    "svg.hashsalt": "medimgd",
    "font.size": 9.0,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
}
_WIDTH, _HEIGHT = 4.4, 3.5
_HISTOGRAM_BINS = 25


def roc_plot(truth: BoolArray, scores: Array, threshold: float) -> str:
    """Draw sensitivity over one minus specificity, with the packaged threshold's point."""
    false_share, true_share, _ = metrics.roc_curve(truth, scores)
    judged = scores >= threshold
    with _drawn() as (figure, (axes,)):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        axes.plot(false_share, true_share, color=BLUE, linewidth=1.6)
        point = (judged[~truth].mean(), judged[truth].mean())
        axes.plot(*point, "o", color=ORANGE, markersize=7, markeredgecolor="white")
        _note_point(axes, point, f"threshold {threshold:.3g}")
        _unit_axes(axes, "1 − specificity", "sensitivity")
        return _encoded(figure)


def precision_recall_plot(truth: BoolArray, scores: Array, threshold: float) -> str:
    """Draw precision over sensitivity; the dotted line is what guessing gives."""
    precision, recall, _ = metrics.precision_recall_curve(truth, scores)
    judged = scores >= threshold
    with _drawn() as (figure, (axes,)):
        axes.axhline(float(truth.mean()), color=GREY, linewidth=0.8, linestyle=":")
        axes.step(recall, precision, where="post", color=BLUE, linewidth=1.6)
        if judged.any():
            point = (judged[truth].mean(), truth[judged].mean())
            axes.plot(*point, "o", color=ORANGE, markersize=7, markeredgecolor="white")
            _note_point(axes, point, f"threshold {threshold:.3g}")
        _unit_axes(axes, "sensitivity (recall)", "precision")
        return _encoded(figure)


def reliability_plot(calibration: Calibration) -> str:
    """Draw the share of images with the label over the mean score of each bin."""
    bins = [one for one in calibration.bins if one.images]
    means = np.array([one.mean_score for one in bins], dtype=np.float64)
    shares = np.array([one.share for one in bins], dtype=np.float64)
    low = np.array([one.share_low for one in bins], dtype=np.float64)
    high = np.array([one.share_high for one in bins], dtype=np.float64)
    ends = np.abs(np.array([shares - low, high - shares]))
    with _drawn() as (figure, (axes,)):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        axes.errorbar(
            means, shares, yerr=ends, color=BLUE, marker="o", markersize=5, linewidth=1.2,
            elinewidth=0.8, capsize=2,
        )  # fmt: skip
        for one, mean, share in zip(bins, means, shares, strict=True):
            below = share > 0.5
            axes.annotate(
                str(one.images), (mean, share), xytext=(6, -10 if below else 6),
                textcoords="offset points", fontsize=7, color=GREY,
            )  # fmt: skip
        _unit_axes(axes, "mean score of the bin", "share with the label")
        return _encoded(figure)


def histogram_plot(
    truth: BoolArray, scores: Array, threshold: float, band: tuple[float, float]
) -> str:
    """Draw how scores are spread, images with and without the label apart."""
    edges = np.linspace(0, 1, _HISTOGRAM_BINS + 1)
    with _drawn(rows=2) as (figure, axes):
        parts = (("with the label", truth, ORANGE, "///"), ("without", ~truth, BLUE, ""))
        for place, (words, part, colour, hatch) in zip(axes, parts, strict=True):
            place.hist(
                scores[part], bins=edges.tolist(), color=colour, alpha=0.85, hatch=hatch,
                edgecolor="white", linewidth=0.4,
            )  # fmt: skip
            place.set_title(f"{words}: {int(part.sum())} images", fontsize=9, loc="left")
            place.axvline(threshold, color=INK, linewidth=1.0, linestyle="--")
            if band[0] < band[1]:
                place.axvspan(*band, color=GREY, alpha=0.22, linewidth=0)
            place.set_xlim(0, 1)
            place.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes[0].tick_params(labelbottom=False)
        axes[1].set_xlabel("score (dashed: threshold; grey: undetermined)")
        figure.supylabel("images", fontsize=9, x=0.01)
        return _encoded(figure)


def matrix_plot(matrix: ClassMatrix) -> str:
    """Draw class against class, shaded by the share of the true class."""
    return _matrix_drawn(matrix.names, matrix.names, np.array(matrix.counts), "most likely class")


def confusion_plot(name: str, columns: tuple[str, ...], counts: tuple[tuple[int, ...], ...]) -> str:
    """Draw truth against what was said of one label, open answers as columns of their own."""
    rows = (name, f"no {name}")
    return _matrix_drawn(rows, columns, np.array(counts), "what the package says")


def _matrix_drawn(
    rows: tuple[str, ...], columns: tuple[str, ...], counts: npt.NDArray[np.int_], across: str
) -> str:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    height = max(2.4, 0.55 * len(rows) + 1.5)
    with _drawn(height=height) as (figure, (axes,)):
        axes.grid(visible=False)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), count in np.ndenumerate(counts):
            share = shares[row, column]
            words = f"{count}\n{100 * share:.1f} %"
            colour = "white" if share > 0.55 else INK
            axes.text(column, row, words, ha="center", va="center", color=colour, fontsize=9)
        axes.set_xticks(range(len(columns)), _wrapped(columns))
        axes.set_yticks(range(len(rows)), _wrapped(rows))
        axes.set_xlabel(across)
        axes.set_ylabel("truth")
        return _encoded(figure)


def _wrapped(names: tuple[str, ...]) -> list[str]:
    return [name.replace(" ", "\n", 1) if len(name) > 10 else name for name in names]


def _unit_axes(axes: Axes, across: str, up: str) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(across)
    axes.set_ylabel(up)


def _note_point(axes: Axes, point: tuple[float, float], words: str) -> None:
    """Write beside a point, on the side where there is room."""
    left = point[0] > 0.6
    axes.annotate(
        words, point, xytext=(-10 if left else 10, -14), textcoords="offset points",
        ha="right" if left else "left", fontsize=8, color=INK,
    )  # fmt: skip


@contextmanager
def _drawn(rows: int = 1, height: float | None = None) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure that needs no screen and leaves no state behind.

    Curves have margins known beforehand; where names decide, `height` is given and the layout is
    computed, which takes as long as all the drawing.
    """
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        size = (_WIDTH, height or _HEIGHT)
        figure = Figure(figsize=size, layout="constrained" if height else None)
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(rows, 1, squeeze=False)[:, 0])
        if not height:
            figure.subplots_adjust(left=0.14, right=0.97, bottom=0.15, top=0.93, hspace=0.3)
        yield figure, axes


def _encoded(figure: Figure) -> str:
    """Return the picture as a data address, without date or machine in it."""
    written = io.BytesIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(written.getvalue()).decode("ascii")
