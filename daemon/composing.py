"""From a stored result to the objects that are sent: gathers what ``dicom_io.results`` needs.

Owns the picture on the result card and the link to the version before. Composes; sends nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from daemon import __version__
from daemon.config import Config
from daemon.logs import ACTION, RESULT
from daemon.picturing import PicturedExplanation, pictured_explanations, pictured_regions
from dicom_io.display import display_image
from dicom_io.errors import CannotCompose, MedimgdError, RefusalReason
from dicom_io.results.capture import compose_capture
from dicom_io.results.refusal_report import compose_refusal_report
from dicom_io.results.region_report import compose_region_report
from dicom_io.results.request import (
    SECONDARY_CAPTURE_CLASS_UID,
    DocumentRole,
    EncodedDocument,
    PredecessorReference,
    RefusalDetail,
    ReportRequest,
    SRClassValues,
    SRTitleValues,
)
from dicom_io.results.study_report import compose_study_report
from storage.database import Database
from storage.documents import documents_of_result, read_document
from storage.explanations import read_explanations
from storage.installation import Installation
from storage.results import ResultKind, ResultRecord, predecessor_documents
from storage.spool import Spool
from storage.studies import instance_paths

_logger = logging.getLogger(__name__)

_TITLES = {
    "126000": SRTitleValues.IMAGING_MEASUREMENT_REPORT,
    "private": SRTitleValues.AI_ANALYSIS_RESULTS,
}


class Composer:
    """Builds the documents of results of one installation.

    Parameters
    ----------
    config : Config
        Title of the reports, node id.
    database : Database
        For paths and predecessors.
    spool : Spool
        Where the analysed instances lie.
    installation : Installation
        Whose namespace derived UIDs live in.
    """

    def __init__(
        self, config: Config, database: Database, spool: Spool, installation: Installation
    ) -> None:
        self._config = config
        self._database = database
        self._spool = spool
        self._installation = installation

    def compose(self, result: ResultRecord, sr_class: SRClassValues) -> tuple[EncodedDocument, ...]:
        """Return picture, regions where there are any, and report, in the order they are sent.

        Raises
        ------
        CannotCompose
            The reference header cannot carry a valid object, or its files are gone.
        """
        return self._composed(result, sr_class, {})

    def _composed(
        self,
        result: ResultRecord,
        sr_class: SRClassValues,
        kept: Mapping[tuple[str, str], EncodedDocument],
    ) -> tuple[EncodedDocument, ...]:
        """As ``compose``; picture and regions that are kept in the wanted class are those."""
        evidence = self._paths(result)
        pictured = self._pictured(result, evidence)
        marked = pictured_regions(result, evidence)
        shown_paths = [
            *([] if marked is None else [marked.path]),
            *(each.path for each in pictured),
        ]
        cited = tuple(dict.fromkeys(path for path in shown_paths if path is not None))
        cited = cited or (evidence[len(evidence) // 2],)
        request = self._request(result, sr_class, evidence, cited)
        shown = [each.shown for each in pictured]
        explained = [each.label for each in shown if each.is_available]
        boxes = None if marked is None else marked.shown
        capture = kept.get((DocumentRole.CAPTURE, SECONDARY_CAPTURE_CLASS_UID))
        if capture is None:
            picture = None if explained or boxes else self._picture(result, request.cited)
            capture = compose_capture(request, picture, explanations=shown, regions=boxes)
        regions = kept.get((DocumentRole.REGIONS, sr_class))
        if regions is None and request.regions:
            regions = compose_region_report(request, sr_class)
        report = _report(request, sr_class, capture, explained, regions)
        return (capture, report) if regions is None else (capture, regions, report)

    def compose_report(
        self,
        result: ResultRecord,
        sr_class: SRClassValues,
        role: DocumentRole = DocumentRole.REPORT,
    ) -> EncodedDocument:
        """Return one report alone in another SOP class, referring to the same picture.

        It refers to the picture that was composed first: composed anew by a later version of
        medimgd, or under another name of this node, that would have another UID, and nobody is sent
        it. Where a destination takes this class, it is sent the regions in it too.

        Raises
        ------
        CannotCompose
            As for ``compose``, or the result has no document of this role.
        """
        for document in self._composed(result, sr_class, self._kept(result)):
            if document.role is role:
                return document
        raise CannotCompose(f"result {result.id}: has no document of role {role}")

    def _kept(self, result: ResultRecord) -> Mapping[tuple[str, str], EncodedDocument]:
        """Return the documents of a result that are here, by role and SOP class."""
        return {
            (each.role, each.sop_class_uid): EncodedDocument(
                DocumentRole(each.role),
                result.study_instance_uid,
                each.series_instance_uid,
                each.sop_class_uid,
                each.sop_instance_uid,
                read_document(self._database, each.id),
            )
            for each in documents_of_result(self._database, result.id)
            if each.is_here
        }

    def _pictured(
        self, result: ResultRecord, evidence: Sequence[Path]
    ) -> tuple[PicturedExplanation, ...]:
        stored = read_explanations(self._database, result.id)
        return pictured_explanations(result, stored, evidence)

    def _request(
        self,
        result: ResultRecord,
        sr_class: SRClassValues,
        evidence: tuple[Path, ...],
        cited: tuple[Path, ...],
    ) -> ReportRequest:
        return ReportRequest(
            evidence=evidence,
            cited=cited,
            model=result.model,
            # Times without an offset are read in the hospital's zone: this host's.
            analysis_started=result.analysis_started_at.astimezone(),
            result_digest=result.result_digest,
            node_id=self._config.site.node_id,
            software_version=__version__,
            site_namespace=self._installation.uid_namespace,
            findings=result.findings,
            detection=result.detection,
            refusal=_refusal_of(result),
            version_number=result.version_number,
            predecessor=self._predecessor(result, DocumentRole.REPORT, sr_class),
            earlier_regions=self._predecessor(result, DocumentRole.REGIONS, sr_class),
            sr_title=_TITLES[self._config.results.title],
        )

    def _paths(self, result: ResultRecord) -> tuple[Path, ...]:
        known = instance_paths(self._database, result.study_instance_uid)
        paths = tuple(
            self._spool.absolute(known[uid]) for uid in result.sop_instance_uids if uid in known
        )
        if len(paths) != len(result.sop_instance_uids) or not paths:
            raise CannotCompose(
                f"result {result.id}: {len(result.sop_instance_uids) - len(paths)} of "
                f"{len(result.sop_instance_uids)} analysed instances are no longer in the spool"
            )
        return paths

    def _predecessor(
        self, result: ResultRecord, role: DocumentRole, sr_class: SRClassValues
    ) -> PredecessorReference | None:
        """Return the earlier document that whoever takes `sr_class` was sent, as far as known."""
        documents = predecessor_documents(self._database, result)
        of_role = [each for each in documents if each.role == role]
        of_class = [each for each in of_role if each.sop_class_uid == sr_class]
        for document in of_class or of_role:
            return PredecessorReference(
                result.study_instance_uid,
                document.series_instance_uid,
                document.sop_class_uid,
                document.sop_instance_uid,
            )
        return None

    def _picture(
        self, result: ResultRecord, cited: Sequence[Path]
    ) -> npt.NDArray[np.float32] | None:
        if result.refusal_reason is RefusalReason.CANNOT_DECODE:
            return None
        try:
            return display_image(cited[0])
        except MedimgdError as error:
            # The card says in words what it cannot show.
            _logger.warning(
                "the result card has no picture: %s", error,
                extra={ACTION: "no_picture", RESULT: result.id},
            )  # fmt: skip
            return None


def _report(
    request: ReportRequest,
    sr_class: SRClassValues,
    capture: EncodedDocument,
    explained: Sequence[str],
    regions: EncodedDocument | None,
) -> EncodedDocument:
    if request.refusal is not None:
        return compose_refusal_report(request, sr_class, capture)
    return compose_study_report(request, sr_class, capture, explained=explained, regions=regions)


def _refusal_of(result: ResultRecord) -> RefusalDetail | None:
    if result.kind is ResultKind.FINDING:
        return None
    return RefusalDetail(
        result.refusal_reason or RefusalReason.SOFTWARE_FAILURE,
        result.refusal_message,
        failed=result.kind is ResultKind.FAILURE,
    )
