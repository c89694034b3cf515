"""Fixtures that write small image files for one test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import FRAME_OF_REFERENCE_UID, WriteImage, image_data_set, save
from pydicom.uid import ExplicitVRLittleEndian


@pytest.fixture
def write_image(tmp_path: Path) -> WriteImage:
    """Write an array as an image file: ``write_image(pixels, number=2, RescaleSlope=2)``."""

    def write(
        pixels: np.ndarray,
        number: int = 1,
        transfer_syntax_uid: str = ExplicitVRLittleEndian,
        **attributes: Any,
    ) -> Path:
        ds = image_data_set(pixels, number, **attributes)
        return save(ds, tmp_path / f"{number}.dcm", transfer_syntax_uid)

    return write


@pytest.fixture
def make_slice(write_image: WriteImage) -> Callable[..., Path]:
    """Write one axial slice: ``make_slice(3, z=7.5)``; its pixels hold its number unless given."""

    def make(
        number: int,
        z: float,
        pixels: np.ndarray | None = None,
        position: tuple[float, float, float] | None = None,
        **attributes: Any,
    ) -> Path:
        plane = np.full((4, 6), number, dtype=np.int16) if pixels is None else pixels
        geometry: dict[str, Any] = {
            "ImagePositionPatient": list(position or (-10.0, -20.0, z)),
            "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
            "PixelSpacing": [0.5, 0.75],
            "FrameOfReferenceUID": FRAME_OF_REFERENCE_UID,
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        }
        chosen = {**geometry, **attributes}
        present = {keyword: value for keyword, value in chosen.items() if value is not None}
        return write_image(plane, number, **present)

    return make
