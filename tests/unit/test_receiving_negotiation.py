"""Our negotiation beside pynetdicom's: the same request has the same outcome, byte for byte.

Where pynetdicom fails on what the standard lets pass, the outcome is that of the request without
it: see `as_the_standard_reads_it`, and `incomplete_contexts` for what is refused by itself.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product

import pytest
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, build_context
from pynetdicom.acse import ACSE
from pynetdicom.association import Association
from pynetdicom.fsm import StateMachine
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.presentation import negotiate_unrestricted
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

import dicom_io.network  # noqa: F401 - settles pynetdicom as the receiver has it
from dicom_io.receiving.negotiation import (
    AcceptingStateMachine,
    AssociateRequest,
    Negotiation,
    negotiate,
)
from tests import upper_layer as ul
from tests.associate_requests import (
    NAME_WITH_NUL,
    ROLE_OF_CT,
    TRANSFER_SYNTAXES,
    UNKNOWN_ITEM,
    UNKNOWN_USER,
    any_request,
    as_the_standard_reads_it,
    damaged,
    request_of,
    request_with_role,
    usual_request,
)

SEED = 20261122
REQUESTS = int(os.environ.get("MEDIMGD_NEGOTIATIONS", "400"))
"""How many requests of each kind are compared; a longer run sets the environment variable."""


@dataclass(frozen=True)
class Way:
    """One way to answer a request, by the classes that take part."""

    request: type[A_ASSOCIATE_RQ]
    acse: type[ACSE]
    state_machine: type[StateMachine]

    def outcome(self, request: bytes, left_out: Sequence[int] = ()) -> object:
        """Return the answer and what was agreed, or the step that failed.

        `left_out` are the places of presentation contexts that are taken for not proposed.
        """
        step = "reading"
        try:
            pdu = self.request()
            pdu.decode(request)
            step = "understanding"
            primitive = pdu.to_primitive()
            for place in reversed(left_out):
                del primitive.presentation_context_definition_list[place]
            step = "negotiating"
            assoc = self._association()
            assoc.requestor.primitive = primitive
            assoc.acse.negotiate_association()
            step = "answering"
            return self._answered(assoc)
        except Exception:  # noqa: BLE001 - whatever it is, both have to fail at the same step
            return step

    def _association(self) -> Association:
        ae = AE("MEDIMGD")
        assoc = Association(ae, "acceptor")
        assoc.acceptor.ae_title = "MEDIMGD"
        ae.add_supported_context(Verification, ALL_TRANSFER_SYNTAXES)
        ae.add_supported_context(
            StorageCommitmentPushModel, ["1.2.840.10008.1.2.1"], scu_role=False, scp_role=True
        )
        assoc.acceptor.supported_contexts = ae.supported_contexts
        assoc.acse = self.acse(assoc)
        assoc.dul.state_machine = self.state_machine(assoc.dul)
        return assoc

    def _answered(self, assoc: Association) -> object:
        sent = []
        assoc.dul._send = sent.append
        assoc.dul.state_machine.transition("Sta3")
        assoc.dul.state_machine.do_action("Evt7")
        agreed = [
            (each.context_id, each.abstract_syntax, tuple(each.transfer_syntax), each.result,
             each.as_scu, each.as_scp)
            for each in (*assoc.accepted_contexts, *assoc.rejected_contexts)
        ]  # fmt: skip
        state = assoc.dul.state_machine.current_state
        return sent[0].encode(), agreed, assoc.is_established, sent[0].pdu_type, state


OURS = Way(AssociateRequest, Negotiation, AcceptingStateMachine)
PYNETDICOMS = Way(A_ASSOCIATE_RQ, ACSE, StateMachine)


def is_answered(outcome: object) -> bool:
    """Tell whether the request was accepted, be it without a single context."""
    return isinstance(outcome, tuple)


def incomplete_contexts(request: bytes) -> dict[int, tuple[int, int]]:
    """Return the contexts without abstract or transfer syntax: ID and result by their place.

    A context is refused with a result of its own, 3 for an abstract and 4 for a transfer syntax
    that is not supported (PS3.8 Table 9-18), and the others stand; pynetdicom fails.
    """
    pdu = A_ASSOCIATE_RQ()
    with suppress(Exception):
        pdu.decode(request)
        proposed = pdu.to_primitive().presentation_context_definition_list
        return {
            place: (each.context_id, 4 if each.abstract_syntax else 3)
            for place, each in enumerate(proposed)
            if not each.abstract_syntax or not each.transfer_syntax
        }
    return {}


def assert_as_expected(request: bytes, ours: object) -> None:
    """Check our outcome against pynetdicom's of the request as the standard reads it."""
    readable = as_the_standard_reads_it(request)
    incomplete = incomplete_contexts(readable)
    expected = PYNETDICOMS.outcome(readable, left_out=tuple(incomplete))
    for context_id, result in incomplete.values():
        ours = without_refused(ours, context_id, result)
    assert ours == expected, request.hex()


