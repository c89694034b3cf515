"""A manifest's tables, read field by field, with every fault named at once.

Owns the way a wrong field is described: where it stands, the rule, what was received. Knows
TOML's types but nothing of what the fields mean.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TypeVar, cast

from dicom_io.vocabulary import Code

Choice = TypeVar("Choice", bound=StrEnum)

MANIFEST_NAME = "manifest.toml"
LARGEST_MANIFEST_BYTES = 1_000_000

_CODE_LENGTHS = (64, 16, 64)
"""Characters of value, scheme and meaning: UC for long codes is not offered (PS3.3 8.1)."""


class ManifestTable:
    """One table of a manifest and where it stands.

    Every getter returns a usable value of the right type even when the field is wrong; the
    fault is added to ``faults`` and the caller looks there once, at the end.

    Parameters
    ----------
    values : Mapping
        The table as TOML gives it.
    place : str
        Its name for messages; empty for the whole manifest.
    faults : list of str
        Shared by all tables of one manifest.
    """

    def __init__(self, values: Mapping[str, object], place: str, faults: list[str]) -> None:
        self._values = values
        self._place = place
        self._read: set[str] = set()
        self.faults = faults

    def place_of(self, key: str) -> str:
        """Return the dotted path of a field."""
        return f"{self._place}.{key}" if self._place else key

    def add_fault(self, key: str, rule: str) -> None:
        """Add a fault: the field's place, the rule it breaks and what was received."""
        if key in self._values:
            received = f"received {_shortened(self._values[key])}"
        else:
            received = "received nothing"
        self.faults.append(f"{self.place_of(key)}: {rule}; {received}")

    def raw(self, key: str) -> object:
        """Return a field unchecked, None when absent; it counts as read."""
        self._read.add(key)
        return self._values.get(key)

    def text(self, key: str, pattern: str = "", rule: str = "", default: str | None = None) -> str:
        """Return text that is not empty and matches `pattern` as a whole, if one is given."""
        value = self.raw(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not value.strip():
            self.add_fault(key, rule or "must be text that is not empty")
        elif pattern and re.fullmatch(pattern, value) is None:
            self.add_fault(key, rule or f"must match {pattern}")
        else:
            return value
        return ""

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """Return a number within [low, high]."""
        value = self.raw(key)
        if value is None and default is not None:
            return default
        usable = isinstance(value, int | float) and not isinstance(value, bool)
        if usable and low <= cast("float", value) <= high:
            return float(cast("float", value))
        self.add_fault(key, f"must be a number between {low:g} and {high:g}")
        return low

    def whole_number(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """Return a whole number within [low, high]."""
        value = self.raw(key)
        if value is None and default is not None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        self.add_fault(key, f"must be a whole number between {low} and {high}")
        return low

    def flag(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.add_fault(key, "must be true or false")
            return default
        return value

    def choice(self, key: str, choices: type[Choice], default: Choice) -> Choice:
        """Return one of a closed set of words; the default when the field is absent or wrong."""
        value = self.text(key, default=str(default))
        if value in set(choices):
            return choices(value)
        if value:
            self.add_fault(key, f"must be one of {', '.join(choices)}")
        return default

    def table(self, key: str, *, required: bool = True) -> ManifestTable:
        """Return an inner table; an empty one when it is absent or no table."""
        value = self.raw(key)
        if isinstance(value, Mapping):
            return ManifestTable(value, self.place_of(key), self.faults)
        if required or value is not None:
            self.add_fault(key, "must be a table")
        return ManifestTable({}, self.place_of(key), self.faults)

    def tables(self, key: str, *, required: bool = True) -> tuple[ManifestTable, ...]:
        """Return a list of tables, in order."""
        value = self.raw(key)
        items = value if isinstance(value, list) else []
        found = tuple(
            ManifestTable(item, f"{self.place_of(key)}[{number}]", self.faults)
            for number, item in enumerate(items)
            if isinstance(item, Mapping)
        )
        wrong = len(found) != len(items) or (value is not None and not isinstance(value, list))
        if wrong or (required and not found):
            self.add_fault(key, "must be a list of tables" + (", one at least" * required))
        return found

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts; empty when the field is absent."""
        value = self.raw(key)
        if value is None:
            return ()
        if isinstance(value, list) and all(isinstance(item, str) and item for item in value):
            return tuple(value)
        self.add_fault(key, "must be a list of texts that are not empty")
        return ()

    def code(self, key: str) -> Code:
        """Return a coded concept, written ``["value", "scheme", "meaning"]``."""
        value = self.raw(key)
        if isinstance(value, list) and len(value) == len(_CODE_LENGTHS):
            lengths = zip(value, _CODE_LENGTHS, strict=True)
            if all(isinstance(v, str) and 0 < len(v.strip()) <= most for v, most in lengths):
                return Code(*value)
        self.add_fault(key, 'must be ["code value", "coding scheme", "code meaning"] (PS3.3 8)')
        return Code("", "", "")

    def has(self, key: str) -> bool:
        """Return True when the field is there."""
        return key in self._values

    def plain(self) -> Mapping[str, object]:
        """Return the whole table unchecked; all of it counts as read."""
        self._read.update(self._values)
        return self._values

    def refuse_unknown(self) -> None:
        """Add a fault for every field nobody asked for: most are misspelt."""
        for key in sorted(set(self._values) - self._read):
            known = ", ".join(sorted(self._read))
            self.faults.append(f"{self.place_of(key)}: unknown field; known here are {known}")


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def read_manifest(folder: Path, faults: list[str]) -> ManifestTable | None:
    """Read ``manifest.toml`` of a package folder; None, with the fault added, if it cannot be."""
    path = folder / MANIFEST_NAME
    try:
        if path.stat().st_size > LARGEST_MANIFEST_BYTES:
            faults.append(f"{MANIFEST_NAME}: larger than {LARGEST_MANIFEST_BYTES} bytes")
            return None
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        faults.append(f"{MANIFEST_NAME}: cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        faults.append(f"{MANIFEST_NAME}: is not UTF-8 text, as TOML must be")
    except tomllib.TOMLDecodeError as error:
        faults.append(f"{MANIFEST_NAME}: is not TOML: {error}")
    except RecursionError:
        faults.append(f"{MANIFEST_NAME}: is nested too deeply")
    else:
        return ManifestTable(values, "", faults)
    return None
