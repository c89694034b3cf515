"""The coded concepts of our results, as literal triplets.

Owns the spelling of every code that medimgd writes. Not taken from a dictionary by keyword:
dictionaries hold several meanings per code and pick one of them.
"""

from __future__ import annotations

from types import MappingProxyType

from dicom_io.errors import RefusalReason
from dicom_io.vocabulary import Code, PresenceValues

PRIVATE_SCHEME = "99MEDIMGD"
PRIVATE_SCHEME_NAME = "medimgd result codes"

# Report titles (CID 7021 is extensible).
IMAGING_MEASUREMENT_REPORT = Code("126000", "DCM", "Imaging Measurement Report")
AI_ANALYSIS_RESULTS = Code("AI-RESULTS", PRIVATE_SCHEME, "AI Analysis Results (not verified)")

# Document context (TID 1204, 1001, 1002, 1004).
LANGUAGE = Code("121049", "DCM", "Language of Content Item and Descendants")
OBSERVER_TYPE = Code("121005", "DCM", "Observer Type")
DEVICE = Code("121007", "DCM", "Device")
DEVICE_OBSERVER_UID = Code("121012", "DCM", "Device Observer UID")
DEVICE_OBSERVER_NAME = Code("121013", "DCM", "Device Observer Name")
DEVICE_OBSERVER_MANUFACTURER = Code("121014", "DCM", "Device Observer Manufacturer")
DEVICE_OBSERVER_MODEL_NAME = Code("121015", "DCM", "Device Observer Model Name")
DEVICE_OBSERVER_SERIAL_NUMBER = Code("121016", "DCM", "Device Observer Serial Number")
PROCEDURE_REPORTED = Code("121058", "DCM", "Procedure reported")

# Image library (TID 1600).
IMAGE_LIBRARY = Code("111028", "DCM", "Image Library")
IMAGE_LIBRARY_GROUP = Code("126200", "DCM", "Image Library Group")
SOURCE = Code("260753009", "SCT", "Source")
MODALITY = Code("121139", "DCM", "Modality")

# Groups and their items (TID 1500, 1501, 1410, 4019).
IMAGING_MEASUREMENTS = Code("126010", "DCM", "Imaging Measurements")
MEASUREMENT_GROUP = Code("125007", "DCM", "Measurement Group")
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
TRACKING_IDENTIFIER = Code("112039", "DCM", "Tracking Identifier")
TRACKING_UNIQUE_IDENTIFIER = Code("112040", "DCM", "Tracking Unique Identifier")
FINDING = Code("121071", "DCM", "Finding")
FINDING_SITE = Code("363698007", "SCT", "Finding Site")
ALGORITHM_NAME = Code("111001", "DCM", "Algorithm Name")
ALGORITHM_VERSION = Code("111003", "DCM", "Algorithm Version")
ALGORITHM_PARAMETERS = Code("111002", "DCM", "Algorithm Parameters")
ALGORITHM_FAMILY = Code("111000", "DCM", "Algorithm Family")
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
CERTAINTY_OF_FINDING = Code("111012", "DCM", "Certainty of Finding")
SOURCE_OF_MEASUREMENT = Code("121112", "DCM", "Source of Measurement")
VISUAL_EXPLANATION = Code("130401", "DCM", "Visual explanation")
GEOMETRIC_PURPOSE = Code("130400", "DCM", "Geometric purpose of region")
BOUNDED_BY = Code("75958009", "SCT", "Bounded by")
IMAGE_REGION = Code("111030", "DCM", "Image Region")
LONG_AXIS = Code("103339001", "SCT", "Long axis")
COMMENT = Code("121106", "DCM", "Comment")
PERCENT = Code("%", "UCUM", "percent")
MILLIMETRE = Code("mm", "UCUM", "mm")

# Status of an analysis that was not performed (CID 6042, 6044).
SUMMARY_OF_ANALYSES = Code("111065", "DCM", "Summary of Analyses")
NOT_ATTEMPTED = Code("111225", "DCM", "Not Attempted")
FAILED = Code("111224", "DCM", "Failed")
REASON = Code("410666004", "SCT", "Reason")
IMAGE_QUALITY = Code("111101", "DCM", "Image Quality")
QUALITY_UNUSABLE = Code("111235", "DCM", "Unusable - Quality renders image unusable")

# Equipment and derivation.
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")
ACQUISITION_EQUIPMENT = Code("109101", "DCM", "Acquisition Equipment")
SOURCE_IMAGE_FOR_PROCESSING = Code("121322", "DCM", "Source image for image processing operation")

