"""Requests for storage commitment from the N-ACTION to the report: receiver, database, spool."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from daemon import committing
from daemon.committing import CommitmentDesk
from daemon.config import Config, DestinationSection, SiteSection
from daemon.doctor import examine
from daemon.receiver import make_server
from daemon.receiver_settings import PeerSection, ReceiverSection
from daemon.reporting import CommitmentReporter
from daemon.requesters import remedy, requester_address
from daemon.role import now_utc
from daemon.status import read_status
from dicom_io.commitment import CommitmentRequest, Reference
from dicom_io.receiving.instances import AssociationObserver
from storage import commitments
from storage.arrivals import Arrival
from storage.clock import after
from storage.commitments import list_commitments, postpone_commitment
from storage.completion import complete_now
from storage.database import Database, migrate, open_database
from storage.preparation import Preparation, claim_study_for_preparation, finish_preparation
from storage.recording import record_instances
from storage.retention import purge_finished_studies
from storage.spool import Spool
from storage.states import CommitmentState, StudyState
from tests.commitment_requester import Requester, ask, information, wait_for
from tests.sinks import GatheringSink
from tests.storage_hospital import CT_IMAGE_STORAGE, STUDY, Hospital

MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
LOCAL = "127.0.0.0/8"


def ct(number: int, study: str = STUDY) -> Reference:
    return Reference(CT_IMAGE_STORAGE, f"{study}.1.{number}")


def configuration(tmp_path: Path, *peers: PeerSection, **more) -> Config:
    return Config(
        site=SiteSection(data_folder=tmp_path / "data"),
        receiver=ReceiverSection(
            port=0, storage_commitment=True, peers=peers or (PeerSection(network=LOCAL),)
        ),
        **more,
    )


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    path = configuration(tmp_path).database_path
    migrate(path)
    opened = open_database(path)
    yield opened
    opened.close()


@pytest.fixture
def hospital(tmp_path: Path, database: Database) -> Hospital:
    return Hospital(database, Spool(configuration(tmp_path).spool_folder, 0))


@dataclass
class Site:
    """A receiver that answers requests, and the courier's part of reporting."""

    port: int
    reporter: CommitmentReporter
    hospital: Hospital

    def commitments(self):
        return list_commitments(self.hospital.database)

    def report_until(self, condition: Callable[[], object]) -> None:
        """Do the courier's rounds; what is not due yet is made due."""

        def round_and_look() -> object:
            self.reporter.work()
            return condition()

        wait_for(round_and_look)

    def make_due(self) -> None:
        for record in self.commitments():
            postpone_commitment(self.hospital.database, record.id, now_utc())


@pytest.fixture
def open_site(tmp_path: Path, hospital: Hospital):
    @contextmanager
    def opened(*peers: PeerSection, **more) -> Iterator[Site]:
        config = configuration(tmp_path, *peers, **more)
        desk = CommitmentDesk(config, hospital.database, hospital.spool)
        observer = AssociationObserver()
        with make_server(config.receiver, GatheringSink(), observer, desk=desk) as server:
            reporter = CommitmentReporter(config, hospital.database, hospital.spool)
            yield Site(server.port, reporter, hospital)
        desk.close()

    return opened


@pytest.fixture
def requester() -> Requester:
    return Requester()


def states(site: Site) -> list[CommitmentState]:
    return [record.state for record in site.commitments()]


# On the association of the request


def test_a_requester_that_stays_is_told_on_its_association(open_site, hospital, requester) -> None:
    hospital.arrive(1, 2, now=now_utc())
    with open_site() as site:
        assoc = requester.associate(site.port)
        assert ask(assoc, information([ct(1), ct(2)])).Status == 0x0000

        wait_for(lambda: states(site) == ["reported"])

        assert [event for event, _ in requester.reports] == [1]
        assert requester.committed() == [ct(1).sop_instance_uid, ct(2).sop_instance_uid]
        assert assoc.send_c_echo().Status == 0x0000
        assoc.release()
        (record,) = site.commitments()
        assert (record.committed_count, record.failed_count, record.attempts) == (2, 0, 1)


