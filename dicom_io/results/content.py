"""The pieces of a report's content tree that study reports and refusals share.

Owns how one content item is written and the header of the tree (TID 1500, 1204, 1001, 1600).
Knows nothing of findings or of the data set around the tree.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

import numpy as np
from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    CompositeContentItem,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    GraphicTypeValues,
    ImageContentItem,
    NumContentItem,
    RelationshipTypeValues,
    ScoordContentItem,
    TextContentItem,
    UIDRefContentItem,
)
from pydicom.dataset import Dataset

from dicom_io.results import codes, identity
from dicom_io.results.document import APPLICATION_NAME, encode, new_document, reference_tree
from dicom_io.results.reference import Evidence, InstanceReference, code_of, coded_item
from dicom_io.results.request import (
    DocumentRole,
    EncodedDocument,
    LanguageValues,
    PredecessorReference,
    ReportRequest,
    SRClassValues,
    SRTitleValues,
)
from dicom_io.vocabulary import MANUFACTURER, Code, RegionOutline

CONTAINS = RelationshipTypeValues.CONTAINS
HAS_CONCEPT_MOD = RelationshipTypeValues.HAS_CONCEPT_MOD
HAS_OBS_CONTEXT = RelationshipTypeValues.HAS_OBS_CONTEXT
HAS_ACQ_CONTEXT = RelationshipTypeValues.HAS_ACQ_CONTEXT

_TITLES = MappingProxyType(
    {
        SRTitleValues.IMAGING_MEASUREMENT_REPORT: codes.IMAGING_MEASUREMENT_REPORT,
        SRTitleValues.AI_ANALYSIS_RESULTS: codes.AI_ANALYSIS_RESULTS,
    }
)
_LANGUAGES = MappingProxyType(
    {
        LanguageValues.ENGLISH_UNITED_STATES: Code("en-US", "RFC5646", "English (United States)"),
        LanguageValues.ENGLISH_UNITED_KINGDOM: Code("en-GB", "RFC5646", "English (United Kingdom)"),
    }
)
_PUBLIC_SCHEMES = frozenset({"DCM", "SCT", "UCUM", "LN", "UMLS", "RFC5646"})


def concept(code: Code) -> CodedConcept:
    """Return a code as the libraries' coded concept."""
    return CodedConcept(code.value, code.scheme, code.meaning)


def text_item(name: Code, value: str, relationship: RelationshipTypeValues) -> ContentItem:
    """Return a TEXT item."""
    return TextContentItem(concept(name), value, relationship)


def code_item(name: Code, value: Code, relationship: RelationshipTypeValues) -> ContentItem:
    """Return a CODE item."""
    return CodeContentItem(concept(name), concept(value), relationship)


def uid_item(name: Code, value: str, relationship: RelationshipTypeValues) -> ContentItem:
    """Return a UIDREF item."""
    return UIDRefContentItem(concept(name), value, relationship)


def percent_item(name: Code, value: float) -> ContentItem:
    """Return a NUM item in percent; the value must be rounded, a DS holds 16 characters."""
    return number_item(name, value, codes.PERCENT)


def number_item(name: Code, value: float, unit: Code) -> ContentItem:
    """Return a NUM item; the value must be rounded, a DS holds 16 characters."""
    item = NumContentItem(concept(name), value, concept(unit), relationship_type=CONTAINS)
    # The decimal string is exact; a binary twin (0.1 as 0.1000000000000000055) adds nothing.
    del item.MeasuredValueSequence[0].FloatingPointValue
    return item


def outline_item(name: Code, outline: RegionOutline, source: InstanceReference) -> ContentItem:
    """Return a closed line on one image, in its columns and rows (PS3.3 C.18.6), as SCOORD."""
    item = ScoordContentItem(
        concept(name),
        GraphicTypeValues.POLYLINE,
        np.array(outline.points, dtype=np.float64),
        relationship_type=CONTAINS,
    )
    frames = None if outline.frame_number is None else [outline.frame_number]
    image = ImageContentItem(
        concept(codes.SOURCE),
        source.sop_class_uid,
        source.sop_instance_uid,
        referenced_frame_numbers=frames,
        relationship_type=RelationshipTypeValues.SELECTED_FROM,
    )
    return _with_children(item, [image])


