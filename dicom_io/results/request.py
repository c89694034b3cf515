"""What a result says and about whom: the records that go in, the encoded document that comes out.

Owns the rules a request must meet before anything is composed. Imports no DICOM library and
reads no file.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from dicom_io.errors import CannotCompose, RefusalReason
from dicom_io.vocabulary import (
    Detection,
    Finding,
    ModelIdentity,
    PresenceValues,
    Region,
    checked_uid,
)

_HEX_DIGEST = re.compile(r"[0-9a-f]{16,128}")
_UNWRITABLE = re.compile(r"[\\\x00-\x1f\x7f-\x9f]")
_SERIES_DESCRIPTION_MAX_LENGTH = 64


class SRClassValues(StrEnum):
    """The SOP classes a report can be written in; the content is the same in all of them."""

    COMPREHENSIVE_3D = "1.2.840.10008.5.1.4.1.1.88.34"
    COMPREHENSIVE = "1.2.840.10008.5.1.4.1.1.88.33"
    ENHANCED = "1.2.840.10008.5.1.4.1.1.88.22"


SR_CLASS_PREFERENCE: Final = (
    SRClassValues.COMPREHENSIVE_3D,
    SRClassValues.COMPREHENSIVE,
    SRClassValues.ENHANCED,
)
"""What to try, in this order, until the peer accepts a presentation context."""

SECONDARY_CAPTURE_CLASS_UID: Final = "1.2.840.10008.5.1.4.1.1.7"


class SRTitleValues(StrEnum):
    """The root title of a report; which one reads better depends on the site's viewer."""

    IMAGING_MEASUREMENT_REPORT = "126000"
    AI_ANALYSIS_RESULTS = "AI-RESULTS"


class LanguageValues(StrEnum):
    """The language a report states for its text (RFC 5646)."""

    ENGLISH_UNITED_STATES = "en-US"
    ENGLISH_UNITED_KINGDOM = "en-GB"


class DocumentRole(StrEnum):
    """Which of the objects of one result this is; the value is used in derived UIDs."""

    REPORT = "SR"
    CAPTURE = "SC"
    REGIONS = "SR-ROI"


class OutcomeValues(StrEnum):
    """The one-word flag of a result, as series descriptions and result cards carry it."""

    POSITIVE = "POSITIVE"
    UNDETERMINED = "UNDETERMINED"
    NEGATIVE = "NEGATIVE"
    NOT_ANALYSED = "NOT ANALYSED"


@dataclass(frozen=True, slots=True)
class RefusalDetail:
    """Why no statement about any finding is made."""

    reason: RefusalReason
    message: str
    """One sentence for people, without anything that identifies the patient."""
    failed: bool = False
    """True when the analysis was begun and broke; false when it was not attempted."""


