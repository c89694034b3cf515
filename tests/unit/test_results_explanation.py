"""The map on the result card: visible, readable in grey, and never taken for a segmentation."""

from __future__ import annotations

from collections.abc import Iterator
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
from dicom_io.results.heat import ShownExplanation, coloured, legend
from dicom_io.results.lettering import (
    CELL_SIDE,
    ROW_HEIGHT,
    ROW_WIDTH,
    is_on_one_line,
    on_one_line,
)
from dicom_io.results.study_report import compose_study_report
from dicom_io.vocabulary import PresenceValues
from tests.results_material import (
    MODEL,
    NEGATIVE,
    POSITIVE,
    REFUSAL,
    UNCLEAR,
    make_finding,
    make_picture,
    make_request,
    write_film,
)

FILM = Path("1.dcm")
GREY = np.array([0.299, 0.587, 0.114])


def shown(label: str = "Pneumonia", **changes: Any) -> ShownExplanation:
    """A map with one bright quarter over an even grey picture of 40 by 60."""
    attention = np.zeros((40, 60), np.float32)
    attention[:20, :30] = 1.0
    fields = {
        "picture": np.full((40, 60), 0.5, np.float32),
        "attention": attention,
        "method": "HiResCAM",
    }
    return ShownExplanation(label, **{**fields, **changes})


def unavailable(label: str = "Pneumonia", reason: str = "no gradient") -> ShownExplanation:
    return ShownExplanation(label, reason=reason)


def drawn(*explanations: ShownExplanation, findings: Any = (POSITIVE, NEGATIVE)) -> np.ndarray:
    return draw_card(make_request(FILM, findings=findings), make_picture(), "now", explanations)


def captured(film: Path, *explanations: ShownExplanation, **changes: Any) -> Dataset:
    request = make_request(film, **changes)
    return pydicom.dcmread(BytesIO(compose_capture(request, None, explanations=explanations).data))


def test_the_source_stands_beside_the_map() -> None:
    card = drawn(shown()).astype(int)

    source, heat = card[:CELL_SIDE, :CELL_SIDE], card[:CELL_SIDE, CELL_SIDE:ROW_WIDTH]
    # 40 by 60 in a square of 448: 299 rows, 74 of black above and below.
    assert np.abs(source[100:340, 10:-10] - 128).max() <= 1
    assert np.ptp(heat[100:200, 10:200], axis=2).min() > 40
    assert np.abs(heat[250:340, 260:440] - 128).max() <= 1
    assert heat[:70].max() == 0


def test_the_card_says_what_it_is_below_the_map() -> None:
    with_words, plain = drawn(shown()), np.array((16, 18, 22))

    strip = with_words[CELL_SIDE:ROW_HEIGHT, :ROW_WIDTH]

    for half in (strip[:, :CELL_SIDE], strip[:, CELL_SIDE:]):
        assert np.any(half != plain, axis=2).mean() > 0.05
    # Nothing is written over the edges.
    assert np.all(strip[:, -4:] == plain)
    assert np.all(strip[-4:] == plain)


def test_long_names_leave_room_for_certainty_and_version() -> None:
    label = "Pleural effusion, moderate to large, on the left or on the right"

    def strip(probability: float = 0.9, version: str = "1.0.0") -> np.ndarray:
        finding = make_finding(label, PresenceValues.PRESENT, probability)
        model = replace(
            MODEL, name="chest-radiograph-pleural-effusion-of-children", version=version
        )
        request = make_request(FILM, findings=(finding,), model=model)
        card = draw_card(request, make_picture(), "now", (shown(label),))
        return card[CELL_SIDE:ROW_HEIGHT, :ROW_WIDTH]

    plain = np.array((16, 18, 22))
    assert np.all(strip()[:, -4:] == plain)
    assert not np.array_equal(strip(), strip(probability=0.8))
    assert not np.array_equal(strip(), strip(version="12.0.3"))


def test_a_name_that_is_cut_short_ends_in_an_ellipsis() -> None:
    assert on_one_line("Nodule", " 1 (90 %)", 15, 400) == "Nodule 1 (90 %)"
    cut = on_one_line("Nodule " * 9, " 1 (90 %)", 15, 400)
    assert cut.startswith("Nodule Nodule")
    assert cut.endswith("… 1 (90 %)")
    assert is_on_one_line(cut, 15, 400)


def test_each_explained_finding_has_its_row() -> None:
    other = make_finding("Effusion", PresenceValues.PRESENT, 0.7)

    card = drawn(shown(), shown("Effusion"), findings=(POSITIVE, other))

    assert card.shape == (2 * ROW_HEIGHT, ROW_WIDTH + PANEL_WIDTH, 3)


def test_a_map_that_is_not_there_is_said_to_be_not_there() -> None:
    plain = drawn()
    without = drawn(unavailable())
    because = drawn(unavailable(reason="the network has no convolution"))

    # The picture is shown as ever, and the panel says more, and says why.
    assert without.shape == plain.shape == (PICTURE_SIDE, PICTURE_SIDE + PANEL_WIDTH, 3)
    assert np.array_equal(without[:, :PICTURE_SIDE], plain[:, :PICTURE_SIDE])
    lit = [np.any(each[:, PICTURE_SIDE:] > 100, axis=2).sum() for each in (plain, without, because)]
    assert lit[0] + 500 < lit[1] < lit[2] - 100


