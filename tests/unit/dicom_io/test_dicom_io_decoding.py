"""Stored values: exact for every layout, and refused when the file cannot be what it says."""

from __future__ import annotations

import errno
import struct
import tracemalloc
from pathlib import Path
from typing import NoReturn

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import WriteImage, image_data_set, save
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from dicom_io import decoding
from dicom_io.codestreams import codestream_size
from dicom_io.decoding import MAX_DECODED_BYTES, StoredImage, iter_frames, masked, open_image
from dicom_io.errors import CannotDecode, InstanceUnavailable, MedimgdError, RefusalReason

RAMP = np.arange(6, dtype=np.uint16).reshape(2, 3) * 1000


def _frames(path: Path) -> list[np.ndarray]:
    return list(iter_frames(open_image(path)))


def _compressed(tmp_path: Path, pixels: np.ndarray, syntax: str) -> Path:
    ds = image_data_set(pixels)
    path = save(ds, tmp_path / "plain.dcm")
    ds = pydicom.dcmread(path)
    ds.compress(syntax, generate_instance_uid=False)
    target = tmp_path / "compressed.dcm"
    ds.save_as(target)
    return target


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_native_values_come_back_as_stored(write_image: WriteImage, syntax: str) -> None:
    (frame,) = _frames(write_image(RAMP, transfer_syntax_uid=syntax))

    assert frame.tolist() == [[0, 1000, 2000], [3000, 4000, 5000]]


def test_big_endian_values_come_back_in_native_order(write_image: WriteImage) -> None:
    ds_pixels = RAMP.astype(">i2")

    (frame,) = _frames(write_image(ds_pixels, transfer_syntax_uid=ExplicitVRBigEndian))

    assert frame.dtype.isnative
    assert frame.tolist() == [[0, 1000, 2000], [3000, 4000, 5000]]


def test_signed_values_keep_their_sign(write_image: WriteImage) -> None:
    (frame,) = _frames(write_image(np.array([[-1024, 0, 3071]], dtype=np.int16)))

    assert frame.tolist() == [[-1024, 0, 3071]]


@pytest.mark.parametrize("representation", [None, 2])
def test_values_that_may_be_signed_are_not_guessed(
    write_image: WriteImage, representation: int | None
) -> None:
    # As unsigned, air of -1024 would be 64512, whiter than bone.
    path = write_image(np.array([[-1024, 3071]], np.int16), PixelRepresentation=representation)

    with pytest.raises(CannotDecode, match=r"PixelRepresentation \(0028,0103\) must be 0 or 1"):
        open_image(path)


def test_bytes_without_a_sign_are_unsigned(write_image: WriteImage) -> None:
    path = write_image(np.array([[0, 255]], np.uint8), PixelRepresentation=None)

    assert _frames(path)[0].tolist() == [[0, 255]]


def test_overlay_bits_above_bits_stored_are_masked(write_image: WriteImage) -> None:
    # 12 bits stored; old devices put overlay planes into the four bits above.
    pixels = np.array([[0xF001, 0x1FFF]], dtype=np.uint16)

    (frame,) = _frames(write_image(pixels, BitsStored=12, HighBit=11))

    assert frame.tolist() == [[1, 0xFFF]]


def test_signed_values_are_extended_from_bits_stored(write_image: WriteImage) -> None:
    pixels = np.array([[0x0FFF, 0x07FF, 0xF800]], dtype=np.uint16)

    (frame,) = _frames(write_image(pixels, BitsStored=12, HighBit=11, PixelRepresentation=1))

    assert frame.tolist() == [[-1, 2047, -2048]]


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_bits_above_bits_stored_are_masked_in_lossless_codestreams(
    tmp_path: Path, syntax: str
) -> None:
    # Encoded as all 16 bits that are allocated, 12 of them stored.
    pixels = np.tile(np.array([[0xF001, 0x0FFF], [0x07FF, 0x0800]], dtype=np.uint16), (16, 16))
    path = _compressed(tmp_path, pixels, syntax)
    ds = pydicom.dcmread(path)
    ds.BitsStored, ds.HighBit = 12, 11
    ds.save_as(path)

    (unsigned,) = _frames(path)
    ds.PixelRepresentation = 1
    ds.save_as(path)
    (signed,) = _frames(path)

    assert unsigned[:2, :2].tolist() == [[1, 4095], [2047, 2048]]
    assert signed[:2, :2].tolist() == [[1, -1], [2047, -2048]]


