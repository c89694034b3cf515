"""Composed documents as people see them: report texts and result cards of one study.

Owns the check that a document belongs to the study it is asked for under.
"""

from __future__ import annotations

from dataclasses import dataclass

from daemon.worklist.study_page import StudyPage
from dicom_io.errors import UnreadableInstance
from dicom_io.results.reading import capture_png, report_text
from dicom_io.results.request import DocumentRole
from storage.database import Database
from storage.documents import read_document
from storage.dossier import read_dossier
from storage.errors import NotFound


@dataclass(frozen=True, slots=True)
class ReportText:
    """One Structured Report as an indented text."""

    result_id: int
    model: str
    sop_instance_uid: str
    sop_class_uid: str
    text: str


def read_reports(database: Database, page: StudyPage) -> tuple[ReportText, ...]:
    """Return the report of each result that holds now; empty while none is composed.

    Where retention removed one with the images, or it is damaged, its text says so.
    """
    return tuple(
        ReportText(
            version.result_id,
            version.model.at_version,
            version.report.sop_instance_uid,
            version.report.sop_class_uid,
            _text(database, version.report.id),
        )
        for version in page.latest
        if version.report is not None
    )


def _text(database: Database, document_id: int) -> str:
    try:
        return report_text(read_document(database, document_id))
    except (UnreadableInstance, NotFound) as error:
        # The rest of the page must still be shown.
        return f"The report cannot be shown: {error}"


def read_capture(database: Database, study_instance_uid: str, document_id: int) -> bytes:
    """Return a result card of this study as PNG.

    Raises
    ------
    NotFound
        The study has no such picture.
    UnreadableInstance
        The stored object is damaged.
    """
    dossier = read_dossier(database, study_instance_uid)
    for document in dossier.documents:
        if document.id == document_id and document.role == DocumentRole.CAPTURE:
            return capture_png(read_document(database, document_id))
    raise NotFound(f"study {study_instance_uid} has no result card {document_id}")
