"""What receivers report of their work, recorded in batches: one transaction for many reports.

Owns the records of such reports and the order within a batch. The spool is the truth, so that a
batch may wait a moment; whatever was not recorded is found by ``storage.reindexing``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from storage.arrivals import Arrival
from storage.associations import close_within, open_within
from storage.database import Database
from storage.door import refuse_within
from storage.recording import Recorded, link_within, record_within
from storage.redigesting import redigested


@dataclass(frozen=True, slots=True)
class Opened:
    """An association was accepted."""

    association_id: str
    calling_ae_title: str
    called_ae_title: str
    address: str


@dataclass(frozen=True, slots=True)
class Bringing:
    """An association is bringing an instance of a study, which takes long."""

    association_id: str
    study_instance_uid: str


@dataclass(frozen=True, slots=True)
class Closed:
    """An association ended; everything it stored was reported before."""

    association_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Something was turned away at the door."""

    reason: str
    calling_ae_title: str
    called_ae_title: str
    address: str
    status: int | None = None
    sop_class_uid: str = ""
    sop_instance_uid: str = ""


Report = Opened | Bringing | Closed | Refused | Arrival


def record_reports(
    database: Database, reports: Sequence[Report], slot: str, now: datetime
) -> Recorded:
    """Record reports of the receiver in `slot`, all or none.

    Openings come before instances and ends after them, whatever the order: an association that
    ended brought its instances before, and one that brings some is open.
    """
    opened = [each for each in reports if isinstance(each, Opened)]
    arrivals = redigested(database, [each for each in reports if isinstance(each, Arrival)])
    bringing = [each for each in reports if isinstance(each, Bringing)]
    closed = [each.association_id for each in reports if isinstance(each, Closed)]
    refused = [each for each in reports if isinstance(each, Refused)]
    with database.write() as connection:
        open_within(connection, [_opened_values(each) for each in opened], slot, now)
        for each in bringing:
            link_within(connection, each.study_instance_uid, {each.association_id})
        recorded = record_within(connection, arrivals, now)
        close_within(connection, closed, now)
        refuse_within(connection, [_refused_values(each) for each in refused], now)
    return recorded


def _opened_values(report: Opened) -> dict[str, str]:
    return {"id": report.association_id, **_peer(report)}


def _refused_values(report: Refused) -> dict[str, str | int | None]:
    return {
        "reason": report.reason,
        "status": report.status,
        "sop_class_uid": report.sop_class_uid,
        "sop_instance_uid": report.sop_instance_uid,
        **_peer(report),
    }


def _peer(report: Opened | Refused) -> dict[str, str]:
    return {
        "calling_ae_title": report.calling_ae_title,
        "called_ae_title": report.called_ae_title,
        "address": report.address,
    }