def test_samples_in_the_high_bits_are_moved_down(write_image: WriteImage) -> None:
    # 12 bits at the top of 16: High Bit 15; the low four bits are noise.
    pixels = np.array([[0x001F, 0x7FFA, 0xFFFF]], dtype=np.uint16)

    unsigned = _frames(write_image(pixels, BitsStored=12, HighBit=15))[0]
    signed = _frames(write_image(pixels, BitsStored=12, HighBit=15, PixelRepresentation=1))[0]

    assert unsigned.tolist() == [[0x001, 0x7FF, 0xFFF]]
    assert signed.tolist() == [[1, 2047, -1]]


@given(
    value=st.integers(0, 0xFFFF),
    bits_stored=st.integers(1, 16),
    above=st.integers(0, 15),
    is_signed=st.booleans(),
)
def test_masking_agrees_with_arithmetic(
    value: int, bits_stored: int, above: int, is_signed: bool
) -> None:
    high_bit = min(bits_stored - 1 + above, 15)
    expected = (value >> (high_bit - bits_stored + 1)) % 2**bits_stored
    if is_signed and expected >= 2 ** (bits_stored - 1):
        expected -= 2**bits_stored

    cells = masked(np.array([value], np.uint16), bits_stored, high_bit, is_signed=is_signed)

    assert cells.tolist() == [expected]


def test_frames_come_one_by_one_and_by_number(write_image: WriteImage) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    image = open_image(write_image(pixels))

    assert [frame.tolist() for frame in iter_frames(image)] == pixels.tolist()
    assert [frame[0, 0] for frame in iter_frames(image, [2, 0])] == [8, 0]


def test_rgb_planes_become_pixels(write_image: WriteImage) -> None:
    # Two pixels, red then blue, stored plane by plane.
    planes = np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8)
    stored = np.moveaxis(planes, -1, 0).tobytes()

    (frame,) = _frames(write_image(planes, PlanarConfiguration=1, PixelData=stored))

    assert frame.tolist() == planes.tolist()


def test_ybr_becomes_rgb(write_image: WriteImage) -> None:
    # Y 76, Cb 85, Cr 255 is pure red (PS3.3 C.7.6.3.1.2).
    pixels = np.array([[[76, 85, 255]]] * 2, dtype=np.uint8)

    (frame,) = _frames(write_image(pixels, PhotometricInterpretation="YBR_FULL"))

    assert np.abs(frame[0, 0].astype(int) - [254, 0, 0]).max() <= 1


def test_palette_colours_are_looked_up(write_image: WriteImage) -> None:
    tables = {
        f"{colour}PaletteColorLookupTableData": bytes(entries)
        for colour, entries in (("Red", [10, 20]), ("Green", [30, 40]), ("Blue", [50, 60]))
    }
    descriptors = {
        f"{colour}PaletteColorLookupTableDescriptor": [2, 0, 8]
        for colour in ("Red", "Green", "Blue")
    }
    pixels = np.array([[0, 1]], dtype=np.uint8)

    (frame,) = _frames(
        write_image(pixels, PhotometricInterpretation="PALETTE COLOR", **descriptors, **tables)
    )

    assert frame.tolist() == [[[10, 30, 50], [20, 40, 60]]]


@pytest.mark.parametrize("presentation", ["COLOR", "MIXED"])
def test_grey_that_is_coloured_by_a_supplemental_palette_is_refused(
    write_image: WriteImage, presentation: str
) -> None:
    palette = {"RedPaletteColorLookupTableDescriptor": [2, 4000, 16]}

    with pytest.raises(CannotDecode, match="colours of a supplemental palette where grey is"):
        open_image(write_image(RAMP, PixelPresentation=presentation, **palette))
    open_image(write_image(RAMP, PixelPresentation="MONOCHROME", **palette))


