"""Which regular expressions a manifest may hold: those that cannot take for ever.

Owns the rule. Patterns come from packages, the text they are matched against from any peer on
the network; so no text may make a pattern search for more than a fraction of a second.
"""

from __future__ import annotations

import re

LONGEST_MATCHED_TEXT = 128
"""Characters of a value that are matched; the rest is not looked at. DICOM's LO holds 64."""

LONGEST_PATTERN = 200
MOST_OPEN_REPEATS = 3
"""The cost of a match grows with the text's length to this power."""

_ATOM = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]")
_REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{\d*,?\d*\})")
_OPEN_REPEAT = re.compile(r"[*+]|\{\d*,\d*\}")
_SPECIAL_GROUP = re.compile(r"\(\?(?!:)")


def pattern_fault(pattern: object) -> str:
    """Return why a pattern is not accepted, or the empty string when it is.

    The pattern must match the whole value. Groups may not be repeated (``(a+)+`` can take
    for ever), look around or refer back; at most three ``*``, ``+`` or ``{m,n}`` are allowed.
    """
    if not isinstance(pattern, str) or not pattern:
        return f"must be a pattern that is not empty, received {pattern!r}"
    if len(pattern) > LONGEST_PATTERN:
        return f"must be at most {LONGEST_PATTERN} characters long, received {len(pattern)}"
    try:
        re.compile(pattern)
    except re.error as error:
        return f"must be a regular expression: {error}; received {pattern!r}"
    return _cost_fault(pattern)


def _cost_fault(pattern: str) -> str:
    if re.search(r"\\[1-9]", pattern):
        return f"must not refer back to a group, received {pattern!r}"
    bare = _ATOM.sub("x", pattern)
    if _SPECIAL_GROUP.search(bare):
        return f"must not use (?...) groups other than (?:...), received {pattern!r}"
    if _REPEATED_GROUP.search(bare):
        return f"must not repeat a group, which can take for ever; received {pattern!r}"
    if len(_OPEN_REPEAT.findall(bare)) > MOST_OPEN_REPEATS:
        return f"must hold at most {MOST_OPEN_REPEATS} of * + {{m,n}}, received {pattern!r}"
    return ""
