"""``medimgd run``: prepares the installation and runs one role, or all under supervision."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import cast

from daemon.config import Config
from daemon.exit_codes import ExitCode
from daemon.logs import ACTION, set_up_logs
from daemon.slot_lock import hold_slot
from daemon.supervisor import Child, Supervisor
from storage.database import Database, migrate, open_database

_logger = logging.getLogger(__name__)

RunRole = Callable[[Config, Database, str], ExitCode | None]

CHILD_ROLES = ("receiver", "preparer", "worker", "courier", "web")
ROLES = (*CHILD_ROLES, "scheduler")


def role_function(role: str) -> RunRole:
    """Return what runs a role; imports only what that role needs."""
    module = "daemon.web.serving" if role == "web" else f"daemon.{role}"
    return cast("RunRole", getattr(import_module(module), f"run_{role}"))


def default_slot(role: str) -> str:
    """Return the slot of the first process of a role on a host."""
    return f"{role}-1"


def run_one(config: Config, role: str, slot: str | None = None) -> ExitCode:
    """Run one role in this process until a stop is asked for."""
    slot = slot or default_slot(role)
    set_up_logs(slot, config.log.level, config.log.style)
    with hold_slot(config, slot):
        migrate(config.database_path)
        database = open_database(config.database_path)
        try:
            code = role_function(role)(config, database, slot)
        finally:
            database.close()
    return code or ExitCode.OK


def run_all(config: Config, config_path: Path | None) -> ExitCode:
    """Run every role: children under supervision, the scheduler in this process."""
    slot = default_slot("scheduler")
    set_up_logs(slot, config.log.level, config.log.style)
    with hold_slot(config, slot):
        migrate(config.database_path)
        database = open_database(config.database_path)
        try:
            code = _supervise(config, config_path, database, slot)
        finally:
            database.close()
    _logger.info("medimgd ended", extra={ACTION: "ended"})
    return code


def _supervise(config: Config, config_path: Path | None, database: Database, slot: str) -> ExitCode:
    """Keep the children running and the scheduler's duties done until a stop is asked for."""
    from daemon.role import HEARTBEAT_SECONDS, now_utc
    from daemon.scheduler import Scheduler
    from storage.processes import heartbeat, register_process, remove_process
    from storage.spool import Spool

    children = children_of(config)
    supervisor = Supervisor(children, config_path)
    _stop_on_signals(supervisor)
    register_process(
        database, slot, role="scheduler", pid=os.getpid(), host=config.site.node_id,
        now=now_utc(), state="ready", detail={"slots": [child.slot for child in children]},
    )  # fmt: skip
    scheduler = Scheduler(config, database, Spool(config.spool_folder, 0, slot=slot))
    scheduler.every(HEARTBEAT_SECONDS, lambda: heartbeat(database, slot, now_utc()), "heartbeat")
    scheduler.start()
    try:
        return supervisor.run()
    finally:
        scheduler.stop()
        remove_process(database, slot)


def children_of(config: Config) -> list[Child]:
    """Return the processes this configuration asks for."""
    count = {"receiver": config.receiver.process_count, "web": int(config.web.enabled)}
    return [
        Child(role, f"{role}-{number}", may_keep_dying=role in ("worker", "web"))
        for role in CHILD_ROLES
        for number in range(1, count.get(role, 1) + 1)
    ]


def _stop_on_signals(supervisor: Supervisor) -> None:
    """First signal: an orderly stop. Second: at once."""
    asked = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        del frame
        if asked:
            supervisor.stop_at_once()
            os._exit(128 + number)
        asked = True
        supervisor.request_stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