def test_what_cannot_be_committed_to_is_reported_with_its_reason(
    open_site, hospital, requester
) -> None:
    hospital.arrive(1, 2, 3, now=now_utc())
    hospital.arrive(3, now=now_utc(), pixels=b"\5\6\7\x08")
    wrong = Reference(MR_IMAGE_STORAGE, ct(2).sop_instance_uid)
    with open_site() as site:
        assoc = requester.associate(site.port)
        ask(assoc, information([ct(1), wrong, ct(3), ct(9)]))

        wait_for(lambda: requester.reports)

        assert [event for event, _ in requester.reports] == [2]
        assert requester.committed() == [ct(1).sop_instance_uid]
        assert requester.failed() == {
            wrong.sop_instance_uid: 0x0119,
            ct(3).sop_instance_uid: 0x0110,
            ct(9).sop_instance_uid: 0x0112,
        }
        assoc.release()


def test_what_retention_removed_is_not_committed_to(open_site, hospital, requester) -> None:
    start = now_utc()
    hospital.arrive(1, now=start)
    complete_now(hospital.database, STUDY, start)
    task = claim_study_for_preparation(hospital.database, "preparer-0", start, 60)
    finish_preparation(hospital.database, task, Preparation(StudyState.UNMATCHED, ""), start)
    later = after(start, 31 * 86400)
    assert purge_finished_studies(hospital.database, hospital.spool, later, older_than_days=30)
    with open_site() as site:
        assoc = requester.associate(site.port)
        ask(assoc, information([ct(1)]))

        wait_for(lambda: requester.reports)

        assert requester.failed() == {ct(1).sop_instance_uid: 0x0112}
        assoc.release()


def test_the_report_waits_for_the_index_and_says_nothing_false_meanwhile(
    open_site, hospital, requester
) -> None:
    stored = hospital.store(1)
    with open_site() as site:
        assoc = requester.associate(site.port)
        ask(assoc, information([ct(1)]))
        time.sleep(1.5)
        assert requester.reports == []

        record_instances(hospital.database, [Arrival(stored)], now_utc())
        wait_for(lambda: requester.reports)

        assert requester.committed() == [ct(1).sop_instance_uid]
        assoc.release()


def test_a_transaction_uid_in_use_for_other_instances_commits_to_nothing(
    open_site, hospital, requester
) -> None:
    hospital.arrive(1, 2, now=now_utc())
    with open_site() as site:
        assoc = requester.associate(site.port)
        ask(assoc, information([ct(1)]))
        ask(assoc, information([ct(2)]))

        wait_for(lambda: len(requester.reports) == 2)

        # Which report comes first is not promised: each is a task of its own.
        requester.reports.sort(key=lambda report: "FailedSOPSequence" in report[1])
        assert [len(report[1].get("FailedSOPSequence", ())) for report in requester.reports] == [
            0,
            1,
        ]
        assert requester.failed() == {ct(2).sop_instance_uid: 0x0131}
        assoc.release()


def test_many_requests_and_requesters_that_vanish_leave_no_thread_behind(
    open_site, hospital
) -> None:
    hospital.arrive(1, now=now_utc())
    with open_site() as site:
        before = threading.active_count()
        for number in range(12):
            requester = Requester(ae_title=f"CT{number}")
            assoc = requester.associate(site.port)
            for each in range(3):
                ask(assoc, information([ct(1)], f"1.2.{number}.{each}"))
            if number % 2:
                assoc.abort()
            else:
                assoc.release()

        wait_for(lambda: threading.active_count() <= before)
        wait_for(lambda: all(r.next_attempt_at <= now_utc() for r in site.commitments()))
        assert states(site) == ["pending"] * 36


# On a new association


def test_a_requester_that_releases_is_told_on_a_new_association(
    open_site, hospital, requester
) -> None:
    hospital.arrive(1, now=now_utc())
    with (
        requester.listening() as port,
        open_site(PeerSection(ae_title="CT1", network=LOCAL, port=port)) as site,
    ):
        assoc = requester.associate(site.port)
        ask(assoc, information([ct(1), ct(9)]))
        assoc.release()

        site.report_until(lambda: states(site) == ["reported"])

        assert len(requester.reports) == 1
        assert requester.committed() == [ct(1).sop_instance_uid]
        assert requester.failed() == {ct(9).sop_instance_uid: 0x0112}
        assert requester.roles == [(False, True)]