def test_bytes_of_jpeg_baseline_may_stand_for_wider_cells(tmp_path: Path) -> None:
    known = Path(decoding.__file__).parent / "known_frames" / "jpeg_baseline_50.dcm"
    ds = pydicom.dcmread(known)
    ds.BitsAllocated = 16
    path = tmp_path / "wide.dcm"
    ds.save_as(path)

    assert np.array_equal(_frames(path), _frames(known))


def test_truncated_native_pixels_are_refused(write_image: WriteImage) -> None:
    path = write_image(np.zeros((64, 64), np.uint16))
    path.write_bytes(path.read_bytes()[:-1000])

    with pytest.raises(CannotDecode, match=r"holds 7192 bytes; .* need 8192: truncated") as caught:
        open_image(path)
    assert caught.value.reason is RefusalReason.CANNOT_DECODE


@pytest.mark.parametrize(
    "attributes",
    [{"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, {"NumberOfFrames": 2}, {"Rows": 8}],
    ids=["cells are wider", "there are more frames", "there are more rows"],
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_pixels_of_which_the_header_says_half_are_refused(
    write_image: WriteImage, attributes: dict[str, int], syntax: str
) -> None:
    pixels = np.arange(4 * 16 * 8, dtype=np.uint16).reshape(4, 16, 8)
    path = write_image(pixels, transfer_syntax_uid=syntax, **attributes)

    with pytest.raises(CannotDecode, match="says 1024 bytes, several times the 512"):
        open_image(path)


def test_bytes_left_behind_the_pixels_are_ignored(write_image: WriteImage) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)

    (frame,) = _frames(write_image(pixels, PixelData=pixels.tobytes() + bytes(60)))

    assert frame.tolist() == pixels.tolist()


def test_rows_that_disagree_with_the_data_are_refused(write_image: WriteImage) -> None:
    with pytest.raises(CannotDecode, match="Rows 20 x Columns 3 x 1 frames"):
        open_image(write_image(RAMP, Rows=20))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_truncated_compressed_pixels_are_refused(tmp_path: Path, syntax: str) -> None:
    noise = np.random.default_rng(1).integers(0, 4096, (64, 64), dtype=np.uint16)
    path = _compressed(tmp_path, noise, syntax)
    path.write_bytes(path.read_bytes()[:-2000])

    with pytest.raises(CannotDecode, match="truncated"):
        open_image(path)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("frames", [1, 2])
def test_fragment_of_no_length_behind_the_last_is_ignored(
    tmp_path: Path, syntax: str, frames: int
) -> None:
    noise = np.random.default_rng(1).integers(0, 4096, (frames, 64, 64), dtype=np.uint16)
    path = _compressed(tmp_path, noise, syntax)
    ds = pydicom.dcmread(path)
    ds.PixelData += struct.pack("<HHL", 0xFFFE, 0xE000, 0)
    ds.save_as(path)

    assert np.array_equal(np.stack(_frames(path)), noise)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_fragment_cut_before_it_was_wrapped_is_refused(tmp_path: Path, syntax: str) -> None:
    noise = np.random.default_rng(1).integers(0, 4096, (64, 64), dtype=np.uint16)
    ds = pydicom.dcmread(_compressed(tmp_path, noise, syntax))
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    ds.PixelData = encapsulate([frame[: len(frame) // 2]])
    path = tmp_path / "cut.dcm"
    ds.save_as(path)

    with pytest.raises(CannotDecode):
        _frames(path)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000Lossless, RLELossless])
def test_noise_in_place_of_a_codestream_is_refused(tmp_path: Path, syntax: str) -> None:
    ds = image_data_set(np.zeros((4, 4), np.uint8))
    ds.PixelData = encapsulate([b"\x17" * 500 + b"\xff\xd9"])
    ds["PixelData"].is_undefined_length = True
    path = save(ds, tmp_path / "noise.dcm", syntax)

    with pytest.raises(CannotDecode, match="the decoder failed on frame 1"):
        _frames(path)


def test_panic_of_the_rle_decoder_is_a_refusal(tmp_path: Path) -> None:
    # Two byte planes of 16 pixels each, but every segment holds a run of 32 literals.
    segment = bytes([31]) + bytes(32) + b"\0"
    header = struct.pack("<16L", 2, 64, 64 + len(segment), *[0] * 13)
    ds = image_data_set(np.zeros((4, 4), np.uint16))
    ds.PixelData = encapsulate([header + segment * 2])
    ds["PixelData"].is_undefined_length = True
    path = save(ds, tmp_path / "panic.dcm", RLELossless)

    with pytest.raises(CannotDecode, match=r"frame 1 \(PanicException\)"):
        _frames(path)


@pytest.mark.parametrize(
    ("fault", "expected", "message"),
    [
        (MemoryError(), InstanceUnavailable, "want of memory"),
        (OSError(errno.EMFILE, "Too many open files"), InstanceUnavailable, "EMFILE"),
        # What Pillow raises for a codestream it dislikes.
        (OSError("broken data stream when reading image file"), CannotDecode, "decoder failed"),
    ],
)
def test_a_plug_in_that_wants_memory_or_handles_is_no_verdict_on_the_image(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
    expected: type[MedimgdError],
    message: str,
) -> None:
    path = _compressed(tmp_path, np.zeros((64, 64), np.uint8), JPEG2000Lossless)

    def failing_plug_in(*_: object) -> NoReturn:
        raise fault

    plug_ins = {"first": failing_plug_in, "second": failing_plug_in}
    monkeypatch.setattr(get_decoder(JPEG2000Lossless), "_available", plug_ins)

    with pytest.raises(expected, match=message):
        _frames(path)


def test_a_disk_that_fails_between_header_and_pixels_is_no_verdict(
    write_image: WriteImage,
) -> None:
    image = open_image(write_image(RAMP))

    image.path.unlink()

    with pytest.raises(InstanceUnavailable, match="ENOENT"):
        list(iter_frames(image))


def test_codestream_of_another_size_is_refused(tmp_path: Path) -> None:
    ds = pydicom.dcmread(_compressed(tmp_path, np.zeros((64, 64), np.uint8), JPEG2000Lossless))
    ds.Rows = 32
    path = tmp_path / "lying.dcm"
    ds.save_as(path)

    with pytest.raises(CannotDecode, match="holds 64 x 64 pixels, Rows x Columns say 32 x 64"):
        open_image(path)


@pytest.mark.parametrize("syntax", [None, JPEGBaseline8Bit, DeflatedExplicitVRLittleEndian])
def test_absurd_dimensions_are_refused_without_allocating(
    tmp_path: Path, syntax: str | None
) -> None:
    ds = image_data_set(np.zeros((4, 4), np.uint8), Rows=65535, Columns=65535)
    if syntax == JPEGBaseline8Bit:
        ds.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
        ds["PixelData"].is_undefined_length = True
    path = save(ds, tmp_path / "absurd.dcm", syntax or "1.2.840.10008.1.2.1")
    assert path.stat().st_size < 1200

    tracemalloc.start()
    with pytest.raises(CannotDecode, match="65535"):
        open_image(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 5_000_000


def test_many_small_frames_are_bounded_too(tmp_path: Path) -> None:
    ds = image_data_set(np.zeros((4, 4), np.uint8), Rows=1024, Columns=1024)
    ds.NumberOfFrames = MAX_DECODED_BYTES // 1024**2 + 1
    ds.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    ds["PixelData"].is_undefined_length = True

    with pytest.raises(CannotDecode, match=f"at most {MAX_DECODED_BYTES}"):
        open_image(save(ds, tmp_path / "many.dcm", JPEGBaseline8Bit))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"PixelData": None}, r"PixelData \(7FE0,0010\) is missing"),
        ({"Rows": 0}, "Rows must be a positive whole number .* received 0"),
        ({"Columns": None}, "Columns must be .* received nothing"),
        ({"BitsAllocated": 12}, r"BitsAllocated \(0028,0100\)"),
        ({"BitsStored": 17}, r"BitsStored \(0028,0101\)"),
        ({"HighBit": 3}, r"HighBit \(0028,0102\)"),
        ({"SamplesPerPixel": 4}, r"SamplesPerPixel \(0028,0002\)"),
        ({"PhotometricInterpretation": "RGB"}, r"PhotometricInterpretation \(0028,0004\)"),
        ({"PhotometricInterpretation": None}, "received nothing"),
        ({"NumberOfFrames": 0}, r"NumberOfFrames \(0028,0008\)"),
        ({"NumberOfFrames": "99999999999"}, r"NumberOfFrames \(0028,0008\)"),
    ],
)
def test_contradictory_headers_are_refused(
    write_image: WriteImage, attributes: dict[str, object], message: str
) -> None:
    with pytest.raises(CannotDecode, match=message):
        open_image(write_image(RAMP, **attributes))


