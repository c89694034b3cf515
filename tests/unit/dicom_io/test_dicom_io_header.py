"""Headers of stored instances: what is read, and what hostile files end as."""

from __future__ import annotations

import errno
import io
import logging
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import WriteImage, image_data_set, save
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import HTJ2K, JPEG2000, JPEGBaseline8Bit

from dicom_io.decoding import open_image
from dicom_io.display import display_image
from dicom_io.errors import InstanceUnavailable, InvalidUID, UnreadableInstance
from dicom_io.films import read_film
from dicom_io.header import (
    MAX_INDEXED_CHARACTERS,
    is_known_keyword,
    read_attributes,
    read_header,
    read_reference,
)
from dicom_io.reading import HEADER_INFLATE_BYTES
from dicom_io.vocabulary import MANUFACTURER

PIXELS = np.zeros((2, 3), dtype=np.uint16)


def _patched(path: Path, old: bytes, new: bytes) -> Path:
    assert len(old) == len(new)
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    return path


def fault_of(read: Callable[[Path], object], path: Path) -> type[Exception] | None:
    """Return as what reading a file failed, None when it did not."""
    try:
        read(path)
    except Exception as error:  # noqa: BLE001 - which one it is, is what the test asserts
        return type(error)
    return None


def test_header_holds_what_the_index_keeps(write_image: WriteImage) -> None:
    path = write_image(
        PIXELS,
        StudyDate="20240229",
        StudyTime="101500",
        StudyDescription="Chest",
        SeriesDescription="lung",
        SeriesNumber=3,
        InstanceNumber=7,
        BodyPartExamined="CHEST",
        PatientID="P1",
        AccessionNumber="A1",
    )

    header = read_header(path)

    assert header.study_instance_uid == "1.2.3.1"
    assert header.series_instance_uid == "1.2.3.1.1"
    assert header.sop_instance_uid == "1.2.3.1.1.1"
    assert header.sop_class_uid == "1.2.840.10008.5.1.4.1.1.2"
    assert header.transfer_syntax_uid == "1.2.840.10008.1.2.1"
    assert (header.modality, header.study_date, header.study_time) == ("CT", "20240229", "101500")
    assert (header.study_description, header.series_description) == ("Chest", "lung")
    assert (header.series_number, header.instance_number) == (3, 7)
    assert (header.rows, header.columns, header.number_of_frames) == (2, 3, 1)
    assert header.body_part_examined == "CHEST"
    assert (header.patient_id, header.patient_name, header.accession_number) == (
        "P1",
        "Doe, Jane",
        "A1",
    )
    assert not header.is_own


def test_absent_attributes_are_empty_or_zero(tmp_path: Path) -> None:
    ds = image_data_set(PIXELS, PatientName=None, Modality=None, Rows=None, PixelData=None)

    header = read_header(save(ds, tmp_path / "bare.dcm"))

    assert (header.modality, header.patient_name, header.study_date) == ("", "", "")
    assert (header.rows, header.number_of_frames) == (0, 1)
    assert header.series_number is None
    assert not header.has_pixels


def test_own_results_are_recognised_by_contributing_equipment(write_image: WriteImage) -> None:
    ours, other = Dataset(), Dataset()
    ours.Manufacturer, other.Manufacturer = MANUFACTURER, "Acme"

    own = read_header(write_image(PIXELS, ContributingEquipmentSequence=Sequence([other, ours])))
    foreign = read_header(write_image(PIXELS, ContributingEquipmentSequence=Sequence([other])))

    assert own.is_own
    assert not foreign.is_own


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_missing_uid_is_named_with_its_tag(write_image: WriteImage, keyword: str) -> None:
    path = write_image(PIXELS, **{keyword: ""})

    with pytest.raises(UnreadableInstance, match=rf"{keyword} \(00[02]"):
        read_header(path)


def test_uid_with_path_characters_is_refused(write_image: WriteImage) -> None:
    path = _patched(write_image(PIXELS, StudyInstanceUID="1.2.33.44"), b"1.2.33.44", b"../../etc")

    with pytest.raises(InvalidUID, match="StudyInstanceUID"):
        read_header(path)


def test_two_uids_in_one_attribute_are_refused(write_image: WriteImage) -> None:
    path = _patched(write_image(PIXELS, StudyInstanceUID="1.2.33.44"), b"1.2.33.44", b"1.2\\33.44")

    with pytest.raises(InvalidUID):
        read_header(path)


