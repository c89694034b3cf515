"""What the command's exit status means; scripts and service managers rely on these numbers."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit statuses of every ``medimgd`` command."""

    OK = 0
    FAILED = 1
    """The command was understood and could not be carried out; the message says why."""
    USAGE = 2
    """The command line itself was wrong."""
    NEEDS_ATTENTION = 3
    """``status`` or ``doctor``: something needs a person."""
    NOT_FOUND = 4
    """No such study, model or result."""
    CONFIGURATION = 5
    """The configuration is invalid; every fault is listed."""
    PEER = 6
    """A peer could not be reached or refused."""
    CHILD_KEEPS_DYING = 7
    """``run``: a process died again and again, or was still dying when medimgd stopped."""
    RENEWED = 8
    """``run worker``: it ended in order to be started anew, with nothing in hand."""
    HUNG = 9
    """``run worker``: a computation did not end; its analyses wait again."""
