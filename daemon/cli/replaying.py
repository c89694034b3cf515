"""``medimgd replay``: a stored result, computed once more and compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

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
    from daemon.replaying import Replay

DEFAULT_TOLERANCE = 0.001


def replay_result(
    result: Annotated[int, typer.Argument(help="Number of the result, as 'medimgd show' says it.")],
    tolerance: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="How far a probability may be.")
    ] = DEFAULT_TOLERANCE,
    config: ConfigPath = None,
    as_json: AsJSON = False,
) -> None:
    """Compute a stored result again from the stored images; exit 1 when it comes out otherwise."""
    from daemon.config import load_config
    from daemon.replaying import replay
    from daemon.runtimes import configured_predictor
    from storage.database import open_database
    from storage.spool import Spool

    with failures_become_exit_codes(), _impossible_becomes_attention():
        loaded = load_config(config)
        database = open_database(loaded.database_path, read_only=True)
        try:
            spool = Spool(loaded.spool_folder, 0, slot="replay")
            found = replay(loaded, database, spool, result, configured_predictor(loaded), tolerance)
        finally:
            database.close()
    if as_json:
        print_json({"same": found.is_same, "replay": found})
    else:
        _print(found)
    if not found.is_same:
        raise typer.Exit(ExitCode.FAILED)


@contextmanager
def _impossible_becomes_attention() -> Iterator[None]:
    from daemon.errors import CannotReplay, PackageGone

    try:
        yield
    except CannotReplay as error:
        typer.echo(f"medimgd: {error}", err=True)
        gone = isinstance(error, PackageGone)
        raise typer.Exit(ExitCode.NOT_FOUND if gone else ExitCode.NEEDS_ATTENTION) from error


def _print(found: Replay) -> None:
    say(f"result {found.result_id} of {found.model}, study {found.study_instance_uid}")
    say(f"computed again by {found.runtime} on {found.device} in {found.seconds:.1f} s")
    print_table(
        ("finding", "then", "now", "then", "now", ""),
        [
            (
                each.label,
                each.stored_presence,
                each.presence,
                f"{each.stored_probability:.6f}",
                f"{each.probability:.6f}",
                _verdict(each.is_same, "" if each.same_operating_point else "other threshold"),
            )
            for each in found.findings
        ],
    )
    for each in found.maps:
        say(f"map of {each.label}: {_verdict(each.is_same, each.words)}")
    if found.regions is not None:
        say(f"regions: {_verdict(found.regions.is_same, found.regions.words)}")
    verdict = "came out as stored" if found.is_same else "came out DIFFERENTLY"
    say(f"the result {verdict} (probabilities within {found.tolerance:g})")


def _verdict(is_same: bool, words: str) -> str:
    verdict = "same" if is_same else "DIFFERENT"
    return f"{verdict} ({words})" if words else verdict
