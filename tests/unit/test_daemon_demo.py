"""When the demonstration may begin."""

from __future__ import annotations

import os
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from daemon.config import Config, SiteSection
from daemon.demo import is_ready
from daemon.role import now_utc
from storage.database import Database, migrate, open_database
from storage.processes import register_process, remove_process

ROLES = ("receiver", "preparer", "courier", "worker")


def register(database: Database, config: Config, *roles: str, age_seconds: float = 0.0) -> None:
    for role in roles:
        register_process(
            database, f"{role}-1", role=role, pid=os.getpid(), host=config.site.node_id,
            now=now_utc() - timedelta(seconds=age_seconds), state="ready", detail={"models": []},
        )  # fmt: skip


def test_the_demonstration_waits_for_living_processes_and_no_rows_of_killed_ones(
    tmp_path: Path,
) -> None:
    config = Config(site=SiteSection(data_folder=tmp_path))
    assert not is_ready(config)
    migrate(config.database_path)
    with closing(open_database(config.database_path)) as database:
        register(database, config, *ROLES, age_seconds=60)
        assert not is_ready(config)

        register(database, config, *ROLES)
        assert is_ready(config)

        remove_process(database, "courier-1")
        assert not is_ready(config)
