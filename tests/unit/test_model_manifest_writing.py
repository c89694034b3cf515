"""What is written as TOML is read back as it was."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.manifest_writing import toml_text
from model.training.cxr_pneumonia_card import CONTRACT, SELECTION

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
    written = toml_text({"selection": SELECTION, "contract": CONTRACT})

    assert '        { attribute = "BodyPartExamined", in = ["CHEST", "THORAX"] },' in written
    assert tomllib.loads(written) == {"selection": SELECTION, "contract": CONTRACT}


def test_value_without_a_form_in_toml_is_refused():
    with pytest.raises(TypeError, match="NoneType"):
        toml_text({"site": None})
