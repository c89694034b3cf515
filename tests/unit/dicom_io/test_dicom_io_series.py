"""Geometry of a series: sorted by position, and refused when the slices make no even stack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import FRAME_OF_REFERENCE_UID, WriteImage
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_io.errors import RefusalReason, UnsuitableSeries
from dicom_io.series import SliceGeometry, order_slices, read_slices

MakeSlice = Callable[..., Path]
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def _plane(number: int, z: float, **changes: object) -> SliceGeometry:
    fields: dict[str, object] = {
        "path": Path(f"{number}.dcm"),
        "frame": 0,
        "sop_instance_uid": f"1.2.{number}",
        "rows": 4,
        "columns": 6,
        "position_mm": (0.0, 0.0, z),
        "orientation": AXIAL,
        "spacing_mm": (0.5, 0.75),
        "frame_of_reference_uid": FRAME_OF_REFERENCE_UID,
    }
    return SliceGeometry(**{**fields, **changes})  # type: ignore[arg-type]


def _stack(count: int = 6, step: float = 2.5) -> list[SliceGeometry]:
    return [_plane(number, number * step) for number in range(count)]


def test_geometry_is_read_from_the_header(make_slice: MakeSlice) -> None:
    (plane,) = read_slices(make_slice(3, z=7.5))

    assert plane.position_mm == (-10.0, -20.0, 7.5)
    assert plane.orientation == AXIAL
    assert plane.spacing_mm == (0.5, 0.75)
    assert (plane.rows, plane.columns, plane.frame) == (4, 6, 0)
    assert plane.sop_instance_uid == "1.2.3.1.1.3"
    assert not plane.is_localiser


def test_enhanced_frames_have_their_own_positions(write_image: WriteImage) -> None:
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [0.5, 0.5]
    orientation.ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([orientation])
    frames = []
    for z in (5.0, 2.0):
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = [0.0, 0.0, z]
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    path = write_image(
        np.zeros((2, 2, 2), np.uint16),
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(frames),
    )

    planes = read_slices(path)

    assert [plane.position_mm for plane in planes] == [(0, 0, 5), (0, 0, 2)]
    assert [plane.frame for plane in planes] == [0, 1]
    assert planes[1].spacing_mm == (0.5, 0.5)


def test_frame_count_without_groups_makes_no_list_of_that_length(write_image: WriteImage) -> None:
    path = write_image(np.zeros((2, 2), np.uint16), NumberOfFrames=2_000_000_000)

    assert len(read_slices(path)) == 1


def test_frames_that_no_group_places_are_not_left_out(write_image: WriteImage) -> None:
    # Two instances of three frames each, placed at the top level alone: one frame of each would
    # make an even stack of two.
    paths = [
        write_image(
            np.zeros((3, 2, 2), np.uint16),
            number,
            ImagePositionPatient=[0.0, 0.0, number],
            ImageOrientationPatient=list(AXIAL),
            PixelSpacing=[0.5, 0.5],
        )
        for number in (1, 2)
    ]

    with pytest.raises(UnsuitableSeries, match=r"2 frames of 1\.2\.3\.1\.1\.1 have no item in"):
        order_slices(plane for path in paths for plane in read_slices(path))


@given(st.permutations(range(6)))
def test_any_order_gives_the_same_stack(order: list[int]) -> None:
    planes = _stack()

    stack = order_slices([planes[index] for index in order])

    assert stack.slices == tuple(planes)
    assert stack.spacing_mm == (2.5, 0.5, 0.75)


def test_order_follows_the_normal_not_the_z_axis() -> None:
    # Coronal: rows run along x, columns down -z, so the normal is +y.
    coronal = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
    planes = [
        _plane(number, 0, position_mm=(0.0, 10.0 - 2 * number, 50.0), orientation=coronal)
        for number in range(3)
    ]

    stack = order_slices(planes)

    assert [plane.sop_instance_uid for plane in stack.slices] == ["1.2.2", "1.2.1", "1.2.0"]
    assert stack.slice_spacing_mm == pytest.approx(2)


def test_positions_out_of_this_world_are_illegal(make_slice: MakeSlice) -> None:
    paths = [make_slice(1, z=1e308), make_slice(2, z=-1e308)]

    with pytest.raises(UnsuitableSeries, match=r"ImagePositionPatient .* is missing or illegal"):
        order_slices(plane for path in paths for plane in read_slices(path))


def test_missing_slice_is_an_incomplete_series() -> None:
    planes = _stack()
    del planes[3]

    with pytest.raises(
        UnsuitableSeries, match=r"about 1 slice is missing: a step of 5.00 mm after 5.00 mm"
    ) as caught:
        order_slices(planes)
    assert caught.value.reason is RefusalReason.INCOMPLETE_SERIES


def test_several_gaps_are_counted_together() -> None:
    planes = _stack(12)
    kept = [plane for number, plane in enumerate(planes) if number not in {3, 7, 8}]

    with pytest.raises(UnsuitableSeries, match="about 3 slices are missing"):
        order_slices(kept)


def test_uneven_spacing_is_refused_with_its_numbers() -> None:
    planes = [_plane(0, 0), _plane(1, 2.5), _plane(2, 5), _plane(3, 8), _plane(4, 10.5)]

    with pytest.raises(
        UnsuitableSeries, match=r"steps from 2.50 to 3.00 mm, median 2.50"
    ) as caught:
        order_slices(planes)
    assert caught.value.reason is RefusalReason.GEOMETRY


def test_rounded_positions_are_even_enough() -> None:
    planes = [_plane(number, round(number * 0.6667, 2)) for number in range(30)]

    assert order_slices(planes).slice_spacing_mm == pytest.approx(0.6667, abs=1e-3)


def test_two_instances_in_one_place_are_named() -> None:
    planes = [*_stack(), _plane(77, 5.0)]

    with pytest.raises(UnsuitableSeries, match=r"1\.2\.2 and 1\.2\.77 at 5\.00 mm"):
        order_slices(planes)


def test_the_same_instance_twice_counts_once() -> None:
    planes = _stack()

    assert len(order_slices([*planes, planes[2]]).slices) == 6


def test_gantry_tilt_is_refused_with_its_angle() -> None:
    planes = [_plane(n, n * 2.5, position_mm=(0.0, n * 0.45, n * 2.5)) for n in range(6)]

    with pytest.raises(UnsuitableSeries, match=r"2\.2 mm sideways over 12\.5 mm, 10\.2 degrees"):
        order_slices(planes)


def test_localisers_are_left_out_and_noted() -> None:
    scout = _plane(99, 0, is_localiser=True, rows=888, orientation=(0, 1, 0, 0, 0, -1))

    stack = order_slices([scout, *_stack()])

    assert len(stack.slices) == 6
    assert stack.notes == {"localisers_excluded": 1}


def test_localisers_alone_are_no_volume() -> None:
    with pytest.raises(UnsuitableSeries, match="the series has 0 and 1 localiser"):
        order_slices([_plane(1, 0, is_localiser=True)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 5}, "mixes matrices: 4 x 6 in 1.2.0, 5 x 6 in 1.2.3"),
        ({"spacing_mm": (0.6, 0.75)}, "mixes pixel spacings"),
        ({"orientation": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)}, "mixes orientations"),
        ({"frame_of_reference_uid": "9.9"}, "more than one frame of reference: 1.2.0 and 1.2.3"),
        ({"position_mm": None}, r"ImagePositionPatient \(0020,0032\) .* in slice 1.2.3"),
        ({"orientation": None}, r"ImageOrientationPatient \(0020,0037\)"),
        ({"spacing_mm": None}, r"PixelSpacing \(0028,0030\)"),
        ({"spacing_mm": (0.0, 0.75)}, r"PixelSpacing \(0028,0030\)"),
    ],
)
def test_one_slice_that_differs_is_named(change: dict[str, object], message: str) -> None:
    planes = _stack()
    planes[3] = _plane(3, 7.5, **change)

    with pytest.raises(UnsuitableSeries, match=message):
        order_slices(planes)


def test_orientation_that_is_no_rotation_is_refused() -> None:
    skewed = (1.0, 0.0, 0.0, 0.5, 1.0, 0.0)
    planes = [_plane(number, number, orientation=skewed) for number in range(3)]

    with pytest.raises(UnsuitableSeries, match="two unit vectors at right angles"):
        order_slices(planes)
