"""How many files and connections this process may have open at once.

Owns the process's limit of descriptors. Knows nothing of what they are used for.
"""

from __future__ import annotations

import logging
import resource

from daemon.logs import ACTION, COUNT

_logger = logging.getLogger(__name__)

_FOR_ONE_ASSOCIATION = 3
"""Its connection, the event that wakes its thread, and the instance it is storing."""
_FOR_ALL_ELSE = 256
"""Database, log, locks, and connections that wait or are turned away."""


def allow_descriptors(associations: int) -> None:
    """Raise the process's soft limit to what that many associations need.

    Services start with 1024, which is kept for programs that use ``select``; ours do not. A hard
    limit that is lower is the administrator's, and is told.
    """
    needed = 2 * _FOR_ONE_ASSOCIATION * associations + _FOR_ALL_ELSE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    if allowed < needed:
        _logger.warning(
            "%d associations need up to %d open files, and this process may have %d: raise its "
            "hard limit (LimitNOFILE= in systemd), or lower receiver.maximum_associations",
            associations, needed, allowed,
            extra={ACTION: "descriptors_limited", COUNT: allowed},
        )  # fmt: skip