def test_a_requester_that_ignores_its_report_is_told_again_on_a_new_association(
    open_site, hospital, requester, monkeypatch
) -> None:
    monkeypatch.setattr(committing, "ANSWER_SECONDS", 0.5)
    hospital.arrive(1, now=now_utc())
    deaf, listening = Requester(pause=2.0), requester
    with (
        listening.listening() as port,
        open_site(PeerSection(ae_title="CT1", network=LOCAL, port=port)) as site,
    ):
        assoc = deaf.associate(site.port)
        ask(assoc, information([ct(1)]))

        wait_for(lambda: site.commitments()[0].attempts == 1)
        site.make_due()
        site.report_until(lambda: states(site) == ["reported"])

        assert listening.committed() == [ct(1).sop_instance_uid]
        wait_for(lambda: deaf.reports)
        # Its late answer to the first report is nobody's business any more.
        assert assoc.send_c_echo().Status == 0x0000
        assoc.release()


def test_a_requester_nobody_can_call_is_named_with_the_line_that_helps(
    open_site, hospital, requester, caplog
) -> None:
    caplog.set_level(logging.WARNING)
    hospital.arrive(1, now=now_utc())
    with open_site() as site:
        assoc = requester.associate(site.port)
        ask(assoc, information([ct(1)]))
        assoc.release()
        wait_for(lambda: "receiver.peers" in caplog.text)
        site.report_until(lambda: site.commitments()[0].attempts)

        (record,) = site.commitments()
        assert record.state is CommitmentState.PENDING
        assert '{ ae_title = "CT1", network = "127.0.0.1/32", port = 104 }' in record.last_answer

    with (
        requester.listening() as port,
        open_site(PeerSection(ae_title="CT1", network=LOCAL, port=port)) as site,
    ):
        site.make_due()
        site.report_until(lambda: states(site) == ["reported"])

    assert requester.committed() == [ct(1).sop_instance_uid]


def test_a_requester_that_is_switched_off_keeps_no_other_waiting(
    open_site, hospital, requester, free_port
) -> None:
    hospital.arrive(1, now=now_utc())
    off = Requester(ae_title="OFF")
    with (
        requester.listening() as port,
        open_site(
            PeerSection(ae_title="CT1", network=LOCAL, port=port),
            PeerSection(ae_title="OFF", network=LOCAL, port=free_port),
        ) as site,
    ):
        for number, each in enumerate((off, off, requester)):
            assoc = each.associate(site.port)
            ask(assoc, information([ct(1)], f"1.2.{number}"))
            assoc.release()

        site.report_until(lambda: "reported" in states(site))
        site.report_until(lambda: all(record.attempts for record in site.commitments()))

        assert sorted(states(site)) == ["pending", "pending", "reported"]
        assert "cannot connect" in site.commitments()[-1].last_answer


def test_an_index_that_stays_behind_postpones_the_report_and_never_falsifies_it(
    open_site, hospital, requester, monkeypatch
) -> None:
    monkeypatch.setattr(committing, "SETTLE_SECONDS", 0.2)
    stored = hospital.store(1)
    with (
        requester.listening() as port,
        open_site(PeerSection(ae_title="CT1", network=LOCAL, port=port)) as site,
    ):
        assoc = requester.associate(site.port)
        ask(assoc, information([ct(1)]))
        wait_for(lambda: site.commitments()[0].next_attempt_at <= now_utc())
        for _ in range(3):
            site.make_due()
            site.reporter.work()
        assert (states(site), requester.reports) == (["pending"], [])

        record_instances(hospital.database, [Arrival(stored)], now_utc())
        site.make_due()
        site.report_until(lambda: states(site) == ["reported"])

        assert requester.committed() == [ct(1).sop_instance_uid]
        assoc.release()


def test_more_reports_than_may_be_owed_are_refused_for_now(
    open_site, hospital, requester, monkeypatch
) -> None:
    monkeypatch.setattr(commitments, "MOST_PENDING", 0)
    with open_site() as site:
        assoc = requester.associate(site.port)

        assert ask(assoc, information([ct(1)])).Status == 0x0213

        assert site.commitments() == ()
        assoc.release()


def test_a_full_disk_refuses_requests_for_now(open_site, hospital, requester) -> None:
    hospital.spool.min_free_bytes = 1 << 60
    with open_site() as site:
        assoc = requester.associate(site.port)

        assert ask(assoc, information([ct(1)])).Status == 0x0213

        assert site.commitments() == ()
        assoc.release()


