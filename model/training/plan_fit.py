"""How a training goes, as ``[head]``, ``[fit]``, ``[folds]`` and their kind say it.

Owns those tables, their rules and defaults. Imports no network library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from model.manifest import ManifestTable
from model.training.heads import HeadValues

MOST_EPOCHS = 10_000
MOST_MEMBERS = 20
LARGEST_SEED = 2**31 - 1
BALANCED = "balanced"
UNWEIGHTED = "none"


class DrawingValues(StrEnum):
    """Which images make an epoch."""

    BALANCED = "balanced"
    """Every class equally often, whatever its share."""
    AS_IS = "as-is"
    """Every image once."""


class MeasureValues(StrEnum):
    """By which figure on the judging images the best epoch is chosen."""

    ROC_AUC = "roc_auc"
    PR_AUC = "pr_auc"
    ACCURACY = "accuracy"
    LOSS = "loss"


class PrecisionValues(StrEnum):
    """Whether layers compute in 16 bit."""

    AUTO = "auto"
    """Where a GPU of compute capability 8 or newer is present (bfloat16)."""
    ON = "on"
    OFF = "off"


class FoldUseValues(StrEnum):
    """What the networks of a cross-validation are for."""

    REPORT = "report"
    """Their figures are reported; the package is trained on all of the training images."""
    ENSEMBLE = "ensemble"
    """They are averaged and become the package."""


class FoldOverValues(StrEnum):
    """Which images are divided into folds."""

    TRAIN = "train"
    BOTH = "train+validation"


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """What the network answers, and how its answers are held against the truth."""

    kind: HeadValues = HeadValues.BINARY
    label_smoothing: float = 0.0
    class_weights: str = UNWEIGHTED
    """``none``, ``balanced`` or ``stated``."""
    stated: Mapping[str, float] | None = None
    """Weight by class, when stated."""

    @property
    def output_kind(self) -> str:
        """What the package's manifest calls the numbers that come out."""
        return "softmax" if self.kind is HeadValues.MULTI_CLASS else "logit"


@dataclass(frozen=True, slots=True)
class FitPlan:
    """How long and by what measure one network is trained."""

    epochs: int = 28
    batch_size: int = 32
    seed: int = 20240611
    drawing: DrawingValues = DrawingValues.BALANCED
    measure: MeasureValues = MeasureValues.ROC_AUC
    judged_share: float = 0.4
    """Only the last share of the epochs may become the result: early ones are unsettled."""
    patience: int = 0
    """Judged epochs without a better one that end the training early; 0 never does."""
    precision: PrecisionValues = PrecisionValues.AUTO
    readers: int = 1
    """Threads that make batches ahead; the batches do not depend on their number."""

    def as_mapping(self) -> dict[str, object]:
        """Return the plan for a manifest."""
        return {key: _plain(value) for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class FoldPlan:
    """A cross-validation by patient."""

    count: int
    over: FoldOverValues = FoldOverValues.TRAIN
    use: FoldUseValues = FoldUseValues.REPORT


@dataclass(frozen=True, slots=True)
class CalibrationPlan:
    """The scale and offset that are folded into the last layer."""

    highest_scale: float = 2.0
    is_balanced: bool = True
    """Every class weighs the same, whatever its share on validation."""


@dataclass(frozen=True, slots=True)
class ThresholdPlan:
    """How thresholds are chosen on validation."""

    rule: str = "youden"
    band: str = ""
    """A second rule: scores between both thresholds are undetermined."""


def _plain(value: object) -> object:
    return str(value) if isinstance(value, StrEnum) else value


def read_head(table: ManifestTable, classes: Sequence[str]) -> HeadPlan:
    """Read ``[head]``."""
    kind = table.choice("kind", HeadValues, HeadValues.BINARY)
    smoothing = table.number("label_smoothing", 0.0, 0.5, 0.0)
    weights = table.raw("class_weights")
    stated: dict[str, float] | None = None
    if isinstance(weights, Mapping):
        inner = table.table("class_weights")
        stated = {name: inner.number(name, 1e-6, 1e6) for name in classes}
        inner.refuse_unknown()
        words = "stated"
    else:
        rule = f"must be {UNWEIGHTED}, {BALANCED} or a table with a weight for each class"
        words = table.text("class_weights", f"{UNWEIGHTED}|{BALANCED}", rule, UNWEIGHTED)
    table.refuse_unknown()
    return HeadPlan(kind, smoothing, words, stated)


def read_fit(table: ManifestTable) -> FitPlan:
    """Read ``[fit]``; every field may be absent."""
    usual = FitPlan()
    plan = FitPlan(
        epochs=table.whole_number("epochs", 1, MOST_EPOCHS, usual.epochs),
        batch_size=table.whole_number("batch_size", 1, 4096, usual.batch_size),
        seed=table.whole_number("seed", 0, LARGEST_SEED, usual.seed),
        drawing=table.choice("drawing", DrawingValues, usual.drawing),
        measure=table.choice("measure", MeasureValues, usual.measure),
        judged_share=table.number("judged_share", 0.0, 1.0, usual.judged_share),
        patience=table.whole_number("patience", 0, MOST_EPOCHS, usual.patience),
        precision=table.choice("precision", PrecisionValues, usual.precision),
        readers=table.whole_number("readers", 1, 64, usual.readers),
    )
    table.refuse_unknown()
    return plan


def read_folds(root: ManifestTable) -> FoldPlan | None:
    """Read ``[folds]``; None without it."""
    if not root.has("folds"):
        return None
    table = root.table("folds")
    plan = FoldPlan(
        count=table.whole_number("count", 2, MOST_MEMBERS),
        over=table.choice("over", FoldOverValues, FoldOverValues.TRAIN),
        use=table.choice("use", FoldUseValues, FoldUseValues.REPORT),
    )
    table.refuse_unknown()
    return plan


def read_members(root: ManifestTable, folds: FoldPlan | None) -> int:
    """Read ``[ensemble]``: how many networks are trained from different seeds and averaged."""
    table = root.table("ensemble", required=False)
    members = table.whole_number("members", 1, MOST_MEMBERS, 1)
    if members > 1 and folds is not None and folds.use is FoldUseValues.ENSEMBLE:
        table.add_fault("members", "must be 1 where the folds are the ensemble")
    table.refuse_unknown()
    return members


def read_calibration(root: ManifestTable) -> CalibrationPlan | None:
    """Read ``[calibration]``; None without it: logits stay as they were learned."""
    if not root.has("calibration"):
        return None
    table = root.table("calibration")
    usual = CalibrationPlan()
    plan = CalibrationPlan(
        table.number("highest_scale", 0.05, 1000.0, usual.highest_scale),
        table.flag("balanced", default=usual.is_balanced),
    )
    table.refuse_unknown()
    return plan