def without_refused(outcome: object, context_id: int, result: int) -> object:
    """Return the outcome without the last context of this ID that was refused with this result."""
    if not is_answered(outcome):
        return outcome
    answer, agreed, *others = outcome
    place = max(
        place for place, each in enumerate(agreed) if (each[0], each[3]) == (context_id, result)
    )
    (syntax,) = agreed[place][2]
    head = struct.pack(">BxHBxBxBxH", 0x21, 8 + len(syntax), context_id, result, 0x40, len(syntax))
    before, item, after = answer.rpartition(head + syntax.encode())
    assert item
    return ul.pdu(answer[0], before[6:] + after), agreed[:place] + agreed[place + 1 :], *others


@pytest.mark.parametrize("count", [1, 2, 40, 128])
def test_usual_requests_are_accepted_alike(count):
    rng = random.Random(SEED)
    for _ in range(10):
        request = usual_request(count, rng)

        ours = OURS.outcome(request)

        assert is_answered(ours)
        assert ours == PYNETDICOMS.outcome(request)
        assert len(ours[1]) == count


def test_results_come_in_the_order_that_pynetdicom_gives_them():
    rng = random.Random(SEED)
    request = AssociateRequest()
    request.decode(usual_request(40, rng))
    proposed = request.to_primitive().presentation_context_definition_list
    rng.shuffle(proposed)
    supported = [build_context(Verification, ALL_TRANSFER_SYNTAXES)]

    ours, theirs = negotiate(proposed, supported, {}), negotiate_unrestricted(proposed, supported)

    assert [each.context_id for each in ours[0]] == [each.context_id for each in theirs[0]]
    assert ours[1] == theirs[1] == []


def test_roles_are_agreed_alike():
    results = set()
    classes = (ul.CT_IMAGE_STORAGE, ul.VERIFICATION, StorageCommitmentPushModel)
    for sop_class_uid, scu, scp in product(classes, (0, 1), (0, 1)):
        request = request_with_role(sop_class_uid, scu, scp)

        ours = OURS.outcome(request)

        assert_as_expected(request, ours)
        results |= {context[3:] for context in ours[1]}
    assert results == {(0, True, True), (0, True, False), (0, False, True), (1, False, False)}


@pytest.mark.parametrize("sop_class_uid", [ul.CT_IMAGE_STORAGE, ul.VERIFICATION])
def test_to_propose_neither_role_is_to_propose_none(sop_class_uid):
    neither = OURS.outcome(request_with_role(sop_class_uid, 0, 0))

    assert is_answered(neither)
    assert neither == OURS.outcome(request_of([(1, sop_class_uid, TRANSFER_SYNTAXES)]))


