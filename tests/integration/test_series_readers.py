"""Our values of a real series are those of SimpleITK and highdicom, to the last bit."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.series_readers import read_with_highdicom, read_with_medimgd, read_with_simpleitk


@pytest.mark.parametrize("series", ["ct-chest-60", "mr-head-t1-60"])
def test_values_of_a_real_series_are_those_of_other_readers(unpacked, series: str) -> None:
    # Given a real series, its files in no order,
    paths = sorted(unpacked(series).rglob("*.dcm"))
    random.Random(3).shuffle(paths)

    ours = read_with_medimgd(paths)

    # then slice order, rescale and every value are the same everywhere.
    assert ours.dtype == np.float32
    assert ours.shape[0] == len(paths)
    assert len(np.unique(ours[30])) > 50
    np.testing.assert_array_equal(ours, read_with_simpleitk(paths))
    np.testing.assert_array_equal(ours, read_with_highdicom(paths))
