"""The head of a file: what pydicom reads back, and the data set behind it untouched."""

from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread

from dicom_io.errors import InvalidUID
from dicom_io.receiving.folder_sink import FolderSink
from dicom_io.receiving.instances import StoreRequest
from dicom_io.receiving.part10 import file_prefix
from dicom_io.statuses import StoreStatusValues
from dicom_io.vocabulary import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"

uids = st.from_regex(r"1(\.[1-9][0-9]{0,8}){1,5}", fullmatch=True)
ae_titles = st.text(alphabet="ABCDEFGHIJ_0123456789", max_size=16)


def make_received(**changes) -> StoreRequest:
    values = {
        "association_id": "a1",
        "calling_ae_title": "CT1",
        "called_ae_title": "MEDIMGD",
        "address": "127.0.0.1",
        "sop_class_uid": CT_IMAGE_STORAGE,
        "sop_instance_uid": "1.2.3.45",
        "transfer_syntax_uid": EXPLICIT_VR_BIG_ENDIAN,
    }
    return StoreRequest(**{**values, **changes})


def test_every_element_of_the_head_reads_back():
    meta = dcmread(BytesIO(file_prefix(make_received()))).file_meta

    assert meta.FileMetaInformationVersion == b"\x00\x01"
    assert meta.MediaStorageSOPClassUID == CT_IMAGE_STORAGE
    assert meta.MediaStorageSOPInstanceUID == "1.2.3.45"
    assert meta.TransferSyntaxUID == EXPLICIT_VR_BIG_ENDIAN
    assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert meta.ImplementationVersionName == IMPLEMENTATION_VERSION_NAME
    assert meta.SourceApplicationEntityTitle == "CT1"
    assert len(meta) == 8


@given(uids, uids, uids, ae_titles)
def test_group_length_points_at_the_first_byte_of_the_data_set(
    sop_class_uid, sop_instance_uid, transfer_syntax_uid, calling_ae_title
):
    prefix = file_prefix(
        make_received(
            sop_class_uid=sop_class_uid,
            sop_instance_uid=sop_instance_uid,
            transfer_syntax_uid=transfer_syntax_uid,
            calling_ae_title=calling_ae_title,
        )
    )

    group_length = int.from_bytes(prefix[140:144], "little")
    assert len(prefix) == 144 + group_length
    assert len(prefix) % 2 == 0
    assert prefix[:132] == bytes(128) + b"DICM"


def test_an_empty_calling_title_is_left_out():
    meta = dcmread(BytesIO(file_prefix(make_received(calling_ae_title="  ")))).file_meta

    assert "SourceApplicationEntityTitle" not in meta


@given(data_set=st.binary(max_size=400))
def test_file_minus_head_is_what_was_sent(tmp_path_factory, data_set):
    sink = FolderSink(tmp_path_factory.getbasetemp() / "property")
    received = make_received()

    incoming = sink.begin(received)
    incoming.write(memoryview(data_set))
    answer = incoming.finish()

    assert answer.status == StoreStatusValues.SUCCESS
    written = (sink.folder / "1.2.3.45.dcm").read_bytes()
    assert written == file_prefix(received) + data_set


def test_a_uid_that_is_a_path_is_not_written(tmp_path):
    sink = FolderSink(tmp_path / "archive")

    with pytest.raises(InvalidUID):
        sink.begin(make_received(sop_instance_uid="../../escaped"))

    assert list(tmp_path.rglob("*")) == [sink.folder]
