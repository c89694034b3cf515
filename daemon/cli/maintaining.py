"""``medimgd doctor`` and ``version``: what an administrator looks at first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from daemon.cli.output import (
    AsJSON,
    ConfigPath,
    failures_become_exit_codes,
    print_json,
    print_table,
    say,
)
from daemon.exit_codes import ExitCode

if TYPE_CHECKING:
    from daemon.doctor import Diagnosis


def doctor(config: ConfigPath = None, as_json: AsJSON = False) -> None:
    """Check decoders, disk, database, models, ports and peers; exit 3 when something is wrong."""
    from daemon.config import load_config
    from daemon.doctor import examine

    with failures_become_exit_codes():
        found = list(examine(load_config(config)))
    if as_json:
        print_json(found)
    else:
        print_table(
            ("check", "", "finding"),
            [(each.subject, _mark(each), each.detail) for each in found],
        )
    if not all(each.ok for each in found):
        raise typer.Exit(ExitCode.NEEDS_ATTENTION)


def _mark(diagnosis: Diagnosis) -> str:
    if not diagnosis.ok:
        return "WRONG"
    return "warning" if diagnosis.warning else "ok"


def version(as_json: AsJSON = False) -> None:
    """Print the versions of medimgd and of the libraries that matter."""
    from daemon.versions import versions

    found = versions()
    if as_json:
        print_json(found)
        return
    for name, number in found.items():
        say(f"{name} {number}")
