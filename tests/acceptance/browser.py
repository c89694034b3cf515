"""Headless Chromium as judge of pages: the DOM after scripts ran, or a picture of it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-default-apps", "--disable-extensions", "--disable-dev-shm-usage",
    "--hide-scrollbars",
)  # fmt: skip
_TIMEOUT_SECONDS = 90


def chromium() -> str:
    """Return the browser's path; skipped where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium: run tests/install-peers")
    return found


def dump_dom(url: str, tmp_path: Path, *, after_seconds: float = 0) -> str:
    """Return the document as it stands after the page was loaded and its scripts ran.

    `after_seconds` lets that much of the browser's own time pass, in an instant.
    """
    budget = (f"--virtual-time-budget={int(after_seconds * 1000)}",) if after_seconds else ()
    return _run(url, tmp_path, *budget, "--dump-dom")


def screenshot(url: str, path: Path, *, width: int = 1500, height: int = 1000) -> None:
    """Write a picture of a page."""
    _run(url, path.parent, f"--screenshot={path}", f"--window-size={width},{height}")


def _run(url: str, folder: Path, *what: str) -> str:
    # A profile of its own: nothing is remembered between pages, and no other Chromium is joined.
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as profile:
        finished = subprocess.run(
            [chromium(), *_OPTIONS, f"--user-data-dir={profile}", *what, url],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout
