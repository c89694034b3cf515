"""The report of one model on one study: each finding as Present, Absent or Undetermined.

Owns TID 1500 with study-level groups (TID 1501). Regions do not belong here: a document that
mixes both kinds of group shows as a black viewport.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from highdicom.sr import ContentItem

from dicom_io.errors import CannotCompose
from dicom_io.results import codes
from dicom_io.results.content import (
    CONTAINS,
    HAS_CONCEPT_MOD,
    algorithm_items,
    code_item,
    container,
    encode_report,
    measurement_group,
    percent_item,
    reference_content,
    text_item,
)
from dicom_io.results.document import composing
from dicom_io.results.reference import Evidence, InstanceReference, read_evidence
from dicom_io.results.request import (
    EncodedDocument,
    ReportRequest,
    SRClassValues,
    operating_point,
)
from dicom_io.vocabulary import Finding, PresenceValues


def compose_study_report(
    request: ReportRequest,
    sop_class: SRClassValues = SRClassValues.COMPREHENSIVE_3D,
    capture: EncodedDocument | None = None,
    evidence: Evidence | None = None,
    explained: Collection[str] = (),
    regions: EncodedDocument | None = None,
) -> EncodedDocument:
    """Return the Structured Report of a result with findings.

    Parameters
    ----------
    request : ReportRequest
        What is stated, by which model, about which instances.
    sop_class : SRClassValues
        The class to encode in; see ``SR_CLASS_PREFERENCE`` for the order to fall back in. The
        class is part of the instance UID.
    capture : EncodedDocument, optional
        The result card of the same result, listed as evidence; it must be sent first.
    evidence : Evidence, optional
        What `read_evidence` returned for this request, to read the headers only once.
    explained : collection of str
        Labels of the findings whose map the result card shows; their groups refer to it.
    regions : EncodedDocument, optional
        The region report of the same result, listed as evidence; it must be sent first.

    Raises
    ------
    CannotCompose
        When the request holds a refusal, or its source or codes cannot be written.

    References
    ----------
    DICOM PS3.16 TID 1500, TID 1501, TID 4019; PS3.3 A.35.
    """
    if request.refusal is not None:
        raise CannotCompose("a refusal is not a study report: use compose_refusal_report")
    evidence = evidence or read_evidence(request)
    with composing("the study report"):
        groups = [
            measurement_group(
                request,
                evidence,
                finding.label,
                [
                    *_statements(request, finding),
                    *(_explanation(capture) if finding.label in explained else ()),
                ],
            )
            for finding in request.findings
        ]
        content = [
            container(codes.IMAGING_MEASUREMENTS, groups),
            container(
                codes.QUALITATIVE_EVALUATIONS,
                [text_item(codes.COMMENT, request.summary, CONTAINS)],
            ),
        ]
        companions = [each for each in (capture, regions) if each is not None]
        return encode_report(request, evidence, sop_class, content, companions)


def _statements(request: ReportRequest, finding: Finding) -> Iterator[ContentItem]:
    # A viewer that prints only "Finding: Pneumonia" must not turn a negative into a positive.
    if finding.presence is PresenceValues.PRESENT:
        yield code_item(codes.FINDING, finding.code, CONTAINS)
    if finding.site is not None:
        yield code_item(codes.FINDING_SITE, finding.site, HAS_CONCEPT_MOD)
    yield from algorithm_items(request, operating_point(finding))
    yield percent_item(codes.CERTAINTY_OF_FINDING, finding.certainty_percent)
    yield code_item(finding.code, codes.PRESENCE[finding.presence], CONTAINS)


def _explanation(capture: EncodedDocument | None) -> Iterator[ContentItem]:
    if capture is not None:
        picture = InstanceReference(
            capture.series_instance_uid, capture.sop_class_uid, capture.sop_instance_uid
        )
        yield reference_content(codes.VISUAL_EXPLANATION, picture)
