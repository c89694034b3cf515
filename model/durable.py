"""Files and folders that survive a power loss: whole under their name, or not there.

Owns the few file system calls whose order decides that. Errors are the operating system's.
"""

from __future__ import annotations

import os
from pathlib import Path


def make_folders(folder: Path) -> Path:
    """Make a folder and its parents, each new one synced into its parent; return the folder."""
    missing = []
    place = folder.absolute()
    while not place.is_dir():
        missing.append(place)
        place = place.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        sync(each.parent)
    return folder


def publish(part: Path, path: Path) -> None:
    """Give a finished file or folder its name; whoever finds it there finds all of it."""
    for each in [*part.rglob("*"), part]:
        sync(each)
    part.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make the contents of a file, or the names in a folder, survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