def test_floating_point_pixels_are_refused(write_image: WriteImage) -> None:
    path = write_image(RAMP, PixelData=None, FloatPixelData=b"\0" * 24)

    with pytest.raises(CannotDecode, match=r"floating point \(7FE0,0008\)"):
        open_image(path)


def test_transfer_syntax_without_decoder_is_refused_by_name(write_image: WriteImage) -> None:
    path = write_image(RAMP)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"))

    with pytest.raises(CannotDecode, match=r"1\.2\.840\.10008\.9\.9\.9.* has no decoder"):
        open_image(path)


def test_native_data_under_a_compressed_syntax_is_refused(write_image: WriteImage) -> None:
    path = write_image(RAMP)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"))

    with pytest.raises(CannotDecode, match="not encapsulated, against its transfer syntax RLE"):
        open_image(path)


def test_refusals_name_no_patient(write_image: WriteImage) -> None:
    with pytest.raises(CannotDecode) as caught:
        open_image(write_image(RAMP, Rows=20, PatientName="Zzmarked^Name"))

    assert "Zzmarked" not in str(caught.value)


@pytest.mark.parametrize("wrong", [[0, 0, 0], [0, 2, 1], [0, 1, 1], [1, 2, 2], [0, 1], [0, 1, 9]])
@pytest.mark.parametrize("is_extended", [False, True])
def test_offset_table_that_points_elsewhere_is_refused(
    tmp_path: Path, wrong: list[int], is_extended: bool
) -> None:
    # Frame by number would be another frame: with zeros alone, always the first.
    pixels = np.stack([np.full((8, 8), number, np.uint8) for number in (10, 20, 30)])
    ds = pydicom.dcmread(_compressed(tmp_path, pixels, RLELossless))
    frames = list(generate_frames(ds.PixelData, number_of_frames=3))
    path = tmp_path / "offsets.dcm"

    right = _with_offsets(ds, frames, [0, 1, 2], path, is_extended=is_extended)
    assert [frame[0, 0] for frame in iter_frames(right, [2, 0])] == [30, 10]
    with pytest.raises(CannotDecode, match="does not point to its 3 frames"):
        _with_offsets(ds, frames, wrong, path, is_extended=is_extended)


def _with_offsets(
    ds: pydicom.Dataset, frames: list[bytes], order: list[int], path: Path, *, is_extended: bool
) -> StoredImage:
    starts = [sum(8 + len(frame) for frame in frames[:number]) for number in order]
    basic = b"" if is_extended else struct.pack(f"<{len(starts)}L", *starts)
    items = b"".join(
        struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item for item in (basic, *frames)
    )
    ds.PixelData = items
    if is_extended:
        ds.ExtendedOffsetTable = struct.pack(f"<{len(starts)}Q", *starts)
        ds.ExtendedOffsetTableLengths = struct.pack(
            f"<{len(starts)}Q", *(len(frames[min(number, 2)]) for number in order)
        )
    ds.save_as(path)
    return open_image(path)


def test_jpeg_frame_header_is_found_behind_other_segments() -> None:
    app0 = b"\xff\xe0" + struct.pack(">H", 4) + b"JF"
    fill = b"\xff"
    frame = b"\xff\xc1" + struct.pack(">HBHHB", 11, 12, 480, 640, 1)

    assert codestream_size(b"\xff\xd8" + app0 + fill + frame) == (480, 640)
    assert codestream_size(b"\xff\xd8" + app0) is None
    assert codestream_size(b"anything else") is None
