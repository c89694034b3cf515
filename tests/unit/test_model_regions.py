"""From a map of logits to boxes on source pixels: thresholds, joins, padding, stretch, slices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_io.source_geometry import SourceGeometry, SourcePlane, source_geometry
from dicom_io.vocabulary import Code, ImageTensor, Region, RegionOutline
from model.region_plan import RegionPlan
from model.regions import found_regions

PLAN = RegionPlan(
    label="Nodule", index=0, name="Spot", code=Code("1", "99TEST", "Spot"), site=None, threshold=0.5
)
LOW = -4.0


def plane_of(rows: int = 8, columns: int = 8, **spots: float) -> np.ndarray:
    """Return a map with logits at places named ``r3c4``, and far below the threshold elsewhere."""
    cells = np.full((rows, columns), LOW, np.float32)
    for place, value in spots.items():
        row, column = place[1:].split("c")
        cells[int(row), int(column)] = value
    return cells


def image(rows: int = 80, columns: int = 80, placement=(0.0, 0.0, 1.0, 1.0), spacing=None):
    return SourceGeometry((SourcePlane("2.25.1", None),), rows, columns, placement, spacing)


def stack(count: int, rows: int = 80, columns: int = 80, spacing=None) -> SourceGeometry:
    planes = tuple(SourcePlane(f"2.25.{number}", None) for number in range(count))
    return SourceGeometry(planes, rows, columns, (0.0, 0.0, 1.0, 1.0), spacing)


def box_of(outline: RegionOutline) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom; the line must be closed and run along the axes."""
    first, second, third, fourth, last = outline.points
    assert first == last
    assert (first[1], second[0]) == (second[1], third[0])
    assert (third[1], fourth[0]) == (fourth[1], first[0])
    return (*first, *third)


def the_region(detection: Any) -> Region:
    (region,) = detection.regions
    return region


def test_one_position_is_a_box_of_one_cell_on_the_source():
    detection = found_regions(PLAN, image(), plane_of(r3c4=LOW * -1))

    region = the_region(detection)
    (outline,) = region.outlines
    # The threshold is crossed half way to the neighbours: the borders of the cell itself.
    assert box_of(outline) == pytest.approx((40, 30, 50, 40), abs=0.01)
    assert outline.sop_instance_uid == "2.25.1"
    assert region.certainty == pytest.approx(1 / (1 + np.exp(LOW)))
    assert (region.tracked_as, region.label, region.code) == ("Spot 1", "Nodule", PLAN.code)
    assert detection.note == ""


def test_box_ends_where_the_map_crosses_the_threshold():
    cells = plane_of(r3c3=4.0, r3c4=4.0, r3c5=-1.0)

    (outline,) = the_region(found_regions(PLAN, image(), cells)).outlines

    left, top, right, bottom = box_of(outline)
    assert (left, top, bottom) == pytest.approx((30, 30, 40), abs=0.01)
    # From 4 to -1 between the centres at 45 and 55: nil after four fifths of the way.
    assert right == pytest.approx(53, abs=0.01)


def test_what_barely_reaches_the_threshold_is_still_one_cell_wide():
    (outline,) = the_region(found_regions(PLAN, image(), plane_of(r3c4=0.001))).outlines

    assert box_of(outline) == pytest.approx((40, 30, 50, 40), abs=0.01)


@pytest.mark.parametrize(
    ("cell", "box"),
    [("r0c4", (40, 0, 50, 10)), ("r7c7", (70, 70, 80, 80)), ("r4c0", (0, 40, 10, 50))],
)
def test_at_the_edge_of_the_map_too_a_box_is_one_cell_wide(cell, box):
    (outline,) = the_region(found_regions(PLAN, image(), plane_of(**{cell: 0.001}))).outlines

    assert box_of(outline) == pytest.approx(box, abs=0.01)


def test_positions_that_touch_at_a_corner_are_one_region():
    apart = plane_of(r1c1=2.0, r1c4=3.0)
    touching = plane_of(r1c1=2.0, r2c2=3.0)

    assert len(found_regions(PLAN, image(), apart).regions) == 2
    assert len(found_regions(PLAN, image(), touching).regions) == 1


