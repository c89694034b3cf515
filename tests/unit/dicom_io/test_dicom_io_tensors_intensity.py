"""Intensity: modality, VOI, percentiles and inversion by numbers a reader can check."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import WriteImage
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_io.decoding import iter_frames, open_image
from dicom_io.errors import CannotDecode, Refusal, RefusalReason
from dicom_io.grayscale import GreyTransform, Rescale, grey_frame, grey_transform
from dicom_io.intensity import (
    Limits,
    LookupTable,
    VoiFunctionValues,
    Window,
    checked_unit,
    looked_up,
    luminance,
    percentile_limits,
    rescaled,
    scaled,
)

RAMP = np.array([[0, 1, 2, 3]], dtype=np.uint16)


def _transform(write_image: WriteImage, **attributes: Any) -> GreyTransform:
    return grey_transform(open_image(write_image(RAMP, **attributes)))


def _grey(write_image: WriteImage, pixels: np.ndarray, **attributes: Any) -> list[float]:
    image = open_image(write_image(pixels, **attributes))
    (stored,) = iter_frames(image)
    values: list[float] = grey_frame(stored, grey_transform(image)).values.ravel().tolist()
    return values


def _table(descriptor: list[int], data: bytes | list[int]) -> Sequence:
    item = Dataset()
    item.add_new(0x00283002, "US", descriptor)
    item.add_new(0x00283006, "OW" if isinstance(data, bytes) else "US", data)
    return Sequence([item])


def test_rescale_is_slope_then_intercept() -> None:
    stored = np.array([0, 1, 3], dtype=np.int16)

    assert rescaled(stored, 2.0, -10.0).tolist() == [-10, -8, -4]
    assert rescaled(stored, 1.0, 0.0).dtype == np.float32


def test_rescale_of_wide_cells_keeps_small_differences() -> None:
    # float32 alone would lose the last digits of 32 bit cells before the intercept is added.
    stored = np.array([16_777_217, 16_777_219], dtype=np.uint32)

    assert rescaled(stored, 1.0, -16_777_216.0).tolist() == [1, 3]


def test_absent_modality_attributes_change_nothing(write_image: WriteImage) -> None:
    assert _transform(write_image).modality == Rescale(1.0, 0.0)
    assert _grey(write_image, RAMP) == [0, 1, 2, 3]


def test_modality_table_holds_its_ends(write_image: WriteImage) -> None:
    values = _grey(write_image, RAMP, ModalityLUTSequence=_table([2, 1, 16], [500, 700]))

    assert values == [500, 500, 700, 700]


def test_modality_table_of_bytes_is_read(write_image: WriteImage) -> None:
    packed = _table([4, 0, 8], bytes([9, 7, 5, 3]))
    words = _table([4, 0, 16], np.array([900, 700, 500, 300], "<u2").tobytes())

    assert _grey(write_image, RAMP, ModalityLUTSequence=packed) == [9, 7, 5, 3]
    assert _grey(write_image, RAMP, ModalityLUTSequence=words) == [900, 700, 500, 300]


def test_modality_table_of_signed_pixels_starts_below_zero(write_image: WriteImage) -> None:
    signed = np.array([[-2, -1, 0]], dtype=np.int16)
    table = _table([3, 2**16 - 2, 16], [10, 20, 30])

    assert _grey(write_image, signed, ModalityLUTSequence=table) == [10, 20, 30]


def test_short_modality_table_is_refused(write_image: WriteImage) -> None:
    with pytest.raises(CannotDecode, match="LUTDescriptor says 4"):
        _transform(write_image, ModalityLUTSequence=_table([4, 0, 16], [1, 2]))


@pytest.mark.parametrize(
    "element",
    [0x00283000, 0x52009229],
    ids=["ModalityLUTSequence", "SharedFunctionalGroupsSequence"],
)
def test_damaged_sequence_is_not_taken_for_an_absent_one(
    write_image: WriteImage, element: int
) -> None:
    path = write_image(RAMP)
    data = path.read_bytes()
    at = data.index(b"\xe0\x7f\x10\0")
    head = struct.pack("<HH2sHL", element >> 16, element & 0xFFFF, b"SQ", 0, 4)
    path.write_bytes(data[:at] + head + b"\xfe\xff\x00\xe0" + data[at:])

    with pytest.raises(CannotDecode, match="Sequence is damaged"):
        grey_transform(open_image(path))


def test_empty_sequences_say_nothing(write_image: WriteImage) -> None:
    empty = {"ModalityLUTSequence": Sequence(), "SharedFunctionalGroupsSequence": Sequence()}

    assert _transform(write_image, **empty).modality == Rescale(1.0, 0.0)


def test_zero_slope_is_refused(write_image: WriteImage) -> None:
    with pytest.raises(CannotDecode, match="RescaleSlope"):
        _transform(write_image, RescaleSlope=0)


def test_illegal_intercept_is_refused(write_image: WriteImage) -> None:
    path = write_image(RAMP, RescaleIntercept="-1024", RescaleSlope=1)
    path.write_bytes(path.read_bytes().replace(b"-1024 ", b"minus "))

    with pytest.raises(CannotDecode, match="RescaleIntercept is not a number"):
        grey_transform(open_image(path))


def test_shared_functional_groups_hold_the_rescale(write_image: WriteImage) -> None:
    values, shared = Dataset(), Dataset()
    values.RescaleSlope, values.RescaleIntercept = 2, 5
    shared.PixelValueTransformationSequence = Sequence([values])

    found = _transform(write_image, SharedFunctionalGroupsSequence=Sequence([shared]))

    assert found.modality == Rescale(2.0, 5.0)


def test_luminance_weighs_green_most_and_keeps_grey() -> None:
    samples = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [77, 77, 77]]], dtype=np.uint8)

    assert luminance(samples)[0] == pytest.approx([76.245, 149.685, 29.07, 77])
    assert luminance(samples)[0, 3] == 77


def test_linear_window_is_the_standards() -> None:
    # PS3.3 C.11.2.1.2.1: centre 2048, width 4096 maps 0..4095 onto 0..1.
    values = np.array([-1, 0, 2047.5, 4095, 5000], dtype=np.float32)

    unit = scaled(values, Window(2048, 4096))

    assert unit.tolist() == pytest.approx([0, 0, 0.5, 1, 1])


def test_linear_window_of_width_one_is_a_step() -> None:
    values = np.array([99, 99.5, 100], dtype=np.float32)

    assert scaled(values, Window(100, 1)).tolist() == [0, 0, 1]


def test_exact_window_spans_centre_plus_minus_half() -> None:
    values = np.array([-1350, -600, 150], dtype=np.float32)

    unit = scaled(values, Window(-600, 1500, VoiFunctionValues.LINEAR_EXACT))

    assert unit.tolist() == [0, 0.5, 1]


def test_sigmoid_window_is_smooth_and_never_overflows() -> None:
    values = np.array([-1e9, 0, 100, 1e9], dtype=np.float32)

    unit = scaled(values, Window(0, 400, VoiFunctionValues.SIGMOID))

    # 1 / (1 + e^-1) at a quarter of the width.
    assert unit.tolist() == pytest.approx([0, 0.5, 0.7310586, 1])


def test_voi_table_is_divided_by_its_largest_entry() -> None:
    table = LookupTable(10, np.array([0, 51, 255], dtype=np.uint16), 8)
    values = np.array([0, 10, 11, 12, 99], dtype=np.float32)

    assert scaled(values, table).tolist() == pytest.approx([0, 0, 0.2, 1, 1])
    assert looked_up(np.array([11]), table).tolist() == [51]


def test_voi_of_the_header_is_read(write_image: WriteImage) -> None:
    window = _transform(write_image, WindowCenter=[40, 600], WindowWidth=[400, 1500])
    sigmoid = _transform(write_image, WindowCenter=40, WindowWidth=400, VOILUTFunction="SIGMOID")
    table = _transform(write_image, VOILUTSequence=_table([4, 0, 8], [0, 85, 170, 255]))

    assert window.voi == Window(40, 400, VoiFunctionValues.LINEAR)
    assert sigmoid.voi == Window(40, 400, VoiFunctionValues.SIGMOID)
    assert isinstance(table.voi, LookupTable)
    assert scaled(RAMP.astype(np.float32), table.voi)[0] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert _transform(write_image).voi is None


def test_broken_voi_table_reads_as_absent(write_image: WriteImage) -> None:
    assert _transform(write_image, VOILUTSequence=_table([9, 0, 8], [1, 2])).voi is None


def test_table_of_entries_beyond_its_bits_is_no_table(write_image: WriteImage) -> None:
    # Said to be of 8 bits, divided by 255: the last entry would become 240, not 1.
    table = _table([4, 0, 8], [0, 255, 256, 61440])

    assert _transform(write_image, VOILUTSequence=table).voi is None
    with pytest.raises(CannotDecode, match="holds 61440, more than the 8 bits"):
        _transform(write_image, ModalityLUTSequence=table)


@pytest.mark.parametrize(
    ("photometric", "shape", "is_inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "LIN OD", False),
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),
    ],
)
def test_the_shape_repeats_the_photometric_interpretation_and_inverts_nothing_twice(
    write_image: WriteImage, photometric: str, shape: str | None, is_inverted: bool
) -> None:
    stated = {} if shape is None else {"PresentationLUTShape": shape}

    found = _transform(write_image, PhotometricInterpretation=photometric, **stated)

    assert found.is_inverted is is_inverted


@pytest.mark.parametrize(
    ("photometric", "shape"), [("MONOCHROME2", "INVERSE"), ("MONOCHROME1", "IDENTITY")]
)
def test_a_shape_that_contradicts_the_photometric_interpretation_is_refused(
    write_image: WriteImage, photometric: str, shape: str
) -> None:
    with pytest.raises(CannotDecode, match=f"{shape} contradicts .* {photometric}, which requires"):
        _transform(write_image, PhotometricInterpretation=photometric, PresentationLUTShape=shape)


def test_padding_is_found_before_the_modality_transform(write_image: WriteImage) -> None:
    pixels = np.array([[-2000, 0, 100]], dtype=np.int16)
    path = write_image(pixels, PixelPaddingValue=-2000, RescaleSlope=1, RescaleIntercept=-1024)
    image = open_image(path)

    frame = grey_frame(next(iter_frames(image)), grey_transform(image))

    assert frame.padding is not None
    assert frame.padding.tolist() == [[True, False, False]]


def test_padding_range_includes_both_ends(write_image: WriteImage) -> None:
    image = open_image(write_image(RAMP, PixelPaddingValue=1, PixelPaddingRangeLimit=0))

    frame = grey_frame(next(iter_frames(image)), grey_transform(image))

    assert frame.padding is not None
    assert frame.padding.tolist() == [[True, True, False, False]]


def test_padding_with_the_wrong_sign_is_understood(write_image: WriteImage) -> None:
    # -2000 written as unsigned 63536.
    pixels = np.array([[-2000, 5]], dtype=np.int16)
    path = write_image(pixels, PixelPaddingValue=-2000)
    path.write_bytes(path.read_bytes().replace(b"\x28\0\x20\x01SS", b"\x28\0\x20\x01US"))

    assert grey_transform(open_image(path)).padding == (-2000, -2000)


def test_full_range_is_what_bits_stored_can_hold(write_image: WriteImage) -> None:
    unsigned = _transform(write_image, BitsStored=12, HighBit=11)
    hounsfield = _transform(
        write_image, BitsStored=12, HighBit=11, PixelRepresentation=1, RescaleIntercept=-1024,
        RescaleSlope=1,
    )  # fmt: skip
    falling = _transform(write_image, BitsStored=8, HighBit=7, RescaleSlope=-1, RescaleIntercept=0)

    assert unsigned.full_range == Limits(0, 4095)
    assert hounsfield.full_range == Limits(-3072, 1023)
    assert falling.full_range == Limits(-255, 0)


@given(
    st.lists(st.integers(-2000, 4095), min_size=2, max_size=60).filter(lambda v: len(set(v)) > 1),
    st.floats(0, 49),
    st.floats(51, 100),
    st.sampled_from([1.0, 0.37]),
)
def test_percentiles_are_numpys_for_whole_and_other_values(
    values: list[int], low: float, high: float, slope: float
) -> None:
    array = np.array(values, dtype=np.float32) * np.float32(slope)
    bottom, top = np.percentile(array.astype(np.float64), (low, high))

    with suppress(Refusal):
        limits = percentile_limits(array, low, high, None)
        assert (limits.low, limits.high) == pytest.approx((bottom, top), abs=1e-3)


def test_percentiles_leave_padding_out() -> None:
    values = np.arange(101, dtype=np.float32)
    padding = values > 50

    assert percentile_limits(values, 0, 100, None) == Limits(0, 100)
    assert percentile_limits(values, 10, 90, None) == Limits(10, 90)
    assert percentile_limits(values, 10, 90, padding) == Limits(5, 45)


@given(
    st.lists(st.integers(-2000, 4095), min_size=2, max_size=50, unique=True),
    st.floats(0, 20),
    st.floats(80, 100),
)
def test_scaled_percentiles_fill_zero_to_one(values: list[int], low: float, high: float) -> None:
    array = np.array(values, dtype=np.float32)

    unit = scaled(array, percentile_limits(array, low, high, None))

    assert unit.min() == 0
    assert unit.max() == pytest.approx(1, abs=1e-5)
    assert unit.max() <= 1


@pytest.mark.parametrize("values", [[7.0, 7.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_blank_and_infinite_values_are_refused_for_quality(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)

    with pytest.raises(Refusal) as percentile, np.errstate(invalid="ignore"):
        percentile_limits(array, 0, 100, None)
    with pytest.raises(Refusal) as unit:
        checked_unit(array)

    assert percentile.value.reason is unit.value.reason is RefusalReason.QUALITY


def test_nothing_but_padding_is_refused_for_quality() -> None:
    values = np.zeros(4, dtype=np.float32)

    with pytest.raises(Refusal, match="nothing but padding") as caught:
        percentile_limits(values, 0, 100, np.ones(4, dtype=bool))
    assert caught.value.reason is RefusalReason.QUALITY
