"""Every image of a data set, looked at once: is it whole, what does it show, has it a twin.

Owns opening and decoding for the gate. Judges nothing: ``gate`` does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dicom_io.errors import Refusal, UnreadableInstance
from dicom_io.header import read_attributes
from dicom_io.image_files import FileKindValues, Picture, file_kind, picture_of, truncation
from dicom_io.reading import machine_faults
from model.training.dataset import LabelledImage

OnImage = Callable[[int], None]
"""Called after each image with the number of images done."""


@dataclass(frozen=True, slots=True)
class InspectedFile:
    """One file of an image or series and what was found in it."""

    content_digest: str
    """SHA-256 over its bytes."""
    picture: Picture | None = None
    """What it shows; None when it could not be decoded."""
    sop_instance_uid: str = ""
    truncation: str = ""
    """How it is cut short or damaged; empty when it is whole."""
    fault: str = ""
    """Why it cannot be decoded; empty when it can."""

    @property
    def picture_digest(self) -> str:
        """Over what it shows; empty when it is blank or could not be decoded."""
        return "" if self.picture is None or self.picture.is_blank else self.picture.digest


@dataclass(frozen=True, slots=True)
class InspectedImage:
    """One image or series and what was found in its files."""

    image: LabelledImage
    files: tuple[InspectedFile, ...]

    @property
    def content_digest(self) -> str:
        """SHA-256 over the bytes of all files, in any order of the files of a series."""
        return _joined(file.content_digest for file in self.files)

    @property
    def is_blank(self) -> bool:
        """True when every file could be decoded and shows nothing."""
        return all(file.picture is not None and file.picture.is_blank for file in self.files)

    @property
    def smallest_edge(self) -> int:
        """Rows or columns, whichever are fewer; 0 when nothing could be decoded."""
        pictures = [file.picture for file in self.files if file.picture is not None]
        return min((min(picture.rows, picture.columns) for picture in pictures), default=0)

    @property
    def truncation(self) -> str:
        """How a file is cut short or damaged; empty when all are whole."""
        return next((file.truncation for file in self.files if file.truncation), "")

    @property
    def fault(self) -> str:
        """Why it cannot be decoded; empty when it can."""
        return next((file.fault for file in self.files if file.fault), "")


def inspect_images(
    images: Iterable[LabelledImage], on_image: OnImage | None = None
) -> tuple[InspectedImage, ...]:
    """Open and decode every image.

    Raises
    ------
    InstanceUnavailable
        A file cannot be read now; nothing is said about the data then.
    """
    inspected: list[InspectedImage] = []
    for image in images:
        inspected.append(
            InspectedImage(image, tuple(_inspected_file(path) for path in image.files))
        )
        if on_image is not None:
            on_image(len(inspected))
    return tuple(inspected)


def _joined(digests: Iterable[str]) -> str:
    """Return one digest of several; that of a single file stays as it is."""
    ordered = sorted(digests)
    if len(ordered) == 1:
        return ordered[0]
    return hashlib.sha256("".join(ordered).encode("ascii")).hexdigest()


def _inspected_file(path: Path) -> InspectedFile:
    with machine_faults(path):
        encoded = path.read_bytes()
    digest = hashlib.sha256(encoded).hexdigest()
    kind = file_kind(path)
    cut = truncation(encoded, kind)
    if cut:
        return InspectedFile(digest, truncation=cut)
    uid = ""
    try:
        if kind is FileKindValues.DICOM:
            uid = str(read_attributes(path, ["SOPInstanceUID"])["SOPInstanceUID"] or "")
        return InspectedFile(digest, picture_of(path, kind), uid)
    except (UnreadableInstance, Refusal) as error:
        # The path stands beside the sentence already.
        sentence = str(error).removeprefix(str(path)).lstrip(": ")
        if "truncated" in sentence:
            return InspectedFile(digest, None, uid, truncation=sentence)
        return InspectedFile(digest, None, uid, fault=sentence)
