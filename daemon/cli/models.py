"""``medimgd models``: which networks serve here, and what each promises."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli import admitting, comparing, optimising, packing
from daemon.cli.admitting import By, decision
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
    from daemon.catalogue import Serving
    from daemon.config import Config
    from model.catalogue import InstalledPackage
    from model.package import ModelPackage
    from model.runtimes.check import CheckReport

app = typer.Typer(
    help="Pack, check, install, admit, retire and compare model packages.", no_args_is_help=True
)

app.command("pack")(packing.pack)
app.command("admit")(admitting.admit)
app.command("retire")(admitting.retire)
app.command("shadow")(admitting.shadow)
app.command("compare")(comparing.compare)
app.command("optimise")(optimising.optimise)

Source = Annotated[
    Path,
    typer.Argument(
        help="A package folder (it holds manifest.toml), or a .zip or .tar of it.", exists=True
    ),
]


@app.command("list")
def list_models(config: ConfigPath = None, as_json: AsJSON = False) -> None:
    """List installed packages: where each stands, and what is wrong with those that are broken."""
    from daemon.catalogue import known_standings, serving, state_of
    from daemon.config import load_config

    with failures_become_exit_codes():
        loaded = load_config(config)
        standings = known_standings(loaded)
        now = serving(loaded, standings)
        installed = now.catalogue.installed
    states = [state_of(item, now, standings) for item in installed]
    if as_json:
        print_json(
            [_summary(item, now) | {"state": s} for item, s in zip(installed, states, strict=True)]
        )
    else:
        print_table(
            ("model", "state", "kind", "labels", "folder", "faults"),
            [
                (
                    item.title,
                    state,
                    item.package.recipe.kind if item.package else "",
                    ", ".join(label.name for label in item.package.labels) if item.package else "",
                    item.folder,
                    "; ".join(item.faults),
                )
                for item, state in zip(installed, states, strict=True)
            ],
        )
        for title, fault in now.out_of_order.items():
            if title not in {item.title for item in now.catalogue.broken}:
                say(f"! {title}: {fault}")
    if now.out_of_order:
        raise typer.Exit(ExitCode.NEEDS_ATTENTION)


@app.command("show")
def show_model(
    name: Annotated[str, typer.Argument(help="name, or name@version.")],
    config: ConfigPath = None,
    as_json: AsJSON = False,
) -> None:
    """Show one package: labels, thresholds, contract, metrics, limits, and who decided what."""
    from daemon.catalogue import (
        decisions_about,
        known_standings,
        serving,
        state_in_words,
        state_of,
    )
    from daemon.config import load_config
    from model.errors import CatalogueFault

    with failures_become_exit_codes():
        loaded = load_config(config)
        standings = known_standings(loaded)
        now = serving(loaded, standings)
        try:
            item = now.catalogue.item(name)
        except CatalogueFault as error:
            typer.echo(f"medimgd: {error}", err=True)
            raise typer.Exit(ExitCode.NOT_FOUND) from error
        decisions = decisions_about(loaded, item.title)
    state = state_of(item, now, standings)
    if as_json:
        promises = _promises(item.package) if item.package else {}
        print_json(_summary(item, now) | {"state": state} | promises | {"decisions": decisions})
        return
    say(f"{item.title}: {state_in_words(state)}, in {item.folder}")
    for fault in item.faults:
        say(f"! {fault}")
    if item.package is not None:
        _print_package(item.package)
    for entry in decisions:
        reason = f": {entry.detail['reason']}" if entry.detail.get("reason") else ""
        say(f"{entry.at:%Y-%m-%d %H:%M} UTC {entry.action} by {entry.detail.get('by')}{reason}")


@app.command("add")
def add_model(package: Source, config: ConfigPath = None, by: By = "") -> None:
    """Check a package, run its network once, and install it.

    The first version of a model serves at once, unless models.admission.required is set. One that
    comes beside others waits: see 'models shadow' and 'models admit'.
    """
    from daemon.admission import install, waits_for_admission
    from daemon.catalogue import installed_catalogue
    from daemon.config import load_config
    from model.archives import package_folder
    from model.package import load_package

    with failures_become_exit_codes():
        loaded = load_config(config)
        with package_folder(package) as folder:
            _require_it_runs(folder, loaded)
            waits = waits_for_admission(loaded, load_package(folder))
            added = install(loaded, folder, decision(by, ""), waits=waits)
        twins = [item for item in installed_catalogue(loaded).installed if item.faults]
        say(f"{added.at_version} is installed in {added.folder}")
        if waits:
            say(
                f"it does not serve yet: 'medimgd models admit {added.at_version}' lets it, "
                f"'medimgd models shadow {added.at_version}' tries it beside what serves"
            )
        for item in twins:
            say(f"! {item.title}: {'; '.join(item.faults)}")


@app.command("check")
def check_model(package: Source, config: ConfigPath = None, as_json: AsJSON = False) -> None:
    """Check a package and let its network compute, without installing anything.

    Digests, sizes, the scores of its probes, and whether its evaluation report is about it.
    """
    from dataclasses import replace

    from daemon.config import load_config
    from daemon.runtimes import runtime_options
    from model.archives import package_folder
    from model.catalogue import extent_faults
    from model.package import load_package
    from model.runtimes.check import check_package

    with failures_become_exit_codes(), package_folder(package) as folder:
        remotes = runtime_options(load_config(config)).remotes
        report = check_package(folder, remotes=remotes)
        faults = (*extent_faults(folder), *report.faults)
        report = replace(report, faults=faults)
        found = load_package(folder) if report.passed else None
    if as_json:
        print_json(report.as_mapping())
    elif found is not None:
        say(f"{package}: no fault found")
        say(_probes_in_words(found, report))
        say(f"positive findings are explained by: {report.explanation}")
        say(f"regions are read from: {report.regions}")
        say(_distribution_in_words(found))
        if found.evaluation is None:
            say("it has no evaluation report: a site that requires one will not admit it")
    if not report.passed:
        if not as_json:
            _print_faults(package, report.faults)
        raise typer.Exit(ExitCode.FAILED)


def _probes_in_words(package: ModelPackage, report: CheckReport) -> str:
    if package.probes is None or report.probe_difference is None:
        return "it has no probes: 'medimgd models admit' will refuse it; pack it again with some"
    return (
        f"it reproduces the recorded scores of {number_of(len(report.probe_scores), 'probe')}: "
        f"largest difference {report.probe_difference:.2g}, tolerance {package.probes.tolerance:g}"
    )


def _distribution_in_words(package: ModelPackage) -> str:
    found = package.input_distribution
    if found is None:
        return "it does not know what its inputs look like: only headers keep others away"
    return (
        f"inputs that look unlike those of training are refused: beyond distance {found.limit:g}, "
        f"fitted on {found.fitted} inputs, limit chosen on {found.limited}"
    )


def _require_it_runs(folder: Path, config: Config) -> None:
    from daemon.runtimes import runtime_options
    from model.runtimes.check import check_package

    report = check_package(folder, remotes=runtime_options(config).remotes)
    if not report.passed:
        _print_faults(folder, report.faults)
        raise typer.Exit(ExitCode.FAILED)


def _print_faults(folder: Path, faults: tuple[str, ...]) -> None:
    for fault in faults:
        typer.echo(f"medimgd: {folder}: {fault}", err=True)


def _summary(item: InstalledPackage, now: Serving) -> dict[str, Any]:
    return {
        "serves": item.package in now.packages,
        "model": item.title,
        "state": item.state,
        "folder": item.folder,
        "bundled": item.bundled,
        "faults": item.faults,
    }


def _promises(package: ModelPackage) -> dict[str, Any]:
    return {
        "title": package.identity.title,
        "intended_use": package.identity.intended_use,
        "demonstration": package.identity.demonstration,
        "weights_sha256": package.identity.weights_sha256,
        "input": package.recipe.to_mapping(),
        "preprocessing_digest": package.preprocessing_digest,
        "labels": package.labels,
        "selection": package.selection.where.words,
        "contract": [{"text": clause.text, "reason": clause.reason} for clause in package.contract],
        "input_distribution": _distribution(package),
        "limits": package.limits,
        "metrics": package.metrics,
        "training": package.training,
        "runtime": package.runtime.kind,
        "conversion": package.conversion,
    }


def _distribution(package: ModelPackage) -> dict[str, Any] | None:
    found = package.input_distribution
    if found is None:
        return None
    return {"limit": found.limit, "fitted": found.fitted, "limited": found.limited}


def _conversion_in_words(package: ModelPackage) -> str:
    if not package.conversion:
        return ""
    told = package.conversion
    return (
        f", converted from {told.get('source')}; largest difference of a probability "
        f"{told.get('largest_difference')} on {told.get('probes')} probes"
    )


def _print_package(package: ModelPackage) -> None:
    identity = package.identity
    say(f"{identity.title}{' (DEMONSTRATION, no clinical claim)' * identity.demonstration}")
    say(f"intended use: {identity.intended_use}")
    say(f"computed by: {package.runtime.kind}{_conversion_in_words(package)}")
    say(f"reads: {package.selection.where.words}")
    for clause in package.contract:
        say(f"requires: {clause.require.words} - {clause.text}")
    say(_distribution_in_words(package))
    print_table(
        ("label", "code", "threshold", "undetermined"),
        [
            (
                label.name,
                f"({label.code.value}, {label.code.scheme}, {label.code.meaning})",
                f"{label.threshold:.9g}",
                f"{label.undetermined_low:.9g} to {label.undetermined_high:.9g}"
                if label.undetermined_low < label.undetermined_high
                else "",
            )
            for label in package.labels
        ],
    )
    for limit in package.limits:
        say(f"limit: {limit}")
    for name, value in package.metrics.items():
        say(f"{name}: {figure_in_words(value)}")


def figure_in_words(value: object) -> str:
    """Return what a manifest's ``[metrics]`` says under one name, as a person reads it.

    Figures of an evaluation are tables: empty where there is none, ``low`` and ``high`` the ends
    of their interval. What somebody else wrote there is printed as it is.
    """
    if not isinstance(value, Mapping):
        return str(value)
    rest = {name: each for name, each in value.items() if name not in ("value", "low", "high")}
    if rest or ("low" in value) != ("high" in value):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    figure = str(value.get("value", "none"))
    ends = f" (95 % interval {value['low']} to {value['high']})" if "low" in value else ""
    return figure + ends
