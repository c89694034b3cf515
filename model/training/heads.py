"""What a network answers: one question, one of several classes, or several questions.

Owns the names. Imports no network library: configurations speak of heads too.
"""

from __future__ import annotations

from enum import StrEnum


class HeadValues(StrEnum):
    """How the outputs of a network belong together."""

    BINARY = "binary"
    """One output: the logit of one label, yes or no."""
    MULTI_CLASS = "multi-class"
    """One output per class, of which exactly one is true (softmax)."""
    MULTI_LABEL = "multi-label"
    """One output per label, each yes or no by itself (sigmoid)."""
