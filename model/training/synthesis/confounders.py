"""What also spoils an MR image and is no motion: noise, blur, uneven coils, another contrast.

Owns pure functions from image to image. With them on both sides of the label a network cannot
learn that whatever looks bad has moved.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from model.training.synthesis.motion import Image


@dataclass(frozen=True, slots=True)
class Confounders:
    """How much of each; zero, or one for the power, leaves the image alone."""

    noise: float = 0.0
    """Standard deviation of complex noise, as a share of the image's brightest percent."""
    blur_pixels: float = 0.0
    """Standard deviation of a Gaussian."""
    kept_share: float = 1.0
    """Of k-space along both axes; less of it is less resolution, with ringing at edges."""
    field: tuple[float, ...] = ()
    """Weights of a smooth field's waves, in the exponent; uneven receive coils."""
    power: float = 1.0
    """Grey values are raised to it; another contrast."""


def random_confounders(rng: np.random.Generator) -> Confounders:
    """Draw what an acquisition without motion may look like; each is there in a part of them."""
    return Confounders(
        noise=float(rng.uniform(0.0, 0.06)) if rng.random() < 0.5 else 0.0,
        blur_pixels=float(rng.uniform(0.3, 1.2)) if rng.random() < 0.35 else 0.0,
        kept_share=float(rng.uniform(0.55, 0.95)) if rng.random() < 0.3 else 1.0,
        field=tuple(rng.normal(0.0, 0.12, size=6).tolist()) if rng.random() < 0.6 else (),
        power=float(np.exp(rng.normal(0.0, 0.2))),
    )


def confounded(image: Image, chosen: Confounders, rng: np.random.Generator) -> Image:
    """Return the image with every confounder; noise last, as receivers add it.

    Parameters
    ----------
    image : numpy.ndarray
        (rows, columns) float32 magnitudes.
    chosen : Confounders
    rng : numpy.random.Generator
        Draws the noise.

    Returns
    -------
    numpy.ndarray
        float32 magnitudes of about the same brightness.
    """
    bright = max(float(np.percentile(image, 99)), 1e-6)
    changed = bright * (np.maximum(image, 0) / bright) ** chosen.power
    if chosen.field:
        changed = changed * _field(image.shape, chosen.field)
    if chosen.kept_share < 1:
        changed = _less_resolved(changed, chosen.kept_share)
    if chosen.blur_pixels > 0:
        changed = ndimage.gaussian_filter(changed, chosen.blur_pixels)
    if chosen.noise > 0:
        real, imaginary = rng.normal(0.0, chosen.noise * bright, size=(2, *image.shape))
        changed = np.hypot(changed + real, imaginary)
    return np.asarray(changed, dtype=np.float32)


def _field(shape: tuple[int, ...], weights: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """Return a smooth positive field around 1, of the lowest cosines."""
    down, right = np.meshgrid(*(np.linspace(0, np.pi, edge) for edge in shape), indexing="ij")
    orders = [(1, 0), (0, 1), (1, 1), (2, 0), (0, 2), (2, 1)][: len(weights)]
    exponent = sum(
        weight * np.cos(a * down) * np.cos(b * right)
        for weight, (a, b) in zip(weights, orders, strict=True)
    )
    field: npt.NDArray[np.float64] = np.exp(exponent)
    return field


def _less_resolved(image: npt.NDArray[np.floating], share: float) -> npt.NDArray[np.float64]:
    spectrum = np.fft.fft2(image)
    for axis, edge in enumerate(image.shape):
        outside = np.abs(np.fft.fftfreq(edge)) > share / 2
        spectrum[(slice(None),) * axis + (outside,)] = 0
    truncated: npt.NDArray[np.float64] = np.abs(np.fft.ifft2(spectrum))
    return truncated
