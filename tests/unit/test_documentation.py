"""Every command, setting, metric and exit status stands in the README."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from daemon.cli.application import app
from daemon.config import Config, DestinationSection
from daemon.example_config import example_toml
from daemon.exit_codes import ExitCode
from daemon.metrics import METRICS

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def commands() -> Iterator[str]:
    for command in app.registered_commands:
        yield f"medimgd {command.name}"
    for group in app.registered_groups:
        for command in group.typer_instance.registered_commands:
            yield f"medimgd {group.name} {command.name}"


def settings() -> Iterator[str]:
    for section, field in Config.model_fields.items():
        kind = DestinationSection if section == "destinations" else field.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        yield from settings_of(section, kind)


def settings_of(section: str, kind: type[BaseModel]) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from settings_of(f"{section}.{name}", inner)
        else:
            yield f"{section}.{name}"


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_is_documented(command: str) -> None:
    assert f"`{command}" in README


@pytest.mark.parametrize("setting", list(settings()))
def test_every_setting_is_documented_and_in_the_example_file(setting: str) -> None:
    assert f"`{setting}`" in README
    section, _, name = setting.rpartition(".")
    table = example_toml().partition(f"[{section}]")[2].partition("\n\n")[0]
    assert f"# {name} = " in table


@pytest.mark.parametrize("metric", list(METRICS))
def test_every_metric_is_documented(metric: str) -> None:
    assert f"`{metric}`" in README


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_exit_status_is_documented(code: ExitCode) -> None:
    statuses = README.partition("Exit statuses: ")[2].partition("\n\n")[0]
    assert re.search(rf"(^|[;\s]){code.value} ", statuses)


def test_no_documented_setting_or_metric_is_made_up() -> None:
    table = README.partition("## Settings")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`([a-z]+(?:\.[a-z_]+)+)`", table))
    assert documented <= set(settings())
    assert set(re.findall(r"`(medimgd_[a-z_]+)`", README)) <= set(METRICS)


def test_every_documented_command_exists() -> None:
    group = typer.main.get_command(app)
    for words in re.findall(r"`medimgd ([a-z-]+(?: [a-z-]+)?)", README):
        first, _, second = words.partition(" ")
        command = group.commands.get(first)  # type: ignore[attr-defined]
        assert command is not None, words
        if second and hasattr(command, "commands"):
            assert second in command.commands, words