@pytest.mark.parametrize(
    ("charset", "encoding", "name", "shown"),
    [
        ("GB18030", "gb18030", "Wang^XiaoDong=王^小东", "Wang, XiaoDong=王, 小东"),
        ("GB18030", "gb18030", "=王^小东", "王, 小东"),
        ("ISO_IR 192", "utf-8", "Buc^Jérôme", "Buc, Jérôme"),
        ("ISO_IR 100", "latin-1", "Müller^Jörg^^Dr", "Müller, Dr Jörg"),
    ],
)
def test_names_are_read_in_their_character_set(
    write_image: WriteImage, charset: str, encoding: str, name: str, shown: str
) -> None:
    path = write_image(PIXELS, SpecificCharacterSet=charset, PatientName=name)

    assert read_header(path).patient_name == shown


def test_japanese_name_with_escapes_is_read(write_image: WriteImage) -> None:
    charset = ["", "ISO 2022 IR 87"]
    path = write_image(PIXELS, SpecificCharacterSet=charset, PatientName="Yamada^Tarou=山田^太郎")

    assert read_header(path).patient_name == "Yamada, Tarou=山田, 太郎"


def test_bogus_character_set_does_not_stop_the_header(write_image: WriteImage) -> None:
    path = write_image(PIXELS, SpecificCharacterSet="ISO_IR 192", PatientName="Doe^Jöhn")
    _patched(path, b"ISO_IR 192", b"KLINGON 99")

    header = read_header(path)

    assert header.patient_name.startswith("Doe, J")


@pytest.mark.parametrize(("old", "new"), [(b"IS\x02\x0012", b"IS\x02\x00ab")])
def test_illegal_number_reads_as_absent(write_image: WriteImage, old: bytes, new: bytes) -> None:
    path = _patched(write_image(PIXELS, InstanceNumber=12), old, new)

    assert read_header(path).instance_number is None


@pytest.mark.parametrize(
    "element",
    [
        pytest.param(b"IS" + struct.pack("<H", 20) + b"99999999999999999999", id="IS"),
        pytest.param(b"IS" + struct.pack("<H", 10) + b"2147483648", id="IS just above"),
        pytest.param(b"IS" + struct.pack("<H", 12) + b"-2147483649 ", id="IS just below"),
        pytest.param(b"UV" + bytes(2) + struct.pack("<LQ", 8, 2**64 - 1), id="UV"),
        pytest.param(b"FD" + struct.pack("<Hd", 8, 1e300), id="FD"),
        pytest.param(b"FD" + struct.pack("<Hd", 8, float("inf")), id="infinite"),
    ],
)
@pytest.mark.parametrize(
    ("tag", "field", "absent"),
    [
        (b"\x20\0\x11\0", "series_number", None),
        (b"\x20\0\x13\0", "instance_number", None),
        (b"\x28\0\x08\0", "number_of_frames", 1),
        (b"\x28\0\x10\0", "rows", 0),
        (b"\x28\0\x11\0", "columns", 0),
    ],
)
def test_a_number_no_database_holds_reads_as_absent(
    write_image: WriteImage, element: bytes, tag: bytes, field: str, absent: int | None
) -> None:
    path = write_image(PIXELS, SeriesNumber=1, InstanceNumber=1, NumberOfFrames=1)
    data = path.read_bytes()
    at = data.index(tag)
    length = struct.unpack_from("<H", data, at + 6)[0]
    path.write_bytes(data[:at] + tag + element + data[at + 8 + length :])

    assert getattr(read_header(path), field) == absent


def test_the_largest_legal_number_is_read(write_image: WriteImage) -> None:
    header = read_header(write_image(PIXELS, SeriesNumber=2**31 - 1, InstanceNumber=-(2**31)))

    assert (header.series_number, header.instance_number) == (2**31 - 1, -(2**31))


@pytest.mark.filterwarnings("ignore:The .* length .* exceeds")
def test_text_for_the_index_is_printable_and_bounded(write_image: WriteImage) -> None:
    path = write_image(
        PIXELS, StudyDescription="a" * 5000, PatientName="b" * 5000, PatientID="#" * 12
    )
    # A NUL, an escape, a line feed, and a lone surrogate that UTF-8 cannot hold.
    _patched(path, b"#" * 12, b"1\x002\x1b3\n4\xed\xa0\x80 5")

    header = read_header(path)

    assert header.study_description == "a" * MAX_INDEXED_CHARACTERS
    assert header.patient_name == "b" * MAX_INDEXED_CHARACTERS
    assert header.patient_id.isprintable()
    assert header.patient_id.encode("utf-8").startswith(b"1234")


