"""``medimgd run`` and ``medimgd demo``: the commands that stay."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.output import ConfigPath, failures_become_exit_codes, say


class Role(StrEnum):
    """Which process to run."""

    ALL = "all"
    RECEIVER = "receiver"
    SCHEDULER = "scheduler"
    PREPARER = "preparer"
    WORKER = "worker"
    COURIER = "courier"
    WEB = "web"


def run(
    role: Annotated[Role, typer.Argument(help="One process alone, or all of them.")] = Role.ALL,
    config: ConfigPath = None,
    slot: Annotated[
        str | None, typer.Option(help="Name of this process among its kind, e.g. worker-2.")
    ] = None,
) -> None:
    """Run the daemon: every process under supervision, or one role alone."""
    from daemon.config import find_config_file, load_config
    from daemon.running import run_all, run_one

    with failures_become_exit_codes():
        loaded = load_config(config)
        if role is Role.ALL:
            if slot is not None:
                raise typer.BadParameter(
                    "only one process alone has a slot: name its role, as in "
                    f"'medimgd run receiver --slot {slot}'", param_hint="--slot",
                )  # fmt: skip
            code = run_all(loaded, find_config_file(config))
        else:
            code = run_one(loaded, role.value, slot)
    raise typer.Exit(code)


def demo(
    folder: Annotated[Path, typer.Option(help="Where its state goes.")] = Path("run"),
    once: Annotated[bool, typer.Option("--once", help="End after the demonstration.")] = False,
) -> None:
    """Send three sample studies through a daemon of its own and show what comes back."""
    from daemon.demo import run_demo

    with failures_become_exit_codes():
        try:
            run_demo(folder, say, once=once)
        except KeyboardInterrupt:
            say("\nstopped")
