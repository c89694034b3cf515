"""A report on storage commitment that comes while its requester is sending an instance."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from pynetdicom.dsutils import encode

from dicom_io.commitment import (
    STORAGE_COMMITMENT_CLASS_UID,
    STORAGE_COMMITMENT_INSTANCE_UID,
    CommitmentReport,
    CommitmentRequest,
    ReportAnswer,
)
from dicom_io.receiving.commitment import CommitmentSCP, ReportChannel
from dicom_io.receiving.instances import STORED, StoreAnswer, StoreRequest
from dicom_io.receiving.server import StorageServer
from tests import upper_layer as ul
from tests.commitment_requester import REFERENCES, information, wait_for
from tests.sinks import GatheringSink

CONTEXTS = (ul.Context(1), ul.Context(3, STORAGE_COMMITMENT_CLASS_UID))
N_ACTION_RQ, N_EVENT_REPORT_RQ, N_EVENT_REPORT_RSP = 0x0130, 0x0100, 0x8100
DATA_SET = bytes(range(256)) * 200


@dataclass
class Keeper:
    channels: list[ReportChannel] = field(default_factory=list)

    def accept(self, request: CommitmentRequest, channel: ReportChannel) -> None:
        self.channels.append(channel)


class KeepingSink(GatheringSink):
    def __init__(self) -> None:
        self.stored: list[bytes] = []

    def store(self, request: StoreRequest, data_set: bytes) -> StoreAnswer:
        self.stored.append(data_set)
        return STORED


@dataclass
class Modality:
    """Speaks and hears whole PDUs."""

    connection: socket.socket
    heard: bytes = b""

    def say(self, *pdus: bytes) -> None:
        self.connection.sendall(b"".join(pdus))

    def hear(self) -> bytes:
        while not ul.split_pdus(self.heard)[0]:
            more = self.connection.recv(65536)
            assert more, "the receiver hung up"
            self.heard += more
        (first, *_), _ = ul.split_pdus(self.heard)
        self.heard = self.heard[len(first) :]
        return first

    def hear_command(self) -> dict[int, bytes]:
        """Return the elements of the next command; a data set behind it is heard and dropped."""
        pdus = [self.hear()]
        while not ul.commands_of(pdus):
            pdus.append(self.hear())
        elements = ul.elements_of(ul.commands_of(pdus)[0])
        has_data_set = elements[0x0800] != ul.us(ul.NO_DATA_SET)
        while has_data_set and not any(
            control == ul.LAST_DATA for each in pdus for _, control, _ in ul.values_of(each)
        ):
            pdus.append(self.hear())
        return elements


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
def sink() -> KeepingSink:
    return KeepingSink()


@pytest.fixture(params=[True, False], ids=["streaming", "ordinary"])
def modality(request, keeper, sink) -> Iterator[Modality]:
    commitment = CommitmentSCP(keeper)
    with (
        StorageServer(sink, port=0, commitment=commitment, streams=request.param) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection,
    ):
        modality = Modality(connection)
        modality.say(ul.associate_request(CONTEXTS))
        assert modality.hear()[0] == ul.ASSOCIATE_AC
        yield modality


def action_request() -> list[bytes]:
    command = ul.command_set(
        [
            (0x0003, ul.padded_uid(STORAGE_COMMITMENT_CLASS_UID)),
            (0x0100, ul.us(N_ACTION_RQ)),
            (0x0110, ul.us(1)),
            (0x0800, ul.us(1)),
            (0x1001, ul.padded_uid(STORAGE_COMMITMENT_INSTANCE_UID)),
            (0x1008, ul.us(1)),
        ]
    )
    return ul.message(3, command, encode(information(), True, True))


def report_response(request: dict[int, bytes]) -> list[bytes]:
    command = ul.command_set(
        [
            (0x0002, ul.padded_uid(STORAGE_COMMITMENT_CLASS_UID)),
            (0x0100, ul.us(N_EVENT_REPORT_RSP)),
            (0x0120, request[0x0110]),
            (0x0800, ul.us(ul.NO_DATA_SET)),
            (0x0900, ul.us(0)),
            (0x1000, ul.padded_uid(STORAGE_COMMITMENT_INSTANCE_UID)),
            (0x1002, request[0x1002]),
        ]
    )
    return ul.message(3, command, None)


@pytest.mark.parametrize("sent_before", [1, 2, 3, 5], ids=lambda n: f"after {n} fragments")
def test_a_report_comes_within_an_instance_and_neither_disturbs_the_other(
    modality, keeper, sink, sent_before
) -> None:
    # given a request for commitment, and an instance that has begun to arrive
    modality.say(ul.p_data(*action_request()))
    assert ul.us(0) == modality.hear_command()[0x0900]
    fragments = ul.message(1, ul.store_request(), DATA_SET, 10_000)
    modality.say(*(ul.p_data(each) for each in fragments[:sent_before]))

    # when the report is sent
    answers: list[ReportAnswer] = []
    assert keeper.channels[0].send(CommitmentReport("1.2.3", REFERENCES, ()), answers.append)
    modality.say(*(ul.p_data(each) for each in fragments[sent_before:]))
    heard = {command[0x0100]: command for command in (modality.hear_command() for _ in range(2))}

    # then both messages are whole, and so is the instance
    store_response = heard[struct.pack("<H", ul.C_STORE_RSP)]
    assert store_response[0x0900] == ul.us(0)
    assert sink.stored == [DATA_SET]
    modality.say(ul.p_data(*report_response(heard[ul.us(N_EVENT_REPORT_RQ)])))
    assert wait_for(lambda: answers) == [ReportAnswer(0x0000)]
    modality.say(ul.RELEASE_REQUEST)
    assert modality.hear()[0] == ul.RELEASE_RP


def test_a_report_does_not_wait_for_the_end_of_an_instance(modality, keeper, sink) -> None:
    modality.say(ul.p_data(*action_request()))
    modality.hear_command()
    fragments = ul.message(1, ul.store_request(), DATA_SET, 10_000)
    modality.say(*(ul.p_data(each) for each in fragments[:-1]))

    assert keeper.channels[0].send(CommitmentReport("1.2.3", REFERENCES, ()), lambda _: None)

    assert modality.hear_command()[0x0100] == ul.us(N_EVENT_REPORT_RQ)
    assert sink.stored == []
    modality.say(ul.p_data(fragments[-1]))
    assert modality.hear_command()[0x0100] == ul.us(ul.C_STORE_RSP)
    assert sink.stored == [DATA_SET]