@pytest.mark.parametrize("roles", [b"", ROLE_OF_CT])
def test_an_incomplete_context_is_refused_and_the_others_stand(roles):
    request = request_of(
        [
            (1, ul.CT_IMAGE_STORAGE, TRANSFER_SYNTAXES),
            (3, ul.CT_IMAGE_STORAGE, []),
            (5, "", TRANSFER_SYNTAXES),
            (7, ul.CT_IMAGE_STORAGE, [""]),
            (9, "", []),
            (11, ul.VERIFICATION, TRANSFER_SYNTAXES),
        ],
        more_information=roles,
    )

    ours = OURS.outcome(request)

    assert is_answered(ours)
    results = {context[0]: context[3] for context in ours[1]}
    assert results == {1: 0, 3: 4, 5: 3, 7: 4, 9: 3, 11: 0}
    assert_as_expected(request, ours)


def test_items_of_unknown_kinds_are_passed_over():
    contexts = [(1, ul.CT_IMAGE_STORAGE, TRANSFER_SYNTAXES)]
    plain = OURS.outcome(request_of(contexts))

    assert is_answered(plain)
    assert OURS.outcome(request_of(contexts, more=UNKNOWN_ITEM)) == plain
    assert OURS.outcome(request_of(contexts, more_information=UNKNOWN_ITEM)) == plain
    assert OURS.outcome(request_of(contexts, more_in_contexts=UNKNOWN_ITEM)) == plain


@pytest.mark.parametrize("item", [UNKNOWN_USER, NAME_WITH_NUL], ids=["user", "name"])
def test_what_decides_nothing_ends_no_association(item):
    contexts = [(1, ul.CT_IMAGE_STORAGE, TRANSFER_SYNTAXES)]

    assert OURS.outcome(request_of(contexts, more_information=item)) == OURS.outcome(
        request_of(contexts)
    )


@pytest.mark.parametrize("padded", [b"CT1" + bytes(13), b"\0CT1".ljust(16), b"CT1 \0 ".ljust(16)])
def test_ae_titles_may_be_padded_with_nuls(padded):
    # Old devices do, though the standard wants spaces (PS3.8 Table 9-11).
    plain = usual_request(2, random.Random(SEED))
    as_calling = plain[:26] + padded + plain[42:]
    as_called = plain[:10] + padded + plain[26:]
    spaces = b"CT1".ljust(16)

    assert is_answered(OURS.outcome(as_calling))
    assert OURS.outcome(as_calling) == OURS.outcome(plain[:26] + spaces + plain[42:])
    assert OURS.outcome(as_called) == OURS.outcome(plain[:10] + spaces + plain[26:])


def test_a_nul_within_an_ae_title_is_no_padding():
    plain = usual_request(2, random.Random(SEED))

    assert OURS.outcome(plain[:26] + b"C\0T1".ljust(16) + plain[42:]) == "reading"


@pytest.mark.parametrize(("version", "understood"), [(1, 1), (3, 1), (0xFFFF, 1), (2, 2), (0, 0)])
def test_of_the_protocol_version_only_the_first_bit_is_tested(version, understood):
    request = bytearray(usual_request(2, random.Random(SEED)))
    request[6:8] = version.to_bytes(2, "big")
    pdu = AssociateRequest()

    pdu.decode(bytes(request))

    assert pdu.protocol_version == understood


def test_any_request_has_the_same_outcome():
    rng = random.Random(SEED)
    outcomes = []
    for _ in range(REQUESTS):
        request = any_request(rng)

        outcomes.append(OURS.outcome(request))

        assert_as_expected(request, outcomes[-1])
    answered = [outcome for outcome in outcomes if is_answered(outcome)]
    results = {context[3] for outcome in answered for context in outcome[1]}
    assert len(answered) > REQUESTS // 2
    assert results >= {0, 3, 4}
    faults = {outcome for outcome in outcomes if not is_answered(outcome)}
    assert faults >= {"reading", "understanding"}


def test_a_damaged_request_has_the_same_outcome_each_time_it_comes():
    rng = random.Random(SEED)
    for _ in range(REQUESTS):
        request = damaged(usual_request(rng.choice((1, 3, 9)), rng), rng)

        first, again = OURS.outcome(request), OURS.outcome(request)

        assert first == again
        assert_as_expected(request, first)
