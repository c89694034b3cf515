"""The commented configuration file that ``medimgd config init`` writes.

Generated from the settings themselves, so that it can never name one that does not exist.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from daemon.config import Config, DestinationSection

_HEADER = """\
# medimgd configuration. Every setting is shown with its default, or as an example where it has
# none; a line without '#' is in force.
# Any of them can also come from the environment: MEDIMGD_<SECTION>__<SETTING>, for example
# MEDIMGD_RECEIVER__PORT=104. Check with 'medimgd config check'.
"""

_DESTINATIONS = """\
# One block for each archive that receives the results.
# [[destinations]]
"""


def example_toml() -> str:
    """Return the whole file as text."""
    parts = [_HEADER]
    for name, field in Config.model_fields.items():
        if name == "destinations":
            parts.append(_DESTINATIONS + _fields(DestinationSection))
        elif _is_section(field):
            parts.extend(_tables(name, cast("type[BaseModel]", field.annotation)))
    return "\n".join(parts)


def _tables(name: str, section: type[BaseModel]) -> Iterator[str]:
    """Yield the table of a section, then those of the sections within it."""
    yield f"# {_first_line(section)}\n[{name}]\n{_fields(section)}"
    for inner, field in section.model_fields.items():
        if _is_section(field):
            yield from _tables(f"{name}.{inner}", cast("type[BaseModel]", field.annotation))


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _first_line(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]


def _fields(section: type[BaseModel]) -> str:
    return "".join(
        _field(name, field)
        for name, field in section.model_fields.items()
        if not _is_section(field)
    )


def _field(name: str, field: FieldInfo) -> str:
    comment = textwrap.fill(
        field.description or "", 96, initial_indent="# ", subsequent_indent="# "
    )
    value = f"# {name} = {_toml(_default(field))}\n"
    return f"{comment}\n{value}" if field.description else value


def _default(field: FieldInfo) -> Any:
    if field.default_factory is not None:
        return "this host's name"
    if field.examples:
        return field.examples[0]
    return "" if field.default is None else field.default


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, BaseModel):
        given = ((name, item) for name, item in value if item is not None)
        inner = ", ".join(f"{name} = {_toml(item)}" for name, item in given)
        return f"{{ {inner} }}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(str(value) if isinstance(value, (str, Path)) else "")
