"""What an instance holds, as a digest over transfer syntax and encoded data set.

Owns the algorithms and how a digest is written down, so that one recorded by an earlier version
stays comparable. Must not know where files lie, nor what the database holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from dicom_io.errors import UnreadableInstance

FILE_META_START = 144
"""Preamble 128, DICM 4, File Meta Information Group Length element 12 (PS3.10 7.1)."""

_CHUNK_BYTES = 1024 * 1024
_SHORT_DIGITS = 12


class DigestAlgorithm(StrEnum):
    """How a content was digested; both are cryptographic, of 256 bits."""

    SHA256 = "sha256"
    """By versions up to 0.1.0, which recorded bare hexadecimal digits."""
    BLAKE3 = "blake3"
    """A fifth of the CPU time; recorded as ``blake3:`` and hexadecimal digits."""


class _Hash(Protocol):
    def update(self, data: memoryview | bytes, /) -> object: ...

    def hexdigest(self) -> str: ...


_HASHES: dict[DigestAlgorithm, Callable[[bytes], _Hash]] = {
    DigestAlgorithm.SHA256: hashlib.sha256,
    DigestAlgorithm.BLAKE3: blake3,
}
_PREFIXES = {DigestAlgorithm.SHA256: "", DigestAlgorithm.BLAKE3: "blake3:"}


class ContentDigest:
    """The digest of one content, made while its data set arrives.

    Parameters
    ----------
    transfer_syntax_uid : str
        How the data set is encoded: the same bytes in another syntax are another content.
    algorithm : DigestAlgorithm
        Another than the default only to compare with what an earlier version recorded.
    """

    def __init__(
        self, transfer_syntax_uid: str, algorithm: DigestAlgorithm = DigestAlgorithm.BLAKE3
    ) -> None:
        self._prefix = _PREFIXES[algorithm]
        self._hash = _HASHES[algorithm](f"{transfer_syntax_uid}\0".encode())

    def update(self, fragment: memoryview | bytes) -> None:
        """Add the next bytes of the data set; nothing of them is kept."""
        self._hash.update(fragment)

    def text(self) -> str:
        """Return the digest of what came so far, as it is recorded."""
        return f"{self._prefix}{self._hash.hexdigest()}"


def algorithm_of(recorded: str) -> DigestAlgorithm:
    """Return the algorithm that a recorded digest names; bare digits are SHA-256's."""
    is_blake3 = recorded.startswith(_PREFIXES[DigestAlgorithm.BLAKE3])
    return DigestAlgorithm.BLAKE3 if is_blake3 else DigestAlgorithm.SHA256


def short_form(recorded: str) -> str:
    """Return the first digits of a recorded digest, for the names of files."""
    return recorded.removeprefix(_PREFIXES[algorithm_of(recorded)])[:_SHORT_DIGITS]


def content_digest(path: Path, algorithm: DigestAlgorithm = DigestAlgorithm.BLAKE3) -> str:
    """Return the digest of a stored Part 10 file, as it is recorded.

    Group 2 is left out but for the transfer syntax: it names the sender, and the same instance may
    come from two.

    Raises
    ------
    UnreadableInstance
        The file does not begin as Part 10 files do (PS3.10 7.1).
    """
    with path.open("rb") as file:
        head = file.read(FILE_META_START)
        group_length = int.from_bytes(head[-4:], "little")
        group = file.read(group_length)
        if head[128:138] != b"DICM\x02\x00\x00\x00UL" or len(group) != group_length:
            raise UnreadableInstance(f"{path} does not begin with a whole File Meta Information")
        digest = ContentDigest(stated_transfer_syntax(group, path), algorithm)
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.text()


def holds(path: Path, recorded: str) -> bool:
    """True when a stored file has this content; one that its disk damaged has no content."""
    try:
        return content_digest(path, algorithm_of(recorded)) == recorded
    except UnreadableInstance:
        return False


def stated_transfer_syntax(group: bytes, path: Path) -> str:
    """Find Transfer Syntax UID (0002,0010) among explicit little-endian elements.

    Raises
    ------
    UnreadableInstance
        There is none; `path` is for the message.
    """
    at = 0
    while at + 8 <= len(group):
        tag, vr = group[at : at + 4], group[at + 4 : at + 6]
        long_form = vr in (b"OB", b"UN", b"UT", b"UC", b"UR", b"SQ")
        start = at + (12 if long_form else 8)
        length = int.from_bytes(
            group[at + 8 : start] if long_form else group[at + 6 : start], "little"
        )
        if tag == b"\x02\x00\x10\x00":
            return group[start : start + length].rstrip(b"\0 ").decode("ascii", "replace")
        at = start + length
    raise UnreadableInstance(f"{path} names no TransferSyntaxUID (0002,0010)")
