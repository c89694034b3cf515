"""Our negotiation beside pynetdicom's: the same request has the same outcome, byte for byte."""

from __future__ import annotations

import os
import random
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
from tests.associate_requests import any_request, damaged, request_with_role, usual_request

SEED = 20261122
REQUESTS = int(os.environ.get("MEDIMGD_NEGOTIATIONS", "400"))
"""How many requests of each kind are compared; a longer run sets the environment variable."""


@dataclass(frozen=True)
class Way:
    """One way to answer a request, by the classes that take part."""

    request: type[A_ASSOCIATE_RQ]
    acse: type[ACSE]
    state_machine: type[StateMachine]

    def outcome(self, request: bytes) -> object:
        """Return the answer and what was agreed, or the step that failed."""
        step = "reading"
        try:
            pdu = self.request()
            pdu.decode(request)
            step = "understanding"
            primitive = pdu.to_primitive()
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

        assert ours == PYNETDICOMS.outcome(request)
        results |= {context[3:] for context in ours[1]} if is_answered(ours) else {ours}
    assert results == {
        (0, True, True), (0, True, False), (0, False, True), (1, False, False), "answering",
    }  # fmt: skip


def test_any_request_has_the_same_outcome():
    rng = random.Random(SEED)
    outcomes = []
    for _ in range(REQUESTS):
        request = any_request(rng)

        outcomes.append(OURS.outcome(request))

        assert outcomes[-1] == PYNETDICOMS.outcome(request), request.hex()
    answered = [outcome for outcome in outcomes if is_answered(outcome)]
    results = {context[3] for outcome in answered for context in outcome[1]}
    assert len(answered) > REQUESTS // 2
    assert results >= {0, 3, 4}
    faults = {outcome for outcome in outcomes if not is_answered(outcome)}
    assert faults >= {"reading", "understanding", "negotiating"}


def test_a_damaged_request_has_the_same_outcome_each_time_it_comes():
    rng = random.Random(SEED)
    for _ in range(REQUESTS):
        request = damaged(usual_request(rng.choice((1, 3, 9)), rng), rng)

        first, again = OURS.outcome(request), OURS.outcome(request)

        assert first == again == PYNETDICOMS.outcome(request), request.hex()
