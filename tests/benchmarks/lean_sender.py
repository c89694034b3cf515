"""A sender that costs as little as Python can: ``python -m tests.benchmarks.lean_sender PORT ...``.

Owns one association and its C-STOREs, data sets sent as they lie in files or made up on the way.
Decodes nothing; every PDU is as long as the receiver takes it.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom

from tests.benchmarks.multi_frame import MultiFrame
from tests.benchmarks.starting_signal import report, wait_for_signal
from tests.integration.pdu_client import PduClient
from tests.upper_layer import (
    DATA,
    LAST_COMMAND,
    LAST_DATA,
    P_DATA_TF,
    Context,
    p_data,
    pdv,
    status_of,
    store_request,
)

LONGEST_PDU = 128 * 1024
"""What is sent at once to receivers that take PDUs of any length."""
_ANSWER_SECONDS = 120.0
_HEADS = struct.Struct(">BBLLBB")
_VALUE_HEAD_BYTES = 6
_MAXIMUM_LENGTH_ITEM = b"\x51\x00\x00\x04"


@dataclass(frozen=True)
class Instance:
    """One instance to send."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    size: int
    """Bytes of the data set."""
    pieces: Iterator[memoryview]
    """The data set, in pieces of any length."""


def main() -> None:
    """Associate, wait for the signal, send, release, report."""
    port, *what = sys.argv[1:]
    instances = [_made_up(what[1])] if what[0] == "multi-frame" else [*map(_of_file, what)]
    ids = _context_ids(instances)
    client = PduClient(int(port), timeout_seconds=_ANSWER_SECONDS)
    contexts = [
        Context(number, sop_class, (syntax,)) for (sop_class, syntax), number in ids.items()
    ]
    room = _room(client.propose(contexts))
    wait_for_signal()
    for instance in instances:
        _store(client, instance, ids[instance.sop_class_uid, instance.transfer_syntax_uid], room)
    client.release()
    report(instances=len(instances), size=sum(each.size for each in instances))


def _of_file(name: str) -> Instance:
    meta = pydicom.filereader.read_file_meta_info(name)
    data = Path(name).read_bytes()
    data_set = memoryview(data)[144 + int.from_bytes(data[140:144], "little") :]
    return Instance(
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID,
        len(data_set), iter([data_set]),
    )  # fmt: skip


def _made_up(description: str) -> Instance:
    made = MultiFrame.from_argument(description)
    return Instance(
        made.sop_class_uid, made.sop_instance_uid, made.transfer_syntax_uid, made.size,
        made.pieces(),
    )  # fmt: skip


def _context_ids(instances: list[Instance]) -> dict[tuple[str, str], int]:
    pairs = dict.fromkeys((each.sop_class_uid, each.transfer_syntax_uid) for each in instances)
    return {pair: 2 * number + 1 for number, pair in enumerate(pairs)}


def _room(answer: bytes) -> int:
    """Return how much of a data set fits into one PDU, from the A-ASSOCIATE-AC."""
    at = answer.index(_MAXIMUM_LENGTH_ITEM) + len(_MAXIMUM_LENGTH_ITEM)
    maximum = int.from_bytes(answer[at : at + 4], "big")
    return min(maximum or LONGEST_PDU, LONGEST_PDU) - _VALUE_HEAD_BYTES


def _store(client: PduClient, instance: Instance, context_id: int, room: int) -> None:
    command = store_request(instance.sop_instance_uid, sop_class_uid=instance.sop_class_uid)
    client.socket.sendall(p_data(pdv(context_id, LAST_COMMAND, command)))
    left = instance.size
    for piece in instance.pieces:
        for start in range(0, len(piece), room):
            fragment = piece[start : start + room]
            left -= len(fragment)
            _send(client, context_id, fragment, LAST_DATA if not left else DATA)
    status = status_of(client.read_pdu()[12:])
    if status != 0:
        sys.exit(f"answered {status:04X}")


def _send(client: PduClient, context_id: int, fragment: memoryview, control: int) -> None:
    length = len(fragment)
    heads = _HEADS.pack(P_DATA_TF, 0, length + 6, length + 2, context_id, control)
    sent = client.socket.sendmsg([heads, fragment])
    if sent < len(heads):
        client.socket.sendall(heads[sent:])
        sent = len(heads)
    rest = fragment[sent - len(heads) :]
    if rest:
        client.socket.sendall(rest)


if __name__ == "__main__":
    main()
