"""Whose an image is, as far as its file name says.

Owns the patterns of public collections; a configuration or a manifest may say more.
"""

from __future__ import annotations

import re
from pathlib import Path

_PATTERNS = (re.compile(r"(person\d+)_"), re.compile(r"((?:NORMAL2-)?IM-\d+)-"))
"""Of the chest films of Kermany et al."""


def patient_key(file_name: str) -> str:
    """Return what names the patient in a file name; the whole stem where no rule fits."""
    for pattern in _PATTERNS:
        match = pattern.match(file_name)
        if match is not None:
            return match.group(1)
    return Path(file_name).stem
