"""Associations without instances: ``python -m tests.benchmarks.association_client PORT N SECONDS``.

Opens an association with N presentation contexts, sends a C-ECHO and releases it, again and again
for that long.
"""

from __future__ import annotations

import sys
import time

from pynetdicom import AllStoragePresentationContexts

from tests.benchmarks.starting_signal import report, wait_for_signal
from tests.integration.pdu_client import PduClient
from tests.upper_layer import (
    ASSOCIATE_AC,
    IMPLICIT_VR_LITTLE_ENDIAN,
    LAST_COMMAND,
    RELEASE_REQUEST,
    RELEASE_RP,
    VERIFICATION,
    Context,
    associate_request,
    echo_request,
    p_data,
    pdv,
    status_of,
)

TRANSFER_SYNTAXES = (
    "1.2.840.10008.1.2.1",
    IMPLICIT_VR_LITTLE_ENDIAN,
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.5",
)
"""Explicit and implicit little endian, JPEG lossless, JPEG 2000 lossless, RLE."""


def main() -> None:
    """Wait for the signal, associate for as long as asked, report."""
    port, contexts, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    # All bytes are made before: the client should cost as little as it can.
    request = associate_request(_contexts(contexts))
    echo = p_data(pdv(1, LAST_COMMAND, echo_request()))
    wait_for_signal()
    started, associations = time.perf_counter(), 0
    while (lasted := time.perf_counter() - started) < seconds:
        _associate(port, request, echo)
        associations += 1
    report(associations=associations, seconds=lasted)


def _contexts(count: int) -> list[Context]:
    storage = [str(each.abstract_syntax) for each in AllStoragePresentationContexts]
    proposed = [
        Context(2 * number + 3, uid, TRANSFER_SYNTAXES)
        for number, uid in enumerate(storage[: count - 1])
    ]
    return [Context(1, VERIFICATION), *proposed]


def _associate(port: int, request: bytes, echo: bytes) -> None:
    client = PduClient(port)
    client.send(request)
    if client.read_pdu()[0] != ASSOCIATE_AC:
        sys.exit("the association was not accepted")
    client.send(echo)
    if status_of(client.read_pdu()[12:]) != 0:
        sys.exit("the echo failed")
    client.send(RELEASE_REQUEST)
    if client.read_pdu()[0] != RELEASE_RP:
        sys.exit("the release was not answered")
    client.close()


if __name__ == "__main__":
    main()
