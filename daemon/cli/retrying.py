"""``medimgd retry``: what waits for a person is set going again, of one study or of many."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.output import (
    AsJSON,
    ConfigPath,
    ago,
    failures_become_exit_codes,
    print_json,
    print_table,
    printable,
    say,
)
from daemon.exit_codes import ExitCode
from dicom_io.wording import number_of

if TYPE_CHECKING:
    from daemon.retrying import Retry, StudyRetrier
    from storage.stuck_studies import StuckStudy, WaitsForPerson

_SPANS = {"m": "minutes", "h": "hours", "d": "days"}


def retry(
    study: Annotated[
        str,
        typer.Argument(help="Study Instance UID, the beginning of one, or accession number."),
    ] = "",
    state: Annotated[
        str,
        typer.Option(
            help="All studies that wait over this instead: "
            "held, unmatched, refused, failed or undelivered."
        ),
    ] = "",
    since: Annotated[
        str,
        typer.Option(
            help="With --state: only what came to wait since, as 2026-11-20, 2026-11-20T14:30 "
            "(UTC), 90m, 6h or 3d."
        ),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --state: list the studies and do nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --state: do not ask first.")] = False,
    again: Annotated[
        bool,
        typer.Option("--again", help="Prepare anew even where nothing failed (new model, say)."),
    ] = False,
    config: ConfigPath = None,
    as_json: AsJSON = False,
) -> None:
    """Set everything of a study going again that waits for a person, or for time."""
    if bool(study) == bool(state):
        raise typer.BadParameter("name one study, or the studies meant by --state")
    if not state and (since or dry_run or yes):
        raise typer.BadParameter("--since, --dry-run and --yes go with --state")
    if state:
        _retry_many(config, state, since, dry_run=dry_run, yes=yes, again=again, as_json=as_json)
    else:
        _retry_one(config, study, again=again, as_json=as_json)


@contextmanager
def _opened(config_path: Path | None, *, again: bool) -> Iterator[StudyRetrier]:
    from daemon.config import load_config
    from daemon.retrying import StudyRetrier
    from storage.database import open_database

    with failures_become_exit_codes():
        loaded = load_config(config_path)
        database = open_database(loaded.database_path)
        try:
            yield StudyRetrier(loaded, database, prepare_again=again)
        finally:
            database.close()


def _retry_one(config: Path | None, study: str, *, again: bool, as_json: bool) -> None:
    from daemon.worklist.lookup import find_study

    with _opened(config, again=again) as retrier:
        done = retrier.retry(find_study(retrier.database, study), datetime.now(UTC))
    if as_json:
        print_json(done)
    else:
        _print_retry(done)


def _print_retry(done: Retry) -> None:
    uid, retried = done.study_instance_uid, done.retried
    if done.completed_now:
        say(f"{uid}: counts as complete now")
    if retried.prepared_again:
        say(f"{uid}: is prepared again")
    for what, ids in (
        ("analysis", retried.job_ids),
        ("result", retried.result_ids),
        ("delivery", retried.delivery_ids),
    ):
        for each in ids:
            say(f"{uid}: {what} {each} is tried again")
    for each in retried.superseded_job_ids:
        say(f"{uid}: analysis {each} is not tried again: a later one has spoken already")
    for each in retried.overtaken_delivery_ids:
        say(
            f"{uid}: delivery {each} is not sent again: a later report went to the same "
            "destination, or waits to"
        )
    if done.left_alone:
        say(f"{uid}: {done.left_alone}; 'medimgd retry {uid}' goes on all the same")
    elif not done.anything:
        say(f"{uid}: nothing waits for a person; --again prepares it anew all the same")


def _retry_many(
    config: Path | None,
    state: str,
    since: str,
    *,
    dry_run: bool,
    yes: bool,
    again: bool,
    as_json: bool,
) -> None:
    from dicom_io.errors import MedimgdError
    from storage.stuck_studies import stuck_studies

    waits, now = _waits(state), datetime.now(UTC)
    begin = _instant(since, now) if since else None
    failed = False
    with _opened(config, again=again) as retrier:
        found = stuck_studies(retrier.database, waits, since=begin)
        if dry_run or not found:
            _print_found(found, waits, now, as_json=as_json)
            return
        _confirm(found, waits, now, yes=yes, as_json=as_json)
        done = []
        for each in found:
            try:
                done.append(retrier.retry_among(waits, each.study_instance_uid, datetime.now(UTC)))
            except MedimgdError as error:
                failed = True
                typer.echo(f"medimgd: {each.study_instance_uid}: {error}", err=True)
    if as_json:
        print_json(done)
    else:
        for one in done:
            _print_retry(one)
        tried = sum(one.anything for one in done)
        say(f"tried again: {tried} of {number_of(len(found), 'study', 'studies')}")
    if failed:
        raise typer.Exit(ExitCode.FAILED)


def _confirm(
    found: Sequence[StuckStudy], waits: str, now: datetime, *, yes: bool, as_json: bool
) -> None:
    if yes:
        return
    if as_json:
        raise typer.BadParameter("a program says --yes, or --dry-run to look")
    _print_found(found, waits, now, as_json=False)
    typer.confirm(f"Try {number_of(len(found), 'study', 'studies')} again?", abort=True)


def _print_found(found: Sequence[StuckStudy], waits: str, now: datetime, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    if found:
        print_table(
            ("study UID", waits, "because"),
            [
                (each.study_instance_uid, ago(each.since, now), printable(each.reason))
                for each in found
            ],
        )
    said = number_of(len(found), "study waits", "studies wait")
    say(f"{said} for a person: {waits}")


def _waits(state: str) -> WaitsForPerson:
    from storage.stuck_studies import WaitsForPerson

    try:
        return WaitsForPerson(state)
    except ValueError:
        known = ", ".join(WaitsForPerson)
        raise typer.BadParameter(
            f"must be one of {known}; received {state!r}", param_hint="--state"
        ) from None


def _instant(text: str, now: datetime) -> datetime:
    """Return the instant that `text` means: a span before `now`, or a date and time in UTC."""
    span = re.fullmatch(r"(\d{1,5})([mhd])", text)
    if span:
        return now - timedelta(**{_SPANS[span[2]]: int(span[1])})
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"must be a date, a date with a time, or a span such as 6h; received {text!r}",
            param_hint="--since",
        ) from None
    return read.astimezone(UTC) if read.tzinfo else read.replace(tzinfo=UTC)
