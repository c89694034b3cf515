"""Plain data written as a TOML manifest: the standard library only reads TOML.

Owns the text form. What it writes, ``tomllib`` reads back as equal data; it knows no field.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.manifest import MANIFEST_NAME


def write_manifest(folder: Path, values: Mapping[str, object]) -> Path:
    """Write ``manifest.toml`` into a package folder and return its path."""
    path = folder / MANIFEST_NAME
    path.write_text(toml_text(values), encoding="utf-8")
    return path


def toml_text(values: Mapping[str, object]) -> str:
    """Return a TOML document: plain fields first, then tables, then lists of tables.

    Raises
    ------
    TypeError
        A value has no form in TOML (None, for one).
    """
    return "\n".join(_table_lines(values, ())).strip() + "\n"


def _table_lines(values: Mapping[str, object], place: tuple[str, ...]) -> list[str]:
    lines: list[str] = []
    tables = {key: value for key, value in values.items() if _is_table(value, place)}
    lists = {key: value for key, value in values.items() if _is_table_list(value, place)}
    for key, value in values.items():
        if key not in tables and key not in lists:
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in tables.items():
        lines += ["", f"[{_dotted((*place, key))}]", *_table_lines(_mapping(value), (*place, key))]
    for key, value in lists.items():
        for item in _sequence(value):
            lines += ["", f"[[{_dotted((*place, key))}]]"]
            lines += _table_lines(_mapping(item), (*place, key))
    return lines


def _is_table(value: object, place: tuple[str, ...]) -> bool:
    # Tables deeper than this are conditions: on one line they read as the grammar shows them.
    return isinstance(value, Mapping) and len(place) < 1


def _is_table_list(value: object, place: tuple[str, ...]) -> bool:
    if place or not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(item, Mapping) for item in value)


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise TypeError(f"must be a table, received {type(value).__name__}")
    return value


def _sequence(value: object) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"must be a list, received {type(value).__name__}")
    return value


def _value(value: object, depth: int = 0) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _quoted(value)
        case int():
            return str(int(value))
        case float():
            return _float(value)
        case Mapping():
            inner = ", ".join(f"{_key(k)} = {_value(item, depth)}" for k, item in value.items())
            return f"{{ {inner} }}" if inner else "{}"
        case list() | tuple():
            return _list(value, depth)
    raise TypeError(f"has no form in TOML: {type(value).__name__}")


def _list(values: Sequence[object], depth: int) -> str:
    """Write a list on one line, or one item per line where that would be too long."""
    items = [_value(item, depth + 1) for item in values]
    line = f"[{', '.join(items)}]"
    if len(line) + 4 * depth <= 90 and "\n" not in line:
        return line
    inner = "    " * (depth + 1)
    return "[\n" + "".join(f"{inner}{item},\n" for item in items) + "    " * depth + "]"


def _float(value: float) -> str:
    if math.isnan(value) or math.isinf(value):
        return {True: "nan"}.get(math.isnan(value), "inf" if value > 0 else "-inf")
    return repr(float(value))


def _key(key: str) -> str:
    plain = key and all(c.isascii() and (c.isalnum() or c in "_-") for c in key)
    return key if plain else _quoted(key)


def _quoted(text: str) -> str:
    # JSON's escapes are TOML's; DEL alone is allowed there and not here.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _dotted(place: tuple[str, ...]) -> str:
    return ".".join(_key(part) for part in place)
