"""Result objects as text and as PNG, and what happens to bytes that are neither."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from dicom_io.errors import UnreadableInstance
from dicom_io.results.capture import compose_capture
from dicom_io.results.reading import capture_png, report_text
from dicom_io.results.refusal_report import compose_refusal_report
from dicom_io.results.study_report import compose_study_report
from tests.results_material import REFUSAL, make_picture, make_request, write_film


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_film(tmp_path)


def test_a_report_reads_as_an_indented_tree(film: Path) -> None:
    text = report_text(compose_study_report(make_request(film)).data)

    lines = text.splitlines()
    assert lines[0] == "Series Description: AI POSITIVE - NOT VERIFIED (cxr-pneumonia)"
    assert "Status: COMPLETE PRELIMINARY UNVERIFIED" in lines
    assert "Imaging Measurement Report" in lines
    assert "  Imaging Measurements" in lines
    assert "      Certainty of Finding: 83.0 %" in lines
    assert "      Pneumonia: Present" in lines
    assert "      Pneumothorax: Absent" in lines


def test_a_refusal_reads_as_a_refusal(film: Path) -> None:
    text = report_text(compose_refusal_report(make_request(film, refusal=REFUSAL)).data)

    assert "Summary of Analyses: Not Attempted" in text
    assert "No statement about any finding is made." in text
    assert "Absent" not in text


def test_a_rendered_report_holds_no_patient(tmp_path: Path) -> None:
    film = write_film(tmp_path, PatientName="SECRET^NAME", PatientID="SECRET-ID")

    assert "SECRET" not in report_text(compose_study_report(make_request(film)).data)


def test_a_report_of_another_maker_can_be_read(testdata: Path) -> None:
    text = report_text((testdata / "single" / "sr_document.dcm").read_bytes())

    assert text.startswith(("Series Description", "Content Date"))
    assert "Measurement Group" in text


def test_a_capture_reads_as_the_same_pixels(film: Path) -> None:
    document = compose_capture(make_request(film), make_picture())

    png = Image.open(BytesIO(capture_png(document.data)))

    expected = pydicom.dcmread(BytesIO(document.data)).pixel_array
    assert png.format == "PNG"
    assert np.array_equal(np.asarray(png), expected)


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\0" * 128 + b"DICM" + b"\xff" * 40])
def test_bytes_that_are_no_object_are_refused(data: bytes) -> None:
    with pytest.raises(UnreadableInstance):
        report_text(data)
    with pytest.raises(UnreadableInstance):
        capture_png(data)


def test_a_film_is_no_report_and_a_report_is_no_picture(film: Path) -> None:
    with pytest.raises(UnreadableInstance, match="holds no report"):
        report_text(film.read_bytes())
    with pytest.raises(UnreadableInstance):
        capture_png(compose_study_report(make_request(film)).data)


def test_a_volume_is_no_result_card(testdata: Path) -> None:
    with pytest.raises(UnreadableInstance, match="8-bit"):
        capture_png((testdata / "single" / "ct_image.dcm").read_bytes())
