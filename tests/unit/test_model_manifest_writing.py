"""What is written as TOML is read back as it was."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.manifest_writing import toml_text

CONFIG = Path(__file__).resolve().parents[2] / "model/training/configs/cxr-pneumonia.toml"

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = text | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(text, values, max_size=4))
def test_any_plain_data_survives_the_round_trip(data):
    assert tomllib.loads(toml_text(data)) == data


def test_lists_of_conditions_are_indented_as_they_are_nested():
    stated = tomllib.loads(CONFIG.read_text(encoding="utf-8"))
    tables = {key: stated[key] for key in ("selection", "contract")}

    written = toml_text(tables)

    assert '        { attribute = "BodyPartExamined", in = ["CHEST", "THORAX"] },' in written
    assert tomllib.loads(written) == tables


def test_value_without_a_form_in_toml_is_refused():
    with pytest.raises(TypeError, match="NoneType"):
        toml_text({"site": None})
