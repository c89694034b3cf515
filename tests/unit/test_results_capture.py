"""The result card: what it shows, and what it must not invite to."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_io.errors import CannotCompose
from dicom_io.results.capture import compose_capture
from dicom_io.results.card import PANEL_WIDTH, PICTURE_SIDE, draw_card
from dicom_io.results.lettering import font, grey_square, is_drawable
from dicom_io.results.region_rows import ShownBox, ShownRegions
from dicom_io.vocabulary import Code, Detection, PresenceValues
from tests.regions_material import NODULE, make_region
from tests.results_material import (
    NEGATIVE,
    POSITIVE,
    REFUSAL,
    UNCLEAR,
    make_finding,
    make_picture,
    make_request,
    write_film,
)

RED, AMBER, GREY = (255, 84, 64), (255, 184, 48), (170, 174, 180)
FILM = Path("1.dcm")


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_film(tmp_path)


def captured(film: Path, picture: Any = None, **changes: Any) -> Dataset:
    document = compose_capture(make_request(film, **changes), picture)
    return pydicom.dcmread(BytesIO(document.data))


def counted(card: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int(np.all(card[:, PICTURE_SIDE:] == np.array(colour, dtype=np.uint8), axis=2).sum())


def test_a_picture_fills_the_square_with_its_aspect_kept() -> None:
    square = grey_square(np.full((100, 50), 1.0, dtype=np.float32), PICTURE_SIDE)

    assert square.shape == (PICTURE_SIDE, PICTURE_SIDE, 3)
    assert square[:, PICTURE_SIDE // 2].min() == 255
    assert square[:, : PICTURE_SIDE // 4 - 1].max() == 0
    assert square[:, 3 * PICTURE_SIDE // 4 + 1 :].max() == 0


@pytest.mark.parametrize("text", ["Épanchement", "Πνευμονία", "Пневмония", "Zápal pľúc", "Ödem"])
def test_letters_beyond_english_are_drawn_as_letters(text: str) -> None:
    letters = font(21, text)

    assert is_drawable(text)
    box = bytes(letters.getmask("\uffff"))
    assert box not in {bytes(letters.getmask(letter)) for letter in text}


def test_english_is_drawn_in_the_same_letters_as_ever() -> None:
    assert font(21, "Pneumonia PRESENT (83 %)") is font(21)


def test_a_finding_is_named_by_its_code_where_its_label_cannot_be_drawn(film: Path) -> None:
    """No row of empty boxes may be all that is said of which finding is present."""
    japanese = replace(POSITIVE, label="肺炎")
    only_japanese = replace(japanese, code=Code("233604007", "SCT", "肺炎"))
    by_code = replace(POSITIVE, label="233604007 (SCT)")

    for finding, twin in ((japanese, POSITIVE), (only_japanese, by_code)):
        card = captured(film, findings=(finding,)).pixel_array
        assert np.array_equal(card, captured(film, findings=(twin,)).pixel_array)


def test_a_region_is_named_by_its_code_where_its_name_cannot_be_drawn() -> None:
    picture = np.full((4, 4), 0.5, dtype=np.float32)
    shown = ShownRegions(picture, (ShownBox(2, 0.2, 0.2, 0.6, 0.6),))

    def card(**named: Any) -> Any:
        region = make_region(["2.25.1"], number=2, **named)
        request = make_request(FILM, findings=(POSITIVE,), detection=Detection((region,)))
        return draw_card(request, None, "now", regions=shown)

    japanese = Code("27925004", "SCT", "結節")
    assert np.array_equal(card(name="結節"), card(name=NODULE.meaning))
    assert np.array_equal(card(name="結節", code=japanese), card(name="27925004 (SCT)"))


def test_as_many_regions_are_named_as_the_line_holds() -> None:
    picture = np.full((4, 4), 0.5, dtype=np.float32)
    shown = ShownRegions(picture, tuple(ShownBox(n, 0.2, 0.2, 0.6, 0.6) for n in (1, 2)))

    def card(name: str, first: float, second: float) -> Any:
        regions = tuple(
            make_region(["2.25.1"], number=n, name=name, certainty=certainty)
            for n, certainty in ((1, first), (2, second))
        )
        request = make_request(FILM, findings=(POSITIVE,), detection=Detection(regions))
        return draw_card(request, None, "now", regions=shown)

    longest = "MAMMOGRAPHIC MASS WITH MICROCALCIFICATIONS IN IT"
    assert not np.array_equal(card("Nodule", 0.9, 0.8), card("Nodule", 0.9, 0.7))
    assert not np.array_equal(card(longest, 0.9, 0.7), card(longest, 0.8, 0.7))
    # Of the second there is only an ellipsis.
    assert np.array_equal(card(longest, 0.9, 0.8), card(longest, 0.9, 0.7))


def test_values_that_are_no_numbers_are_drawn_black() -> None:
    picture = np.full((4, 4), np.nan, dtype=np.float32)

    assert grey_square(picture, PICTURE_SIDE).max() == 0


def test_a_larger_picture_is_averaged_not_sampled() -> None:
    # A checkerboard of single pixels, two per target pixel, becomes even grey.
    board = (np.indices((2 * PICTURE_SIDE, 2 * PICTURE_SIDE)).sum(axis=0) % 2).astype(np.float32)

    assert set(np.unique(grey_square(board, PICTURE_SIDE))) <= {127, 128}


@pytest.mark.parametrize(
    ("findings", "colour", "missing"),
    [
        ((POSITIVE,), RED, AMBER),
        ((UNCLEAR,), AMBER, RED),
        ((NEGATIVE,), GREY, RED),
    ],
)
def test_the_colour_says_what_was_found(
    findings: Any, colour: tuple[int, int, int], missing: tuple[int, int, int]
) -> None:
    card = draw_card(make_request(FILM, findings=findings), None, "now")

    assert counted(card, colour) > 500
    assert counted(card, missing) == 0


def test_a_refusal_is_unmistakable() -> None:
    refused = draw_card(make_request(FILM, refusal=REFUSAL), None, "now")
    negative = draw_card(make_request(FILM, findings=(NEGATIVE,)), None, "now")

    assert counted(refused, AMBER) > 2000
    assert counted(negative, AMBER) == 0


def test_no_finding_is_ever_cut_off() -> None:
    many = tuple(
        make_finding(f"Finding number {number}", PresenceValues.ABSENT, 0.1) for number in range(30)
    )

    card = draw_card(make_request(FILM, findings=many), make_picture(), "now")

    assert card.shape[0] > 3 * PICTURE_SIDE
    assert card.shape[1] == PICTURE_SIDE + PANEL_WIDTH
    # The last line is written above the lower margin, not over the edge.
    assert card[-20:, PICTURE_SIDE:].std(axis=(0, 1)).max() == 0


def test_a_word_wider_than_the_panel_is_broken() -> None:
    wide = make_finding("W" * 60, PresenceValues.PRESENT, 0.9)

    card = draw_card(make_request(FILM, findings=(wide,)), None, "now")

    assert np.all(card[:, -12:] == card[0, -1])


def test_a_capture_is_a_colour_secondary_capture(film: Path) -> None:
    ds = captured(film, make_picture())

    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    assert (ds.Modality, ds.ConversionType) == ("OT", "WSD")
    assert (ds.SamplesPerPixel, ds.PhotometricInterpretation) == (3, "RGB")
    assert ds.pixel_array.shape == (ds.Rows, ds.Columns, 3)
    assert list(ds.ImageType) == ["DERIVED", "SECONDARY", "OTHER"]
    assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == "2.25.1003"
    assert ds.StudyInstanceUID == "2.25.1001"


def test_a_capture_of_three_findings_stays_below_a_megabyte_and_a_half(film: Path) -> None:
    request = make_request(film, findings=(POSITIVE, UNCLEAR, NEGATIVE))

    document = compose_capture(request, make_picture())

    assert len(document.data) < 1.5 * 1024 * 1024


def test_nothing_can_be_measured_on_a_capture(film: Path) -> None:
    ds = captured(film, make_picture())

    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        assert keyword not in ds
    assert not ds.PatientOrientation
    assert "not for measurement" in ds.DerivationDescription


def test_the_flag_of_a_capture_is_that_of_its_report(film: Path) -> None:
    assert captured(film).SeriesDescription == "AI POSITIVE - NOT VERIFIED (cxr-pneumonia)"
    refused = captured(film, refusal=REFUSAL)
    assert refused.SeriesDescription == "AI NOT ANALYSED - NOT VERIFIED (cxr-pneumonia)"


def test_identifying_text_of_the_source_stays_declared(tmp_path: Path) -> None:
    assert captured(write_film(tmp_path)).BurnedInAnnotation == "NO"
    assert captured(write_film(tmp_path, BurnedInAnnotation="YES")).BurnedInAnnotation == "YES"


def test_lossy_history_is_handed_down(tmp_path: Path) -> None:
    lossy = {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": "12.5",
        "LossyImageCompressionMethod": "ISO_10918_1",
    }

    ds = captured(write_film(tmp_path, **lossy))

    assert {keyword: str(ds[keyword].value) for keyword in lossy} == lossy
    assert "LossyImageCompression" not in captured(write_film(tmp_path))


@pytest.mark.parametrize(
    ("changes", "body_part", "laterality"),
    [
        ({}, "CHEST", None),
        ({"BodyPartExamined": "HAND", "ImageLaterality": "L"}, "HAND", "L"),
        ({"BodyPartExamined": "HAND"}, "HAND", ""),
        ({"BodyPartExamined": None}, "CHEST", None),
    ],
)
def test_the_side_is_stated_where_there_is_one(
    tmp_path: Path, changes: dict[str, Any], body_part: str, laterality: str | None
) -> None:
    ds = captured(write_film(tmp_path, **changes))

    assert ds.BodyPartExamined == body_part
    assert ds.get("Laterality", None) == laterality


def test_the_picture_is_part_of_the_identity(film: Path) -> None:
    request = make_request(film)

    first = compose_capture(request, make_picture())

    assert compose_capture(request, make_picture()) == first
    other = compose_capture(request, make_picture()[::-1].copy())
    assert other.sop_instance_uid != first.sop_instance_uid


@pytest.mark.parametrize("shape", [(4,), (4, 4, 3), (0, 4)])
def test_a_picture_of_another_shape_is_refused(film: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(CannotCompose, match="rows, columns"):
        compose_capture(make_request(film), np.zeros(shape, dtype=np.float32))


def test_no_patient_is_printed_on_the_card(tmp_path: Path) -> None:
    anna = captured(write_film(tmp_path), make_picture())
    berta = captured(write_film(tmp_path, PatientName="Other^Name", PatientID="Q"), make_picture())

    assert np.array_equal(anna.pixel_array, berta.pixel_array)
