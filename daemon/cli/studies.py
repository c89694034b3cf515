"""``medimgd studies``, ``show`` and ``explain``: the worklist and one study, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.observing import StudyArgument
from daemon.cli.output import (
    AsJSON,
    ConfigPath,
    ago,
    failures_become_exit_codes,
    print_json,
    print_table,
    say,
)

if TYPE_CHECKING:
    from daemon.config import Config
    from daemon.worklist.lines import StudyLine
    from daemon.worklist.study_page import StudyPage
    from dicom_io.vocabulary import Detection
    from storage.database import Database

MARKS = {True: "yes", False: "NO "}


@contextmanager
def _opened(config_path: Any) -> Iterator[tuple[Config, Database]]:
    from daemon.config import load_config
    from storage.database import open_database

    with failures_become_exit_codes():
        config = load_config(config_path)
        database = open_database(config.database_path, read_only=True)
        try:
            yield config, database
        finally:
            database.close()


def studies(
    search: Annotated[
        str, typer.Argument(help="Part of a name, patient ID, accession number or study UID.")
    ] = "",
    flag: Annotated[
        str, typer.Option(help="Only these: positive, refused, failed, pending, ...")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="Lines at most.")] = 50,
    config: ConfigPath = None,
    as_json: AsJSON = False,
) -> None:
    """List studies, worst first by the site's rule, with their AI flag."""
    from daemon.worklist.flags import FlagValues
    from daemon.worklist.lines import read_worklist

    wanted = FlagValues.from_key(flag) if flag else None
    if flag and wanted is None:
        known = ", ".join(each.key for each in FlagValues)
        raise typer.BadParameter(f"must be one of {known}; received {flag!r}", param_hint="--flag")
    with _opened(config) as (loaded, database):
        found = read_worklist(database, loaded, search=search, flag=wanted, limit=limit)
    if len(found.lines) < found.matching:
        # Beside the answer, so that a program that reads JSON does not take a part for the whole.
        cut = f"the first {len(found.lines)} of {found.matching} studies: --limit lists more"
        typer.echo(f"medimgd: {cut}", err=True)
    if as_json:
        print_json(found.lines)
        return
    now = datetime.now(UTC)
    print_table(
        ("flag", "finding", "patient", "study", "state", "received", "delivery", "study UID"),
        [_row(line, now) for line in found.lines],
    )
    if not found.is_complete:
        say(f"only the newest {found.judged} studies are judged; find older ones by searching")
    say("AI results are preliminary and not verified by a physician.")


def _finding(line: StudyLine) -> str:
    """Return what gave a study its flag, with all that takes weight from it."""
    from daemon.worklist.flags import FlagValues

    absent = " absent" if line.flag is FlagValues.NEGATIVE else ""
    certainty = "" if line.certainty_percent is None else f" {line.certainty_percent:g} %"
    stale = " (earlier images only)" if line.earlier_images_only else ""
    demonstration = " (demonstration model)" if line.demonstration else ""
    return f"{line.finding}{absent}{certainty}{stale}{demonstration}"


def _row(line: StudyLine, now: datetime) -> tuple[object, ...]:
    from daemon.web.wording import person_name

    return (
        line.flag,
        _finding(line),
        f"{person_name(line.patient_name)} ({line.patient_id})",
        f"{'/'.join(line.modalities)} {line.description} {line.study_date}",
        line.state,
        ago(line.received_at, now),
        line.delivery.text,
        line.study_instance_uid,
    )


def show(study: StudyArgument, config: ConfigPath = None, as_json: AsJSON = False) -> None:
    """Show one study: series, findings, report, and every delivery with its status."""
    from daemon.worklist.documents import read_reports
    from daemon.worklist.lookup import find_study
    from daemon.worklist.study_page import read_study_page

    with _opened(config) as (loaded, database):
        page = read_study_page(database, loaded, find_study(database, study))
        reports = read_reports(database, page)
    if as_json:
        print_json({"study": page, "reports": reports})
        return
    _print_page(page)
    for report in reports:
        say(f"\nreport of {report.model}:\n{report.text}")


def _print_page(page: StudyPage) -> None:
    from daemon.web.wording import person_name
    from storage.results import ResultKind

    line = page.line
    say(f"{line.flag}: {_finding(line)}   study {line.study_instance_uid}")
    who = f"{person_name(line.patient_name)} ({line.patient_id})"
    say(f"{who}, {line.description} {line.study_date}")
    say(f"state: {line.state}  {line.reason}")
    if line.waits_for:
        say(f"waits for: {line.waits_for}")
    print_table(
        ("series", "modality", "description", "body part", "instances"),
        [
            (s.series_number, s.modality, s.description, s.body_part_examined, s.instance_count)
            for s in page.series
        ],
    )
    for version in page.versions:
        replaced = "" if version.is_latest else " (replaced by a newer version)"
        say(
            f"{version.model.at_version}, version {version.version_number}{replaced}, "
            f"result {version.result_id}:"
        )
        if version.model.demonstration:
            say("  demonstration model, no clinical claim")
        if version.earlier_images_only:
            say("  earlier images only: images arrived that this result does not know")
        if version.kind is not ResultKind.FINDING:
            word = "NOT ANALYSED" if version.kind is ResultKind.REFUSAL else "FAILED"
            say(f"  {word} ({version.refusal_reason}): {version.refusal_message}")
        for finding in version.findings:
            say(
                f"  {finding.label}: {finding.presence.upper()} "
                f"(certainty {finding.certainty_percent:g} %, "
                f"threshold {finding.threshold * 100:g} %)"
            )
        _say_regions(version.detection)
    for conflict in page.conflicts:
        say(f"! other content under known SOP Instance UID {conflict.sop_instance_uid}")
    if page.deliveries:
        print_table(
            ("destination", "object", "model", "state", "attempts", "last status", "comment"),
            [
                (d.destination, d.role, d.model, d.state_words, d.attempts, d.status, d.comment)
                for d in page.deliveries
            ],
        )
    print_table(
        ("moment", "at (UTC)", "after", ""),
        [
            (step.name, step.at.strftime("%Y-%m-%d %H:%M:%S"), f"{step.seconds:.1f} s", step.detail)
            for step in page.timeline
        ],
    )