def reference_content(
    name: Code, reference: InstanceReference, children: Iterable[ContentItem] = ()
) -> ContentItem:
    """Return an item that refers to a whole instance: IMAGE, or COMPOSITE for what is no image."""
    item_class = ImageContentItem if reference.is_image else CompositeContentItem
    item = item_class(
        concept(name),
        reference.sop_class_uid,
        reference.sop_instance_uid,
        relationship_type=CONTAINS,
    )
    return _with_children(item, children)


def container(
    name: Code,
    children: Iterable[ContentItem],
    *,
    template: str | None = None,
    is_root: bool = False,
) -> ContentItem:
    """Return a CONTAINER of separate items; viewers drop all labels of continuous ones."""
    item = ContainerContentItem(
        concept(name),
        is_content_continuous=False,
        template_id=template,
        relationship_type=None if is_root else CONTAINS,
    )
    return _with_children(item, children)


def measurement_group(
    request: ReportRequest, evidence: Evidence, tracked: str, statements: Iterable[ContentItem]
) -> ContentItem:
    """Return a group (TID 1501) with its tracking identity in front and its sources at the end.

    Viewers raise an exception at a group without tracking UID, so every group gets both.
    """
    sources = [reference_content(codes.SOURCE_OF_MEASUREMENT, cited) for cited in evidence.cited]
    tracking = tracking_items(request, evidence, tracked, tracked)
    return container(codes.MEASUREMENT_GROUP, [*tracking, *statements, *sources], template="1501")


def tracking_items(
    request: ReportRequest, evidence: Evidence, tracked: str, identifier: str
) -> list[ContentItem]:
    """Return the tracking identity of a group: `identifier` for people, a UID over `tracked`."""
    uid = identity.tracking_uid(
        request.site_namespace, evidence.study_instance_uid, request.model, tracked
    )
    return [
        text_item(codes.TRACKING_IDENTIFIER, identifier, HAS_OBS_CONTEXT),
        uid_item(codes.TRACKING_UNIQUE_IDENTIFIER, uid, HAS_OBS_CONTEXT),
    ]


def algorithm_items(request: ReportRequest, parameters: str) -> list[ContentItem]:
    """Return which algorithm speaks, and under which settings (TID 4019)."""
    return [
        text_item(codes.ALGORITHM_NAME, request.model.name, HAS_CONCEPT_MOD),
        text_item(codes.ALGORITHM_VERSION, request.model.version, HAS_CONCEPT_MOD),
        text_item(codes.ALGORITHM_PARAMETERS, parameters, HAS_CONCEPT_MOD),
        code_item(codes.ALGORITHM_FAMILY, codes.ARTIFICIAL_INTELLIGENCE, HAS_CONCEPT_MOD),
    ]


def encode_report(
    request: ReportRequest,
    evidence: Evidence,
    sop_class: SRClassValues,
    content: Iterable[ContentItem],
    companions: Iterable[EncodedDocument],
    role: DocumentRole = DocumentRole.REPORT,
) -> EncodedDocument:
    """Put `content` below the header of the tree, surround it with a document and encode it.

    `companions` are other objects of the same result; they are listed as evidence and sent first.
    """
    # Another title is for sites whose viewers show no report of this one without coordinates.
    title = (
        SRTitleValues.IMAGING_MEASUREMENT_REPORT
        if role is DocumentRole.REGIONS
        else request.sr_title
    )
    root = container(
        _TITLES[title],
        [*_context(request, evidence), *_image_library(evidence), *content],
        template="1500",
        is_root=True,
    )
    ds = new_document(request, evidence, role, sop_class)
    ds.update(root)
    _add_status(ds)
    _add_references(ds, evidence, companions)
    if earlier := request.predecessors(role):
        ds.PredecessorDocumentsSequence = _predecessors(earlier)
    if schemes := _private_schemes(root):
        ds.CodingSchemeIdentificationSequence = schemes
    return encode(ds, request, role)


def _with_children(item: ContentItem, children: Iterable[ContentItem]) -> ContentItem:
    sequence = ContentSequence(list(children))
    if sequence:
        item.ContentSequence = sequence
    return item