def test_one_map_of_two_leaves_the_other_in_words() -> None:
    other = make_finding("Effusion", PresenceValues.PRESENT, 0.7)

    both = drawn(shown(), unavailable("Effusion"), findings=(POSITIVE, other))
    alone = drawn(shown(), findings=(POSITIVE, other))

    assert both.shape == alone.shape == (ROW_HEIGHT, ROW_WIDTH + PANEL_WIDTH, 3)
    assert np.array_equal(both[:, :ROW_WIDTH], alone[:, :ROW_WIDTH])
    assert not np.array_equal(both[:, ROW_WIDTH:], alone[:, ROW_WIDTH:])


def test_the_scale_grows_lighter_and_is_safe_for_the_colour_blind() -> None:
    # What a screen without colours shows, and what is left without red against green.
    scale = legend(200, 12)[6].astype(float)
    scale = np.delete(scale, slice(98, 103), axis=0)

    lightness = scale @ GREY
    blue_yellow = scale[:, 2] - (scale[:, 0] + scale[:, 1]) / 2

    # From the coloured part on each step is lighter; below it lies the image itself.
    assert np.diff(lightness[60:]).min() > -1.5
    assert lightness[-1] > lightness[60] + 60
    assert blue_yellow[:80].max() > 15
    assert blue_yellow[-1] < -15


def test_half_of_the_attention_is_outlined_in_light_and_dark() -> None:
    grey = np.full((100, 100, 3), 128, np.uint8)
    cone = 1 - np.hypot(*np.mgrid[-50:50, -50:50]) / 50
    attention = np.clip(cone, 0, 1).astype(np.float32)

    lines = coloured(grey, attention)

    at_half = np.abs(attention - 0.5) < 0.03
    assert np.all(lines[at_half] == 255, axis=1).sum() > 20
    assert np.all(lines[at_half] == 0, axis=1).sum() > 20
    elsewhere = np.abs(attention - 0.5) > 0.06
    assert not np.all(lines[elsewhere] == 255, axis=1).any()


def test_no_attention_leaves_the_image_as_it_is() -> None:
    grey = np.random.default_rng(1).integers(0, 255, (30, 30, 1), np.uint8).repeat(3, axis=2)

    assert np.array_equal(coloured(grey, np.zeros((30, 30), np.float32)), grey)


def test_the_image_stays_visible_below_the_strongest_attention() -> None:
    picture = np.zeros((8, 64, 3), np.uint8)
    picture[:, 32:] = 255

    heat = coloured(picture, np.full((8, 64), 0.9, np.float32)).astype(float) @ GREY

    assert heat[4, 48] - heat[4, 16] > 60


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_film(tmp_path)


def test_the_object_says_that_colours_explain(film: Path) -> None:
    assert "HiResCAM attention, an explanation and no segmentation" in str(
        captured(film, shown()).DerivationDescription
    )
    assert "attention" not in str(captured(film, unavailable()).DerivationDescription)


def test_the_map_is_part_of_the_identity(film: Path) -> None:
    moved = np.zeros((40, 60), np.float32)
    moved[20:, 30:] = 1.0

    first, second = captured(film, shown()), captured(film, shown(attention=moved))

    assert captured(film, shown()) == first
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID


@pytest.mark.parametrize(
    "changes", [{"findings": (NEGATIVE,)}, {"findings": (UNCLEAR,)}, {"refusal": REFUSAL}]
)
def test_what_was_not_found_cannot_be_explained(film: Path, changes: Any) -> None:
    label = changes["findings"][0].label if "findings" in changes else "Pneumonia"

    with pytest.raises(CannotCompose, match="findings that are present"):
        captured(film, shown(label), **changes)


def test_a_card_of_one_map_stays_below_two_megabytes(film: Path) -> None:
    assert len(compose_capture(make_request(film), None, explanations=[shown()]).data) < 2**21


def explanations_in(item: Dataset) -> Iterator[tuple[str, str]]:
    """Yield tracking identifier of the group, and what it refers to as visual explanation."""
    for group in item.ContentSequence[-2].ContentSequence:
        names = [child.ConceptNameCodeSequence[0].CodeValue for child in group.ContentSequence]
        for place in [n for n, name in enumerate(names) if name == "130401"]:
            reference = group.ContentSequence[place].ReferencedSOPSequence[0]
            tracked = group.ContentSequence[names.index("112039")].TextValue
            yield tracked, str(reference.ReferencedSOPInstanceUID)


def test_the_report_refers_to_the_map_of_its_finding_only(film: Path) -> None:
    request = make_request(film)
    capture = compose_capture(request, None, explanations=[shown()])

    explained = compose_study_report(request, capture=capture, explained=["Pneumonia"])
    plain = compose_study_report(request, capture=capture)

    found = list(explanations_in(pydicom.dcmread(BytesIO(explained.data))))
    assert found == [("Pneumonia", capture.sop_instance_uid)]
    assert list(explanations_in(pydicom.dcmread(BytesIO(plain.data)))) == []
