"""``medimgd status``, ``studies``, ``show`` and ``explain``: what goes on, and why."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.output import (
    AsJSON,
    ConfigPath,
    ago,
    duration,
    failures_become_exit_codes,
    print_json,
    print_table,
    printable,
    say,
)
from daemon.exit_codes import ExitCode

if TYPE_CHECKING:
    from daemon.status import Status

StudyArgument = Annotated[
    str, typer.Argument(help="Study Instance UID, the beginning of one, or accession number.")
]


def status(config: ConfigPath = None, as_json: AsJSON = False) -> None:
    """Say in one screen what runs, what waits, what is stuck; exit 3 when a person is needed."""
    from daemon.config import load_config
    from daemon.status import read_status

    with failures_become_exit_codes():
        found = read_status(load_config(config), datetime.now(UTC))
    if as_json:
        print_json(found)
    else:
        _print_status(found)
    if found.attention:
        raise typer.Exit(ExitCode.NEEDS_ATTENTION)


def _print_status(found: Status) -> None:
    say(
        f"medimgd {'is running' if found.running else 'is NOT running'}   data: {found.data_folder}"
    )
    say(
        f"disk: {found.disk.free_mib} of {found.disk.total_mib} MiB free "
        f"(reception stops below {found.disk.minimum_free_mib})"
    )
    models = ", ".join(found.models) or "none loaded"
    say(f"models: {models}   device: {found.device or 'unknown'}")
    if found.processes:
        print_table(
            ("process", "pid", "state", "heartbeat", "where"),
            [
                (
                    p.slot,
                    p.pid,
                    p.state if p.alive else "DEAD",
                    f"{p.heartbeat_age_seconds:.0f} s ago",
                    f"{p.detail['address']}:{p.detail['port']}" if "port" in p.detail else p.host,
                )
                for p in found.processes
            ],
        )
    if found.overview is not None:
        _print_counts(found)
    if found.destinations:
        print_table(
            ("destination", "address", "waiting", "last success", "last answer"),
            [
                (d.name, d.address, d.pending, ago(d.last_success_at, found.at), d.last_answer)
                for d in found.destinations
            ],
        )
    for sentence in found.attention:
        say(f"! {printable(sentence)}")
    if not found.attention:
        say("nothing needs a person")


def _print_counts(found: Status) -> None:
    overview = found.overview
    if overview is None:
        return
    for name, counts in (
        ("studies", overview.studies),
        ("analyses", overview.jobs),
        ("results", overview.results),
        ("deliveries", overview.deliveries),
        ("storage commitments", overview.commitments),
    ):
        known = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        if known or counts is not overview.commitments:
            say(f"{name}: {known or 'none'}")
    if overview.oldest_waiting is not None:
        oldest = overview.oldest_waiting
        say(
            f"oldest waiting study: {oldest.study_instance_uid} ({oldest.state}, "
            f"{duration(found.at - oldest.since)})"
        )
    say(f"associations under way: {sum(found.open_associations.values())}")
    say(f"last instance: {ago(overview.last_instance_at, found.at) or 'never'}")
    if overview.refused_last_day:
        say(f"turned away at the door in the last day: {overview.refused_last_day}")
        for refusal in overview.latest_refusals:
            who = printable(refusal.calling_ae_title) or "a connection"
            say(f"  {who} from {refusal.address}: {printable(refusal.reason)}")
    for item in overview.stuck[:10]:
        say(
            f"stuck: {item.kind} {item.id} of study {item.study_instance_uid} is {item.state} "
            f"since {duration(found.at - item.since)}: {printable(item.reason)}"
        )