def test_status_names_a_requester_that_could_not_be_told(
    open_site, hospital, requester, tmp_path
) -> None:
    hospital.arrive(1, now=now_utc())
    with open_site() as site:
        assoc = requester.associate(site.port)
        ask(assoc, information([ct(1)]))
        assoc.release()
        site.report_until(lambda: site.commitments()[0].attempts)

    quarter_of_an_hour_later = after(now_utc(), 901)
    status = read_status(configuration(tmp_path), quarter_of_an_hour_later)

    assert status.overview is not None
    assert status.overview.commitments[CommitmentState.PENDING] == 1
    (sentence,) = [each for each in status.attention if "commitment" in each]
    assert "'CT1' (127.0.0.1)" in sentence
    assert "port = 104" in sentence


def test_what_a_requester_says_is_kept_for_status_and_out_of_the_log(
    open_site, hospital, requester, caplog
) -> None:
    caplog.set_level(logging.DEBUG, logger="daemon")
    requester.status = Dataset()
    requester.status.Status = 0x0110
    requester.status.ErrorComment = "unknown: Marked^Name"
    hospital.arrive(1, now=now_utc())
    with open_site() as site:
        assoc = requester.associate(site.port)
        ask(assoc, information([ct(1)]))

        wait_for(lambda: site.commitments()[0].attempts)
        assoc.release()

    (record,) = site.commitments()
    assert record.last_answer == "0110 failure: unknown: Marked^Name"
    assert "could not be told" in caplog.text
    assert "Marked" not in caplog.text + str([vars(each) for each in caplog.records])


def test_the_doctor_says_what_committing_means_and_who_cannot_be_told(tmp_path) -> None:
    config = configuration(
        tmp_path,
        PeerSection(ae_title="CT1", network=LOCAL, port=104),
        PeerSection(ae_title="MR1", network=LOCAL),
    )

    (found,) = [each for each in examine(config) if each.subject == "storage commitment"]

    assert found.warning
    assert "30 days" in found.detail
    assert found.detail.endswith("no port is known for MR1 from 127.0.0.0/8")


# Where a requester listens


def request_of(ae_title: str = "CT1", address: str = "10.1.8.21") -> CommitmentRequest:
    return CommitmentRequest("1.2.3", (), ae_title, "MEDIMGD", address, "a")


def test_the_most_specific_rule_with_a_port_says_where_a_requester_listens(tmp_path) -> None:
    config = configuration(
        tmp_path,
        PeerSection(ae_title="*", network="10.1.0.0/16", port=104),
        PeerSection(ae_title="*", network="10.1.8.0/24", port=105),
        PeerSection(ae_title="CT1", network="10.1.0.0/16"),
        PeerSection(ae_title="MR1", network="10.1.0.0/16", host="mr1.example", port=106),
        PeerSection(ae_title="XA1", network="10.1.0.0/16", port=107, allow=False),
    )

    callers = {
        "CT1": "10.1.8.21", "CT2": "10.1.9.1", "MR1": "::ffff:10.1.8.3", "US1": "10.2.0.1"
    }  # fmt: skip
    found = {
        name: requester_address(request_of(name, address), config)
        for name, address in callers.items()
    }

    assert (found["CT1"].host, found["CT1"].port, found["CT1"].ae_title) == (
        "10.1.8.21", 105, "CT1",
    )  # fmt: skip
    assert found["CT2"].port == 104
    assert (found["MR1"].host, found["MR1"].port) == ("mr1.example", 106)
    assert found["MR1"].calling_ae_title == "MEDIMGD"
    assert found["US1"] is None
    barred = request_of("XA1", "10.1.8.9")
    assert requester_address(barred, config).port == 105


def test_a_destination_of_the_same_ae_title_is_a_place_to_report_to(tmp_path) -> None:
    pacs = DestinationSection(name="pacs", host="pacs.example", port=104, ae_title="PACS")
    config = configuration(tmp_path, destinations=(pacs,))

    assert requester_address(request_of("PACS"), config).host == "pacs.example"
    assert requester_address(request_of("CT1"), config) is None


def test_the_remedy_is_a_rule_the_configuration_takes(tmp_path) -> None:
    line = remedy(request_of("CT1", "fe80::1%eth0"))

    assert '{ ae_title = "CT1", network = "fe80::1/128", port = 104 }' in line


def test_a_host_without_a_port_is_a_fault_of_the_configuration() -> None:
    with pytest.raises(ValueError, match="without its port"):
        PeerSection(ae_title="CT1", network=LOCAL, host="ct1.example")
