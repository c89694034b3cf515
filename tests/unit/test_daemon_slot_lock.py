"""A slot is held by one process at a time, and freed however that process ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from daemon.config import Config, SiteSection
from daemon.errors import SlotTaken
from daemon.slot_lock import hold_slot

HOLDER = """
import sys, time
from pathlib import Path
from daemon.config import Config, SiteSection
from daemon.slot_lock import hold_slot
with hold_slot(Config(site=SiteSection(data_folder=Path(sys.argv[1]))), "worker-1"):
    print("held", flush=True)
    time.sleep(60)
"""


def config_of(folder: Path) -> Config:
    return Config(site=SiteSection(data_folder=folder))


def test_a_second_process_is_told_who_holds_the_slot(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"

    with (
        pytest.raises(SlotTaken, match=f"process {holder.pid}"),
        hold_slot(config_of(tmp_path), "worker-1"),
    ):
        pass

    with hold_slot(config_of(tmp_path), "worker-2"):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with hold_slot(config_of(tmp_path), "worker-1"):
        pass
