"""Who may share a port, and what may be handed over between those who do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from array import array
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TextIO

import pytest

from dicom_io.errors import ReceiverNotStarted
from dicom_io.receiving.folder_sink import FolderSink
from dicom_io.receiving.handover import Handover
from dicom_io.receiving.port_claim import PortClaim
from dicom_io.receiving.server import StorageServer
from dicom_io.receiving.shared_places import SharedPlaces
from tests.waiting import wait_until

HOST = "127.0.0.1"

_CLAIMS = """
import sys
from dicom_io.receiving.port_claim import PortClaim
with PortClaim(sys.argv[1], int(sys.argv[2]), sys.argv[3]):
    print("claimed", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def port(free_port: int) -> int:
    return free_port


@pytest.fixture
def other(port: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that claims the port for the installation in /srv/one."""
    process = subprocess.Popen(
        [sys.executable, "-c", _CLAIMS, HOST, str(port), "/srv/one"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.kill()


def test_receivers_of_one_installation_claim_a_port_together(
    port: int, other: subprocess.Popen[str]
) -> None:
    with PortClaim(HOST, port, "/srv/one") as claim:
        assert claim.port == port


@pytest.mark.parametrize("address", [HOST, "0.0.0.0"])
def test_another_installation_is_refused_and_named(
    port: int, other: subprocess.Popen[str], address: str
) -> None:
    with (
        pytest.raises(ReceiverNotStarted, match=f"process {other.pid}"),
        PortClaim(address, port, "/srv/two"),
    ):
        pass


def test_another_address_or_port_may_be_claimed_beside_it(
    port: int, other: subprocess.Popen[str]
) -> None:
    with PortClaim("127.0.0.2", port, "/srv/two") as beside:
        assert beside.port == port
    with PortClaim(HOST, port - 1, "/srv/two") as below:
        assert below.port == port - 1


def test_a_claim_ends_with_its_process(port: int, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()

    with PortClaim(HOST, port, "/srv/two") as claim:
        assert claim.port == port


def test_a_port_that_a_stranger_shares_is_refused(port: int) -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind((HOST, port))
        stranger.listen()

        with (
            pytest.raises(ReceiverNotStarted, match="another program does"),
            PortClaim(HOST, port, "/srv/one"),
        ):
            pass


def test_an_address_of_another_machine_is_not_taken_for_a_port_in_use(port: int) -> None:
    address = "192.0.2.1"  # For documentation only (RFC 5737).
    server = StorageServer(FolderSink(Path()), address=address, port=port, reuse_port=True)

    with (
        PortClaim(address, port, "/srv/one"),
        pytest.raises(ReceiverNotStarted, match="Cannot assign requested address"),
        server,
    ):
        pass


def test_only_connections_of_the_port_are_taken_over(port: int, tmp_path: Path) -> None:
    taken: list[socket.socket] = []
    arrived = threading.Event()

    def take(connection: socket.socket) -> None:
        taken.append(connection)
        arrived.set()

    places = SharedPlaces(tmp_path / "places")
    with (
        PortClaim(HOST, port, "/srv/one") as claim,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        socket.create_server((HOST, port)) as listening,
        socket.create_server((HOST, 0)) as elsewhere,
    ):
        handover = Handover(claim, places)
        handover.start(take)
        address = claim.socket.getsockname()
        ours, other = connected(listening), connected(elsewhere)
        left, right = socket.socketpair()
        before = open_files()

        sender.sendto(b"nothing", address)
        with Path(os.devnull).open() as no_socket:
            for wrong in (left, other[1], listening, no_socket):
                hand_over(sender, wrong, address)
        hand_over(sender, ours[1], address)

        assert arrived.wait(10)
        assert open_files() == before + 1
        handover.stop()
        assert [each.getpeername() for each in taken] == [ours[0].getsockname()]
        for each in (*ours, *other, left, right):
            each.close()
    places.close()
    for each in taken:
        each.close()


def test_nothing_is_taken_over_from_another_user(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[socket.socket] = []
    places = SharedPlaces(tmp_path / "places")
    with (
        PortClaim(HOST, port, "/srv/one") as claim,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        socket.create_server((HOST, port)) as listening,
        Path(os.devnull).open() as no_socket,
    ):
        # The sender's user is ours, so that ours has to look like another one.
        monkeypatch.setattr(os, "geteuid", partial(int, os.geteuid() + 1))
        handover = Handover(claim, places)
        handover.start(taken.append)
        client, connection = connected(listening)
        before = open_files()

        for what in (no_socket, connection) * 8:
            hand_over(sender, what, claim.socket.getsockname())

        handover.stop()
        assert taken == []
        assert open_files() == before
        client.close()
        connection.close()
    places.close()


def test_a_process_whose_socket_broke_asks_for_no_more_connections(
    port: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine, other = SharedPlaces(tmp_path / "places"), SharedPlaces(tmp_path / "places")
    with PortClaim(HOST, port, "/srv/one") as claim:
        handover = Handover(claim, mine)
        handover.start(lambda _: None)
        assert [each.connections for each in other.others_at_work(port, 2)] == [0]

        claim.socket.close()

        assert wait_until(lambda: "no longer taken over" in caplog.text)
        handover.announce(0)
        assert [each.connections for each in other.others_at_work(port, 2)] == [0xFFFFFFFF]
        handover.stop()
    mine.close()
    other.close()


def test_work_is_announced_only_once_the_senders_user_can_be_told(
    port: int, tmp_path: Path
) -> None:
    tells_user = []

    class WatchedPlaces(SharedPlaces):
        def announce(self, port: int, connections: int) -> None:
            tells_user.append(claim.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED))
            super().announce(port, connections)

    places = WatchedPlaces(tmp_path / "places")
    with PortClaim(HOST, port, "/srv/one") as claim:
        handover = Handover(claim, places)

        handover.start(lambda _: None)

        handover.stop()
    assert tells_user == [1, 1]
    places.close()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def connected(server: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = socket.create_connection(server.getsockname())
    return client, server.accept()[0]


def hand_over(sender: socket.socket, what: socket.socket | TextIO, address: bytes) -> None:
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [what.fileno()]))
    sender.sendmsg([b"\0"], [rights], 0, address)


def test_a_connection_goes_to_the_idlest_and_stays_when_nobody_has_less(
    port: int, tmp_path: Path
) -> None:
    mine, idle, busy = (SharedPlaces(tmp_path / "places") for _ in range(3))
    with PortClaim(HOST, port, "/srv/one") as claim, socket.create_server((HOST, port)) as server:
        handover = Handover(claim, mine)
        # Both are this process here, so that what is given away comes back to the claim.
        idle.announce(port, 1)
        busy.announce(port, 5)
        client, connection = connected(server)

        assert not handover.give_away(connection, 1)
        assert handover.give_away(connection, 2)
        assert connection.fileno() == -1
        assert claim.socket.recv(1) == b"\0"
        idle.announce(port + 1, 0)
        busy.close()
        again = connected(server)
        assert not handover.give_away(again[1], 9)
        for each in (client, *again):
            each.close()
    mine.close()
    idle.close()