def test_the_most_certain_regions_come_first_and_the_rest_are_counted():
    cells = plane_of(r0c0=1.0, r0c4=3.0, r4c0=2.0, r4c4=0.5)

    detection = found_regions(replace(PLAN, most=2), image(), cells)

    assert [each.number for each in detection.regions] == [1, 2]
    certainties = [each.certainty for each in detection.regions]
    assert certainties == sorted(certainties, reverse=True)
    assert certainties[0] == pytest.approx(1 / (1 + np.exp(-3.0)))
    assert detection.note.startswith("2 more regions are left out")


def test_small_regions_are_left_out_and_nothing_is_said_to_be_nothing():
    cells = plane_of(r0c0=1.0, r4c4=3.0, r4c5=3.0)
    plan = replace(PLAN, least_cells=2)

    region = the_region(found_regions(plan, image(), cells))
    nothing = found_regions(replace(PLAN, least_cells=3), image(), cells)

    assert region.certainty == pytest.approx(1 / (1 + np.exp(-3.0)))
    assert nothing.regions == ()
    assert "no position of the map" in nothing.note


def test_the_threshold_is_one_of_the_sigmoid():
    cells = plane_of(r2c2=float(np.log(0.8 / 0.2)))

    assert found_regions(replace(PLAN, threshold=0.79), image(), cells).regions
    assert not found_regions(replace(PLAN, threshold=0.81), image(), cells).regions


def test_stretched_image_has_its_own_rows_and_columns():
    (outline,) = the_region(found_regions(PLAN, image(400, 160), plane_of(r3c4=4.0))).outlines

    assert box_of(outline) == pytest.approx((80, 150, 100, 200), abs=0.01)


def test_padding_is_no_part_of_the_image():
    # The image fills the middle half of the plane's rows; a box may reach beyond its edge.
    padded = image(40, 80, placement=(0.25, 0.0, 0.75, 1.0))
    cells = plane_of(r2c4=4.0, r0c0=9.0)
    across = plane_of(r1c4=4.0, r2c4=4.0)

    (outline,) = the_region(found_regions(PLAN, padded, cells)).outlines
    (cut,) = the_region(found_regions(PLAN, padded, across)).outlines

    assert box_of(outline) == pytest.approx((40, 0, 50, 10), abs=0.01)
    assert box_of(cut) == pytest.approx((40, 0, 50, 10), abs=0.01)


def test_region_of_a_crop_lies_where_the_plane_was_cut_out_of_the_image():
    # The plane is the middle half of the image's columns; a box ends where the plane ends.
    cropped = image(40, 80, placement=(0.0, -0.5, 1.0, 1.5))

    (inside,) = the_region(found_regions(PLAN, cropped, plane_of(r2c4=4.0))).outlines
    (at_edge,) = the_region(found_regions(PLAN, cropped, plane_of(r2c0=4.0))).outlines

    assert box_of(inside) == pytest.approx((40, 10, 45, 15), abs=0.01)
    assert box_of(at_edge) == pytest.approx((20, 10, 25, 15), abs=0.01)


def test_a_region_of_a_volume_has_a_box_on_every_slice_it_is_seen_on():
    cells = np.full((6, 8, 8), LOW, np.float32)
    cells[2, 3, 4], cells[3, 3, 4], cells[3, 3, 5] = 1.0, 4.0, 4.0

    region = the_region(found_regions(PLAN, stack(6), cells))

    assert [each.sop_instance_uid for each in region.outlines] == ["2.25.2", "2.25.3"]
    assert box_of(region.outlines[1]) == pytest.approx((40, 30, 60, 40), abs=0.01)
    assert region.outlines[0].certainty < region.outlines[1].certainty == region.certainty
    assert region.strongest.sop_instance_uid == "2.25.3"


def test_a_map_of_fewer_slices_reaches_all_source_slices_between():
    cells = np.full((4, 8, 8), LOW, np.float32)
    cells[1, 3, 4] = 4.0

    region = the_region(found_regions(PLAN, stack(16), cells))

    # The centre of the map's second slice lies between the sixth and the seventh of 16.
    assert [each.sop_instance_uid for each in region.outlines] == [
        f"2.25.{number}" for number in (4, 5, 6, 7)
    ]


