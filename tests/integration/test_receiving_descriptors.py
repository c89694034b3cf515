"""A receiver that has no file descriptor left: it waits, it stops in order, and it goes on."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from dicom_io.receiving.folder_sink import FolderSink
from dicom_io.receiving.handover import Handover
from dicom_io.receiving.port_claim import PortClaim
from dicom_io.receiving.server import StorageServer
from dicom_io.receiving.shared_places import SharedPlaces
from tests import upper_layer as ul
from tests.waiting import wait_until

HOST = "127.0.0.1"
REQUEST = ul.associate_request([ul.Context(1)])


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Take every descriptor that this process may still have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208 - names alone
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, hard))
    held: list[int] = []
    try:
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for each in held:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_connections_wait_without_a_busy_loop_and_are_served_in_the_end(tmp_path, caplog):
    with (
        StorageServer(FolderSink(tmp_path), port=0) as server,
        socket.socket() as waiting,
    ):
        waiting.settimeout(10)
        with no_descriptor_left():
            waiting.connect((HOST, server.port))
            waiting.sendall(REQUEST)
            spent = time.process_time()
            time.sleep(1)
            spent = time.process_time() - spent

        assert waiting.recv(1 << 16)[0] == ul.ASSOCIATE_AC
    # A busy loop takes the whole second.
    assert spent < 0.3
    told = [each.action for each in caplog.records if each.levelname != "INFO"]
    assert told == ["connections wait"]


def test_the_receiver_stops_in_order_while_connections_wait(tmp_path, free_port):
    with (
        closing(SharedPlaces(tmp_path / "places")) as places,
        PortClaim(HOST, free_port, "/srv/one") as claim,
        socket.socket() as admitted,
        socket.socket() as waiting,
    ):
        server = StorageServer(
            FolderSink(tmp_path / "received"),
            port=free_port,
            reuse_port=True,
            places=places,
            handover=Handover(claim, places),
        )
        server.start()
        admitted.settimeout(10)
        admitted.connect((HOST, free_port))
        admitted.sendall(REQUEST)
        assert admitted.recv(1 << 16)[0] == ul.ASSOCIATE_AC
        with no_descriptor_left():
            waiting.connect((HOST, free_port))
            time.sleep(0.1)

            server.stop(wait_seconds=0.1)

        assert admitted.recv(1 << 16)[0] == ul.ABORT
        assert wait_until(lambda: server.open_associations == 0)
