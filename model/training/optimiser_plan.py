"""How weights are moved, as a training configuration's ``[optimiser]`` says it.

Owns the fields, their rules and defaults. Imports neither Keras nor TensorFlow.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

from model.manifest import ManifestTable


class OptimiserValues(StrEnum):
    """The rules by which a gradient moves weights."""

    ADAM = "adam"
    ADAMW = "adamw"
    SGD = "sgd"


class ScheduleValues(StrEnum):
    """How the learning rate goes over the epochs."""

    CONSTANT = "constant"
    COSINE = "cosine"
    """Half a cosine from the learning rate down to its `final_share`."""
    ONE_CYCLE = "one-cycle"
    """A linear rise from a twentieth, then half a cosine to zero."""
    STEP = "step"
    """Multiplied by `factor` every `step_epochs`."""
    EXPONENTIAL = "exponential"
    """Multiplied by `factor` every epoch, evenly."""


@dataclass(frozen=True, slots=True)
class OptimiserPlan:
    """One optimiser and its schedule; what does not belong to them is left at its default."""

    name: OptimiserValues = OptimiserValues.ADAMW
    learning_rate: float = 2e-3
    """The highest of the schedule."""
    schedule: ScheduleValues = ScheduleValues.ONE_CYCLE
    warmup_epochs: float = 1.0
    """The linear rise at the start; parts of an epoch count."""
    final_share: float = 0.0
    """Of the learning rate, at the end of ``cosine``."""
    step_epochs: int = 10
    factor: float = 0.1
    weight_decay: float = 0.02
    """Share of a weight that is taken off per step and unit of learning rate; biases and the
    scales and shifts of normalising layers are left out."""
    clip_norm: float = 1.0
    """Highest length of the gradient over all weights; 0 leaves it as it is."""
    momentum: float = 0.9
    """Of ``sgd``."""
    nesterov: bool = True

    def as_mapping(self) -> dict[str, object]:
        """Return the plan for a manifest or a run's record; fields that say nothing are absent."""
        kept = _COMMON | _OF_OPTIMISER[self.name] | _OF_SCHEDULE[self.schedule].keys()
        fields = {key: value for key, value in asdict(self).items() if key in kept}
        return fields | {"name": str(self.name), "schedule": str(self.schedule)}


_COMMON = frozenset({"name", "learning_rate", "schedule", "warmup_epochs", "clip_norm"})
_OF_OPTIMISER = {
    OptimiserValues.ADAM: frozenset[str](),
    OptimiserValues.ADAMW: frozenset({"weight_decay"}),
    OptimiserValues.SGD: frozenset({"weight_decay", "momentum", "nesterov"}),
}
_OF_SCHEDULE: dict[ScheduleValues, dict[str, float]] = {
    ScheduleValues.CONSTANT: {},
    ScheduleValues.COSINE: {"final_share": 0.0},
    ScheduleValues.ONE_CYCLE: {},
    ScheduleValues.STEP: {"step_epochs": 10, "factor": 0.1},
    ScheduleValues.EXPONENTIAL: {"factor": 0.95},
}
"""The fields of each schedule and their defaults."""
_RATES = {OptimiserValues.ADAM: 1e-3, OptimiserValues.ADAMW: 2e-3, OptimiserValues.SGD: 1e-2}
_DECAYS = {OptimiserValues.ADAMW: 0.02, OptimiserValues.SGD: 0.0}


def read_optimiser_plan(table: ManifestTable) -> OptimiserPlan:
    """Read ``[optimiser]``; every field may be absent.

    Parameters
    ----------
    table : ManifestTable
        Every fault is added to its list; a field of another optimiser or schedule is one.
    """
    name = table.choice("name", OptimiserValues, OptimiserValues.ADAMW)
    schedule = table.choice("schedule", ScheduleValues, ScheduleValues.ONE_CYCLE)
    rise = 1.0 if schedule is ScheduleValues.ONE_CYCLE else 0.0
    values: dict[str, object] = {
        "learning_rate": table.number("learning_rate", 1e-8, 10.0, _RATES[name]),
        "warmup_epochs": table.number("warmup_epochs", 0.0, 1000.0, rise),
        "clip_norm": table.number("clip_norm", 0.0, 1e6, 1.0),
        **_read_optimiser(table, name),
        **_read_schedule(table, schedule),
    }
    table.refuse_unknown()
    return OptimiserPlan(name=name, schedule=schedule, **values)  # type: ignore[arg-type]


def _read_optimiser(table: ManifestTable, name: OptimiserValues) -> dict[str, object]:
    if name is OptimiserValues.ADAM:
        if table.number("weight_decay", 0.0, 1.0, 0.0):
            table.add_fault("weight_decay", "belongs to adamw and sgd; for adam use network.l2")
        return {"weight_decay": 0.0}
    decay = {"weight_decay": table.number("weight_decay", 0.0, 1.0, _DECAYS[name])}
    if name is not OptimiserValues.SGD:
        return {**decay}
    momentum = table.number("momentum", 0.0, 0.9999, 0.9)
    nesterov = table.flag("nesterov", default=momentum > 0)
    if nesterov and not momentum:
        table.add_fault("nesterov", "needs a momentum above 0")
    return {**decay, "momentum": momentum, "nesterov": nesterov}


def _read_schedule(table: ManifestTable, schedule: ScheduleValues) -> dict[str, object]:
    known, values = _OF_SCHEDULE[schedule], dict[str, object]()
    if "final_share" in known:
        values["final_share"] = table.number("final_share", 0.0, 1.0, known["final_share"])
    if "step_epochs" in known:
        values["step_epochs"] = table.whole_number("step_epochs", 1, 10_000, 10)
    if "factor" in known:
        values["factor"] = table.number("factor", 1e-6, 1.0, known["factor"])
    return values