def _context(request: ReportRequest, evidence: Evidence) -> list[ContentItem]:
    model = request.model
    uid = identity.model_uid(request.site_namespace, model)
    return [
        code_item(codes.LANGUAGE, _LANGUAGES[request.language], HAS_CONCEPT_MOD),
        code_item(codes.OBSERVER_TYPE, codes.DEVICE, HAS_OBS_CONTEXT),
        uid_item(codes.DEVICE_OBSERVER_UID, uid, HAS_OBS_CONTEXT),
        text_item(codes.DEVICE_OBSERVER_NAME, APPLICATION_NAME, HAS_OBS_CONTEXT),
        text_item(codes.DEVICE_OBSERVER_MANUFACTURER, MANUFACTURER, HAS_OBS_CONTEXT),
        text_item(codes.DEVICE_OBSERVER_MODEL_NAME, model.name, HAS_OBS_CONTEXT),
        text_item(codes.DEVICE_OBSERVER_SERIAL_NUMBER, request.node_id, HAS_OBS_CONTEXT),
        code_item(codes.PROCEDURE_REPORTED, _procedure(evidence.header), HAS_CONCEPT_MOD),
    ]


def _procedure(header: Dataset) -> Code:
    """Return what was imaged: the study's own code, or the plainest one of its modality."""
    if "ProcedureCodeSequence" in header:
        return code_of(header.ProcedureCodeSequence[0])
    for request in header.get("RequestAttributesSequence", ()):
        if request.RequestedProcedureCodeSequence:
            return code_of(request.RequestedProcedureCodeSequence[0])
    return codes.procedure_for_modality(str(header.Modality))


def _image_library(evidence: Evidence) -> list[ContentItem]:
    """Return a library of the cited images only: a whole series costs seconds and megabytes."""
    modality = codes.modality_code(str(evidence.header.Modality))
    images = [
        reference_content(
            codes.SOURCE, cited, [code_item(codes.MODALITY, modality, HAS_ACQ_CONTEXT)]
        )
        for cited in evidence.cited
        if cited.is_image
    ]
    if not images:
        return []
    return [container(codes.IMAGE_LIBRARY, [container(codes.IMAGE_LIBRARY_GROUP, images)])]


def _add_status(ds: Dataset) -> None:
    """State that the document is complete as a document and preliminary as a statement.

    The only place that writes these flags; a physician's system, not this one, verifies.
    """
    ds.CompletionFlag = "COMPLETE"
    ds.VerificationFlag = "UNVERIFIED"
    ds.PreliminaryFlag = "PRELIMINARY"


def _add_references(ds: Dataset, evidence: Evidence, companions: Iterable[EncodedDocument]) -> None:
    listed = [
        *evidence.instances,
        *(
            InstanceReference(each.series_instance_uid, each.sop_class_uid, each.sop_instance_uid)
            for each in companions
        ),
    ]
    ds.CurrentRequestedProcedureEvidenceSequence = [
        reference_tree(evidence.study_instance_uid, listed)
    ]
    ds.ReferencedPerformedProcedureStepSequence = []
    ds.PerformedProcedureCodeSequence = [coded_item(_procedure(evidence.header))]
    if "RequestAttributesSequence" in evidence.header:
        ds.ReferencedRequestSequence = _requests(evidence.header)


def _predecessors(earlier: Iterable[PredecessorReference]) -> list[Dataset]:
    """Return the documents that this one replaces, grouped by study."""
    by_study: dict[str, list[InstanceReference]] = {}
    for each in earlier:
        by_study.setdefault(each.study_instance_uid, []).append(
            InstanceReference(each.series_instance_uid, each.sop_class_uid, each.sop_instance_uid)
        )
    return [reference_tree(study, references) for study, references in by_study.items()]


def _requests(header: Dataset) -> list[Dataset]:
    items = []
    for source in header.RequestAttributesSequence:
        item = Dataset()
        item.update(source)
        item.StudyInstanceUID = header.StudyInstanceUID
        item.ReferencedStudySequence = []
        items.append(item)
    return items


def _private_schemes(root: Dataset) -> list[Dataset]:
    """Return an identification of every coding scheme that a receiver may not know."""
    used = {
        str(item.CodingSchemeDesignator)
        for item in _descendants(root)
        if "CodingSchemeDesignator" in item
    }
    return [_scheme(designator) for designator in sorted(used - _PUBLIC_SCHEMES)]


def _descendants(item: Dataset) -> Iterable[Dataset]:
    for element in item:
        if element.VR == "SQ":
            for child in element.value:
                yield child
                yield from _descendants(child)


def _scheme(designator: str) -> Dataset:
    item = Dataset()
    item.CodingSchemeDesignator = designator
    if designator == codes.PRIVATE_SCHEME:
        item.CodingSchemeName = codes.PRIVATE_SCHEME_NAME
        item.CodingSchemeResponsibleOrganization = MANUFACTURER
    return item
