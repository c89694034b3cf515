"""Boxes in a model's input laid back onto the source: which image, which pixels, how long in mm.

Owns the way back from parts of the input to columns and rows of source instances. Knows no model;
a box is given in parts of the input's plane.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dicom_io.attention import Region
from dicom_io.vocabulary import ImageTensor, RegionOutline

_DIGITS = 3
"""A thousandth of a pixel; more says nothing and differs between machines."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in the model's plane, in parts of it: 0 is its upper left, 1 its lower right."""

    top: float
    left: float
    bottom: float
    right: float


@dataclass(frozen=True, slots=True)
class SourcePlane:
    """One image of the source."""

    sop_instance_uid: str
    frame_number: int | None
    """From 1; None for instances of one frame."""


@dataclass(frozen=True, slots=True)
class SourceGeometry:
    """How the source of a tensor lies in it."""

    planes: tuple[SourcePlane, ...]
    """The slices in the order of the stack; one for an image."""
    rows: int
    columns: int
    placement: Region
    """Top, left, bottom, right of the source in parts of the model's plane."""
    pixel_spacing_mm: tuple[float, float] | None
    """Between rows and between columns, in the patient; None where only the detector's is known."""

    def centre_of(self, number: int) -> float:
        """Return where a slice's centre lies along the input, in parts of it."""
        return (number + 0.5) / len(self.planes)

    def outline(self, number: int, box: Box, certainty: float) -> RegionOutline | None:
        """Return a box on one slice of the source, cut off at the image's edges.

        Returns
        -------
        RegionOutline or None
            None when the box lies outside the image, in what was padded.
        """
        top, left, bottom, right = self.placement
        first_row = _within((box.top - top) / (bottom - top) * self.rows, self.rows)
        last_row = _within((box.bottom - top) / (bottom - top) * self.rows, self.rows)
        first = _within((box.left - left) / (right - left) * self.columns, self.columns)
        last = _within((box.right - left) / (right - left) * self.columns, self.columns)
        if first_row >= last_row or first >= last:
            return None
        plane = self.planes[number]
        corners = (
            (first, first_row), (last, first_row), (last, last_row), (first, last_row),
            (first, first_row),
        )  # fmt: skip
        return RegionOutline(
            sop_instance_uid=plane.sop_instance_uid,
            points=corners,
            certainty=certainty,
            frame_number=plane.frame_number,
            long_axis_mm=self._longer_side(last_row - first_row, last - first),
        )

    def _longer_side(self, rows: float, columns: float) -> float | None:
        if self.pixel_spacing_mm is None:
            return None
        row_mm, column_mm = self.pixel_spacing_mm
        return round(max(rows * row_mm, columns * column_mm), 1)


def _within(position: float, most: int) -> float:
    return round(float(np.clip(position, 0, most)), _DIGITS)


def source_geometry(tensor: ImageTensor) -> SourceGeometry | None:
    """Return how a tensor's source lies in it; None where that was not noted with the tensor."""
    shape: Any = tensor.notes.get("source_shape")
    placement: Any = tensor.notes.get("source_region")
    if shape is None or placement is None:
        return None
    planes = _planes(tensor, int(shape[0]) if len(shape) == 3 else 1)
    if planes is None:
        return None
    top, left, bottom, right = (float(edge) for edge in placement)
    return SourceGeometry(
        planes, int(shape[-2]), int(shape[-1]), (top, left, bottom, right), _spacing(tensor.notes)
    )


def _planes(tensor: ImageTensor, slices: int) -> tuple[SourcePlane, ...] | None:
    uids = tensor.sop_instance_uids
    noted: Any = tensor.notes.get("source_planes")
    if noted is not None:
        return tuple(SourcePlane(uids[int(place)], int(frame)) for place, frame in noted)
    # A frame's place in the stack need not be its number: without a note nothing is known of it.
    return tuple(SourcePlane(uid, None) for uid in uids) if len(uids) == slices else None


def _spacing(notes: Mapping[str, object]) -> tuple[float, float] | None:
    stack: Any = notes.get("source_spacing_mm")
    if stack is not None:
        return float(stack[1]), float(stack[2])
    image: Any = notes.get("source_pixel_spacing_mm")
    return None if image is None else (float(image[0]), float(image[1]))
