"""Two receivers on one port: shared caps, shared work, and one of them killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from daemon.demo import SAMPLES
from storage.processes import list_processes
from tests.acceptance.installation import Installation
from tests.integration.pdu_client import PduClient
from tests.upper_layer import (
    ASSOCIATE_RJ,
    CT_IMAGE_STORAGE,
    VERIFICATION,
    Context,
    associate_request,
)

SETTINGS = (
    "[receiver]\nprocesses = 2\nmaximum_associations = 6\nmaximum_associations_per_address = 4\n"
)
TEMPORARY_CONGESTION = bytes([2, 3, 1])
LOCAL_LIMIT_EXCEEDED = bytes([2, 3, 2])


class Peers:
    """Connections of this test, closed at its end."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.open: list[PduClient] = []

    def ask(self, source: str = "127.0.0.1", sop_class_uid: str = CT_IMAGE_STORAGE) -> bytes | None:
        """Ask for an association; None when it is accepted, else result, source and reason."""
        peer = PduClient(self.port, source=source)
        peer.send(associate_request([Context(1, sop_class_uid)]))
        answer = peer.read_pdu()
        if answer[0] == ASSOCIATE_RJ:
            peer.close()
            return answer[7:10]
        self.open.append(peer)
        return None

    def close(self) -> None:
        for peer in self.open:
            peer.abort()
        self.open.clear()


@pytest.fixture(scope="module")
def site(module_installation: Callable[..., Installation]) -> Installation:
    made = module_installation()
    text = made.config_path.read_text()
    made.config_path.write_text(text.replace("[receiver]\n", SETTINGS))
    made.start("receiver-1", "receiver-2")
    return made


@pytest.fixture
def peers(site: Installation) -> Iterator[Peers]:
    made = Peers(site.port)
    yield made
    made.close()
    site.wait(lambda: not sum(serving(site).values()), "every association to end")


def serving(site: Installation) -> Counter[str]:
    """Return how many associations each receiver serves, as status tells it."""
    return Counter(site.run_json("status", check=None)["open_associations"])


def test_the_work_is_shared_out_evenly(site: Installation, peers: Peers) -> None:
    for _ in range(4):
        assert peers.ask() is None

    site.wait(lambda: sum(serving(site).values()) == 4, "four associations to be shown")

    assert serving(site) == {"receiver-1": 2, "receiver-2": 2}


def test_caps_hold_over_both_receivers(site: Installation, peers: Peers) -> None:
    from_one_address = [peers.ask() for _ in range(5)]
    from_others = [peers.ask("127.0.0.2") for _ in range(3)]

    assert from_one_address == [None] * 4 + [LOCAL_LIMIT_EXCEEDED]
    assert from_others == [None] * 2 + [LOCAL_LIMIT_EXCEEDED]
    site.wait(lambda: "maximum_associations_per_address" in site.log(), "the reason of the refusal")


def test_a_killed_receiver_gives_back_its_places_and_the_other_goes_on(
    site: Installation, peers: Peers
) -> None:
    for _ in range(4):
        assert peers.ask() is None
    assert peers.ask() == LOCAL_LIMIT_EXCEEDED

    site.kill("receiver-2")

    # Two were served by it: their places are free at once, and the other two still are taken.
    assert [peers.ask() for _ in range(3)] == [None, None, LOCAL_LIMIT_EXCEEDED]
    site.start("receiver-2")
    peers.close()
    site.wait(lambda: not sum(serving(site).values()), "what it left open to be closed")
    for _ in range(4):
        assert peers.ask() is None
    site.wait(lambda: serving(site)["receiver-2"] == 2, "the new one to have its share")


def test_a_receiver_that_stops_answers_every_connection(site: Installation) -> None:
    process = site.processes["receiver-2"]
    peers = Peers(site.port)
    answers = []
    process.send_signal(signal.SIGTERM)

    while process.poll() is None:
        answers.append(peers.ask(sop_class_uid=VERIFICATION))
        peers.close()
    site.start("receiver-2")

    # One that had asked it already is told to come back; none is cut off without an answer. On a
    # busy machine the ends of those before may not be noticed yet, and fill the address' share.
    refused = answers.count(TEMPORARY_CONGESTION) + answers.count(LOCAL_LIMIT_EXCEEDED)
    assert set(answers) <= {None, TEMPORARY_CONGESTION, LOCAL_LIMIT_EXCEEDED}
    assert answers.count(None) > refused


def test_another_installation_cannot_share_the_port(
    site: Installation, module_installation: Callable[..., Installation]
) -> None:
    other = module_installation()
    text = other.config_path.read_text().replace(f"port = {other.port}", f"port = {site.port}")
    other.config_path.write_text(text.replace("[receiver]\n", SETTINGS))

    done = subprocess.run(
        [sys.executable, "-m", "daemon", "run", "receiver", "-c", str(other.config_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode != 0
    assert f"port {site.port} is used by another installation of medimgd" in done.stderr


def test_a_stopped_receiver_is_given_nothing_more(site: Installation, peers: Peers) -> None:
    pid = next(each.pid for each in site.read(list_processes, ()) if each.slot == "receiver-2")
    assert peers.ask() is None
    assert peers.ask() is None
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(2.5)
        answered = 0
        for _ in range(8):
            # The kernel still deals it every other connection; nothing is handed over to it.
            with contextlib.closing(PduClient(site.port, timeout_seconds=0.5)) as peer:
                peer.send(associate_request([Context(1, CT_IMAGE_STORAGE)]))
                with contextlib.suppress(TimeoutError):
                    answered += peer.read_pdu()[0] > 0
        assert answered >= 1
    finally:
        os.kill(pid, signal.SIGCONT)


def test_congestion_rejects_storage_but_not_verification_and_ends_by_itself(
    installation: Callable[..., Installation],
) -> None:
    site = installation()
    text = site.config_path.read_text()
    site.config_path.write_text(
        text.replace("[receiver]\n", "[receiver]\nprocesses = 1\nmaximum_waiting_studies = 1\n")
    )
    site.start("receiver", "scheduler")
    peers = Peers(site.port)

    site.send(SAMPLES)
    site.wait(lambda: peers.ask() == TEMPORARY_CONGESTION or peers.close(), "congestion")
    verification = peers.ask(sop_class_uid=VERIFICATION)
    peers.close()
    site.wait(lambda: is_shown_as_congested(site), "status to say so")
    site.start("preparer")
    site.wait(lambda: peers.ask() is None, "the queue to become short")
    peers.close()

    assert verification is None
    assert site.log().count("[action=congested ") == 1


def is_shown_as_congested(site: Installation) -> bool:
    attention = site.run_json("status", check=3)["attention"]
    return any("receiver.maximum_waiting_studies (1)" in sentence for sentence in attention)
