"""What is trained can be served by the faster runtimes: one network of each kind, converted."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.conversion import optimise
from model.runtime_plan import RuntimeValues
from model.training.network_plan import NetworkKindValues, NetworkPlan, Stage
from model.training.networks import build_network, mean_of
from tests.tiny_models import write_package

SIDE = 16
COMPACT = NetworkPlan(stages=(Stage(8, 1),))
MAP = replace(COMPACT, has_map=True)
VOLUME = replace(MAP, kind=NetworkKindValues.COMPACT_3D)


def members_of(plan: NetworkPlan, shape: tuple[int | None, ...], count: int) -> Any:
    return mean_of([build_network(plan, shape, 1) for _ in range(count)])


@pytest.mark.parametrize(
    ("plan", "slices", "members", "runtime"),
    [
        (COMPACT, 0, 1, RuntimeValues.OPENVINO),
        (MAP, 0, 2, RuntimeValues.ONNX),
        (MAP, None, 1, RuntimeValues.ONNX),
        (VOLUME, 4, 1, RuntimeValues.OPENVINO),
    ],
    ids=["compact", "mean of maps", "any number of slices", "volume with a map"],
)
def test_networks_answer_the_same_when_converted(
    plan: NetworkPlan, slices: int | None, members: int, runtime: RuntimeValues, tmp_path: Path
) -> None:
    # Given a package with a network as it is trained,
    image = (SIDE, SIDE, 1)
    network = members_of(plan, image if slices == 0 else (slices, *image), members)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Keras 3.15 under NumPy 2
        network.save(tmp_path / "network.keras")
    write_package(
        tmp_path / "package",
        kind="image" if slices == 0 else "volume",
        rows=SIDE,
        columns=SIDE,
        slices=slices,
        weights=(tmp_path / "network.keras").read_bytes(),
    )

    # when it is converted, which compares it with its source on 32 inputs,
    conversion = optimise(tmp_path / "package", tmp_path / "converted", runtime=runtime)

    # then nothing but rounding differs.
    assert conversion.largest_difference < 1e-5
    assert conversion.lowest_probability < conversion.highest_probability
