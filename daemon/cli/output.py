"""How commands speak: tables for people, JSON for programs, one sentence for a failure.

Owns the console objects and the translation of errors into exit statuses. Rich is imported only
when a table is drawn, so that ``--json`` and ``--help`` stay quick.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.errors import ConfigurationError, UnknownStudy
from daemon.exit_codes import ExitCode
from dicom_io.errors import AssociationFailed, MedimgdError

if TYPE_CHECKING:
    from rich.console import Console

AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ConfigPath = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="Configuration file; else MEDIMGD_CONFIG, ./medimgd.toml, /etc/medimgd/medimgd.toml.",
        show_default=False,
    ),
]

WIDEST_LINE = 10_000
"""Characters of a row where nobody's terminal is: what reads it by lines must find whole UIDs."""


def say(text: str = "") -> None:
    """Print one line to standard output."""
    typer.echo(text)


def printable(text: str) -> str:
    """Return a peer's words without control characters, which could rewrite the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def print_json(value: object) -> None:
    """Print any record of ours as JSON."""
    typer.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))


def plain(value: Any) -> Any:
    """Return `value` as JSON types: dataclasses as objects, instants as ISO 8601 in UTC."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(item) for name, item in asdict(value).items()}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds")
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return str(value)


def console() -> Console:
    """Return a console on standard output that does not guess a meaning into our brackets."""
    from rich.console import Console

    return Console(markup=False, highlight=False, soft_wrap=not sys.stdout.isatty())


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Draw a table; where standard output is no terminal, every row is one line, however long."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    drawn = console()
    if not sys.stdout.isatty():
        drawn.width = WIDEST_LINE
    drawn.print(table)


def ago(moment: datetime | None, now: datetime) -> str:
    """Return how long ago `moment` was, as people say it; empty when unknown."""
    return "" if moment is None else f"{duration(now - moment)} ago"


def duration(span: timedelta) -> str:
    """Return a span in its two largest units, for example ``3 h 12 min``."""
    seconds = max(int(span.total_seconds()), 0)
    for size, unit, smaller, smaller_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if seconds >= size:
            rest = seconds % size // smaller
            return f"{seconds // size} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    return f"{seconds} s"


@contextmanager
def failures_become_exit_codes() -> Iterator[None]:
    """Print what went wrong as one sentence and end with the status that names it."""
    try:
        yield
    except MedimgdError as error:
        typer.echo(f"medimgd: {error}", err=True)
        raise typer.Exit(_exit_code_of(error)) from error
    except BrokenPipeError:
        raise  # Whoever read our output has enough.
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        typer.echo(f"medimgd: {where}{error.strerror or error}", err=True)
        raise typer.Exit(ExitCode.FAILED) from error


def _exit_code_of(error: MedimgdError) -> int:
    if isinstance(error, ConfigurationError):
        return ExitCode.CONFIGURATION
    if isinstance(error, UnknownStudy) or type(error).__name__ == "NotFound":
        return ExitCode.NOT_FOUND
    if isinstance(error, AssociationFailed):
        return ExitCode.PEER
    return ExitCode.FAILED
