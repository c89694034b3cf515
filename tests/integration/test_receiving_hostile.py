"""Hostile peers against the receiver as a process: it lives, leaks nothing and serves the honest.

The length of the random part is set by MEDIMGD_HOSTILE_MUTATIONS, its seed by
MEDIMGD_HOSTILE_SEED.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest

from tests import hostile_peers as hp
from tests.hostile_peers import BREACHES, FAREWELLS, LENGTH_LIES, LORIS_BEGINNINGS, HonestPeer
from tests.receiver_process import Instance, ReceiverProcess
from tests.waiting import wait_until

MUTATIONS = int(os.environ.get("MEDIMGD_HOSTILE_MUTATIONS", "20000"))
SEED = int(os.environ.get("MEDIMGD_HOSTILE_SEED", "20260101"))

MIB = 1024 * 1024
GROWTH_BYTES = 32 * MIB
"""What the process may grow over everything here after a warm-up: the arenas of a hundred threads
that came and went, not one of the messages of 4 GiB that peers announce."""
NETWORK_TIMEOUT_SECONDS = 3.0
REQUEST_TIMEOUT_SECONDS = 6.0
RECOVERY_SECONDS = 15.0
"""How long threads and connections may take to go after their peers have gone."""
AT_ONCE = 16
POOLED_DESCRIPTORS = 12
"""The database opens a few more connections when several threads need one, and keeps them."""


@dataclass(frozen=True)
class Holdings:
    """What a receiver holds while nobody is connected."""

    threads: int
    descriptors: int
    leavings: list[str]
    rss_bytes: int


@pytest.fixture(scope="module")
def receiver(tmp_path_factory):
    process = ReceiverProcess(
        tmp_path_factory.mktemp("hostile"),
        network_timeout_seconds=NETWORK_TIMEOUT_SECONDS,
        request_timeout_seconds=REQUEST_TIMEOUT_SECONDS,
    )
    yield process
    assert process.stop() == 0, process.log()[-4000:]


@pytest.fixture(scope="module")
def at_rest(receiver) -> Holdings:
    """What the receiver holds after it has seen a crowd of peers and all have left."""
    instance = Instance.make()
    session = hp.whole_session(instance)
    hp.together(
        [partial(hp.play_mutation, receiver.port, session, n, SEED) for n in range(300)], 48
    )
    with hp.crowd(receiver.port, 200, hp.REQUEST), hp.crowd(receiver.port, 100, b""):
        assert wait_until(lambda: receiver.connection_count >= 300, RECOVERY_SECONDS)
    assert hp.store_honestly(receiver.port, instance) == ""
    assert wait_until(lambda: receiver.connection_count <= 1, RECOVERY_SECONDS)
    assert wait_until(lambda: receiver.thread_count <= 8, RECOVERY_SECONDS)
    return Holdings(
        receiver.thread_count,
        len(receiver.descriptors()),
        receiver.leavings(),
        receiver.rss_bytes,
    )


@pytest.fixture(autouse=True)
def unharmed(receiver, at_rest, capsys):
    """After each attack the receiver is as before, and serves."""
    before = len(receiver.log())
    yield
    assert receiver.is_alive, receiver.log()[-4000:]
    quiet = wait_until(
        lambda: (
            receiver.thread_count <= at_rest.threads
            and receiver.leavings() == at_rest.leavings
            and len(receiver.descriptors()) <= at_rest.descriptors + POOLED_DESCRIPTORS
        ),
        RECOVERY_SECONDS,
    )
    assert quiet, f"{receiver.thread_count} threads and {receiver.descriptors()} are left"
    assert receiver.incoming_files() == []
    instance = Instance.make()
    assert hp.store_honestly(receiver.port, instance) == ""
    assert receiver.holds(instance)
    news = receiver.log()[before:]
    assert "Traceback" not in news, news[news.index("Traceback") :][:3000]
    assert "Exception in thread" not in news, news[news.index("Exception in") :][:3000]
    growth = receiver.rss_bytes - at_rest.rss_bytes
    assert growth < GROWTH_BYTES, f"grown by {growth / MIB:.0f} MiB"


def test_every_breach_of_the_protocol_is_survived_however_the_peer_leaves(receiver):
    attacks = [
        partial(hp.say, receiver.port, data, farewell)
        for data in BREACHES.values()
        for farewell in FAREWELLS
    ]

    with HonestPeer(receiver.port) as honest:
        hp.together(attacks, AT_ONCE)

    assert_served(receiver, honest)


def test_a_session_may_end_at_any_of_its_bytes_in_any_way(receiver):
    session = hp.whole_session(Instance.make(100), Instance.make(50))
    length = sum(len(step.sent) for step in session)
    attacks = [
        partial(hp.leave_at, receiver.port, session, offset, farewell)
        for number, offset in enumerate(range(length + 1))
        for farewell in [FAREWELLS[number % len(FAREWELLS)]]
    ]

    with HonestPeer(receiver.port) as honest:
        hp.together(attacks, AT_ONCE)

    assert_served(receiver, honest)


@pytest.mark.parametrize("lie", LENGTH_LIES)
def test_a_length_of_4_gib_is_neither_believed_nor_kept_in_memory(receiver, lie):
    before = receiver.rss_bytes

    sent = hp.flood(receiver.port, LENGTH_LIES[lie], 200 * MIB)

    growth = receiver.rss_bytes - before
    assert growth < 20 * MIB, f"{sent / MIB:.0f} MiB were sent, {growth / MIB:.0f} MiB kept"


def test_random_mutations_of_whole_sessions_are_survived_and_the_honest_served(receiver, capsys):
    session = hp.whole_session(Instance.make(300), Instance.make(700))
    count = MUTATIONS // 10
    attacks = [partial(hp.play_mutation, receiver.port, session, n, SEED) for n in range(count)]

    with HonestPeer(receiver.port) as honest, _told(receiver, honest, capsys, count, "sessions"):
        hp.together(attacks, AT_ONCE)

    assert_served(receiver, honest)


def test_random_mutations_of_messages_are_survived_and_the_honest_served(receiver, capsys):
    stores = [hp.store_pdus(Instance.make(size), 200 + size) for size in (0, 64, 900, 5000)]
    messages = [*stores, hp.ECHO]
    attacks = [
        partial(
            hp.play_mutated_messages, receiver.port, messages, range(n, MUTATIONS, AT_ONCE), SEED
        )
        for n in range(AT_ONCE)
    ]

    with (
        HonestPeer(receiver.port) as honest,
        _told(receiver, honest, capsys, MUTATIONS, "messages"),
    ):
        hp.together(attacks, AT_ONCE)

    assert_served(receiver, honest)


@contextmanager
def _told(
    receiver: ReceiverProcess, honest: HonestPeer, capsys, count: int, what: str
) -> Iterator[None]:
    """Print what an attack of some length did to the receiver."""
    started, rss, cpu = time.monotonic(), receiver.rss_bytes, receiver.cpu_seconds
    yield
    seconds = time.monotonic() - started
    with capsys.disabled():
        print(
            f"\n{count} mutated {what} (seed {SEED}) in {seconds:.0f} s, "
            f"{receiver.cpu_seconds - cpu:.0f} s of CPU: "
            f"RSS {rss / MIB:.0f} -> {receiver.rss_bytes / MIB:.0f} MiB, "
            f"{len(honest.stored)} honest instances, the slowest {honest.longest_seconds:.2f} s"
        )


def test_200_idle_associations_cost_next_to_nothing_and_shut_nobody_out(tmp_path, capsys):
    # given a receiver that lets its peers be silent for long, and 200 that are
    patient = ReceiverProcess(tmp_path, network_timeout_seconds=120, request_timeout_seconds=60)
    shares: dict[str, float] = {}
    try:
        with hp.crowd(patient.port, 200, hp.REQUEST):
            assert wait_until(lambda: patient.connection_count >= 200, RECOVERY_SECONDS)
            shares["200 idle associations"] = _share_of_a_core(patient)

            # when 100 more connect and do not even ask for one
            with hp.crowd(patient.port, 100, b""):
                assert wait_until(lambda: patient.connection_count >= 300, RECOVERY_SECONDS)
                shares["100 silent connections more"] = _share_of_a_core(patient)
                threads, rss = patient.thread_count, patient.rss_bytes

                # then all are still there, and another peer is served
                instance = Instance.make()
                assert hp.store_honestly(patient.port, instance) == ""
                assert patient.holds(instance)
                assert patient.connection_count >= 300
    finally:
        assert patient.stop() == 0
    with capsys.disabled():
        print(
            "\n"
            + ", ".join(f"{what}: {share:.1%} of a core" for what, share in shares.items())
            + f"; {threads} threads, RSS {rss / MIB:.0f} MiB"
        )
    # Polling threads took more than a whole core; the bound is far from both.
    assert max(shares.values()) < 0.4


def test_more_descriptors_than_select_knows_are_served(tmp_path):
    # So many may wait from one address that none of the crowd is turned away, however slowly the
    # receiver comes to hear their requests.
    crowded = ReceiverProcess(
        tmp_path, network_timeout_seconds=120, request_timeout_seconds=60, maximum_associations=900
    )
    instance = Instance.make()
    try:
        with hp.crowd(crowded.port, 600, hp.REQUEST):
            assert len(crowded.descriptors()) > 1100
            assert hp.store_honestly(crowded.port, instance) == ""
            assert crowded.holds(instance)
    finally:
        assert crowded.stop() == 0


def _share_of_a_core(receiver: ReceiverProcess, seconds: float = 2.0) -> float:
    """Return how much of a core the process uses from now on."""
    time.sleep(0.5)
    cpu, started = receiver.cpu_seconds, time.monotonic()
    time.sleep(seconds)
    return (receiver.cpu_seconds - cpu) / (time.monotonic() - started)


def assert_served(receiver: ReceiverProcess, honest: HonestPeer) -> None:
    """Assert that honest peers were served all the while and that nothing of theirs is lost."""
    assert honest.failures == []
    assert honest.stored
    assert all(receiver.holds(instance) for instance in honest.stored)


def test_connect_and_close_probes_leave_nothing(receiver):
    with HonestPeer(receiver.port) as honest:
        hp.together([partial(hp.probe, receiver.port, 500)] * 4, 4)

    assert_served(receiver, honest)


def test_a_storm_of_aborts_in_the_middle_of_instances_leaves_no_file(receiver):
    instance = Instance.make(40_000)
    session = hp.whole_session(instance)
    rng = random.Random(SEED)
    start, end = len(hp.REQUEST), sum(len(step.sent) for step in session[:2])
    attacks = [
        partial(hp.leave_at, receiver.port, session, rng.randint(start, end - 1), farewell)
        for _ in range(400)
        for farewell in FAREWELLS[:4]
    ]

    with HonestPeer(receiver.port) as honest:
        hp.together(attacks, AT_ONCE)

    assert_served(receiver, honest)
    assert not receiver.holds(instance)


def test_peers_that_never_listen_are_ended_and_shut_nobody_out(receiver):
    message = hp.store_pdus(Instance("1.2.3", b"no data set"))

    with HonestPeer(receiver.port) as honest:
        attack = partial(hp.ask_without_listening, receiver.port, message, 60)
        were_ended = hp.together([attack] * 2, 2)

    assert all(were_ended)
    assert_served(receiver, honest)


def test_a_byte_now_and_then_holds_no_connection_for_ever(receiver, capsys):
    bound = REQUEST_TIMEOUT_SECONDS + 10

    with HonestPeer(receiver.port) as honest:
        attacks = [
            partial(hp.slow_loris, receiver.port, beginning, 0.5, bound)
            for beginning in LORIS_BEGINNINGS.values()
        ]
        lasted = dict(zip(LORIS_BEGINNINGS, hp.together(attacks, len(attacks)), strict=True))

    with capsys.disabled():
        print("\n" + ", ".join(f"{name}: {seconds:.1f} s" for name, seconds in lasted.items()))
    assert {name for name, seconds in lasted.items() if seconds >= bound} == set()
    assert_served(receiver, honest)