def test_a_map_of_more_slices_than_the_source_loses_no_region():
    cells = np.full((12, 8, 8), LOW, np.float32)
    cells[6, 3, 4] = 0.1

    region = the_region(found_regions(PLAN, stack(3), cells))

    assert [each.sop_instance_uid for each in region.outlines] == ["2.25.1"]
    assert region.outlines[0].certainty == pytest.approx(region.certainty)


def test_the_long_axis_is_the_longer_side_in_mm_where_spacing_is_known():
    cells = plane_of(r3c4=4.0, r4c4=4.0)

    with_mm = the_region(found_regions(PLAN, image(spacing=(0.5, 2.0)), cells))
    without = the_region(found_regions(PLAN, image(), cells))

    # 20 rows of half a millimetre are shorter than 10 columns of two.
    assert with_mm.long_axis_mm == 20.0
    assert without.long_axis_mm is None


@settings(max_examples=60, deadline=None)
@given(
    row=st.integers(0, 7), column=st.integers(0, 7), number=st.integers(0, 4),
    source=st.tuples(st.integers(5, 300), st.integers(5, 300)), slices=st.integers(1, 40),
    height=st.floats(0.3, 1.0), top=st.floats(0.0, 0.7),
)  # fmt: skip
def test_every_peak_inside_the_image_lies_in_its_box(
    row, column, number, source, slices, height, top
):
    top = min(top, 1 - height)
    rows, columns = source
    geometry = replace(stack(slices, rows, columns), placement=(top, 0.0, top + height, 1.0))
    cells = np.full((5, 8, 8), LOW, np.float32)
    cells[number, row, column] = 3.0
    peak = ((row + 0.5) / 8 - top) / height * rows

    detection = found_regions(PLAN, geometry, cells)

    if not 0 < peak < rows:
        return
    region = the_region(detection)
    left, upper, right, lower = box_of(region.strongest)
    assert left <= (column + 0.5) / 8 * columns <= right
    assert upper - 1e-2 <= peak <= lower + 1e-2
    for outline in region.outlines:
        assert all(0 <= x <= columns and 0 <= y <= rows for x, y in outline.points)
    # Of the source's slices the one nearest to the peak; beyond the last centre the map is held.
    away = [abs(np.clip((n + 0.5) / slices * 5 - 0.5, 0, 4) - number) for n in range(slices)]
    found = int(region.strongest.sop_instance_uid.removeprefix("2.25."))
    assert away[found] == pytest.approx(min(away))


def tensor_of(notes: dict[str, object], uids: tuple[str, ...]) -> ImageTensor:
    values = np.zeros((4, 8, 8, 1), np.float32)
    return ImageTensor(values, ("slices", "rows", "columns", "channels"), None, uids, "ab", notes)


def test_frames_of_one_instance_are_known_by_the_order_of_the_stack():
    notes = {
        "source_shape": [3, 80, 60], "source_region": [0, 0, 1, 1],
        "source_spacing_mm": [5.0, 0.5, 0.25], "source_planes": [[0, 3], [0, 2], [0, 1]],
    }  # fmt: skip

    geometry = source_geometry(tensor_of(notes, ("2.25.9",)))

    assert geometry is not None
    assert [each.frame_number for each in geometry.planes] == [3, 2, 1]
    assert (geometry.rows, geometry.columns) == (80, 60)
    assert geometry.pixel_spacing_mm == (0.5, 0.25)


def test_where_the_geometry_was_not_noted_nothing_is_placed():
    shape = {"source_shape": [3, 80, 60]}

    assert source_geometry(tensor_of(shape, ("2.25.1", "2.25.2", "2.25.3"))) is None
    whole = {**shape, "source_region": [0, 0, 1, 1]}
    assert source_geometry(tensor_of(whole, ("2.25.9",))) is None
    assert source_geometry(tensor_of(whole, ("2.25.1", "2.25.2", "2.25.3"))) is not None
