"""The result card as a colour Secondary Capture: the one output that every viewer shows.

Owns the image modules around the drawn card. The picture is a copy for reading beside the
original, never a substitute: no pixel spacing, so nothing can be measured on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from dicom_io.errors import CannotCompose
from dicom_io.results import codes
from dicom_io.results.card import draw_card
from dicom_io.results.document import (
    analysis_time,
    composing,
    encode,
    new_document,
    reference_item,
)
from dicom_io.results.heat import ShownExplanation
from dicom_io.results.reference import (
    Evidence,
    InstanceReference,
    code_of,
    coded_item,
    read_evidence,
)
from dicom_io.results.region_rows import ShownRegions
from dicom_io.results.request import (
    SECONDARY_CAPTURE_CLASS_UID,
    DocumentRole,
    EncodedDocument,
    ReportRequest,
)
from dicom_io.vocabulary import PresenceValues

_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def compose_capture(
    request: ReportRequest,
    picture: npt.NDArray[np.float32] | None,
    evidence: Evidence | None = None,
    explanations: Sequence[ShownExplanation] = (),
    regions: ShownRegions | None = None,
) -> EncodedDocument:
    """Return the result card of a result, findings or refusal, as an RGB Secondary Capture.

    Parameters
    ----------
    picture : ndarray or None
        Display image of the analysed input, axes (rows, columns), float32 in [0, 1] with 0 as
        black; of a volume, the slice to show. None where no pixels can be shown.
    evidence : Evidence, optional
        What `read_evidence` returned for this request, to read the headers only once.
    explanations : sequence of ShownExplanation
        Where the model saw what it found, or why that cannot be shown; of present findings only.
    regions : ShownRegions, optional
        The slice with most certainty, and the model's boxes on it.

    Raises
    ------
    CannotCompose
        When the picture is not a two-dimensional float32 image, or the source cannot be written.

    References
    ----------
    DICOM PS3.3 A.8.1, C.7.6.1, C.8.6.
    """
    if picture is not None and (picture.ndim != 2 or 0 in picture.shape):
        raise CannotCompose(
            f"picture must have the axes (rows, columns): received shape {picture.shape}"
        )
    present = {each.label for each in request.findings if each.presence is PresenceValues.PRESENT}
    if not {each.label for each in explanations} <= present:
        raise CannotCompose(
            "explanations must be of findings that are present: received "
            f"{len(explanations)} for {len(present)} findings"
        )
    evidence = evidence or read_evidence(request)
    with composing("the result card"):
        started = analysis_time(request, evidence)
        pixels = draw_card(
            request, picture, started.strftime("%Y-%m-%d %H:%M %Z").strip(), explanations, regions
        )
        ds = new_document(request, evidence, DocumentRole.CAPTURE, SECONDARY_CAPTURE_CLASS_UID)
        ds.ConversionType = "WSD"
        ds.DateOfSecondaryCapture = ds.ContentDate
        ds.TimeOfSecondaryCapture = ds.ContentTime
        _add_anatomy(ds, request, evidence.header)
        _add_image(ds, request, evidence, explanations)
        if regions is not None:
            ds.DerivationDescription += "; boxes show regions of the model's detection map"
        _add_pixels(ds, pixels)
        return encode(ds, request, DocumentRole.CAPTURE)


def _add_anatomy(ds: Dataset, request: ReportRequest, header: Dataset) -> None:
    """Say which part of the body is shown; Laterality is type 2C and hangs on it.

    It is absent for parts that come once, and empty where a side may exist and is not known.
    """
    body_part = _body_part(request, header)
    if body_part:
        ds.BodyPartExamined = body_part
    if body_part not in codes.UNPAIRED_BODY_PARTS:
        ds.Laterality = str(header.get("Laterality") or header.get("ImageLaterality") or "")
    # The card is a composition, not a view of the patient: markers drawn by a viewer would lie.
    ds.PatientOrientation = None


def _body_part(request: ReportRequest, header: Dataset) -> str:
    if "BodyPartExamined" in header:
        return str(header.BodyPartExamined)
    if "AnatomicRegionSequence" in header:
        region = code_of(header.AnatomicRegionSequence[0])
        if body_part := codes.body_part_for_region(region.value):
            return body_part
    sites = {finding.site.value for finding in request.findings if finding.site is not None}
    return codes.body_part_for_region(sites.pop()) if len(sites) == 1 else ""


def _add_image(
    ds: Dataset,
    request: ReportRequest,
    evidence: Evidence,
    explanations: Sequence[ShownExplanation],
) -> None:
    ds.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    ds.DerivationDescription = f"AI result card by {request.model.at_version}, not for measurement"
    methods = sorted({each.method for each in explanations if each.is_available})
    if methods:
        ds.DerivationDescription += (
            f"; colours show {' and '.join(methods)} attention, an explanation and no segmentation"
        )
    if sources := [_source(cited) for cited in evidence.cited if cited.is_image]:
        ds.SourceImageSequence = sources
    # The attribute asks for text that identifies the patient. The card prints none of its own,
    # but shows whatever a modality burned into the source.
    ds.BurnedInAnnotation = evidence.header.get("BurnedInAnnotation", "NO")
    if evidence.header.get("LossyImageCompression") == "01":
        for keyword in _LOSSY:
            if keyword in evidence.header:
                ds[keyword] = evidence.header[keyword]


def _source(cited: InstanceReference) -> Dataset:
    item = reference_item(cited.sop_class_uid, cited.sop_instance_uid)
    item.PurposeOfReferenceCodeSequence = [coded_item(codes.SOURCE_IMAGE_FOR_PROCESSING)]
    return item


def _add_pixels(ds: Dataset, pixels: npt.NDArray[np.uint8]) -> None:
    ds.SamplesPerPixel = 3
    ds.PhotometricInterpretation = "RGB"
    ds.PlanarConfiguration = 0
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.PixelRepresentation = 0
    ds.PixelData = pixels.tobytes()
