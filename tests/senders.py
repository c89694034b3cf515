"""Modalities that send without end, and the ledger of what they sent and what was acknowledged.

Owns the judgement on a spool after a death: nothing acknowledged is missing, nothing visible is
anything but a whole instance that somebody sent.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dicom_io.receiving.instances import StoreRequest
from dicom_io.receiving.part10 import file_prefix
from tests.integration.pdu_client import PduClient
from tests.storage_hospital import make_data_set
from tests.upper_layer import (
    CT_IMAGE_STORAGE,
    EXPLICIT_VR_LITTLE_ENDIAN,
    Context,
    message,
    p_data,
    status_of,
    store_request,
)

CALLING_AE_TITLE = "MODALITY"
SUCCESS = 0x0000
_ROOT = "1.2.826.0.1.3680043.10"
_INSTANCES_PER_SERIES = 6
_SERIES_PER_STUDY = 3
_FRAGMENT_BYTES = 16000
_RETRY_SECONDS = 0.002


@dataclass(frozen=True)
class Outgoing:
    """One instance as it is sent."""

    sop_instance_uid: str
    data_set: bytes

    @property
    def file_digest(self) -> bytes:
        """Of the file that must come of it, head included."""
        request = StoreRequest(
            "", CALLING_AE_TITLE, "MEDIMGD", "127.0.0.1", CT_IMAGE_STORAGE,
            self.sop_instance_uid, EXPLICIT_VR_LITTLE_ENDIAN,
        )  # fmt: skip
        return hashlib.sha256(file_prefix(request) + self.data_set).digest()


def instance(study: str, series: str, number: int, pixels: bytes) -> Outgoing:
    """Return a CT slice of these pixels; an even number of bytes."""
    sop = f"{series}.{number}"
    return Outgoing(sop, make_data_set(sop, study=study, series=series, pixels=pixels))


def endless_instances(sender: int, seed: int, shared_study: str) -> Iterator[Outgoing]:
    """Yield instances of ever new series and studies, mostly small, now and then of some MB.

    Every fifth series belongs to a study that the other senders fill as well, and some UIDs come
    twice with different content.
    """
    chance = random.Random(seed)
    for series_number in range(1, 1_000_000):
        own_study = f"{_ROOT}.{sender}.{series_number // _SERIES_PER_STUDY + 1}"
        study = shared_study if series_number % 5 == 0 else own_study
        series = f"{study}.{sender}.{series_number}"
        for number in range(1, _INSTANCES_PER_SERIES + 1):
            yield instance(study, series, number, _pixels(chance))
            if chance.random() < 0.04:
                yield instance(study, series, number, _pixels(chance))


def _pixels(chance: random.Random) -> bytes:
    kind = chance.random()
    if kind < 0.03:
        return chance.randbytes(2 * chance.randint(500_000, 2_000_000))
    if kind < 0.3:
        return chance.randbytes(2 * chance.randint(30_000, 150_000))
    return chance.randbytes(2 * chance.randint(1, 15_000))


class Ledger:
    """What was sent and what was acknowledged; shared by the senders."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: dict[bytes, str] = {}
        self._acknowledged: set[bytes] = set()
        self._seen: dict[str, tuple[tuple[int, int, int], bytes]] = {}
        self.answers = 0

    def note_sending(self, outgoing: Outgoing) -> None:
        with self._lock:
            self._sent[outgoing.file_digest] = outgoing.sop_instance_uid

    def note_acknowledged(self, outgoing: Outgoing) -> None:
        with self._lock:
            self._acknowledged.add(outgoing.file_digest)
            self.answers += 1

    def acknowledged(self) -> frozenset[bytes]:
        with self._lock:
            return frozenset(self._acknowledged)

    def judge(self, spool: Path, *, again: bool = False) -> set[bytes]:
        """Hold a spool against what was sent; return the contents that are there.

        Parameters
        ----------
        again : bool
            Read every file; otherwise those that look as they did when they were read are not.
        """
        # Taken before looking: what is acknowledged later may be stored later.
        acknowledged = self.acknowledged()
        if again:
            self._seen.clear()
        present = set()
        for path in visible_files(spool):
            digest = self._digest_of(path)
            with self._lock:
                uid = self._sent.get(digest)
            assert uid is not None, f"{path.name} is not what anybody sent: half a file is visible"
            is_final = path.name == f"{uid}.dcm" or path.name.startswith(f"{uid}.conflict-")
            assert is_final, f"{path.name} is visible and not the final name of {uid}"
            present.add(digest)
        lost = acknowledged - present
        names = sorted(self._sent[each] for each in lost)
        assert not lost, f"{len(lost)} acknowledged instances are lost: {names[:3]}"
        return present

    def _digest_of(self, path: Path) -> bytes:
        look = path.stat()
        signature = look.st_ino, look.st_size, look.st_mtime_ns
        known = self._seen.get(str(path))
        if known is None or known[0] != signature:
            known = signature, hashlib.sha256(path.read_bytes()).digest()
            self._seen[str(path)] = known
        return known[1]


def visible_files(spool: Path) -> list[Path]:
    """Return every file below ``studies``, whatever its name."""
    return [
        Path(folder) / name for folder, _, names in os.walk(spool / "studies") for name in names
    ]


def temporary_files(spool: Path) -> list[Path]:
    """Return what lies in ``incoming``."""
    folder = spool / "incoming"
    return sorted(folder.iterdir()) if folder.exists() else []


class Modality(PduClient):
    """One association that sends CT slices."""

    def __init__(self, port: int, timeout_seconds: float = 10) -> None:
        super().__init__(port, timeout_seconds=timeout_seconds)
        try:
            context = Context(1, CT_IMAGE_STORAGE, (EXPLICIT_VR_LITTLE_ENDIAN,))
            self.propose([context], calling=CALLING_AE_TITLE)
        except (OSError, AssertionError):
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send_instance(self, outgoing: Outgoing) -> int:
        """Send one instance, PDU by PDU, and return the status of the answer."""
        command = store_request(outgoing.sop_instance_uid)
        for value in message(1, command, outgoing.data_set, _FRAGMENT_BYTES):
            self.send(p_data(value))
        return status_of(self.read_pdu()[12:])

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise ConnectionError("the receiver hung up")
            data += more
        return data


class Senders:
    """Threads that send until told to stop; what is not acknowledged is sent again."""

    def __init__(self, port: int, ledger: Ledger, count: int, seed: int) -> None:
        self._port = port
        self._ledger = ledger
        self._stop = threading.Event()
        self._failures: list[str] = []
        self._threads = [
            threading.Thread(target=self._send_without_end, args=(number, seed))
            for number in range(1, count + 1)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop after what is under way; fail if something else than a death went wrong."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self._failures, self._failures

    def _send_without_end(self, number: int, seed: int) -> None:
        outgoing = endless_instances(number, seed * 100 + number, f"{_ROOT}.999")
        current = next(outgoing)
        while not self._stop.is_set():
            try:
                with Modality(self._port) as modality:
                    while not self._stop.is_set():
                        self._ledger.note_sending(current)
                        status = modality.send_instance(current)
                        if status != SUCCESS:
                            self._failures.append(f"{current.sop_instance_uid}: {status:04X}")
                            return
                        self._ledger.note_acknowledged(current)
                        current = next(outgoing)
            except OSError:
                time.sleep(_RETRY_SECONDS)
            except Exception as error:  # noqa: BLE001 - told by `stop`, not lost with the thread
                self._failures.append(repr(error))
                return
