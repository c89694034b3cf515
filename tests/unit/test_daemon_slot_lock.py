"""A slot is held by one process at a time, and freed however that process ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from daemon.config import Config, SiteSection
from daemon.errors import DataFolderUnusable, SlotTaken
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


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with (
        pytest.raises(DataFolderUnusable, match=r"cannot write into .*file/run.*Not a directory"),
        hold_slot(config_of(tmp_path / "file" / "run"), "worker-1"),
    ):
        pass


def test_a_second_daemon_is_not_told_to_take_a_slot(tmp_path: Path) -> None:
    with (
        hold_slot(config_of(tmp_path), "scheduler-1"),
        pytest.raises(SlotTaken) as caught,
        hold_slot(config_of(tmp_path), "scheduler-1"),
    ):
        pass

    assert str(caught.value).endswith("stop it, use another data folder")
