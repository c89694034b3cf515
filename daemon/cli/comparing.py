"""``medimgd models compare``: how far two versions agree on the studies both saw."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
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
from dicom_io.wording import number_of

if TYPE_CHECKING:
    from daemon.agreement import Agreement, LabelAgreement

MOST_SHOWN = 50
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def compare(
    first: Annotated[str, typer.Argument(help="name@version.")],
    second: Annotated[str, typer.Argument(help="name@version.")],
    since: Annotated[
        str, typer.Option(help="Only answers since: 2025-03-01, an instant, or 12h, 7d, 2w ago.")
    ] = "",
    config: ConfigPath = None,
    as_json: AsJSON = False,
) -> None:
    """Compare what two versions said about the same images, as active model or as shadow."""
    from daemon.agreement import compare as compare_answers
    from daemon.catalogue import known_versions
    from daemon.config import load_config
    from storage.comparison import answers_of
    from storage.database import open_database

    begin = moment(since, datetime.now(UTC)) if since else None
    names = [_parts(each) for each in (first, second)]
    with failures_become_exit_codes():
        loaded = load_config(config)
        database = open_database(loaded.database_path, read_only=True)
        try:
            _require_known((first, second), known_versions(loaded, database))
            answers = [answers_of(database, *name, since=begin) for name in names]
        finally:
            database.close()
    found = compare_answers(first, second, *answers)
    if as_json:
        print_json(found)
    else:
        _print(found)


def moment(text: str, now: datetime) -> datetime:
    """Return what ``--since`` means: an instant, a day (UTC), or a span before `now`."""
    span = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    try:
        if span:
            return now - timedelta(**{_UNITS[span[2]]: int(span[1])})
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(
            f"must be a day, an instant, or a span such as 12h or 7d; received {text!r}",
            param_hint="--since",
        ) from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _parts(at_version: str) -> tuple[str, str]:
    name, mark, version = at_version.partition("@")
    if not (name and mark and version):
        raise typer.BadParameter(f"must be name@version; received {at_version!r}")
    return name, version


def _require_known(named: Sequence[str], known: Collection[str]) -> None:
    """Raise ``NotFound`` for a version that never was here: it has answered nothing, nor could."""
    from storage.errors import NotFound

    unknown = [each for each in named if each not in known]
    if unknown:
        raise NotFound(
            f"no model version {' or '.join(unknown)} was ever installed here; "
            f"there are {', '.join(sorted(known)) or 'none'}"
        )


def _print(found: Agreement) -> None:
    studies = number_of(found.first_studies, "study", "studies")
    say(f"{found.first} has answered about {studies}, {found.second} about "
        f"{found.second_studies}; both about {found.both}")  # fmt: skip
    kinds = [k for k, row in found.kinds.items() if any(row.values())]
    seen = [k for k in found.kinds if any(row[k] for row in found.kinds.values())]
    if found.discordant_kinds:
        print_table(
            (f"{found.first} / {found.second}", *seen),
            [(kind, *(found.kinds[kind][each] for each in seen)) for kind in kinds],
        )
    for label in found.labels:
        _print_label(found, label)
    if found.labels_of_one_only:
        say(f"labels of one version only: {', '.join(found.labels_of_one_only)}")
    for one in found.discordant_kinds[:MOST_SHOWN]:
        say(f"  {one.study_instance_uid}: {one.first} / {one.second}")
    say("agreement says nothing about which version is right")


def _print_label(found: Agreement, label: LabelAgreement) -> None:
    say(f"\n{label.label}: {number_of(label.studies, 'study', 'studies')}, "
        f"agreement {_number(label.agreement)}, Cohen's kappa {_number(label.kappa)}")  # fmt: skip
    say(f"score of {found.second} minus {found.first}: mean {_number(label.mean_difference)}, "
        f"mean distance {_number(label.mean_absolute_difference)}, "
        f"largest {_number(label.largest_difference)}")  # fmt: skip
    words = list(label.table)
    print_table(
        (f"{found.first} / {found.second}", *words),
        [(word, *(label.table[word][each] for each in words)) for word in words],
    )
    for one in label.discordant[:MOST_SHOWN]:
        scores = f"{_number(one.first_score)} / {_number(one.second_score)}"
        say(f"  {one.study_instance_uid}: {one.first} / {one.second} ({scores})")
    if len(label.discordant) > MOST_SHOWN:
        say(f"  and {len(label.discordant) - MOST_SHOWN} more: --json lists all")


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"
