"""Storage commitment on one association, over real sockets, with pynetdicom as requester."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import (
    BasicFilmSession,
    StorageCommitmentPushModel,
)

from dicom_io.association import Destination
from dicom_io.commitment import (
    STORAGE_COMMITMENT_INSTANCE_UID,
    CommitmentReport,
    CommitmentRequest,
    FailedReference,
    Reference,
    ReportAnswer,
)
from dicom_io.committing import NO_ANSWER, NOT_ACCEPTED, send_report
from dicom_io.errors import AssociationFailed, InstanceUnavailable
from dicom_io.receiving.accepted import AcceptedAssociation
from dicom_io.receiving.commitment import CommitmentSCP, ReportChannel
from dicom_io.receiving.server import StorageServer
from dicom_io.statuses import FailureReasonValues
from dicom_io.tls import TLSFiles, client_context, server_context
from tests import upper_layer as ul
from tests.certificates import Authority
from tests.commitment_requester import CT, REFERENCES, Requester, ask, information, wait_for
from tests.sinks import GatheringSink

REPORT = CommitmentReport("1.2.3", REFERENCES, ())


@dataclass
class Keeper:
    """Keeps requests and answers as it is told."""

    requests: list[CommitmentRequest] = field(default_factory=list)
    channels: list[ReportChannel] = field(default_factory=list)
    fault: Exception | None = None

    def accept(self, request: CommitmentRequest, channel: ReportChannel) -> None:
        if self.fault is not None:
            raise self.fault
        self.requests.append(request)
        self.channels.append(channel)


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture(params=[True, False], ids=["streaming", "ordinary"])
def server(request, keeper) -> Iterator[StorageServer]:
    with StorageServer(
        GatheringSink(), port=0, commitment=CommitmentSCP(keeper), streams=request.param
    ) as running:
        yield running


@pytest.fixture
def requester() -> Requester:
    return Requester()


def test_a_request_reaches_the_keeper_before_it_is_answered(server, keeper, requester) -> None:
    assoc = requester.associate(server.port)

    status = ask(assoc)

    assert status.Status == 0x0000
    (kept,) = keeper.requests
    assert (kept.transaction_uid, kept.references) == ("1.2.3", REFERENCES)
    assert (kept.calling_ae_title, kept.called_ae_title) == ("CT1", "MEDIMGD")
    assert kept.address == "127.0.0.1"
    assoc.release()


def test_a_report_comes_back_on_the_same_association_and_its_answer_is_heard(
    server, keeper, requester
) -> None:
    assoc = requester.associate(server.port)
    ask(assoc)
    answers: list[ReportAnswer] = []

    assert keeper.channels[0].send(REPORT, answers.append)
    wait_for(lambda: answers)

    assert answers == [ReportAnswer(0x0000)]
    ((event_type, ds),) = requester.reports
    assert event_type == 1
    assert ds.TransactionUID == "1.2.3"
    assert len(ds.ReferencedSOPSequence) == 3
    # The association is as good as before.
    assert assoc.send_c_echo().Status == 0x0000
    assoc.release()
    assert assoc.is_released


def test_a_long_report_goes_in_as_many_pdus_as_the_requester_wants(
    server, keeper, requester
) -> None:
    references = tuple(Reference(CT, f"1.2.3.4.5.6.7.8.9.{number}") for number in range(3000))
    assoc = requester.associate(server.port, max_pdu=4096)
    assert ask(assoc, information(references)).Status == 0x0000
    answers: list[ReportAnswer] = []

    keeper.channels[0].send(CommitmentReport("1.2.3", references, ()), answers.append)
    wait_for(lambda: answers)

    assert keeper.requests[0].references == references
    assert len(requester.reports[0][1].ReferencedSOPSequence) == 3000
    assoc.release()


def test_other_messages_pass_while_the_requester_thinks_about_its_report(
    server, keeper, requester
) -> None:
    requester.pause = 1.0
    assoc = requester.associate(server.port)
    ask(assoc)
    answers: list[ReportAnswer] = []

    keeper.channels[0].send(REPORT, answers.append)
    statuses = []
    while not requester.reports:
        statuses.append(assoc.send_c_echo().Status)
        time.sleep(0.05)
    wait_for(lambda: answers)

    assert len(statuses) > 3
    assert set(statuses) == {0}
    assert answers == [ReportAnswer(0x0000)]
    assoc.release()


def test_the_requesters_failure_is_heard_verbatim(server, keeper, requester) -> None:
    requester.status = 0x0110
    assoc = requester.associate(server.port)
    ask(assoc)
    answers: list[ReportAnswer] = []

    keeper.channels[0].send(REPORT, answers.append)
    wait_for(lambda: answers)

    assert answers[0].status == 0x0110
    assoc.release()


def test_two_transactions_on_one_association_are_told_apart(server, keeper, requester) -> None:
    assoc = requester.associate(server.port)
    ask(assoc, information(transaction="1.1"))
    ask(assoc, information(transaction="1.2"))
    answers: dict[str, ReportAnswer] = {}

    for number in (2, 1):
        keeper.channels[number - 1].send(
            CommitmentReport(f"1.{number}", REFERENCES, ()),
            lambda answer, number=number: answers.update({f"1.{number}": answer}),
        )
    wait_for(lambda: len(answers) == 2)

    assert sorted(str(ds.TransactionUID) for _, ds in requester.reports) == ["1.1", "1.2"]
    assoc.release()


def test_nothing_is_sent_on_an_association_that_ended(server, keeper, requester) -> None:
    assoc = requester.associate(server.port)
    ask(assoc)
    (channel,) = keeper.channels
    assoc.release()

    wait_for(lambda: not channel.is_open)

    assert not channel.send(REPORT, pytest.fail)


def test_a_requester_that_ignores_its_report_holds_no_thread_and_no_association(
    server, keeper, requester
) -> None:
    assoc = requester.associate(server.port)
    ask(assoc)
    before = threading.active_count()
    requester.pause = 3.0

    started = time.monotonic()
    keeper.channels[0].send(REPORT, lambda answer: None)
    assert time.monotonic() - started < 0.5
    wait_for(lambda: threading.active_count() > before)  # the requester's own, busy with the report
    assoc.abort()

    wait_for(lambda: server.open_associations == 0)
    assert not keeper.channels[0].is_open


def test_a_requester_may_pause_in_the_middle_of_a_report_through_tls(keeper, tmp_path) -> None:
    authority = Authority(tmp_path)
    mine = authority.sign("receiver")
    report = CommitmentReport("1.2.3", REFERENCES * 2000, ())
    trusting = client_context(authority.certificate)
    with (
        StorageServer(
            GatheringSink(),
            port=0,
            commitment=CommitmentSCP(keeper),
            ssl_context=server_context(TLSFiles(mine.certificate, mine.key)),
        ) as server,
        _asked_through_tls(server.port, trusting) as connection,
    ):
        (assoc,) = (t for t in threading.enumerate() if isinstance(t, AcceptedAssociation))
        # Smaller than the report by far, whatever this machine's are.
        assoc.dul.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        wait_for(lambda: keeper.channels)

        assert keeper.channels[0].send(report, lambda _: None)
        time.sleep(1)
        connection.sendall(ul.RELEASE_REQUEST)

        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
    pdus, rest = ul.split_pdus(received)
    assert rest == b""
    assert sum(map(len, pdus)) > 300_000
    assert pdus[-1] == ul.pdu(ul.RELEASE_RP, bytes(4))


@contextmanager
def _asked_through_tls(port: int, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """Open an association and ask for commitment; what it answers has been read."""
    command = ul.command_set(
        [
            (0x0003, ul.padded_uid(StorageCommitmentPushModel)),
            (0x0100, ul.us(0x0130)),
            (0x0110, ul.us(1)),
            (0x0800, ul.us(1)),
            (0x1001, ul.padded_uid(STORAGE_COMMITMENT_INSTANCE_UID)),
            (0x1008, ul.us(1)),
        ]
    )
    data_set = encode(information(), True, True) or b""
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        plain.connect(("127.0.0.1", port))
        plain.settimeout(10)
        with context.wrap_socket(plain) as connection:
            proposed = [ul.Context(1, StorageCommitmentPushModel)]
            connection.sendall(ul.associate_request(proposed))
            assert connection.recv(1 << 16)[0] == ul.ASSOCIATE_AC
            for value in ul.message(1, command, data_set):
                connection.sendall(ul.p_data(value))
            assert ul.status_of(ul.commands_of([connection.recv(1 << 16)])[0]) == 0
            yield connection


def test_without_the_service_its_presentation_context_is_not_accepted(requester) -> None:
    with StorageServer(GatheringSink(), port=0) as server:
        assoc = requester.associate(server.port)

        refused = {str(cx.abstract_syntax) for cx in assoc.rejected_contexts}

        assert str(StorageCommitmentPushModel) in refused
        assoc.release()


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"instance_uid": "1.2.3.4"}, 0x0112),
        ({"action_type": 2}, 0x0123),
        ({"class_uid": BasicFilmSession, "meta_uid": StorageCommitmentPushModel}, 0x0118),
        ({"ds": information(transaction=None)}, 0x0115),
        ({"ds": information(transaction="")}, 0x0115),
        ({"ds": information(())}, 0x0115),
    ],
)
def test_a_faulty_request_is_answered_with_what_is_wrong(
    server, keeper, requester, changes, status
) -> None:
    assoc = requester.associate(server.port)

    answer = ask(assoc, **changes)

    assert keeper.requests == []
    assert answer.Status == status
    assert answer.ErrorComment
    assert assoc.send_c_echo().Status == 0x0000
    assoc.release()


def test_a_request_without_action_information_is_answered(server, keeper, requester) -> None:
    assoc = requester.associate(server.port)

    status, _ = assoc.send_n_action(
        None, 1, StorageCommitmentPushModel, STORAGE_COMMITMENT_INSTANCE_UID
    )

    assert status.Status == 0x0115
    assert keeper.requests == []
    assoc.release()


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (InstanceUnavailable("the disk is away"), 0x0213),
        (RuntimeError("Marked^Name"), 0x0110),
    ],
)
def test_a_request_that_cannot_be_kept_is_not_answered_with_success(
    server, keeper, requester, fault, status, caplog
) -> None:
    keeper.fault = fault
    assoc = requester.associate(server.port)

    answer = ask(assoc)

    assert answer.Status == status
    assert "Marked^Name" not in caplog.text + str(answer)
    assoc.release()


# On an association of our own


def destination(port: int, **changes) -> Destination:
    return Destination("CT1", "127.0.0.1", port, "CT1", "MEDIMGD", **changes)


def test_a_report_on_a_new_association_is_sent_in_the_role_of_the_provider(requester) -> None:
    failed = FailedReference(Reference(CT, "9"), FailureReasonValues.NO_SUCH_INSTANCE)

    with requester.listening() as port:
        answer = send_report(destination(port), CommitmentReport("1.2.3", REFERENCES, (failed,)))

    assert answer == ReportAnswer(0x0000)
    ((event_type, ds),) = requester.reports
    assert event_type == 2
    assert ds.FailedSOPSequence[0].FailureReason == 0x0112
    assert requester.roles == [(False, True)]


def test_a_requester_that_says_nothing_about_roles_is_reported_to_all_the_same(requester) -> None:
    with requester.listening(answers_roles=False) as port:
        answer = send_report(destination(port), REPORT)

    assert answer == ReportAnswer(0x0000)
    assert requester.roles == [(False, True)]


def test_a_requester_that_takes_no_reports_says_so(keeper) -> None:
    with StorageServer(GatheringSink(), ae_titles=("CT1",), port=0) as server:
        answer = send_report(destination(server.port), REPORT)

    assert answer == ReportAnswer(None, NOT_ACCEPTED)


def test_a_requester_that_does_not_answer_is_waited_for_no_longer_than_configured(
    requester,
) -> None:
    requester.pause = 3.0

    started = time.monotonic()
    with requester.listening() as port:
        answer = send_report(destination(port, response_timeout_seconds=0.5), REPORT)
        took = time.monotonic() - started

    assert answer == ReportAnswer(None, NO_ANSWER)
    assert took < 2.5


def test_a_requester_that_is_switched_off_is_an_association_failed(free_port) -> None:
    with pytest.raises(AssociationFailed, match="cannot connect"):
        send_report(destination(free_port), REPORT)


def test_a_peer_that_hangs_up_in_the_middle_is_an_association_failed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=_hang_up, args=(door,), daemon=True).start()

        with pytest.raises(AssociationFailed):
            send_report(destination(door.getsockname()[1]), REPORT)


def _hang_up(door: socket.socket) -> None:
    door.accept()[0].close()
