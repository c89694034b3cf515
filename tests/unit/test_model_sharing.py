"""How a batch is shared out among the cores of a CPU."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.runtimes.port import FloatArray
from model.runtimes.sharing import Shared, Undivided, usable_cores


class Engine:
    """Doubles its inputs, and remembers what it was asked for."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.sizes: list[int] = []

    def __call__(self, part: FloatArray) -> FloatArray:
        self.sizes.append(len(part))
        time.sleep(self.seconds)
        return 2 * part


def ask(engine: Engine, part: FloatArray) -> FloatArray:
    return engine(part)


def batch_of(inputs: int) -> FloatArray:
    return np.arange(inputs, dtype=np.float32).reshape(inputs, 1)


ONE = batch_of(1)


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 5))
def test_every_input_is_computed_once_and_its_answer_stands_in_its_row(inputs, cores, largest):
    alone, whole = Engine(), Engine()

    result = Shared(alone, whole, cores, largest).compute(batch_of(inputs), ask)

    np.testing.assert_array_equal(result, 2 * batch_of(inputs))
    assert sum(alone.sizes) + sum(whole.sizes) == inputs
    assert max(alone.sizes, default=0) <= largest
    assert bool(whole.sizes) == (inputs < cores)


@pytest.mark.parametrize(
    ("inputs", "parts"),
    [(4, [1, 1, 1, 1]), (6, [1, 1, 2, 2]), (16, [4, 4, 4, 4]), (32, [4] * 8)],
)
def test_no_core_is_idle_and_none_gets_more_than_it_takes_at_once(inputs, parts):
    alone = Engine()

    Shared(alone, Engine(), cores=4, largest_part=4).compute(batch_of(inputs), ask)

    assert sorted(alone.sizes) == parts


def test_parts_are_computed_side_by_side():
    # Given two parts that each wait until the other is computed too,
    both = threading.Barrier(2)

    def meet(engine: Engine, part: FloatArray) -> FloatArray:
        both.wait(timeout=20)
        return engine(part)

    result = Shared(Engine(), Engine(), cores=2, largest_part=4).compute(batch_of(2), meet)

    np.testing.assert_array_equal(result, 2 * batch_of(2))


@pytest.mark.parametrize(
    ("alone", "whole", "fewest"),
    [(0.004, 0.02, 1), (0.02, 0.02 / 2.5, 3), (0.03, 0.001, 4)],
    ids=["one core is quicker", "three together", "as many as there are cores"],
)
def test_sharing_begins_where_it_was_measured_to_pay(alone, whole, fewest):
    ways = Engine(alone), Engine(whole)
    shared = Shared(*ways, cores=4, largest_part=4)

    shared.settle(ONE, ask)

    assert shared.fewest_shared == fewest
    for each in ways:
        each.sizes.clear()
    shared.compute(batch_of(fewest), ask)
    assert (sum(ways[0].sizes), ways[1].sizes) == (fewest, [])
    if fewest > 1:
        shared.compute(batch_of(fewest - 1), ask)
        assert ways[1].sizes == [fewest - 1]


def test_way_that_no_batch_goes_is_given_up_and_measured_no_more():
    alone, whole = Engine(), Engine(seconds=0.01)
    shared = Shared(alone, whole, cores=4, largest_part=4)
    shared.settle(ONE, ask)
    measured = len(whole.sizes)

    shared.settle(ONE, ask)
    shared.compute(ONE, ask)

    assert len(whole.sizes) == measured
    assert shared.fewest_shared == 1


@pytest.mark.parametrize(
    ("slow_seconds", "computed"),
    [(0.01, 1), (10.0, 2)],
    ids=["too slow to be asked again", "one that does not count, and one trial"],
)
def test_slow_network_is_measured_once(monkeypatch, slow_seconds, computed):
    monkeypatch.setattr("model.runtimes.sharing._SLOW_SECONDS", slow_seconds)
    monkeypatch.setattr("model.runtimes.sharing._TRIAL_SECONDS", 0.01)
    alone, whole = Engine(seconds=0.05), Engine(seconds=0.02)
    shared = Shared(alone, whole, cores=4, largest_part=1)

    shared.settle(ONE, ask)

    assert (len(alone.sizes), len(whole.sizes)) == (computed, computed)
    assert shared.fewest_shared == 3


@pytest.mark.parametrize(("cores", "largest", "warmed"), [(2, 4, [1, 8]), (16, 4, [1, 32])])
def test_no_more_is_warmed_up_than_is_computed_at_a_time(cores, largest, warmed):
    assert Shared(Engine(), Engine(), cores, largest).sizes_to_warm((1, 8, 32)) == warmed
    assert Undivided(Engine()).sizes_to_warm((1, 8, 32)) == (1, 8, 32)


def test_fault_of_one_part_is_told_once_all_parts_have_ended():
    ended = []

    def fail_first(engine: Engine, part: FloatArray) -> FloatArray:
        if part[0, 0] == 0:
            raise MemoryError("no memory")
        time.sleep(0.05)
        ended.append(len(part))
        return engine(part)

    with pytest.raises(MemoryError, match="no memory"):
        Shared(Engine(), Engine(), cores=2, largest_part=4).compute(batch_of(8), fail_first)
    assert ended == [4]


def test_who_is_interrupted_waits_for_no_more_than_what_is_begun(monkeypatch):
    # Given a batch of eight parts, two of which are being computed,
    begun, release = threading.Semaphore(0), threading.Event()
    alone = Engine()

    def compute(engine: Engine, part: FloatArray) -> FloatArray:
        begun.release()
        release.wait(timeout=20)
        return engine(part)

    def interrupted(_: object) -> None:
        assert begun.acquire(timeout=20)
        assert begun.acquire(timeout=20)
        raise KeyboardInterrupt

    monkeypatch.setattr("model.runtimes.sharing.wait", interrupted)
    shared = Shared(alone, Engine(), cores=2, largest_part=1)

    with pytest.raises(KeyboardInterrupt):
        shared.compute(batch_of(8), compute)
    release.set()
    shared._threads.shutdown()

    assert alone.sizes == [1, 1]


def test_network_with_one_way_gets_its_batches_whole():
    engine = Engine()
    division = Undivided(engine)

    division.settle(ONE, ask)

    np.testing.assert_array_equal(division.compute(batch_of(9), ask), 2 * batch_of(9))
    assert engine.sizes == [9]


def test_all_cores_are_used_unless_fewer_are_wanted():
    assert usable_cores(None) >= 1
    assert usable_cores(3) == 3
