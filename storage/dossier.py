"""All that is known of one study, in one snapshot: for ``show``, ``explain`` and the web page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from storage import schema
from storage.audit import AuditEntry, entries_within
from storage.database import Database
from storage.deliveries import DeliveryRecord, deliveries_of_study_within
from storage.documents import DocumentRecord, documents_of_results_within
from storage.jobs import JobRecord, jobs_of_study_within
from storage.results import ResultRecord, results_of_study_within
from storage.studies import (
    ConflictRecord,
    SeriesRecord,
    StudyRecord,
    read_conflicts,
    read_series,
    require_study,
)


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """Why a model reads a series, or why it reads none."""

    model_name: str
    model_version: str
    series_instance_uid: str | None
    chosen: bool
    evaluation: Mapping[str, Any]
    at: datetime


@dataclass(frozen=True, slots=True)
class AssociationRecord:
    """An association that brought instances of the study."""

    id: str
    calling_ae_title: str
    called_ae_title: str
    address: str
    opened_at: datetime
    closed_at: datetime | None


@dataclass(frozen=True, slots=True)
class StudyDossier:
    """Everything of one study but pixels and document bytes."""

    study: StudyRecord
    series: tuple[SeriesRecord, ...]
    conflicts: tuple[ConflictRecord, ...]
    associations: tuple[AssociationRecord, ...]
    decisions: tuple[DecisionRecord, ...]
    """Of the last preparation."""
    jobs: tuple[JobRecord, ...]
    results: tuple[ResultRecord, ...]
    documents: tuple[DocumentRecord, ...]
    deliveries: tuple[DeliveryRecord, ...]
    audit: tuple[AuditEntry, ...]
    """Oldest first."""


def read_dossier(database: Database, study_instance_uid: str) -> StudyDossier:
    """Return everything known of one study.

    Raises
    ------
    NotFound
        No instance of it was ever received.
    """
    uid = study_instance_uid
    with database.read() as connection:
        study = require_study(connection, uid)
        results = results_of_study_within(connection, uid)
        return StudyDossier(
            study=study,
            series=read_series(connection, uid),
            conflicts=read_conflicts(connection, uid),
            associations=_associations(connection, uid),
            decisions=_decisions(connection, uid),
            jobs=jobs_of_study_within(connection, uid),
            results=results,
            documents=documents_of_results_within(connection, [each.id for each in results]),
            deliveries=deliveries_of_study_within(connection, uid),
            audit=tuple(reversed(entries_within(connection, subject=uid))),
        )


def _decisions(connection: Connection, uid: str) -> tuple[DecisionRecord, ...]:
    table = schema.decision
    query = select(table).where(table.c.study_instance_uid == uid).order_by(table.c.id)
    return tuple(
        DecisionRecord(
            row.model_name,
            row.model_version,
            row.series_instance_uid,
            row.chosen,
            row.evaluation,
            row.at,
        )
        for row in connection.execute(query)
    )


def _associations(connection: Connection, uid: str) -> tuple[AssociationRecord, ...]:
    table, link = schema.association, schema.association_study
    query = (
        select(table)
        .join(link, link.c.association_id == table.c.id)
        .where(link.c.study_instance_uid == uid)
        .order_by(table.c.opened_at)
    )
    return tuple(
        AssociationRecord(
            row.id,
            row.calling_ae_title,
            row.called_ae_title,
            row.address,
            row.opened_at,
            row.closed_at,
        )
        for row in connection.execute(query)
    )
