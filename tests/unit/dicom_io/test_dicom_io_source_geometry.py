"""What a tensor notes of its source, so that a place in it is found again on source pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import WriteImage
from test_dicom_io_volume import _enhanced

from dicom_io.source_geometry import Box, source_geometry
from dicom_io.tensors import TensorRecipe, build_tensor

IMAGE = {"kind": "image", "rows": 16, "columns": 16, "channels": 1}
VOLUME = {"kind": "volume", "rows": 8, "columns": 8, "slices": 6, "channels": 1}
PERCENTILE = {"intensity": {"kind": "percentile"}}


def recipe(table: dict[str, object], **changes: object) -> TensorRecipe:
    return TensorRecipe.from_mapping({**table, **PERCENTILE, **changes})


def film() -> np.ndarray:
    return np.arange(20 * 40, dtype=np.uint16).reshape(20, 40)


@pytest.mark.parametrize(
    ("header", "spacing"),
    [
        ({"PixelSpacing": [0.5, 0.25]}, (0.5, 0.25)),
        ({"PixelSpacing": [0.5, 0.25], "ImagerPixelSpacing": [0.6, 0.3]}, (0.5, 0.25)),
        ({"ImagerPixelSpacing": [0.6, 0.3]}, None),
        ({"PixelSpacing": [0.6, 0.3], "ImagerPixelSpacing": [0.6, 0.3]}, None),
        (
            {
                "PixelSpacing": [0.6, 0.3],
                "ImagerPixelSpacing": [0.6, 0.3],
                "PixelSpacingCalibrationType": "FIDUCIAL",
            },
            (0.6, 0.3),
        ),
        ({"PixelSpacing": [0, 0.25]}, None),
        ({}, None),
    ],
)
def test_only_a_spacing_in_the_patient_gives_millimetres(
    write_image: WriteImage, header: dict[str, Any], spacing: tuple[float, float] | None
) -> None:
    tensor = build_tensor([write_image(film(), **header)], recipe(IMAGE))

    geometry = source_geometry(tensor)

    assert geometry is not None
    assert geometry.pixel_spacing_mm == spacing
    outline = geometry.outline(0, Box(0, 0, 1, 0.5), 0.9)
    assert outline is not None
    expected = None if spacing is None else max(20 * spacing[0], 20 * spacing[1])
    assert outline.long_axis_mm == (None if expected is None else round(expected, 1))


def test_padding_beside_an_image_is_no_part_of_it(write_image: WriteImage) -> None:
    tensor = build_tensor([write_image(film())], recipe(IMAGE, fit="pad"))

    geometry = source_geometry(tensor)

    # 20 rows of 40 columns fill the middle 8 rows of 16.
    assert geometry is not None
    inside = geometry.outline(0, Box(0.25, 0, 0.5, 0.25), 0.9)
    assert inside is not None
    assert inside.points[0] == (0, 0)
    assert inside.points[2] == (10, 10)
    assert geometry.outline(0, Box(0, 0, 0.2, 1), 0.9) is None


def test_place_in_a_crop_is_found_beside_what_was_cut_off(write_image: WriteImage) -> None:
    path = write_image(film(), PixelSpacing=[0.5, 0.5])

    geometry = source_geometry(build_tensor([path], recipe(IMAGE, fit="crop")))

    # The middle 20 of 40 columns fill the plane.
    assert geometry is not None
    whole = geometry.outline(0, Box(0, 0, 1, 1), 0.9)
    assert whole is not None
    assert (whole.points[0], whole.points[2]) == ((10, 0), (30, 20))
    part = geometry.outline(0, Box(0.5, 0.25, 1, 0.5), 0.9)
    assert part is not None
    assert (part.points[0], part.points[2]) == ((15, 10), (20, 20))
    assert part.long_axis_mm == 5.0


def test_slices_are_named_in_the_order_of_the_stack(make_slice: Callable[..., Path]) -> None:
    # Instance numbers run against z.
    paths = [make_slice(number, z=30 - 2.5 * number) for number in (1, 2, 3)]

    geometry = source_geometry(build_tensor(paths, recipe(VOLUME)))

    assert geometry is not None
    assert [(each.sop_instance_uid[-1], each.frame_number) for each in geometry.planes] == [
        ("3", None), ("2", None), ("1", None),
    ]  # fmt: skip
    assert geometry.pixel_spacing_mm == (0.5, 0.75)


def test_frames_are_named_in_the_order_of_the_stack(write_image: WriteImage) -> None:
    path = _enhanced(write_image, (9.0, 3.0, 6.0))

    geometry = source_geometry(build_tensor([path], recipe(VOLUME)))

    assert geometry is not None
    assert [each.frame_number for each in geometry.planes] == [2, 3, 1]
    assert len({each.sop_instance_uid for each in geometry.planes}) == 1
