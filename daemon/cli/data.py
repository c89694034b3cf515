"""``medimgd data``: labelled images, before anything learns from them or is measured on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.output import AsJSON, failures_become_exit_codes, print_json, print_table, say
from daemon.cli.progress import counted
from daemon.exit_codes import ExitCode
from dicom_io.wording import number_of

if TYPE_CHECKING:
    from model.training.gate_report import GateReport

MOST_FINDINGS_SHOWN = 5
"""Of each check; ``--json`` lists all."""

SMALLEST_EDGE = 64
SMALLEST_CLASS = 0.05

app = typer.Typer(help="Check labelled images.", no_args_is_help=True)

DataPath = Annotated[
    Path,
    typer.Argument(help="Folder or zip with <split>/<class>/, or a CSV manifest.", exists=True),
]
Allowed = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="CHECK", help="Pass over a check, by its name; repeatable."),
]

SmallestEdge = Annotated[
    int, typer.Option(help="Images with a shorter edge, in pixels, are tiny.", min=1)
]
SmallestClass = Annotated[
    float, typer.Option(help="Smallest share of a class in a split.", min=0.0, max=1.0)
]


@app.callback()
def group() -> None:
    """Check labelled images."""


@app.command("check")
def check(
    data: DataPath,
    allow: Allowed = None,
    smallest_edge: SmallestEdge = SMALLEST_EDGE,
    smallest_class: SmallestClass = SMALLEST_CLASS,
    as_json: AsJSON = False,
) -> None:
    """List what is wrong with labelled images: leaks, copies, label conflicts, broken files."""
    from model.training.gate import check_data
    from model.training.gate_report import GateLimits, checks_named
    from model.training.sources import open_dataset

    with failures_become_exit_codes(), open_dataset(data) as dataset:
        allowed = checks_named(allow or ())
        limits = GateLimits(smallest_edge, smallest_class)
        with counted("checking", len(dataset.images)) as done:
            report = check_data(dataset, limits=limits, allowed=allowed, on_image=done)
    if as_json:
        print_json(report.as_mapping())
    else:
        print_gate(report)
    if not report.passed:
        raise typer.Exit(ExitCode.FAILED)


def print_gate(report: GateReport) -> None:
    """Print what was counted and what was found, worst check first."""
    from model.training.gate_report import ADVICE

    classes = [name for name in next(iter(report.counts.values())) if name != "images"]
    print_table(
        ("split", "images", *classes),
        [(split, *counts.values()) for split, counts in report.counts.items()],
    )
    if report.without_patient:
        nobodys = f"{report.without_patient} of {number_of(len(report.inspected), 'image')}"
        verb = "has" if report.without_patient == 1 else "have"
        say(f"patients: {nobodys} {verb} no known patient; a leak between those is not seen")
    for check_name, findings in report.by_check(report.findings):
        state = "allowed" if check_name in report.allowed else "FAILED"
        say(f"{check_name}: {len(findings)} found, {state}. To do: {ADVICE[check_name]}")
        for finding in findings[:MOST_FINDINGS_SHOWN]:
            say(f"    {finding.sentence}")
        if len(findings) > MOST_FINDINGS_SHOWN:
            say(f"    and {len(findings) - MOST_FINDINGS_SHOWN} more; --json lists all")
    if report.passed:
        say("the data pass" + (", with what was allowed" if report.findings else ""))
    else:
        say("the data do not pass; --allow NAME passes over a check")
