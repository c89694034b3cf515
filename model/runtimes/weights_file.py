"""What a .keras file says about itself, before any library opens it.

Owns the sentences for files that are truncated, too old or something else entirely. Imports
neither Keras nor TensorFlow.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from model.errors import RuntimeFault

OLDEST_KERAS_MAJOR = 3
LARGEST_UNPACKED_BYTES = 8 << 30
"""A file that says it unpacks to more is refused before it is unpacked."""

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_MEMBERS = ("metadata.json", "config.json", "model.weights.h5")
_SAVE_AGAIN = "open it with the Keras it was made with and save it as .keras with Keras 3"


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """The facts of a sound file."""

    path: Path
    keras_version: str


def read_weights_file(path: Path) -> WeightsFile:
    """Check that a file is a complete Keras 3 model.

    Raises
    ------
    RuntimeFault
        The file is absent, truncated, damaged, too old or no Keras model; the message says
        which and what to do.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_HDF5_MAGIC))
    except OSError as error:
        raise RuntimeFault(f"{path.name}: cannot be read: {error.strerror}") from error
    if start == _HDF5_MAGIC:
        raise RuntimeFault(
            f"{path.name}: is an HDF5 file, as Keras 2 and older wrote them, too old to be "
            f"read safely; {_SAVE_AGAIN}"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return WeightsFile(path, _checked_version(path, archive))
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, OSError) as error:
        raise RuntimeFault(_not_complete(path, start, error)) from error


def _not_complete(path: Path, start: bytes, error: Exception) -> str:
    size = path.stat().st_size
    if start.startswith(b"PK"):
        return (
            f"{path.name}: the file is truncated or damaged: it begins as a Keras model but its "
            f"{size} bytes are no complete archive ({error}); copy the package again"
        )
    return (
        f"{path.name}: is not a Keras model: a .keras file is a zip archive, this is something "
        f"else of {size} bytes; put the file saved with model.save('….keras') in its place"
    )


def _checked_version(path: Path, archive: zipfile.ZipFile) -> str:
    members = set(archive.namelist())
    missing = [name for name in _MEMBERS if name not in members]
    if missing:
        raise RuntimeFault(
            f"{path.name}: is a zip archive but no Keras model: it lacks {', '.join(missing)}"
        )
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > LARGEST_UNPACKED_BYTES:
        raise RuntimeFault(
            f"{path.name}: unpacks to {unpacked} bytes, at most {LARGEST_UNPACKED_BYTES} allowed"
        )
    broken = archive.testzip()
    if broken is not None:
        raise RuntimeFault(
            f"{path.name}: is damaged: the checksum of {broken} inside is wrong; "
            f"copy the package again"
        )
    version = _keras_version(path, archive)
    major = version.split(".", 1)[0]
    if not major.isdigit() or int(major) < OLDEST_KERAS_MAJOR:
        raise RuntimeFault(
            f"{path.name}: was saved by Keras {version}, too old: Keras "
            f"{OLDEST_KERAS_MAJOR} or newer is needed; {_SAVE_AGAIN}"
        )
    return version


def _keras_version(path: Path, archive: zipfile.ZipFile) -> str:
    try:
        metadata = json.loads(archive.read("metadata.json"))
        return str(metadata["keras_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeFault(
            f"{path.name}: metadata.json inside does not name the Keras version"
        ) from error
