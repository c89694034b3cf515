"""One network, trained: epochs, the best of them, and a checkpoint after each.

Owns the loop. Receives images as arrays and writes into a folder; knows nothing of DICOM, of
packages, or of how many networks there are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from model.errors import TrainingRunFault, TrainingStopped
from model.training.fit_steps import Phase, Step, answering, compiled_step, phases_of
from model.training.logs import EPOCH, EventLog
from model.training.loop_batches import Part, epoch_batches, steps_per_epoch
from model.training.measures import figures_of
from model.training.optimisers import restore_optimiser, state_of
from model.training.plan import TrainingPlan
from model.training.plan_fit import FitPlan, MeasureValues
from model.training.run_checkpoints import (
    HISTORY_NAME,
    LAST_NAME,
    Checkpoint,
    Course,
    forget_others,
    read_best,
    read_checkpoint,
    same_shapes,
    write_best,
    write_checkpoint,
)
from model.training.run_folder import write_json
from model.training.watching import Watch

CHOSEN = "chosen"


@dataclass(frozen=True, slots=True)
class FitJob:
    """One network that is to be trained."""

    name: str
    """``seed-0`` or ``fold-0``: its folder."""
    plan: TrainingPlan
    """With the seed of this network."""
    training: Part
    judging: Part
    """Chooses the epoch."""
    folder: Path
    events: Path
    """Of TensorBoard."""

    @property
    def fit(self) -> FitPlan:
        """How long and by what measure."""
        return self.plan.fit


@dataclass(frozen=True, slots=True)
class Fitted:
    """A network that was trained."""

    name: str
    course: Course
    weights: list[npt.NDArray[Any]]
    """Of the chosen epoch, in the order of ``keras.Model.weights``."""

    @property
    def chosen_epoch(self) -> int:
        """Counted from 1."""
        return self.course.best_epoch + 1


def fit_network(job: FitJob, build: Callable[[], Any], watch: Watch) -> Fitted:
    """Train a network, or go on where its folder says that it stopped.

    Parameters
    ----------
    job : FitJob
    build : callable
        Makes the untrained network; called once, with the seed set.
    watch : Watch

    Raises
    ------
    TrainingStopped
        Somebody asked for it; the folder holds all that was done.
    TrainingRunFault
        The loss or an answer is no number, or the folder is damaged or belongs to another network.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = read_checkpoint(job.folder / LAST_NAME)
    if checkpoint is None or not checkpoint.course.is_finished:
        _Training(job, build, checkpoint, watch).run()
        checkpoint = read_checkpoint(job.folder / LAST_NAME)
    if checkpoint is None:
        raise TrainingRunFault(f"{job.folder}: the checkpoint was removed; train again")
    course = checkpoint.course
    return Fitted(job.name, course, read_best(job.folder, course.best_epoch))


