"""The courier process: composes every result once, and delivers it to every destination.

Owns the order of sending and the step down to an SR class a peer accepts; whether it arrived is
``daemon.confirming``'s question. Delivery never touches inference: an archive may be away for days.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from daemon.composing import Composer
from daemon.config import Config, DestinationSection
from daemon.confirming import Confirmer, peer_of
from daemon.logs import ACTION, COUNT, DESTINATION, REASON, RESULT, STUDY
from daemon.reporting import CommitmentReporter
from daemon.role import RoleProcess, now_utc, where
from daemon.setbacks import Setbacks
from dicom_io.errors import AssociationFailed, CannotCompose, MedimgdError
from dicom_io.results.request import SR_CLASS_PREFERENCE, DocumentRole, SRClassValues
from dicom_io.sending import OutgoingInstance, SendOutcome, send
from dicom_io.statuses import describe
from storage.backoff import DeliveryPolicy
from storage.database import Database
from storage.deliveries import DeliveryRecord
from storage.destinations import DeliveryOutcome, destination_state, learn_sr_sop_class
from storage.documents import read_document
from storage.installation import read_installation
from storage.outbox import (
    DeliveryGroup,
    due_deliveries,
    keeps_the_rest_waiting,
    record_outcomes,
    replace_document,
)
from storage.redelivery import deliver_undelivered
from storage.results import (
    ResultKind,
    ResultRecord,
    get_result,
    has_later_documents,
    mark_uncomposable,
    predecessor_documents,
    results_awaiting_composition,
    store_documents,
    withhold_result,
)
from storage.spool import Spool

_logger = logging.getLogger(__name__)

IDLE_SECONDS = 0.25
REPORT_IDLE_SECONDS = 1.0
OFFER_EVERY_SECONDS = 30.0
MOST_COMMENT = 512

_REPORTS = frozenset({DocumentRole.REPORT, DocumentRole.REGIONS})
"""What can be written in several SR classes."""

# Explicit VR Little Endian: what the result composers write (PS3.5 A.2).
_TRANSFER_SYNTAX_UID = "1.2.840.10008.1.2.1"


class Courier:
    """Composes and delivers.

    Parameters
    ----------
    config : Config
        Destinations and patience.
    database : Database
        Open for writing.
    composer : Composer
        Makes documents from results.
    """

    def __init__(self, config: Config, database: Database, composer: Composer) -> None:
        self._config = config
        self._database = database
        self._composer = composer
        self._sections = {section.name: section for section in config.destinations}
        self._policy = _policy(config)
        self._confirmer = Confirmer(config, database)
        self._offer_next = now_utc()
        self._setbacks = Setbacks()

    def work(self) -> bool:
        """Do one round; False when nothing was composed and there was nothing to send."""
        composed = self._compose_waiting()
        sent = self._deliver_due()
        self._confirmer.confirm_due(now_utc())
        self._offer_to_new(now_utc())
        return composed or sent

    # Composing

    def _compose_waiting(self) -> bool:
        """Compose what is due; False when nothing came of it, so that a fault is no busy wait."""
        put_off = self._setbacks.put_off(now_utc())
        waiting = results_awaiting_composition(self._database, besides=put_off)
        composed = [result for result in waiting if self._compose_guarded(result)]
        return bool(composed)

    def _compose_guarded(self, result: ResultRecord) -> bool:
        """Compose; an unexpected failure puts this result off and leaves the others alone."""
        try:
            self._compose(result)
        except Exception as error:  # noqa: BLE001 - a process loop: the other results go on
            self._note_failure(result, error)
            return False
        self._setbacks.forget(result.id)
        return True

    def _note_failure(self, result: ResultRecord, error: Exception) -> None:
        """Try a result again later; when only a person can help, it waits for one."""
        retryable = isinstance(error, MedimgdError) and error.retryable
        what = str(error) if isinstance(error, MedimgdError) else type(error).__name__
        setback = self._setbacks.note(result.id, now_utc())
        final = setback.is_final(now_utc(), retryable=retryable)
        if setback.failures == 1 or final:
            _logger.error(
                "result not composed (%s in %s)", what, where(error),
                extra={ACTION: "composition_failed", RESULT: result.id,
                       STUDY: result.study_instance_uid, REASON: type(error).__name__},
            )  # fmt: skip
        if final:
            reason = f"composing failed {setback.failures} times: {what} in {where(error)}"
            mark_uncomposable(self._database, result.id, reason, now_utc())
            self._setbacks.forget(result.id)

    def _compose(self, result: ResultRecord) -> None:
        fields = {RESULT: result.id, STUDY: result.study_instance_uid}
        if reason := self._reason_to_withhold(result):
            withhold_result(self._database, result.id, reason, now_utc())
            _logger.info("result withheld: %s", reason, extra={ACTION: "withheld", **fields})
            return
        try:
            documents = self._composer.compose(result, SR_CLASS_PREFERENCE[0])
        except CannotCompose as error:
            mark_uncomposable(self._database, result.id, str(error), now_utc())
            _logger.error("%s", error, extra={ACTION: "uncomposable", **fields})
            return
        store_documents(self._database, result.id, documents, tuple(self._sections), now_utc())
        _logger.info("result composed", extra={ACTION: "composed", **fields})

    def _reason_to_withhold(self, result: ResultRecord) -> str:
        """Return why a result is shown here and sent nowhere; empty when it is sent."""
        is_withheld_as_a_rule = (
            result.kind is not ResultKind.FINDING and not self._config.results.send_refusals
        )
        # An archive that has a report must not go on showing what is not said any more.
        if is_withheld_as_a_rule and not predecessor_documents(self._database, result):
            return "refusals are shown in the worklist and not sent (results.send_refusals)"
        if has_later_documents(self._database, result):
            return "a later version was composed before this one could be: an archive gets that"
        return ""

    # Delivering

    def _deliver_due(self) -> bool:
        groups = due_deliveries(self._database, now_utc())
        unreachable: set[str] = set()
        for group in groups:
            if group.destination not in unreachable and not self._deliver_guarded(group):
                unreachable.add(group.destination)
        return bool(groups)

    def _deliver_guarded(self, group: DeliveryGroup) -> bool:
        """Deliver; an unexpected failure, which is ours, postpones this result and no other."""
        try:
            return self._deliver(group)
        except Exception as error:  # noqa: BLE001 - a process loop: the other results go on
            what = f"not sent: {type(error).__name__} in {where(error)}"
            _logger.error(
                "%s", what,
                extra={ACTION: "delivery_failed", DESTINATION: group.destination,
                       RESULT: group.result_id, REASON: type(error).__name__},
            )  # fmt: skip
            self._record(group, _all(group, what, is_unsent=True))
            return True

    def _deliver(self, group: DeliveryGroup) -> bool:
        """Send one result's documents on one association; False when nobody answered."""
        section = self._sections.get(group.destination)
        if section is None:
            self._record(group, _all(group, "this destination is no longer configured"))
            return True
        try:
            outcomes = self._attempt(section, group)
        except AssociationFailed as error:
            self._record(group, _all(group, str(error)))
            return False
        self._record(group, outcomes)
        return any(outcome.status is not None or outcome.context_refused for outcome in outcomes)

    def _attempt(self, section: DestinationSection, group: DeliveryGroup) -> list[DeliveryOutcome]:
        deliveries = self._in_accepted_class(group)
        of_uid = {each.sop_instance_uid: each for each in deliveries}

        def puts_the_rest_off(outcome: SendOutcome) -> bool:
            delivery = of_uid[outcome.sop_instance_uid]
            (judged,) = _matched([delivery], [outcome])
            return keeps_the_rest_waiting(delivery, judged, now_utc(), self._policy)

        objects = [self._outgoing(each) for each in deliveries]
        outcomes = send(peer_of(section, self._config), objects, is_last=puts_the_rest_off)
        reached = deliveries[: len(outcomes)]
        return _matched(reached, self._with_fallback(section, reached, outcomes))

    def _in_accepted_class(self, group: DeliveryGroup) -> tuple[DeliveryRecord, ...]:
        """Use the SR class this destination was found to accept, without asking again."""
        learned = destination_state(self._database, group.destination).sr_sop_class_uid
        return tuple(
            self._in_class_or_as_kept(delivery, SRClassValues(learned))
            if learned and delivery.role in _REPORTS
            and delivery.sop_class_uid != learned
            else delivery
            for delivery in group.deliveries
        )  # fmt: skip

    def _in_class_or_as_kept(
        self, delivery: DeliveryRecord, sr_class: SRClassValues
    ) -> DeliveryRecord:
        """Return a report in this class, or as it is where nothing is left to compose it from."""
        try:
            return self._in_class(delivery, sr_class)
        except CannotCompose:
            return delivery

    def _with_fallback(
        self,
        section: DestinationSection,
        deliveries: Sequence[DeliveryRecord],
        outcomes: Sequence[SendOutcome],
    ) -> list[SendOutcome]:
        """Step down through the SR classes while a report's context is refused."""
        results = list(outcomes)
        for place, (delivery, outcome) in enumerate(zip(deliveries, outcomes, strict=True)):
            if delivery.role in _REPORTS:
                results[place] = self._stepped_down(section, delivery, outcome)
        return results

    def _stepped_down(
        self, section: DestinationSection, delivery: DeliveryRecord, outcome: SendOutcome
    ) -> SendOutcome:
        first_refused = SRClassValues(delivery.sop_class_uid)
        if not outcome.context_refused:
            return outcome
        for sr_class in SR_CLASS_PREFERENCE:
            if sr_class is first_refused:
                continue
            try:
                lesser = self._in_class(delivery, sr_class)
            except CannotCompose as error:
                # Refused in the class we have, and the source of another class is gone; that says
                # nothing of what the destination accepts.
                return replace(outcome, comment=str(error))
            try:
                (outcome,) = send(peer_of(section, self._config), [self._outgoing(lesser)])
            except AssociationFailed as error:
                return SendOutcome(lesser.sop_instance_uid, None, str(error))
            if not outcome.context_refused:
                learn_sr_sop_class(self._database, section.name, sr_class)
                _logger.warning(
                    "%s does not accept %s: reports are sent as %s",
                    section.name, first_refused.name, sr_class.name,
                    extra={ACTION: "sr_class_learned", DESTINATION: section.name},
                )  # fmt: skip
                return outcome
        learn_sr_sop_class(self._database, section.name, None)
        return outcome

    def _in_class(self, delivery: DeliveryRecord, sr_class: SRClassValues) -> DeliveryRecord:
        result = get_result(self._database, delivery.result_id)
        role = DocumentRole(delivery.role)
        document = self._composer.compose_report(result, sr_class, role)
        return replace_document(self._database, delivery.id, document, now_utc())

    def _outgoing(self, delivery: DeliveryRecord) -> OutgoingInstance:
        return OutgoingInstance(
            delivery.sop_class_uid,
            delivery.sop_instance_uid,
            _TRANSFER_SYNTAX_UID,
            read_document(self._database, delivery.document_id),
        )

    def _record(self, group: DeliveryGroup, outcomes: Sequence[DeliveryOutcome]) -> None:
        before = destination_state(self._database, group.destination)
        records = record_outcomes(
            self._database, group.destination, outcomes, now_utc(), self._policy
        )
        for record in records:
            _logger.info(
                "%s to %s: %s", record.role, record.destination, record.state,
                extra={ACTION: "delivery", DESTINATION: record.destination,
                       RESULT: record.result_id, STUDY: record.study_instance_uid,
                       REASON: _answered(record)},
            )  # fmt: skip
        self._log_turn(before.consecutive_failures, group.destination)

    def _log_turn(self, failures_before: int, destination: str) -> None:
        """Say once that a destination went away, and once that it is back."""
        state = destination_state(self._database, destination)
        if state.consecutive_failures and not failures_before:
            _logger.warning(
                "%s does not take results now; 'medimgd status' has its answer", destination,
                extra={ACTION: "destination_away", DESTINATION: destination},
            )  # fmt: skip
        if failures_before and not state.consecutive_failures:
            _logger.warning(
                "%s takes results again", destination,
                extra={ACTION: "destination_back", DESTINATION: destination},
            )  # fmt: skip

    def _offer_to_new(self, now: datetime) -> None:
        """Send what was composed while no destination was configured at all."""
        if now < self._offer_next:
            return
        self._offer_next = now + timedelta(seconds=OFFER_EVERY_SECONDS)
        made = deliver_undelivered(self._database, tuple(self._sections), now)
        if made:
            _logger.info(
                "earlier results are offered to the destinations configured now",
                extra={ACTION: "offered", COUNT: made},
            )


