"""A few of the hostile peers again, within TLS: reading, timing and closing are others there."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from functools import partial

import pytest

from tests import hostile_peers as hp
from tests.certificates import Authority
from tests.hostile_peers import BREACHES, FAREWELLS, LENGTH_LIES, HonestPeer
from tests.receiver_process import Instance, ReceiverProcess
from tests.waiting import wait_until

MIB = 1024 * 1024
AT_ONCE = 8
RECOVERY_SECONDS = 20.0


@pytest.fixture(scope="module")
def receiver(tmp_path_factory) -> Iterator[ReceiverProcess]:
    """A receiver that speaks TLS, and the peers here with it."""
    authority = Authority(tmp_path_factory.mktemp("authority"))
    server, modality = authority.sign("receiver"), authority.sign("modality")
    process = ReceiverProcess(
        tmp_path_factory.mktemp("hostile-tls"),
        more_settings=f"[receiver.tls]\ncertificate_file = '{server.certificate}'\n"
        f"key_file = '{server.key}'\nca_file = '{authority.certificate}'\n",
    )
    context = ssl.create_default_context(cafile=authority.certificate)
    context.check_hostname = False
    context.load_cert_chain(modality.certificate, modality.key)
    with hp.speaking_tls(context):
        yield process
    assert process.stop() == 0, process.log()[-4000:]


@pytest.fixture(autouse=True)
def unharmed(receiver: ReceiverProcess) -> Iterator[None]:
    """After each attack all of its threads and files are gone, and an instance is taken."""
    assert hp.store_honestly(receiver.port, Instance.make()) == ""
    before = receiver.thread_count
    yield
    assert receiver.is_alive, receiver.log()[-4000:]
    assert wait_until(lambda: receiver.connection_count <= 1, RECOVERY_SECONDS)
    assert wait_until(lambda: receiver.thread_count <= before, RECOVERY_SECONDS)
    assert wait_until(lambda: receiver.incoming_files() == [], RECOVERY_SECONDS)
    instance = Instance.make()
    assert hp.store_honestly(receiver.port, instance) == ""
    assert receiver.holds(instance)
    assert "Traceback" not in receiver.log()
    assert "Exception in thread" not in receiver.log()


def assert_served(receiver: ReceiverProcess, honest: HonestPeer) -> None:
    """Assert that an honest peer was served all the while."""
    assert honest.failures == []
    assert honest.stored
    assert all(receiver.holds(instance) for instance in honest.stored)


def test_breaches_of_the_protocol_within_tls_are_survived(receiver) -> None:
    attacks = [
        partial(hp.say, receiver.port, data, FAREWELLS[number % len(FAREWELLS)])
        for number, data in enumerate(BREACHES.values())
    ]

    with HonestPeer(receiver.port) as honest:
        hp.together(attacks, AT_ONCE)

    assert_served(receiver, honest)


def test_a_session_within_tls_may_end_at_any_byte(receiver) -> None:
    session = hp.whole_session(Instance.make(100))
    length = sum(len(step.sent) for step in session)
    attacks = [
        partial(hp.leave_at, receiver.port, session, offset, FAREWELLS[offset % len(FAREWELLS)])
        for offset in range(0, length + 1, 7)
    ]

    with HonestPeer(receiver.port) as honest:
        hp.together(attacks, AT_ONCE)

    assert_served(receiver, honest)


def test_mutated_sessions_within_tls_are_survived(receiver) -> None:
    session = hp.whole_session(Instance.make(300))
    attacks = [partial(hp.play_mutation, receiver.port, session, n, 20260102) for n in range(120)]

    with HonestPeer(receiver.port) as honest:
        hp.together(attacks, AT_ONCE)

    assert_served(receiver, honest)


@pytest.mark.parametrize("lie", [*LENGTH_LIES][:4])
def test_a_length_of_4_gib_within_tls_is_not_kept_in_memory(receiver, lie: str) -> None:
    before = receiver.rss_bytes

    hp.flood(receiver.port, LENGTH_LIES[lie], 60 * MIB)

    assert receiver.rss_bytes - before < 20 * MIB


def test_probes_of_a_port_that_speaks_tls_leave_nothing(receiver) -> None:
    hp.together([partial(hp.probe, receiver.port, 20)] * 4, 4)

    assert receiver.is_alive
