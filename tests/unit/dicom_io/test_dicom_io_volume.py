"""Volumes: slices in place, in modality units, streamed one at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import WriteImage
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_io.errors import CannotDecode, UnsuitableSeries
from dicom_io.volume import assemble_volume, iter_slices, open_series

MakeSlice = Callable[..., Path]


def test_slices_are_stacked_by_position_in_modality_units(make_slice: MakeSlice) -> None:
    # Instance numbers run against z.
    paths = [
        make_slice(number, z=30 - 2.5 * number, RescaleSlope=2, RescaleIntercept=-1024)
        for number in (1, 2, 3)
    ]

    volume = assemble_volume(paths)

    assert volume.values.shape == (3, 4, 6)
    assert volume.values.dtype == np.float32
    assert volume.values[:, 0, 0].tolist() == [-1018, -1020, -1022]
    assert volume.spacing_mm == (2.5, 0.5, 0.75)
    assert volume.sop_instance_uids == ("1.2.3.1.1.3", "1.2.3.1.1.2", "1.2.3.1.1.1")


def test_each_slice_has_its_own_slope(make_slice: MakeSlice) -> None:
    # PET scales each slice by itself.
    paths = [make_slice(number, z=number, RescaleSlope=number * 10) for number in (1, 2, 3)]

    assert assemble_volume(paths).values[:, 0, 0].tolist() == [10, 40, 90]


def _enhanced(write_image: WriteImage, positions: tuple[float, ...]) -> Path:
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [0.5, 0.75]
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([orientation])
    frames = []
    for number, z in enumerate(positions):
        position, values, frame = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0.0, 0.0, z]
        values.RescaleSlope, values.RescaleIntercept = 1, 100 * number
        frame.PlanePositionSequence = Sequence([position])
        frame.PixelValueTransformationSequence = Sequence([values])
        frames.append(frame)
    pixels = np.arange(len(positions), dtype=np.uint16)[:, None, None] * np.ones((1, 4, 6), "u2")
    return write_image(
        pixels.astype(np.uint16),
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(frames),
    )


def test_enhanced_multi_frame_instance_is_a_series(write_image: WriteImage) -> None:
    path = _enhanced(write_image, (9.0, 3.0, 6.0))

    volume = assemble_volume([path])

    # Frame n holds n, and its own functional group adds 100 n.
    assert volume.values[:, 0, 0].tolist() == [101, 202, 0]
    assert volume.spacing_mm == (3, 0.5, 0.75)


def test_frames_are_decoded_in_storage_order(write_image: WriteImage) -> None:
    series = open_series([_enhanced(write_image, (9.0, 3.0, 6.0))])

    assert [index for index, _ in iter_slices(series)] == [2, 0, 1]


def test_colour_slices_are_refused(make_slice: MakeSlice) -> None:
    colour = np.zeros((4, 6, 3), dtype=np.uint8)
    paths = [make_slice(number, z=number, pixels=colour) for number in (1, 2)]

    with pytest.raises(UnsuitableSeries, match="is RGB"):
        open_series(paths)


def test_slices_shown_the_other_way_round_are_refused(make_slice: MakeSlice) -> None:
    # One percentile range over the volume would turn the second slice into its negative.
    paths = [
        make_slice(1, z=1),
        make_slice(2, z=2, PhotometricInterpretation="MONOCHROME1"),
    ]

    with pytest.raises(
        UnsuitableSeries, match=r"mixes .*: MONOCHROME1 in \S+\.2, MONOCHROME2 in \S+\.1;"
    ):
        open_series(paths)


def test_slices_without_the_rescale_of_the_others_are_refused(make_slice: MakeSlice) -> None:
    # Unscaled, air of 0 would lie beside air of -1024.
    paths = [make_slice(1, z=1, RescaleSlope=1, RescaleIntercept=-1024), make_slice(2, z=2)]

    with pytest.raises(UnsuitableSeries, match=r"slice \S+\.1 states .* and \S+\.2 none"):
        open_series(paths)


def test_rescale_that_changes_nothing_may_be_left_out(make_slice: MakeSlice) -> None:
    paths = [make_slice(1, z=1, RescaleSlope=1, RescaleIntercept=0), make_slice(2, z=2)]

    assert assemble_volume(paths).values[:, 0, 0].tolist() == [1, 2]


def test_one_truncated_slice_refuses_the_series(make_slice: MakeSlice) -> None:
    paths = [make_slice(number, z=number) for number in (1, 2, 3)]
    paths[1].write_bytes(paths[1].read_bytes()[:-10])

    with pytest.raises(CannotDecode, match="truncated"):
        assemble_volume(paths)
