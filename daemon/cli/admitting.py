"""``medimgd models admit``, ``retire``, ``shadow``: who decided what about a version, and why."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from dicom_io.wording import number_of

if TYPE_CHECKING:
    from daemon.config import Config
    from model.admission import Criterion
    from storage.standings import Decision, Moved

By = Annotated[
    str, typer.Option("--by", help="Who decides, for the audit trail; else the account's name.")
]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the audit trail.")]
Version = Annotated[str, typer.Argument(help="name@version of an installed package.")]


def decision(by: str, reason: str) -> Decision:
    """Return who decides now; the account's name where nobody is named."""
    from storage.standings import Decision

    return Decision(datetime.now(UTC), by or _account(), reason)


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown account"


@contextmanager
def _deciding(config_path: Path | None) -> Iterator[Config]:
    """Give the configuration to decide under; a version that is not there has its exit status."""
    from daemon.config import load_config
    from model.errors import CatalogueFault

    with failures_become_exit_codes():
        try:
            yield load_config(config_path)
        except CatalogueFault as error:
            typer.echo(f"medimgd: {error}", err=True)
            raise typer.Exit(ExitCode.NOT_FOUND) from error


def admit(
    version: Annotated[
        str, typer.Argument(help="name@version, or a package folder or file to install.")
    ],
    reason: Reason = "",
    by: By = "",
    config: ConfigPath = None,
    as_json: AsJSON = False,
) -> None:
    """Let a version serve, if it is what the site asks for; what served before is superseded."""
    from daemon import admission
    from daemon.errors import AdmissionRefused

    with _deciding(config) as loaded:
        try:
            admitted = admission.admit(loaded, version, decision(by, reason))
        except AdmissionRefused as error:
            _print_refusal(error, as_json=as_json)
            raise typer.Exit(ExitCode.FAILED) from error
    if as_json:
        print_json(
            {
                "model": admitted.package.at_version,
                "admitted": True,
                "criteria": admitted.criteria,
                "superseded": admitted.moved.superseded,
            }
        )
        return
    _print_criteria(admitted.criteria)
    say(f"{admitted.package.at_version} is admitted and serves")
    for other in admitted.moved.superseded:
        say(f"{other} is superseded: it finishes what waits for it")


def _print_refusal(error: Any, *, as_json: bool) -> None:
    if as_json:
        print_json({"model": error.at_version, "admitted": False, "criteria": error.criteria})
        return
    _print_criteria(error.criteria)
    for criterion in error.criteria:
        if not criterion.met:
            typer.echo(f"medimgd: {error.at_version}: {criterion.sentence}", err=True)
    typer.echo(f"medimgd: {error.at_version} is not admitted", err=True)


def _print_criteria(criteria: tuple[Criterion, ...]) -> None:
    print_table(
        ("criterion", "wanted", "found", "met"),
        [(c.name, c.wanted, c.found, "yes" if c.met else "NO") for c in criteria],
    )


def retire(
    version: Version,
    reason: Reason = "",
    by: By = "",
    config: ConfigPath = None,
    as_json: AsJSON = False,
) -> None:
    """Silence a version until it is admitted again; what waits for it is refused, with reason."""
    from daemon import admission

    with _deciding(config) as loaded:
        moved = admission.retire(loaded, version, decision(by, reason))
    if as_json:
        print_json(moved)
        return
    say(f"{version} is retired")
    if moved.refused_job_ids:
        said = number_of(
            len(moved.refused_job_ids), "analysis that waited for it is",
            "analyses that waited for it are",
        )  # fmt: skip
        say(f"{said} refused")
    _print_dropped(moved)


def shadow(
    version: Version,
    end: Annotated[bool, typer.Option("--end", help="End the shadow.")] = False,
    reason: Reason = "",
    by: By = "",
    config: ConfigPath = None,
    as_json: AsJSON = False,
) -> None:
    """Run a version on live studies beside the one that serves; what it says goes nowhere."""
    from daemon import admission

    with _deciding(config) as loaded:
        change = admission.stop_shadow if end else admission.begin_shadow
        moved = change(loaded, version, decision(by, reason))
    if as_json:
        print_json(moved)
        return
    say(f"{version} is {'a shadow no more' if end else 'a shadow from now on'}")
    _print_dropped(moved)


def _print_dropped(moved: Moved) -> None:
    if moved.dropped_runs:
        say(f"{moved.dropped_runs} runs of the shadow that were not made yet are dropped")
