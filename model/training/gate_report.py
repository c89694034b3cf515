"""What the gate before a training can find, what to do about each, and how it is told.

Owns the names of the checks and the records of their findings; ``model.training.gate`` makes
them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from types import MappingProxyType

from model.errors import DataGateFault, TrainingDataFault
from model.training.inspection import InspectedImage

SMALLEST_EDGE_PIXELS = 64
"""Smaller images hold too little to be read by people, let alone by a network."""

SMALLEST_CLASS_SHARE = 0.05
"""A rarer class is hardly learned, and its figures are too uncertain to be of use."""

MOST_FINDINGS_IN_MESSAGE = 5


class CheckValues(StrEnum):
    """The names by which a check can be passed over."""

    PATIENTS = "patients"
    DUPLICATES = "duplicates"
    SAME_PIXELS = "same-pixels"
    LABEL_CONFLICTS = "label-conflicts"
    BALANCE = "balance"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    NOT_IMAGES = "not-images"
    TINY = "tiny"
    BLANK = "blank"


ADVICE = MappingProxyType(
    {
        CheckValues.PATIENTS: "keep all images of a patient in one split",
        CheckValues.DUPLICATES: "keep one of the files and remove its copies",
        CheckValues.SAME_PIXELS: "keep one of the files: they show the same picture",
        CheckValues.LABEL_CONFLICTS: "find out which label is true, and remove the other",
        CheckValues.BALANCE: "add images of the class, or leave the class out",
        CheckValues.UNREADABLE: "fetch the file again, or remove it",
        CheckValues.TRUNCATED: "fetch the whole file again, or remove it",
        CheckValues.NOT_IMAGES: "remove it: it is no PNG, JPEG or DICOM file",
        CheckValues.TINY: "fetch the image in its own size, or remove it",
        CheckValues.BLANK: "remove it: every pixel has the same value",
    }
)


@dataclass(frozen=True, slots=True)
class GateLimits:
    """The numbers that the checks compare with."""

    smallest_edge_pixels: int = SMALLEST_EDGE_PIXELS
    smallest_class_share: float = SMALLEST_CLASS_SHARE
    """Of the images of a split that hold any class."""

    @property
    def are_lowered(self) -> bool:
        """True when less is asked for than by default, so that less may be found."""
        return (
            self.smallest_edge_pixels < SMALLEST_EDGE_PIXELS
            or self.smallest_class_share < SMALLEST_CLASS_SHARE
        )

    def in_words(self) -> str:
        """Return the limits as a person reads them."""
        return (
            f"no edge below {self.smallest_edge_pixels} pixels, "
            f"no class below {100 * self.smallest_class_share:g} %"
        )


@dataclass(frozen=True, slots=True)
class GateFinding:
    """One fault of the data."""

    check: CheckValues
    sentence: str
    files: tuple[str, ...]
    """Names of the images concerned; none where a whole class is."""

    @property
    def advice(self) -> str:
        """What to do about it."""
        return ADVICE[self.check]

    def as_mapping(self) -> dict[str, object]:
        """Return the record as plain data for JSON."""
        return {
            "check": str(self.check),
            "sentence": self.sentence,
            "files": list(self.files),
            "advice": self.advice,
        }


@dataclass(frozen=True, slots=True)
class GateReport:
    """What the gate found, and what it was told to let pass."""

    findings: tuple[GateFinding, ...]
    allowed: frozenset[CheckValues]
    counts: dict[str, dict[str, int]]
    """Images by split and class; ``images`` is the number of all of the split."""
    inspected: tuple[InspectedImage, ...]
    limits: GateLimits
    """What the checks compared with."""

    @property
    def failing(self) -> tuple[GateFinding, ...]:
        """The findings of checks that nobody passed over."""
        return tuple(f for f in self.findings if f.check not in self.allowed)

    @property
    def passed(self) -> bool:
        """True when nothing is wrong, or only what was allowed."""
        return not self.failing

    @property
    def without_patient(self) -> int:
        """How many images have no known patient: a leak between them is not seen."""
        return sum(1 for one in self.inspected if not one.image.patient)

    @property
    def split_in_words(self) -> str:
        """What the splits of data that pass are known to have apart."""
        if not self.without_patient:
            return "by patient; no patient and no identical image is in two splits"
        return (
            f"no known patient and no identical image is in two splits; {self.without_patient} of "
            f"{len(self.inspected)} images have no known patient"
        )

    def require(self) -> None:
        """Refuse the data unless the gate is passed.

        Raises
        ------
        DataGateFault
            With one sentence for each check that fails.
        """
        if not self.passed:
            raise DataGateFault(
                "data", [_in_words(*group) for group in self.by_check(self.failing)]
            )

    @staticmethod
    def by_check(
        findings: Iterable[GateFinding],
    ) -> list[tuple[CheckValues, list[GateFinding]]]:
        """Return findings grouped by check, in the order of the checks."""
        groups: dict[CheckValues, list[GateFinding]] = defaultdict(list)
        for finding in findings:
            groups[finding.check].append(finding)
        return [(check, groups[check]) for check in CheckValues if check in groups]

    def as_mapping(self) -> dict[str, object]:
        """Return the record as plain data for JSON."""
        return {
            "passed": self.passed,
            "allowed": sorted(self.allowed),
            "limits": asdict(self.limits),
            "counts": self.counts,
            "without_patient": self.without_patient,
            "findings": [finding.as_mapping() for finding in self.findings],
        }


def _in_words(check: CheckValues, findings: Sequence[GateFinding]) -> str:
    shown = "; ".join(finding.sentence for finding in findings[:MOST_FINDINGS_IN_MESSAGE])
    rest = len(findings) - MOST_FINDINGS_IN_MESSAGE
    more = f"; and {rest} more" if rest > 0 else ""
    return f"{check} ({len(findings)}): {shown}{more}. To do: {ADVICE[check]}"


def checks_named(names: Iterable[str]) -> frozenset[CheckValues]:
    """Return the checks of these names.

    Raises
    ------
    TrainingDataFault
        There is no check of a name.
    """
    wanted = [name.strip().casefold() for name in names]
    unknown = sorted({name for name in wanted if name not in list(CheckValues)})
    if unknown:
        raise TrainingDataFault(
            f"allow: there is no check named {', '.join(unknown)}; the checks are "
            f"{', '.join(CheckValues)}"
        )
    return frozenset(CheckValues(name) for name in wanted)
