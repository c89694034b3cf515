"""Numbers in sentences for people."""

from __future__ import annotations

import pytest

from dicom_io.wording import number_of


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 studies are"), (1, "1 study is"), (2, "2 studies are")]
)
def test_what_is_counted_has_the_number_of_its_number(number: int, said: str) -> None:
    assert number_of(number, "study is", "studies are") == said


def test_most_nouns_need_no_plural() -> None:
    assert [number_of(number, "image") for number in (1, 4)] == ["1 image", "4 images"]