def test_number_in_the_wrong_representation_is_tolerated(write_image: WriteImage) -> None:
    # Rows as the decimal string "2 " instead of an unsigned short.
    path = _patched(write_image(PIXELS), b"\x28\0\x10\0US\2\0\2\0", b"\x28\0\x10\0IS\2\x002 ")

    assert read_header(path).rows == 2


def test_script_in_a_name_is_kept_as_text(write_image: WriteImage) -> None:
    path = write_image(PIXELS, PatientName="<script>alert(1)</script>")

    assert read_header(path).patient_name == "<script>alert(1)</script>"


def test_patient_is_left_out_of_the_repr(write_image: WriteImage) -> None:
    assert "Doe" not in repr(read_header(write_image(PIXELS)))


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\0" * 200, b"\0" * 128 + b"DICM"])
def test_files_that_are_not_part_10_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "noise"
    path.write_bytes(content)

    with pytest.raises(UnreadableInstance):
        read_header(path)


def test_a_missing_file_is_no_verdict_on_the_instance(tmp_path: Path) -> None:
    with pytest.raises(InstanceUnavailable, match=r"gone\.dcm cannot be read \(ENOENT: ") as caught:
        read_header(tmp_path / "gone.dcm")

    assert caught.value.retryable
    assert "check the disk" in str(caught.value)


@pytest.mark.parametrize(
    "read",
    [
        read_header,
        read_reference,
        lambda path: read_attributes(path, ["Modality"]),
        open_image,
        display_image,
        read_film,
    ],
)
@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ESTALE])
def test_a_fault_of_the_machine_is_no_verdict_on_the_instance(
    write_image: WriteImage, monkeypatch: pytest.MonkeyPatch, read: Any, number: int
) -> None:
    path = write_image(PIXELS)

    def broken_open(*arguments: Any, **options: Any) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(io, "open", broken_open)

    with pytest.raises(InstanceUnavailable, match=errno.errorcode[number]):
        read(path)


def test_a_disk_that_fails_in_the_middle_is_no_verdict_on_the_instance(
    write_image: WriteImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_image(PIXELS)
    real_open = io.open

    class FailingDisk(io.BufferedReader):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 300:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(size)

    monkeypatch.setattr(io, "open", lambda name, *_: FailingDisk(io.FileIO(name)))

    with pytest.raises(InstanceUnavailable, match="EIO"):
        read_header(path)
    monkeypatch.setattr(io, "open", real_open)
    assert read_header(path).modality == "CT"


def test_want_of_memory_is_no_verdict_on_the_instance(
    write_image: WriteImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_image(PIXELS)

    def no_memory(*_: Any, **__: Any) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr("dicom_io.reading.read_dataset", no_memory)

    with pytest.raises(InstanceUnavailable, match="want of memory"):
        read_header(path)


def test_length_behind_the_end_of_the_file_is_refused(write_image: WriteImage) -> None:
    path = write_image(PIXELS, StudyDescription="x" * 60)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"x" * 60) + 20])

    with pytest.raises(UnreadableInstance, match=r"\(0008,1030\) says 60 bytes, 20 remain"):
        read_header(path)


def _nested_sequences(depth: int) -> bytes:
    opening = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    return (opening + item) * depth


def test_deeply_nested_sequences_are_refused(write_image: WriteImage) -> None:
    path = write_image(PIXELS)
    data = path.read_bytes()
    at = data.index(b"\x10\0\x10\0PN")
    path.write_bytes(data[:at] + _nested_sequences(5000))

    with pytest.raises(UnreadableInstance, match="nested too deeply"):
        read_header(path)
    with pytest.raises(UnreadableInstance, match="nested too deeply"):
        read_reference(path)


