"""``medimgd retry``, ``doctor`` and ``version``: what an administrator does about it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.observing import StudyArgument
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


def retry(
    study: StudyArgument,
    again: Annotated[
        bool,
        typer.Option("--again", help="Prepare anew even where nothing failed (new model, say)."),
    ] = False,
    config: ConfigPath = None,
    as_json: AsJSON = False,
) -> None:
    """Set everything of one study going again that waits for a person, or for time."""
    from daemon.config import load_config
    from daemon.worklist.lookup import find_study
    from storage.completion import complete_now
    from storage.database import open_database
    from storage.retry import retry_study
    from storage.states import StudyState
    from storage.studies import get_study

    with failures_become_exit_codes():
        loaded = load_config(config)
        database = open_database(loaded.database_path)
        try:
            uid = find_study(database, study)
            now = datetime.now(UTC)
            still_receiving = get_study(database, uid).state is StudyState.RECEIVING
            if still_receiving:
                complete_now(database, uid, now)
            names = tuple(section.name for section in loaded.destinations)
            retried = retry_study(database, uid, now, prepare_again=again, destinations=names)
        finally:
            database.close()
    if as_json:
        print_json(
            {"study_instance_uid": uid, "completed_now": still_receiving, "retried": retried}
        )
        return
    if still_receiving:
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
    if not (retried.anything or still_receiving):
        say(f"{uid}: nothing waits for a person; --again prepares it anew all the same")


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
