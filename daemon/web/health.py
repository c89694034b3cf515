"""Health for load balancers and probes: whether studies are received, analysed and sent on.

Owns which faults make the installation not ready. What an archive does or a study needs is for
``medimgd status``: restarting medimgd would not mend it.
"""

from __future__ import annotations

from dataclasses import dataclass

from daemon.config import Config
from daemon.role import now_utc
from daemon.status import ALL_ROLES, Status, read_status
from storage.errors import StorageError


@dataclass(frozen=True, slots=True)
class Health:
    """What a probe is told."""

    ready: bool
    reasons: tuple[str, ...]
    """Why not; empty when ready. Never about a patient or a study."""
    roles: dict[str, bool]
    """Which roles beat."""


def read_health(config: Config) -> Health:
    """Judge an installation; never raises."""
    try:
        status = read_status(config, now_utc())
    except StorageError as error:
        return Health(ready=False, reasons=(str(error),), roles={})
    return judge_health(status)


def judge_health(status: Status) -> Health:
    """Judge a status; a pure function."""
    alive = {process.role for process in status.processes if process.alive}
    # Whoever answers is the web role itself, even where its first heartbeat is still to come.
    roles = {role: role in alive for role in ALL_ROLES if role != "web"}
    reasons = [f"no {role} is alive" for role, beats in roles.items() if not beats]
    if status.overview is None:
        reasons.append("there is no database yet")
    if status.disk.is_short:
        reasons.append(
            f"disk: {status.disk.free_mib} MiB free, {status.disk.minimum_free_mib} needed"
        )
    return Health(ready=not reasons, reasons=tuple(reasons), roles=roles)
