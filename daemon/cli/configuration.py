"""``medimgd config``: write, check and show the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daemon.cli.output import AsJSON, ConfigPath, failures_become_exit_codes, print_json, say
from daemon.exit_codes import ExitCode

app = typer.Typer(help="Write, check and show the configuration.", no_args_is_help=True)


@app.command("init")
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("medimgd.toml"),
) -> None:
    """Write a commented configuration file, and its folder; an existing file is left alone."""
    from daemon.example_config import example_toml

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(example_toml())
    except FileExistsError:
        typer.echo(f"medimgd: {path} exists already and was left alone", err=True)
        raise typer.Exit(ExitCode.FAILED) from None
    except OSError as error:
        typer.echo(f"medimgd: cannot write {path}: {error.strerror}", err=True)
        raise typer.Exit(ExitCode.FAILED) from None
    say(f"wrote {path}: set receiver.peers and destinations, then 'medimgd config check'")


@app.command("check")
def check(config: ConfigPath = None) -> None:
    """Check the configuration; every fault is listed at once."""
    from daemon.config import find_config_file, load_config
    from daemon.dangling_settings import dangling_settings

    with failures_become_exit_codes():
        loaded = load_config(config)
        say(f"{find_config_file(config) or 'built-in defaults'}: no fault found")
        for sentence in dangling_settings(loaded):
            typer.echo(f"medimgd: warning: {sentence}", err=True)


@app.command("show")
def show(config: ConfigPath = None, as_json: AsJSON = False) -> None:
    """Show every setting as it is in force; secrets are masked."""
    from daemon.config import load_config

    with failures_become_exit_codes():
        values = load_config(config).model_dump(mode="json")
    if as_json:
        print_json(values)
        return
    for section, fields in values.items():
        if isinstance(fields, dict):
            for name, value in fields.items():
                say(f"{section}.{name} = {value!r}")
        else:
            say(f"{section} = {fields!r}")


@app.command("hash-password")
def hash_password_command(
    password: Annotated[str, typer.Option(prompt=True, hide_input=True, confirmation_prompt=True)],
) -> None:
    """Turn a password into the value of a password_hash: the page's, or a sender's."""
    from daemon.passwords import hash_password

    say(hash_password(password))