def _answered(record: DeliveryRecord) -> str:
    """Return the status alone: an archive's own words may name a patient and stay out of logs."""
    return "no answer" if record.last_status is None else describe(record.last_status)


def _printable(comment: str) -> str:
    """Return an archive's words without control characters, as they are kept and shown."""
    return "".join(c if c.isprintable() else " " for c in comment)[:MOST_COMMENT]


def _policy(config: Config) -> DeliveryPolicy:
    section = config.results
    return DeliveryPolicy(
        first_delay_seconds=section.first_retry_seconds,
        max_delay_seconds=section.longest_retry_seconds,
        max_outage_delay_seconds=min(section.longest_retry_seconds, 300.0),
        max_age_seconds=section.give_up_after_days * 86400.0,
    )


def _all(group: DeliveryGroup, comment: str, *, is_unsent: bool = False) -> list[DeliveryOutcome]:
    return [
        DeliveryOutcome(delivery.id, None, comment, is_unsent=is_unsent)
        for delivery in group.deliveries
    ]


def _matched(
    deliveries: Sequence[DeliveryRecord], outcomes: Sequence[SendOutcome]
) -> list[DeliveryOutcome]:
    return [
        DeliveryOutcome(
            delivery.id, outcome.status, _printable(outcome.comment), outcome.context_refused
        )
        for delivery, outcome in zip(deliveries, outcomes, strict=True)
    ]


def run_courier(config: Config, database: Database, slot: str) -> None:
    """Compose and deliver until a stop is asked for."""
    spool = Spool(config.spool_folder, 0, slot=slot)
    composer = Composer(config, database, spool, read_installation(database))
    courier = Courier(config, database, composer)
    role = RoleProcess(config, database, "courier", slot)
    reporter = CommitmentReporter(config, database, spool)
    role.begin({"destinations": [section.name for section in config.destinations]})
    # A modality that is switched off must not keep results waiting. Nothing is lost when the
    # process ends in the middle of a report: it is owed until it was answered.
    threading.Thread(
        target=role.repeat, args=(reporter.work, REPORT_IDLE_SECONDS), name="reports", daemon=True
    ).start()
    role.repeat(courier.work, IDLE_SECONDS)
    role.end()