@dataclass(frozen=True, slots=True)
class PredecessorReference:
    """An earlier version of this document, as it was sent."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str

    def __post_init__(self) -> None:
        checked_uid(self.study_instance_uid, "StudyInstanceUID of the predecessor")
        checked_uid(self.series_instance_uid, "SeriesInstanceUID of the predecessor")
        checked_uid(self.sop_class_uid, "SOPClassUID of the predecessor")
        checked_uid(self.sop_instance_uid, "SOPInstanceUID of the predecessor")


@dataclass(frozen=True, slots=True)
class EncodedDocument:
    """One result object, ready to be sent; only these bytes ever leave the house."""

    role: DocumentRole
    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    data: bytes
    """A complete Part 10 file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """Everything one result is made of. Either findings or a refusal, never both.

    Raises
    ------
    CannotCompose
        When a rule between the fields is broken; the message names the field.
    """

    evidence: tuple[Path, ...]
    """Every instance that was analysed, all of one study."""
    cited: tuple[Path, ...]
    """The part of the evidence shown as source of the findings; the first one gives the header."""
    model: ModelIdentity
    analysis_started: datetime
    """Aware; content date and time are written in the zone it carries (see ``document``)."""
    result_digest: str
    """Hexadecimal digest of what the model answered."""
    node_id: str
    software_version: str
    site_namespace: uuid.UUID
    """Generated once per installation; derived UIDs are named in it."""
    findings: tuple[Finding, ...] = ()
    refusal: RefusalDetail | None = None
    version_number: int = 1
    """Counts the results of this study and model; becomes Instance Number."""
    detection: Detection | None = None
    """Where the model itself marked what it found; None for models that tell no places."""
    predecessor: PredecessorReference | None = None
    """The report that this one replaces."""
    earlier_regions: PredecessorReference | None = None
    """The region report of the version before; where there are no regions now, the report itself
    replaces it too."""
    sr_title: SRTitleValues = SRTitleValues.IMAGING_MEASUREMENT_REPORT
    language: LanguageValues = LanguageValues.ENGLISH_UNITED_STATES

    def __post_init__(self) -> None:
        for broken, rule, received in self._rules():
            if broken:
                raise CannotCompose(f"{rule}: received {received}")

    def _rules(self) -> tuple[tuple[bool, str, object], ...]:
        labels = [finding.label for finding in self.findings]
        probabilities = [finding.probability for finding in self.findings]
        return (
            (not self.evidence, "evidence must name at least one instance", "none"),
            (
                any(_UNWRITABLE.search(text) for text in self._written()),
                "names, versions, labels and codes must hold no backslash or control character",
                "one that does",
            ),
            (not self.cited, "cited must name at least one instance", "none"),
            (
                not set(self.cited) <= set(self.evidence),
                "cited must be part of evidence",
                f"{len(set(self.cited) - set(self.evidence))} paths that are not in it",
            ),
            (
                bool(self.findings) == (self.refusal is not None),
                "a result holds either findings or a refusal",
                f"{len(self.findings)} findings and {'a' if self.refusal else 'no'} refusal",
            ),
            (
                len(set(labels)) != len(labels),
                "labels of findings must differ, they name what is tracked",
                labels,
            ),
            (
                not all(0 <= probability <= 1 for probability in probabilities),
                "the probability of a finding must lie in 0..1",
                probabilities,
            ),
            (
                not {each.label for each in self.regions} <= self._found,
                "regions must belong to a finding that is not absent",
                sorted({each.label for each in self.regions}),
            ),
            (
                self.version_number < 1,
                "version_number must be 1 or more",
                self.version_number,
            ),
            (
                self.analysis_started.utcoffset() is None,
                "analysis_started must carry a time zone",
                "a naive time",
            ),
            (
                _HEX_DIGEST.fullmatch(self.result_digest) is None,
                "result_digest must be 16 to 128 lower-case hexadecimal digits",
                repr(self.result_digest[:20]),
            ),
        )

    @property
    def _found(self) -> set[str]:
        findings = self.findings
        return {each.label for each in findings if each.presence is not PresenceValues.ABSENT}

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions of the result, the most certain first."""
        return () if self.detection is None else self.detection.regions

    def predecessors(self, role: DocumentRole) -> tuple[PredecessorReference, ...]:
        """Return the earlier documents that a document of this role replaces."""
        earlier = [self.predecessor] if role is DocumentRole.REPORT else []
        if role is DocumentRole.REGIONS or (role is DocumentRole.REPORT and not self.regions):
            earlier.append(self.earlier_regions)
        return tuple(each for each in earlier if each is not None)

    def _written(self) -> Iterator[str]:
        """Yield every text that becomes a short attribute, where a backslash would split it."""
        yield from (self.node_id, self.software_version)
        yield from (self.model.name, self.model.version, self.model.title)
        yield from (each.label for each in self.findings)
        yield from (each.tracked_as for each in self.regions)
        codes = [code for each in self.findings for code in (each.code, each.site)]
        codes += [code for each in self.regions for code in (each.code, each.site)]
        for code in codes:
            if code is not None:
                yield from (code.value, code.scheme, code.meaning)

    @property
    def outcome(self) -> OutcomeValues:
        """The flag of the whole result: one Present is enough to be positive."""
        if self.refusal is not None:
            return OutcomeValues.NOT_ANALYSED
        stated = {finding.presence for finding in self.findings}
        if PresenceValues.PRESENT in stated:
            return OutcomeValues.POSITIVE
        if PresenceValues.UNDETERMINED in stated:
            return OutcomeValues.UNDETERMINED
        return OutcomeValues.NEGATIVE

    @property
    def series_description(self) -> str:
        """The flag as study lists show it, at most 64 characters; the flag is never cut."""
        return self._flagged(f"AI {self.outcome} - NOT VERIFIED")

    def _flagged(self, flag: str) -> str:
        name = f"DEMO {self.model.name}" if self.model.demonstration else self.model.name
        room = _SERIES_DESCRIPTION_MAX_LENGTH - len(flag) - len(" ()")
        return f"{flag} ({name[:room]})"

    def described(self, role: DocumentRole) -> str:
        """Return the series description of a document of this role."""
        if role is not DocumentRole.REGIONS:
            return self.series_description
        return self._flagged("AI REGIONS - NOT VERIFIED")

    @property
    def summary(self) -> str:
        """The one sentence a reader meets first."""
        demonstration = (
            "Demonstration model, no clinical claim. " if self.model.demonstration else ""
        )
        return f"AI result, not verified by a physician. {demonstration}{self._statement()}"

    def _statement(self) -> str:
        named = f"{self.model.name} {self.model.version}"
        if self.refusal is None:
            stated = f"{named}: {', '.join(spoken(finding) for finding in self.findings)}."
            return f"{stated} {self.places}".rstrip()
        verb = "failed" if self.refusal.failed else "was not performed"
        message = one_line(self.refusal.message).rstrip(".")
        return (
            f"The analysis by {named} {verb} ({self.refusal.reason}): {message}. "
            "No statement about any finding is made."
        )

    @property
    def places(self) -> str:
        """Return what is said of places, in a sentence; empty for models that tell none."""
        if self.detection is None:
            return ""
        count = len(self.regions)
        counted = f"{count} region{'s' * (count != 1)} in a report of their own" if count else ""
        note = one_line(self.detection.note).rstrip(".")
        said = "; ".join(each for each in (counted, note) if each)
        return f"{said[:1].upper()}{said[1:]}." if said else ""


def one_line(text: str) -> str:
    """Return a text without line breaks and control characters."""
    return " ".join(_UNWRITABLE.sub(" ", text).split())


def spoken(finding: Finding) -> str:
    """Return a finding as a reader says it: ``Pneumonia PRESENT (83 %)``."""
    word = finding.presence.value
    stressed = word.lower() if finding.presence is PresenceValues.ABSENT else word.upper()
    return f"{finding.label} {stressed} ({finding.certainty_percent:g} %)"


def operating_point(finding: Finding) -> str:
    """Return the threshold, and the band of uncertainty where there is one, in percent."""
    threshold = f"operating threshold {percent(finding.threshold)}"
    if finding.undetermined_low >= finding.undetermined_high:
        return threshold
    low, high = percent(finding.undetermined_low), percent(finding.undetermined_high)
    return f"{threshold}, undetermined from {low} to below {high}"


def percent(fraction: float) -> str:
    """Return a fraction of one in percent with at most one decimal."""
    return f"{round(fraction * 100, 1):g} %"