def _say_regions(detection: Detection | None) -> None:
    """Print where a detecting model marked what it found; nothing where none was looked for."""
    if detection is None:
        return
    count = len(detection.regions)
    note = f" ({detection.note})" if detection.note else ""
    say(f"  {count} region{'s' * (count != 1)}{note}")
    for region in detection.regions:
        axis = "" if region.long_axis_mm is None else f", {region.long_axis_mm:g} mm"
        images = len(region.outlines)
        say(
            f"    {region.tracked_as}: certainty {region.certainty_percent:g} %{axis}, on "
            f"{images} image{'s' * (images != 1)}"
        )


def explain(study: StudyArgument, config: ConfigPath = None, as_json: AsJSON = False) -> None:
    """Say why each model reads, refuses or ignores a study, condition by condition."""
    from daemon.worklist.lookup import find_study
    from daemon.worklist.study_page import read_study_page

    with _opened(config) as (loaded, database):
        page = read_study_page(database, loaded, find_study(database, study))
    if as_json:
        print_json(
            {
                "study_instance_uid": page.line.study_instance_uid,
                "state": page.line.state,
                "reason": page.line.reason,
                "waits_for": page.line.waits_for,
                "completion": page.completion_reason,
                "decisions": page.decisions,
                "results": [
                    {
                        "result_id": each.result_id,
                        "model": each.model.at_version,
                        "version_number": each.version_number,
                        "is_latest": each.is_latest,
                        "regions": None if each.detection is None else len(each.detection.regions),
                    }
                    for each in page.versions
                ],
            }
        )
        return
    say(f"study {page.line.study_instance_uid}: {page.line.state}  {page.line.reason}")
    if page.completion_reason:
        say(f"complete because: {page.completion_reason}")
    if page.line.waits_for:
        say(f"waits for: {page.line.waits_for}")
    for decision in page.decisions:
        say()
        for sentence in explained(decision.evaluation):
            say(sentence)
    for version in page.latest:
        model = version.model.at_version
        say(f"\n{replay_advice(version.result_id, model, version.kind, page.purged_at)}")
        _say_regions(version.detection)


def replay_advice(result_id: int, model: str, kind: str, purged_at: datetime | None = None) -> str:
    """Return whether a result can be computed again: findings can, while their images are here."""
    if purged_at is not None:
        return f"result {result_id} of {model}: its images were removed; send the study again"
    if kind == "finding":
        return f"result {result_id} of {model}: 'medimgd replay {result_id}' repeats it"
    return f"result {result_id} of {model} is a {kind}: 'medimgd retry' asks the model again"


def explained(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that explain one model's decision.

    Parameters
    ----------
    evaluation : mapping
        As stored: ``model.selection.Selection.as_mapping`` and, where pixels or geometry were
        refused later, ``refusal``.
    """
    yield str(evaluation["sentence"])
    if evaluation.get("refusal"):
        yield f"  refused: {evaluation['refusal']}"
    candidates = list(evaluation.get("candidates", ()))
    for candidate in candidates:
        yield f"  candidate {candidate['rank']}: {_candidate_in_words(evaluation, candidate)}"
        yield from _conditions([candidate["where"]], 2)
        for clause in candidate.get("contract", ()):
            yield f"    contract: {clause['text']}"
            yield from _conditions([clause["evaluation"]], 3)
    for group in evaluation.get("not_matching", ()):
        example = group["example"]
        words = _candidate_in_words(evaluation, example)
        yield f"  {group['count']} not matching, for example {words}"
        yield from _conditions([example["where"]], 2)
    if len(candidates) > 1:
        yield f"  order: {'; '.join(evaluation.get('ranked_by', ()))}"


def _candidate_in_words(evaluation: Mapping[str, Any], candidate: Mapping[str, Any]) -> str:
    """Return what was considered: a series by its own UID, not its judged instance's alone."""
    judged = candidate["sop_instance_uid"]
    if evaluation.get("level") != "series":
        return f"instance {judged}"
    whole = f"series {candidate['series_instance_uid']}"
    count = candidate["instances"]
    return whole if count == 1 else f"{whole}, {count} instances, judged by {judged}"


def _conditions(evaluations: Sequence[Mapping[str, Any]], depth: int) -> Iterator[str]:
    for each in evaluations:
        parts = each.get("parts", ())
        words = each["words"].partition(" (")[0] if parts else each["sentence"]
        yield f"{'  ' * depth}[{MARKS[each['passed']]}] {words}"
        yield from _conditions(parts, depth + 1)