def test_deflate_bomb_is_not_inflated_for_its_header(
    tmp_path: Path, write_image: WriteImage
) -> None:
    plain = write_image(PIXELS).read_bytes()
    start = plain.index(b"\x08\0\x16\0UI")
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = io.BytesIO()
    bomb.write(compressor.compress(plain[start:]))
    for _ in range(256):
        bomb.write(compressor.compress(b"\0" * 1024 * 1024))
    bomb.write(compressor.flush())
    meta = plain[:start].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    path = tmp_path / "bomb.dcm"
    path.write_bytes(
        meta.replace(b"\x02\0\x10\0UI\x14\0", b"\x02\0\x10\0UI\x16\0") + bomb.getvalue()
    )
    assert path.stat().st_size < 300_000

    tracemalloc.start()
    header = read_header(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert header.sop_instance_uid == "1.2.3.1.1.1"
    assert peak < 2.5 * HEADER_INFLATE_BYTES < 256 * 1024 * 1024


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(damage=st.lists(st.tuples(st.integers(132, 600), st.integers(0, 255)), max_size=12))
def test_damaged_headers_end_in_stated_errors_only(
    write_image: WriteImage, damage: list[tuple[int, int]]
) -> None:
    path = write_image(PIXELS, StudyDate="20240101", PatientAge="042Y", SeriesNumber=1)
    data = bytearray(path.read_bytes())
    for offset, value in damage:
        data[offset % len(data)] = value
    path.write_bytes(bytes(data))

    for read in (read_header, read_reference, lambda file: read_attributes(file, ["age_years"])):
        assert fault_of(read, path) in (None, UnreadableInstance, InvalidUID)


def test_reading_leaks_no_name_into_logs(
    write_image: WriteImage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    path = write_image(PIXELS, FrameOfReferenceUID="1.2.3.44.5", PatientID="P1")
    # pydicom logs and warns with the value when a UID is none; here a name got into it.
    _patched(path, b"1.2.3.44.5", b"Zzmarked^N")

    read_header(path)
    read_reference(path)
    assert read_attributes(path, ["FrameOfReferenceUID"]) == {"FrameOfReferenceUID": "Zzmarked^N"}

    assert "Zzmarked" not in caplog.text


def test_attributes_come_as_plain_values(write_image: WriteImage) -> None:
    code, empty = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "399348003", "SCT", "AP"
    path = write_image(
        PIXELS,
        ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
        SliceThickness="2.5",
        PixelSpacing=[0.5, 0.75],
        ViewCodeSequence=Sequence([code]),
        ReferencedImageSequence=Sequence([empty, empty]),
        BodyPartExamined="",
    )

    found = read_attributes(
        path,
        [
            "ImageType",
            "SliceThickness",
            "PixelSpacing",
            "Rows",
            "ViewCodeSequence",
            "ReferencedImageSequence",
            "BodyPartExamined",
            "KVP",
            "NotAKeyword",
            "PatientName",
        ],
    )

    assert found == {
        "ImageType": ("ORIGINAL", "PRIMARY", "AXIAL"),
        "SliceThickness": 2.5,
        "PixelSpacing": (0.5, 0.75),
        "Rows": 2.0,
        "ViewCodeSequence": ("399348003", "AP"),
        "ReferencedImageSequence": 2.0,
        "BodyPartExamined": None,
        "KVP": None,
        "NotAKeyword": None,
        "PatientName": "Doe, Jane",
    }


def test_attributes_of_enhanced_objects_come_from_functional_groups(
    write_image: WriteImage,
) -> None:
    measures, shared, position, frame = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.5], "1.25"
    shared.PixelMeasuresSequence = Sequence([measures])
    position.ImagePositionPatient = [1.0, 2.0, 3.0]
    frame.PlanePositionSequence = Sequence([position])
    path = write_image(
        np.zeros((2, 2, 2), np.uint16),
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence([frame, frame]),
    )

    found = read_attributes(path, ["SliceThickness", "ImagePositionPatient", "KVP"])

    assert found == {
        "SliceThickness": 1.25,
        "ImagePositionPatient": (1.0, 2.0, 3.0),
        "KVP": None,
    }


@pytest.mark.parametrize(
    ("age", "years"),
    [("042Y", 42.0), ("018M", 1.5), ("006W", 42 / 365.25), ("010D", 10 / 365.25), ("42", 42.0)],
)
def test_age_is_read_in_years(write_image: WriteImage, age: str, years: float) -> None:
    path = _patched(write_image(PIXELS, PatientAge="099Y"), b"099Y", age.ljust(4).encode())

    assert read_attributes(path, ["age_years"])["age_years"] == pytest.approx(years)


def test_age_falls_back_to_birth_and_study_date(write_image: WriteImage) -> None:
    path = write_image(PIXELS, PatientBirthDate="20200101", StudyDate="20240101")

    assert read_attributes(path, ["age_years"])["age_years"] == pytest.approx(4, abs=0.01)


@pytest.mark.parametrize(
    ("born", "studied", "years"),
    [
        ("20250305", "20260305", 1.0),
        ("20210301", "20270301", 6.0),
        ("20210301", "20270228", 5 + 364 / 366),
        ("20220301", "20280229", 5 + 365 / 366),
        ("20010101", "20190101", 18.0),
        ("20240229", "20250228", 365 / 366),
        ("20240229", "20250301", 1.0),
        ("20240229", "20280229", 4.0),
        ("20240305", "20240305", 0.0),
        ("00010101", "99991231", 9998 + 364 / 366),
    ],
)
def test_year_of_age_is_complete_on_the_birthday(
    write_image: WriteImage, born: str, studied: str, years: float
) -> None:
    path = write_image(PIXELS, PatientBirthDate=born, StudyDate=studied)

    assert read_attributes(path, ["age_years"])["age_years"] == pytest.approx(years, abs=1e-9)


def test_age_is_absent_without_dates(write_image: WriteImage) -> None:
    path = write_image(PIXELS, PatientAge="", PatientBirthDate="20250101", StudyDate="20240101")

    assert read_attributes(path, ["age_years"]) == {"age_years": None}


def test_lossy_ratio_is_one_without_lossy_compression(write_image: WriteImage) -> None:
    assert read_attributes(write_image(PIXELS), ["lossy_ratio"]) == {"lossy_ratio": 1.0}


def test_lossy_ratio_is_the_strongest_one_stated(write_image: WriteImage) -> None:
    path = write_image(PIXELS, LossyImageCompression="01", LossyImageCompressionRatio=["10.5", "3"])

    assert read_attributes(path, ["lossy_ratio"]) == {"lossy_ratio": 10.5}


@pytest.mark.parametrize("ratio", [None, "0", "0.1"])
@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000, HTJ2K])
def test_lossy_ratio_that_is_not_stated_is_that_of_sizes(
    write_image: WriteImage, syntax: str, ratio: str | None
) -> None:
    pixels = np.zeros((400, 400), np.uint8)
    stated = {} if ratio is None else {"LossyImageCompressionRatio": ratio}
    path = write_image(
        pixels, transfer_syntax_uid=syntax, PixelData=encapsulate([bytes(20_000)]), **stated
    )

    found = read_attributes(path, ["lossy_ratio"])["lossy_ratio"]

    assert found == pytest.approx(160_000 / path.stat().st_size)
    assert 7 < found < 8


