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
class InspectedImage:
    """One image or series and what was found in its files."""

    image: LabelledImage
    content_digest: str
    """SHA-256 over the bytes of all files, in any order of the files of a series."""
    picture_digest: str = ""
    """Over what they show; empty when something could not be decoded."""
    sop_instance_uids: tuple[str, ...] = ()
    smallest_edge: int = 0
    """Rows or columns, whichever are fewer; 0 when nothing could be decoded."""
    is_blank: bool = False
    truncation: str = ""
    """How a file is cut short or damaged; empty when all are whole."""
    fault: str = ""
    """Why it cannot be decoded; empty when it can."""


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
        inspected.append(_inspected(image))
        if on_image is not None:
            on_image(len(inspected))
    return tuple(inspected)


@dataclass(frozen=True, slots=True)
class _InspectedFile:
    content_digest: str
    picture: Picture | None = None
    sop_instance_uid: str = ""
    truncation: str = ""
    fault: str = ""


def _inspected(image: LabelledImage) -> InspectedImage:
    files = [_inspected_file(path) for path in image.files]
    pictures = [file.picture for file in files if file.picture is not None]
    is_whole = len(pictures) == len(files)
    return InspectedImage(
        image=image,
        content_digest=_joined(file.content_digest for file in files),
        picture_digest=_joined(picture.digest for picture in pictures) if is_whole else "",
        sop_instance_uids=tuple(f.sop_instance_uid for f in files if f.sop_instance_uid),
        smallest_edge=min((min(p.rows, p.columns) for p in pictures), default=0),
        is_blank=is_whole and all(picture.is_blank for picture in pictures),
        truncation=next((file.truncation for file in files if file.truncation), ""),
        fault=next((file.fault for file in files if file.fault), ""),
    )


def _joined(digests: Iterable[str]) -> str:
    """Return one digest of several; that of a single file stays as it is."""
    ordered = sorted(digests)
    if len(ordered) == 1:
        return ordered[0]
    return hashlib.sha256("".join(ordered).encode("ascii")).hexdigest()


def _inspected_file(path: Path) -> _InspectedFile:
    with machine_faults(path):
        encoded = path.read_bytes()
    digest = hashlib.sha256(encoded).hexdigest()
    kind = file_kind(path)
    cut = truncation(encoded, kind)
    if cut:
        return _InspectedFile(digest, truncation=cut)
    uid = ""
    try:
        if kind is FileKindValues.DICOM:
            uid = str(read_attributes(path, ["SOPInstanceUID"])["SOPInstanceUID"] or "")
        return _InspectedFile(digest, picture_of(path, kind), uid)
    except (UnreadableInstance, Refusal) as error:
        # The path stands beside the sentence already.
        sentence = str(error).removeprefix(str(path)).lstrip(": ")
        if "truncated" in sentence:
            return _InspectedFile(digest, None, uid, truncation=sentence)
        return _InspectedFile(digest, None, uid, fault=sentence)
