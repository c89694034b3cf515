"""The report of where a detecting model marked what it found: one box on each image it is seen on.

Owns TID 1500 with planar groups (TID 1410) only: a group without coordinates would turn the whole
document into a black viewport. Takes regions of a detection map, never of an explanation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

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
    number_item,
    outline_item,
    percent_item,
    tracking_items,
)
from dicom_io.results.document import composing
from dicom_io.results.reference import Evidence, InstanceReference, read_evidence
from dicom_io.results.request import (
    DocumentRole,
    EncodedDocument,
    ReportRequest,
    SRClassValues,
    percent,
)
from dicom_io.vocabulary import PresenceValues, Region, RegionOutline


def compose_region_report(
    request: ReportRequest,
    sop_class: SRClassValues = SRClassValues.COMPREHENSIVE_3D,
    evidence: Evidence | None = None,
) -> EncodedDocument:
    """Return the Structured Report of a result's regions.

    A region that is seen on several images has a group on each of them, all with one tracking UID.

    Parameters
    ----------
    request : ReportRequest
        With regions.
    sop_class : SRClassValues
        The class to encode in; the class is part of the instance UID.
    evidence : Evidence, optional
        What `read_evidence` returned for this request, to read the headers only once.

    Raises
    ------
    CannotCompose
        When there are no regions, one lies on an image that was not analysed, or its source or
        codes cannot be written.

    References
    ----------
    DICOM PS3.16 TID 1500, TID 1410, TID 4019; PS3.3 A.35, C.18.6.
    """
    if not request.regions:
        raise CannotCompose("there are no regions: a region report holds one at least")
    evidence = evidence or read_evidence(request)
    known = {each.sop_instance_uid: each for each in evidence.instances}
    marked = [outline for region in request.regions for outline in region.outlines]
    strange = {each.sop_instance_uid for each in marked} - known.keys()
    if strange:
        raise CannotCompose(
            f"regions must lie on analysed images: received {len(strange)} images that are no "
            "evidence"
        )
    cited = tuple(dict.fromkeys(known[each.sop_instance_uid] for each in marked))
    evidence = replace(evidence, cited=cited)
    with composing("the region report"):
        groups = [
            _group(request, evidence, region, outline, known[outline.sop_instance_uid])
            for region in request.regions
            for outline in region.outlines
        ]
        content = [container(codes.IMAGING_MEASUREMENTS, groups)]
        return encode_report(request, evidence, sop_class, content, (), DocumentRole.REGIONS)


def _group(
    request: ReportRequest,
    evidence: Evidence,
    region: Region,
    outline: RegionOutline,
    source: InstanceReference,
) -> ContentItem:
    # The label keeps a region apart from the finding it belongs to, which is tracked by its label.
    tracked = f"{region.label}|region|{region.number}"
    tracking = tracking_items(request, evidence, tracked, region.tracked_as)
    statements = _statements(request, region, outline, source)
    return container(codes.MEASUREMENT_GROUP, [*tracking, *statements], template="1410")


def _statements(
    request: ReportRequest, region: Region, outline: RegionOutline, source: InstanceReference
) -> Iterator[ContentItem]:
    # A viewer that prints only "Finding: Nodule" must not turn what is undetermined into a finding.
    (finding,) = [each for each in request.findings if each.label == region.label]
    if finding.presence is PresenceValues.PRESENT:
        yield code_item(codes.FINDING, region.code, CONTAINS)
    if region.site is not None:
        yield code_item(codes.FINDING_SITE, region.site, HAS_CONCEPT_MOD)
    yield from algorithm_items(request, _parameters(request, region))
    yield code_item(codes.GEOMETRIC_PURPOSE, codes.BOUNDED_BY, CONTAINS)
    yield outline_item(codes.IMAGE_REGION, outline, source)
    yield percent_item(codes.CERTAINTY_OF_FINDING, outline.certainty_percent)
    if outline.long_axis_mm is not None:
        yield number_item(codes.LONG_AXIS, outline.long_axis_mm, codes.MILLIMETRE)
    if finding.presence is not PresenceValues.PRESENT:
        yield code_item(region.code, codes.PRESENCE[finding.presence], CONTAINS)


def _parameters(request: ReportRequest, region: Region) -> str:
    words = f"box around positions of the detection map at or above {percent(region.threshold)}"
    if request.model.demonstration:
        return f"{words}; demonstration model, no clinical claim"
    return words
