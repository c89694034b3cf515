"""The report that an analysis was not performed, and why.

Owns the one thing a refusal says: no statement about any finding is made. It holds no finding,
no number and nothing else that could be read as a negative.
"""

from __future__ import annotations

from collections.abc import Iterator

from highdicom.sr import ContentItem

from dicom_io.errors import CannotCompose, RefusalReason
from dicom_io.results import codes
from dicom_io.results.content import (
    CONTAINS,
    code_item,
    container,
    encode_report,
    measurement_group,
    text_item,
)
from dicom_io.results.document import composing
from dicom_io.results.reference import Evidence, read_evidence
from dicom_io.results.request import (
    EncodedDocument,
    RefusalDetail,
    ReportRequest,
    SRClassValues,
)

TRACKED = "AI analysis status"


def compose_refusal_report(
    request: ReportRequest,
    sop_class: SRClassValues = SRClassValues.COMPREHENSIVE_3D,
    capture: EncodedDocument | None = None,
    evidence: Evidence | None = None,
) -> EncodedDocument:
    """Return the Structured Report of a result that is a refusal.

    Parameters
    ----------
    request, sop_class, capture, evidence
        As in ``compose_study_report``; the request must hold a refusal.

    Raises
    ------
    CannotCompose
        When the request holds findings, or its source cannot be written.

    References
    ----------
    DICOM PS3.16 TID 1500, TID 1501, CID 6042, CID 6044.
    """
    if request.refusal is None:
        raise CannotCompose("findings are not a refusal: use compose_study_report")
    evidence = evidence or read_evidence(request)
    with composing("the refusal report"):
        statements = _statements(request, request.refusal)
        group = measurement_group(request, evidence, TRACKED, statements)
        content = [container(codes.IMAGING_MEASUREMENTS, [group])]
        companions = [] if capture is None else [capture]
        return encode_report(request, evidence, sop_class, content, companions)


def _statements(request: ReportRequest, refusal: RefusalDetail) -> Iterator[ContentItem]:
    status = codes.FAILED if refusal.failed else codes.NOT_ATTEMPTED
    yield code_item(codes.SUMMARY_OF_ANALYSES, status, CONTAINS)
    yield code_item(codes.REASON, codes.REFUSAL_REASONS[refusal.reason], CONTAINS)
    if refusal.reason is RefusalReason.QUALITY:
        yield code_item(codes.IMAGE_QUALITY, codes.QUALITY_UNUSABLE, CONTAINS)
    yield text_item(codes.COMMENT, request.summary, CONTAINS)
