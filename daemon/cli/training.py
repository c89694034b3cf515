"""``medimgd train``: from a configuration and labelled images to a run folder and a package."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from daemon.cli.output import AsJSON, failures_become_exit_codes, print_json, say
from daemon.cli.progress import counted
from daemon.exit_codes import ExitCode

CONFIGURATION_NAME = "CONFIG.toml"

Configuration = Annotated[
    Path,
    typer.Argument(metavar=CONFIGURATION_NAME, help="What to train.", exists=True, dir_okay=False),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder, zip or CSV manifest.", exists=True, show_default="data.source"),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="The run folder.", show_default="run-NAME-VERSION"),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="In the place of fit.epochs.")]
Seed = Annotated[int | None, typer.Option(min=0, help="In the place of fit.seed.")]
Threads = Annotated[int, typer.Option(min=0, help="Of the network; 0 takes all cores.")]


def train(
    configuration: Configuration,
    data: Data = None,
    out: Out = None,
    resume: Resume = False,
    epochs: Epochs = None,
    seed: Seed = None,
    threads: Threads = 0,
    as_json: AsJSON = False,
) -> None:
    """Train networks on labelled images and make a measured, packed model of them."""
    from model.errors import TrainingPlanFault, TrainingStopped
    from model.training.plan import read_plan

    with failures_become_exit_codes():
        try:
            plan = read_plan(configuration).with_options(epochs=epochs, seed=seed)
        except TrainingPlanFault as fault:
            _list_faults(fault.subject, fault.faults)
            raise typer.Exit(ExitCode.CONFIGURATION) from fault
        # Imported when the configuration is right: TensorFlow takes seconds, and says so.
        with _without_stderr():
            from model.training.run import RunWishes, run_training
            from model.training.watching import Watch

        folder = out or Path(f"run-{plan.words.at_version}")
        wishes = RunWishes(folder, data, resume, threads)
        with _asked_to_stop() as should_stop:
            watch = Watch(counted, _quiet if as_json else say, should_stop)
            try:
                done = run_training(plan, wishes, watch)
            except TrainingStopped as stopped:
                again = _command(configuration, folder, data, epochs, seed, threads)
                typer.echo(f"medimgd: {stopped}; go on with: {again}", err=True)
                raise typer.Exit(ExitCode.FAILED) from stopped
    if as_json:
        print_json({"run": done.folder.root, "package": done.package})


def _quiet(_sentence: str) -> None:
    """Say nothing: the answer is one JSON document."""


def _list_faults(subject: str, faults: tuple[str, ...]) -> None:
    typer.echo(f"medimgd: {subject}: {len(faults)} to put right", err=True)
    for fault in faults:
        typer.echo(f"  {fault}", err=True)


def _command(
    configuration: Path, folder: Path, data: Path | None, epochs: int | None, seed: int | None,
    threads: int,
) -> str:  # fmt: skip
    """Return the command that goes on with a run, as a shell takes it."""
    words = ["medimgd", "train", str(configuration), "--out", str(folder), "--resume"]
    named = {"--data": data, "--epochs": epochs, "--seed": seed, "--threads": threads or None}
    for option, value in named.items():
        words += [option, str(value)] if value is not None else []
    return shlex.join(words)


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Keep the libraries' greetings from the terminal; they are written past Python."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Yield whether somebody asked: Ctrl-C ends the epoch first, a second one ends at once."""
    asked = False

    def ask(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, before[signal.Signals(number)])
        typer.echo("medimgd: stopping after this epoch; once more stops at once", err=True)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, ask)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