class _Training:
    """The state of one network's training between epochs."""

    def __init__(
        self, job: FitJob, build: Callable[[], Any], checkpoint: Checkpoint | None, watch: Watch
    ) -> None:
        self._job, self._watch = job, watch
        keras.utils.set_random_seed(job.fit.seed)
        self._network = build()
        self._course = checkpoint.course if checkpoint is not None else Course()
        if checkpoint is not None:
            _put(checkpoint.network, self._network.variables, job)
        self._steps = steps_per_epoch(job.training, job.fit)
        self._phases = phases_of(job.plan)
        self._phase: Phase | None = None
        self._step: Step | None = None
        self._answer = answering(self._network)
        self._restore = checkpoint.optimiser if checkpoint is not None else []

    def run(self) -> None:
        """Train until the last epoch, or until nothing better came for long enough."""
        events = EventLog(self._job.events, self._course.history)
        try:
            while not self._course.is_finished:
                entry = self._one_epoch()
                self._keep(entry)
                events.write(entry)
                self._tell(entry)
                if self._watch.should_stop() and not self._course.is_finished:
                    raise TrainingStopped(
                        f"stopped after epoch {self._course.next_epoch} of {self._job.name}"
                    )
        finally:
            events.close()

    def _one_epoch(self) -> dict[str, float]:
        job, epoch, started = self._job, self._course.next_epoch, time.monotonic()
        step = self._step_of(epoch)
        words = f"{job.name}, epoch {epoch + 1} of {job.fit.epochs}"
        losses: list[Any] = []
        batches = epoch_batches(job.training, job.fit, job.plan.augmentation, epoch)
        with self._watch.progress(words, self._steps) as done:
            for values, targets in batches:
                losses.append(step.run(values, targets))
                done(len(losses))
        loss = float(np.mean([float(each) for each in losses]))
        if not math.isfinite(loss):
            raise TrainingRunFault(
                f"{job.name}: the loss of epoch {epoch + 1} is {loss}; lower the learning rate "
                f"([optimiser]) or set a clip_norm, and train again"
            )
        logits = self.logits(job.judging)
        if not np.isfinite(logits).all():
            raise TrainingRunFault(
                f"{job.name}: after epoch {epoch + 1} the network's answers to validation images "
                f"are no numbers; lower the learning rate ([optimiser]) or set a clip_norm, and "
                f"train again"
            )
        figures = figures_of(job.plan.head.kind, job.judging.targets, logits)
        return {
            EPOCH: float(epoch + 1),
            "loss": loss,
            "learning_rate": step.learning_rate,
            **{f"validation_{name}": value for name, value in figures.items()},
            "seconds": time.monotonic() - started,
        }

    def _step_of(self, epoch: int) -> Step:
        """Return the compiled step of an epoch's phase; a new phase has a new optimiser."""
        phase = next(phase for phase in self._phases if epoch < phase.end)
        if self._step is None or phase != self._phase:
            self._step = compiled_step(self._network, self._job.plan, phase, self._steps,
                                       self._job.training.targets)  # fmt: skip
            self._phase = phase
            if self._restore:
                restore_optimiser(self._step.optimiser, self._restore)
                self._restore = []
        return self._step

    def _keep(self, entry: dict[str, float]) -> None:
        """Write weights, then the checkpoint that means them, then remove what nobody means."""
        course, fit, folder = self._course, self._job.fit, self._job.folder
        epoch, value = course.next_epoch, _value(fit.measure, entry)
        first_judged = min(int(fit.epochs * (1 - fit.judged_share)), fit.epochs - 1)
        if epoch >= first_judged and value >= course.best_value:
            course.best_epoch, course.best_value = epoch, value
            write_best(folder, epoch, self._network.get_weights())
        course.next_epoch = epoch + 1
        course.seconds += entry["seconds"]
        course.history.append(entry)
        waited = epoch - max(course.best_epoch, first_judged)
        is_hopeless = 0 < fit.patience <= waited
        course.is_finished = course.next_epoch >= fit.epochs or is_hopeless
        for done in course.history:
            done.pop(CHOSEN, None)
        if course.best_epoch >= 0:
            course.history[course.best_epoch][CHOSEN] = 1.0
        network = [np.asarray(variable) for variable in self._network.variables]
        checkpoint = Checkpoint(course, network, self._optimiser_arrays())
        write_checkpoint(folder / LAST_NAME, checkpoint)
        write_json(folder / HISTORY_NAME, {"epochs": course.history})
        if course.best_epoch >= 0:
            forget_others(folder, course.best_epoch)

    def _optimiser_arrays(self) -> list[npt.NDArray[Any]]:
        """Return nothing at the end of a phase: the next one begins with its own."""
        ends = {phase.end for phase in self._phases}
        if self._step is None or self._course.next_epoch in ends:
            return []
        return state_of(self._step.optimiser)

    def _tell(self, entry: dict[str, float]) -> None:
        measure = f"validation_{self._job.fit.measure}"
        self._watch.say(
            f"{self._job.name}: epoch {int(entry[EPOCH])} of {self._job.fit.epochs}: loss "
            f"{entry['loss']:.4f}, {measure} {entry[measure]:.4f}, {entry['seconds']:.1f} s"
        )

    def logits(self, part: Part) -> npt.NDArray[np.float32]:
        """Return the network's answers for a part; (row, outputs)."""
        return self._answer(part)


def _value(measure: MeasureValues, entry: dict[str, float]) -> float:
    value = entry[f"validation_{measure}"]
    if not math.isfinite(value):
        return float("-inf")
    return -value if measure is MeasureValues.LOSS else value


def _put(arrays: list[npt.NDArray[Any]], variables: Any, job: FitJob) -> None:
    if not same_shapes(arrays, variables):
        raise TrainingRunFault(
            f"{job.folder / LAST_NAME}: holds another network; train into a new folder"
        )
    for array, variable in zip(arrays, variables, strict=True):
        variable.assign(array)