def test_lossy_ratio_of_pixels_decompressed_since_is_unknown(write_image: WriteImage) -> None:
    path = write_image(PIXELS, LossyImageCompression="01")

    assert read_attributes(path, ["lossy_ratio"]) == {"lossy_ratio": None}


def test_reference_is_settled_and_without_bulk(write_image: WriteImage) -> None:
    path = write_image(PIXELS, ICCProfile=b"\0" * 70_000, PatientBirthDate="19991231")
    _patched(path, b"DA\x08\x0019991231", b"DA\x08\x00notadate")

    ds = read_reference(path)

    assert "PixelData" not in ds
    assert "ICCProfile" not in ds
    assert ds.PatientName == "Doe^Jane"
    assert ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert str(ds)


@pytest.mark.parametrize("length", [2, 4, 6])
@pytest.mark.parametrize(
    ("element", "keyword"),
    [(0x0018A001, "ContributingEquipmentSequence"), (0x00082218, "AnatomicRegionSequence")],
)
def test_sequence_that_ends_within_its_first_item_reads_as_absent(
    write_image: WriteImage, element: int, keyword: str, length: int
) -> None:
    path = write_image(PIXELS)
    data = path.read_bytes()
    at = data.index(b"\x10\0\x10\0PN" if element < 0x00100000 else b"\x20\0\x0d\0UI")
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 8)[:length]
    head = struct.pack("<HH2sHL", element >> 16, element & 0xFFFF, b"SQ", 0, length)
    path.write_bytes(data[:at] + head + item + data[at:])

    assert read_header(path).sop_instance_uid == "1.2.3.1.1.1"
    assert read_attributes(path, [keyword]) == {keyword: None}
    assert keyword not in read_reference(path)


def test_value_of_odd_length_is_left_out_of_the_reference(write_image: WriteImage) -> None:
    path = write_image(PIXELS, SeriesNumber=1)
    data = path.read_bytes()
    at = data.index(b"\x28\0\x02\0US")
    odd = struct.pack("<HH2sH", 0x0020, 0x9157, b"UL", 2) + b"ab"
    path.write_bytes(data[:at] + odd + data[at:])

    assert 0x00209157 not in read_reference(path)


def test_transfer_syntax_that_is_no_uid_is_refused(write_image: WriteImage) -> None:
    path = _patched(write_image(PIXELS), b"1.2.840.10008.1.2.1\0", b"1.2.840.1/008.1.2.1\0")

    with pytest.raises(InvalidUID, match="TransferSyntaxUID"):
        read_header(path)


def test_known_keywords_include_the_derived_ones() -> None:
    assert is_known_keyword("SliceThickness")
    assert is_known_keyword("age_years")
    assert not is_known_keyword("SliceThicknes")
