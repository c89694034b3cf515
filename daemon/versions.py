"""Versions of medimgd and of the libraries that decide what it does."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from daemon import __version__

LIBRARIES = (
    "pydicom", "pynetdicom", "highdicom", "pylibjpeg", "pyjpegls", "keras", "tensorflow", "numpy",
    "sqlalchemy",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return name and version of each; a library that is absent says so. Imports none of them."""
    return {
        "medimgd": __version__,
        "python": platform.python_version(),
        **{name: _version_of(name) for name in LIBRARIES},
    }


def _version_of(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
