"""What was composed from results: encoded objects, stored once and sent from there.

Owns the ``document`` table; which result a document is of is all it knows of results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from sqlalchemy import Connection, func, insert, select

from storage import schema
from storage.database import Database
from storage.errors import NotFound


class ComposedDocument(Protocol):
    """An encoded object as ``dicom_io.results`` hands it over."""

    @property
    def role(self) -> str:
        """``SC``, ``SR-ROI`` or ``SR``."""

    @property
    def sop_class_uid(self) -> str:
        """Its SOP class."""

    @property
    def sop_instance_uid(self) -> str:
        """Derived: the same content has the same UID."""

    @property
    def series_instance_uid(self) -> str:
        """Stable per study, model and role."""

    @property
    def data(self) -> bytes:
        """A whole Part 10 file."""


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """One composed document, without its bytes (``read_document``)."""

    id: int
    result_id: int
    role: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    composed_at: datetime
    is_here: bool
    """False once retention removed its bytes."""


_DOCUMENT_COLUMNS = (
    *(column for column in schema.document.c if column.name != "data"),
    (func.length(schema.document.c.data) > 0).label("is_here"),
)


def documents_of_results_within(
    connection: Connection, result_ids: Sequence[int]
) -> tuple[DocumentRecord, ...]:
    """Return the documents of these results, in the order they were composed."""
    table = schema.document
    query = select(*_DOCUMENT_COLUMNS).where(table.c.result_id.in_(result_ids))
    rows = connection.execute(query.order_by(table.c.id)).mappings()
    return tuple(DocumentRecord(**row) for row in rows)


def documents_of_result(database: Database, result_id: int) -> tuple[DocumentRecord, ...]:
    """Return the documents of one result, in the order they were composed; empty before."""
    with database.read() as connection:
        return documents_of_results_within(connection, [result_id])


def insert_document_within(
    connection: Connection, result_id: int, document: ComposedDocument, now: datetime
) -> int:
    """Insert one document; return its id."""
    inserted = connection.execute(
        insert(schema.document).values(
            result_id=result_id,
            role=document.role,
            sop_class_uid=document.sop_class_uid,
            sop_instance_uid=document.sop_instance_uid,
            series_instance_uid=document.series_instance_uid,
            data=document.data,
            composed_at=now,
        )
    )
    assert inserted.inserted_primary_key is not None  # noqa: S101 - one row, integer key
    return int(inserted.inserted_primary_key[0])


def read_document(database: Database, document_id: int) -> bytes:
    """Return the bytes of one document: a whole Part 10 file.

    Raises
    ------
    NotFound
        There is no such document, or retention has removed its bytes.
    """
    query = select(schema.document.c.data).where(schema.document.c.id == document_id)
    with database.read() as connection:
        data = connection.scalar(query)
    if data is None:
        raise NotFound(f"no document {document_id}")
    if not data:
        raise NotFound(
            f"document {document_id} was removed by retention with the images of its study: "
            "ask the destination it was sent to, or send the study again"
        )
    return bytes(data)


def is_own_sop_instance_uid(database: Database, sop_instance_uid: str) -> bool:
    """True when we composed an object of this UID: it came back and must not be analysed."""
    table = schema.document
    query = select(table.c.id).where(table.c.sop_instance_uid == sop_instance_uid)
    with database.read() as connection:
        return connection.execute(query).first() is not None
