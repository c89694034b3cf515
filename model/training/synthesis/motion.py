"""Motion of a head during an MR acquisition, simulated in k-space line by line.

Owns pure functions from an image and a course of motion to the image a scanner would have made.
Knows no file, no label and no patient. What is simulated is simple: rigid motion within the
slice, one phase-encoding line after the other, one receiver, magnitude images as the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]
"""(rows, columns), magnitudes, 0 and more."""

Course = npt.NDArray[np.float64]
"""One value for each phase-encoding line, in the order in which the lines are acquired."""

PhaseAxis = Literal[0, 1]
"""0 when lines are encoded along rows' direction of counting (from row to row), 1 for columns."""

ANGLE_STEP_DEGREES = 0.5
"""Turns are rounded to it: each one costs a resampling and a transform of the whole slice."""


@dataclass(frozen=True, slots=True)
class Motion:
    """Where the head is while each line is acquired, against where it should be."""

    rows_mm: Course
    columns_mm: Course
    degrees: Course

    @property
    def lines(self) -> int:
        """How many lines it is known for."""
        return len(self.rows_mm)

    @property
    def extent(self) -> float:
        """The largest way from the mean place, a degree counting as a millimetre."""
        courses = (self.rows_mm, self.columns_mm, self.degrees)
        ways = np.sqrt(sum((course - course.mean()) ** 2 for course in courses))
        return float(np.max(ways))

    def times(self, factor: float) -> Motion:
        """Return the same course, so many times as far."""
        return Motion(self.rows_mm * factor, self.columns_mm * factor, self.degrees * factor)

    def at_rest_in_the_middle(self) -> Motion:
        """Return the same course seen from where the head is while the middle is acquired."""
        middle = self.lines // 2
        courses = (self.rows_mm, self.columns_mm, self.degrees)
        return Motion(*(course - course[middle] for course in courses))


def still(lines: int) -> Motion:
    """Return the motion of a head that does not move."""
    return Motion(np.zeros(lines), np.zeros(lines), np.zeros(lines))


def sudden(lines: int, at: list[float], ways: npt.NDArray[np.float64]) -> Motion:
    """Return a head that jerks to another place and stays there, once or several times.

    Parameters
    ----------
    lines : int
    at : list of float
        When, as shares of the acquisition, ascending.
    ways : numpy.ndarray
        (jerks, 3): where to, in mm along rows and columns and in degrees, from the first place.
    """
    courses = np.zeros((3, lines))
    for share, way in zip(at, ways, strict=True):
        courses[:, round(share * lines) :] = way[:, None]
    return Motion(*courses)


def periodic(lines: int, cycles: float, phase: float, way: npt.NDArray[np.float64]) -> Motion:
    """Return a head that swings to and fro, as with breathing or tremor.

    Parameters
    ----------
    lines : int
    cycles : float
        During the whole acquisition.
    phase : float
        In radians, when it begins.
    way : numpy.ndarray
        (3,): the swing in mm along rows and columns and in degrees.
    """
    swing = np.sin(2 * np.pi * cycles * np.arange(lines) / lines + phase)
    return Motion(*(way[:, None] * swing))


def drifting(lines: int, way: npt.NDArray[np.float64], wobble: Course) -> Motion:
    """Return a head that sinks away bit by bit.

    Parameters
    ----------
    lines : int
    way : numpy.ndarray
        (3,): where it ends, in mm along rows and columns and in degrees.
    wobble : numpy.ndarray
        (lines,) in 0..1, ascending: how much of the way is done.
    """
    if len(wobble) != lines:
        raise ValueError(f"wobble: must have one value for each of {lines} lines")
    return Motion(*(way[:, None] * wobble))


def with_motion(
    image: Image, motion: Motion, spacing_mm: tuple[float, float], phase_axis: PhaseAxis
) -> Image:
    """Return the image a scanner makes of a head that moves while lines are acquired.

    Each line of k-space is taken from the head where it was at that moment: a turn moves the
    image before the transform, a shift is a phase over k-space (Fourier shift theorem). Lines are
    acquired from one end of k-space to the other, its centre in the middle of the time.

    Parameters
    ----------
    image : numpy.ndarray
        (rows, columns) float32 magnitudes of the head at rest.
    motion : Motion
        For as many lines as the image has along `phase_axis`.
    spacing_mm : tuple of float
        Between rows and columns.
    phase_axis : int
        Which axis is phase-encoded.

    Returns
    -------
    numpy.ndarray
        float32 magnitudes, same shape; the image itself, but for rounding, without motion.

    Raises
    ------
    ValueError
        The motion is for another number of lines.
    """
    if motion.lines != image.shape[phase_axis]:
        raise ValueError(
            f"motion: must cover {image.shape[phase_axis]} phase-encoding lines, "
            f"received {motion.lines}"
        )
    turns = np.rint(motion.degrees / ANGLE_STEP_DEGREES).astype(np.int64)
    acquired = np.zeros(image.shape, dtype=np.complex128)
    for turn in np.unique(turns):
        spectrum = np.fft.fftshift(np.fft.fft2(_turned(image, turn * ANGLE_STEP_DEGREES)))
        lines = np.flatnonzero(turns == turn)
        chosen = (lines, slice(None)) if phase_axis == 0 else (slice(None), lines)
        acquired[chosen] = spectrum[chosen]
    acquired *= _shift_phases(image.shape, motion, spacing_mm, phase_axis)
    return np.abs(np.fft.ifft2(np.fft.ifftshift(acquired))).astype(np.float32)


def _turned(image: Image, degrees: float) -> Image:
    if degrees == 0:
        return image
    rows, columns = image.shape
    centre = ((columns - 1) / 2, (rows - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, degrees, 1.0)
    # Cubic: linear interpolation would blur, and the network would learn to see the blur.
    turned = cv2.warpAffine(image, matrix, (columns, rows), flags=cv2.INTER_CUBIC)
    return np.asarray(turned, dtype=np.float32)


def _shift_phases(
    shape: tuple[int, ...],
    motion: Motion,
    spacing_mm: tuple[float, float],
    phase_axis: PhaseAxis,
) -> npt.NDArray[np.complex128]:
    """Return exp(-2 pi i k r) with the shift r of each line; (rows, columns), centre in the middle.

    The lines are rows of k-space for phase axis 0 and columns for phase axis 1.
    """
    row_steps, column_steps = (np.fft.fftshift(np.fft.fftfreq(edge)) for edge in shape)
    down, right = motion.rows_mm / spacing_mm[0], motion.columns_mm / spacing_mm[1]
    down, right = (down[:, None], right[:, None]) if phase_axis == 0 else (down, right)
    turns = row_steps[:, None] * down + column_steps * right
    phases: npt.NDArray[np.complex128] = np.exp(-2j * np.pi * turns)
    return phases
