"""How many inputs go into which compiled size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.runtimes.port import planned_batches


@pytest.mark.parametrize(
    ("count", "plan"),
    [
        (0, []),
        (1, [(1, 1)]),
        (3, [(1, 1), (1, 1), (1, 1)]),
        (4, [(8, 4)]),
        (8, [(8, 8)]),
        (9, [(8, 8), (1, 1)]),
        (16, [(32, 16)]),
        (41, [(32, 32), (8, 8), (1, 1)]),
    ],
)
def test_padding_is_used_only_when_half_of_it_is_inputs(count, plan):
    assert planned_batches(count, (1, 8, 32)) == plan


def test_single_size_is_padded_whatever_the_number():
    assert planned_batches(5, (4,)) == [(4, 4), (4, 1)]


@given(st.integers(0, 300), st.sets(st.integers(1, 64), min_size=1, max_size=4))
def test_every_input_is_computed_once_and_no_batch_is_overfull(count, sizes):
    plan = planned_batches(count, tuple(sizes))

    assert sum(used for _, used in plan) == count
    assert all(1 <= used <= size and size in sizes for size, used in plan)