PRESENCE = MappingProxyType(
    {
        PresenceValues.PRESENT: Code("52101004", "SCT", "Present"),
        PresenceValues.ABSENT: Code("272519000", "SCT", "Absent"),
        PresenceValues.UNDETERMINED: Code("373068000", "SCT", "Undetermined"),
    }
)
"""What is said about a finding (CID 240)."""

REFUSAL_REASONS = MappingProxyType(
    {
        RefusalReason.CANNOT_DECODE: Code("CANNOT-DECODE", PRIVATE_SCHEME, "Cannot decode"),
        RefusalReason.GEOMETRY: Code("GEOMETRY", PRIVATE_SCHEME, "Unsuitable geometry"),
        RefusalReason.INCOMPLETE_SERIES: Code("110523", "DCM", "Object Set incomplete"),
        RefusalReason.OUTSIDE_CONTRACT: Code(
            "OUTSIDE-CONTRACT", PRIVATE_SCHEME, "Outside the model's input contract"
        ),
        RefusalReason.QUALITY: Code("110531", "DCM", "Insufficient quality for interpretation"),
        RefusalReason.SOFTWARE_FAILURE: Code("111218", "DCM", "Software failure"),
        RefusalReason.UNLIKE_TRAINING: Code(
            "UNLIKE-TRAINING", PRIVATE_SCHEME, "Unlike the images the model was trained on"
        ),
        RefusalReason.WITHDRAWN: Code("MODEL-WITHDRAWN", PRIVATE_SCHEME, "Model withdrawn"),
    }
)
"""Why nothing is said; the standard has codes for half of the reasons only."""

_COMPUTED_TOMOGRAPHY = Code("25045-6", "LN", "CT unspecified body region")
_MAGNETIC_RESONANCE = Code("25056-3", "LN", "MRI unspecified body region")
_IMAGING_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")
_PROCEDURE_BY_MODALITY = MappingProxyType({"CT": _COMPUTED_TOMOGRAPHY, "MR": _MAGNETIC_RESONANCE})

_OTHER_MODALITY = Code("OT", "DCM", "Other Modality")
MODALITIES = MappingProxyType(
    {
        code.value: code
        for code in (
            Code("CR", "DCM", "Computed Radiography"),
            Code("CT", "DCM", "Computed Tomography"),
            Code("DX", "DCM", "Digital Radiography"),
            Code("IO", "DCM", "Intra-oral Radiography"),
            Code("MG", "DCM", "Mammography"),
            Code("MR", "DCM", "Magnetic Resonance"),
            Code("NM", "DCM", "Nuclear Medicine"),
            Code("PT", "DCM", "Positron emission tomography"),
            Code("PX", "DCM", "Panoramic X-Ray"),
            Code("RF", "DCM", "Radiofluoroscopy"),
            Code("RG", "DCM", "Radiographic imaging"),
            Code("US", "DCM", "Ultrasound"),
            Code("XA", "DCM", "X-Ray Angiography"),
        )
    }
)
"""Acquisition modalities (CID 29) by their value in Modality."""

UNPAIRED_BODY_PARTS = frozenset(
    {
        "ABDOMEN",
        "BRAIN",
        "CHEST",
        "CHESTABDOMEN",
        "CHESTABDPELVIS",
        "COCCYX",
        "CSPINE",
        "FACE",
        "HEAD",
        "HEADNECK",
        "HEART",
        "JAW",
        "LIVER",
        "LSPINE",
        "MAXILLA",
        "NECK",
        "PELVIS",
        "SKULL",
        "SPINE",
        "SSPINE",
        "STERNUM",
        "THYROID",
        "TLSPINE",
        "TSPINE",
        "UTERUS",
        "WHOLEBODY",
    }
)
"""Body Part Examined terms that have no left and right (PS3.16 Table L-1)."""

_BODY_PART_BY_REGION = MappingProxyType(
    {
        "816094009": "CHEST",
        "51185008": "CHEST",  # the chest code before 2020, still found in incoming images
        "39607008": "CHEST",  # LUNG is a paired part and would ask for a side
        "3120008": "CHEST",
        "80891009": "HEART",
        "69536005": "HEAD",
        "12738006": "BRAIN",
        "818981001": "ABDOMEN",
    }
)


def procedure_for_modality(modality: str) -> Code:
    """Return the least that can be said of the imaging procedure when the study has no code."""
    return _PROCEDURE_BY_MODALITY.get(modality, _IMAGING_PROCEDURE)


def modality_code(modality: str) -> Code:
    """Return the code of an acquisition modality, ``Other Modality`` for one we do not know."""
    return MODALITIES.get(modality, _OTHER_MODALITY)


def body_part_for_region(code_value: str) -> str:
    """Return the Body Part Examined term of an anatomic region code, empty when not known."""
    return _BODY_PART_BY_REGION.get(code_value, "")
