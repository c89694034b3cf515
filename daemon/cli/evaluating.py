"""``medimgd evaluate``: what a package is worth on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.data import (
    SMALLEST_CLASS,
    SMALLEST_EDGE,
    Allowed,
    DataPath,
    SmallestClass,
    SmallestEdge,
)
from daemon.cli.output import (
    AsJSON,
    ConfigPath,
    failures_become_exit_codes,
    print_json,
    print_table,
    say,
)
from daemon.cli.progress import counted
from daemon.exit_codes import ExitCode
from dicom_io.wording import number_of

if TYPE_CHECKING:
    from daemon.config import Config
    from model.evaluation.records import Evaluation, LabelResult
    from model.package import ModelPackage

ROUNDS = 2000
GAP_LIMIT = 0.05


PackageName = Annotated[str, typer.Argument(help="A package folder, or an installed name.")]
Split = Annotated[str, typer.Option(help="test, validation or train.")]
Out = Annotated[
    Path | None, typer.Option(help="Folder of the report.", show_default="evaluation-…")
]
Seed = Annotated[int, typer.Option(help="Of the bootstrap.", min=0)]
Rounds = Annotated[int, typer.Option(help="Of the bootstrap.", min=100)]
SubgroupColumns = Annotated[
    list[str] | None,
    typer.Option(
        help="sex, age, manufacturer, or a CSV column; repeatable.",
        show_default="those of the three that are known",
    ),
]
GapLimit = Annotated[float, typer.Option(help="Larger gaps are flagged.", min=0.0)]
FitCalibration = Annotated[
    bool, typer.Option("--fit-calibration", help="Fit temperature and Platt on validation.")
]
Rule = Annotated[
    str | None,
    typer.Option(help="youden, sensitivity=0.95 or specificity=0.9; validation only."),
]
Classes = Annotated[
    list[str] | None,
    typer.Option("--class", metavar="CLASS=LABEL", help="Which class a label means; repeatable."),
]
Deidentified = Annotated[
    bool,
    typer.Option(
        "--deidentified",
        help="Headers were emptied: judge the contract by what they still state.",
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu or gpu.", show_default="the worker's")]


def evaluate(
    package: PackageName,
    data: DataPath,
    split: Split = "test",
    out: Out = None,
    seed: Seed = 0,
    rounds: Rounds = ROUNDS,
    subgroup: SubgroupColumns = None,
    gap_limit: GapLimit = GAP_LIMIT,
    fit_calibration: FitCalibration = False,
    choose_threshold: Rule = None,
    class_: Classes = None,
    allow: Allowed = None,
    smallest_edge: SmallestEdge = SMALLEST_EDGE,
    smallest_class: SmallestClass = SMALLEST_CLASS,
    deidentified: Deidentified = False,
    device: Device = None,
    config: ConfigPath = None,
    as_json: AsJSON = False,
) -> None:
    """Measure a package on labelled images: figures with intervals, subgroups, plots, a report."""
    from dataclasses import replace

    from daemon.config import load_config
    from daemon.runtimes import runtime_options
    from model.evaluation.records import Question
    from model.evaluation.report import report_mapping
    from model.evaluation.running import Wishes, run_evaluation
    from model.evaluation.thresholds import parse_rule
    from model.runtimes.opening import open_predictor
    from model.training.gate_report import GateLimits, checks_named
    from model.training.sources import open_dataset, split_named

    with failures_become_exit_codes():
        rule = parse_rule(choose_threshold) if choose_threshold else None
        question = Question(
            split_named(split), seed, rounds, tuple(subgroup or ()), gap_limit, rule
        )
        limits = GateLimits(smallest_edge, smallest_class)
        allowed, renamed = checks_named(allow or ()), _renamed(class_ or [])
        wishes = Wishes(allowed, renamed, fit_calibration, limits, deidentified)
        settings = load_config(config)
        found = _package(package, settings)
        options = runtime_options(settings)
        predictor = open_predictor(found, replace(options, device=device or options.device))
        with open_dataset(data) as dataset:
            done = run_evaluation(found, predictor, dataset, question, wishes, counted)
            files = done.write(out or _default_folder(found, question.split))
    if as_json:
        print_json(report_mapping(done.evaluation, done.split, done.known))
        return
    _print(done.evaluation)
    for file in files:
        say(f"written: {file}")


def _default_folder(package: ModelPackage, split: str) -> Path:
    return Path(f"evaluation-{package.identity.name}-{package.identity.version}-{split}")


def _renamed(pairs: list[str]) -> dict[str, str]:
    renamed = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if len(renamed) < len(pairs):
        raise typer.BadParameter("must be CLASS=LABEL", param_hint="--class")
    return renamed


def _package(named: str, config: Config) -> ModelPackage:
    """Return the package in a folder, or the installed one of that name."""
    from daemon.catalogue import installed_catalogue
    from model.errors import CatalogueFault
    from model.package import load_package

    if Path(named).is_dir():
        return load_package(Path(named))
    try:
        return load_package(installed_catalogue(config).item(named).folder)
    except CatalogueFault as error:
        typer.echo(f"medimgd: there is no folder {named}, and {error}", err=True)
        raise typer.Exit(ExitCode.NOT_FOUND) from error


def _print(evaluation: Evaluation) -> None:
    outcomes = evaluation.outcomes
    say(
        f"{number_of(outcomes.images, 'image')} of {number_of(outcomes.patients, 'patient')}: "
        f"{outcomes.scored} scored, "
        f"{outcomes.refused} refused, {outcomes.not_selected} not selected"
    )
    if outcomes.without_whole_contract:
        said = number_of(outcomes.without_whole_contract, "image")
        say(f"the contract could not be judged whole for {said}: no header, or one without values")
    for label in evaluation.labels:
        _print_label(label)


def _print_label(label: LabelResult) -> None:
    print_table(
        ("figure", "value", "95 % interval", "note"),
        [
            (
                name,
                "" if figure.value is None else f"{figure.value:.4f}",
                "" if figure.low is None else f"{figure.low:.4f} to {figure.high:.4f}",
                figure.note,
            )
            for name, figure in label.figures.items()
        ],
        title=f"{label.name} at the packaged threshold {label.threshold:g}",
    )
    rows = (("with", label.confusion.positive), ("without", label.confusion.negative))
    print_table(
        ("truth", "Present", "Absent", "Undetermined", "refused", "not selected"),
        [
            (f"{words} {label.name}", row.present, row.absent, row.undetermined, row.refused,
             row.not_selected)
            for words, row in rows
        ],
    )  # fmt: skip
    for part in label.subgroups:
        for gap in (gap for gap in part.gaps if gap.is_beyond_limit):
            say(f"gap beyond the limit: {gap.figure} by {part.column}: {gap.gap:.3f} between "
                f"{gap.best} and {gap.worst}")  # fmt: skip
    if label.chosen is not None:
        chosen = label.chosen
        say(f"{chosen.rule}: {chosen.threshold} (sensitivity {chosen.sensitivity:.4f}, "
            f"specificity {chosen.specificity:.4f} on these images)")  # fmt: skip
