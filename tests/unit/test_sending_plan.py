"""How instances of many kinds are spread over associations, and what outcomes say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from daemon.cli.application import app
from dicom_io import sending
from dicom_io.association import Context
from dicom_io.sending import PathOutcome, SendOutcome, plan_associations


def make_contexts(count: int) -> list[Context]:
    return [Context(f"1.2.{number}", "1.2.840.10008.1.2.1") for number in range(count)]


def itself(context: Context) -> Context:
    return context


def test_no_instances_need_no_association():
    assert plan_associations([], itself) == []


def test_128_kinds_fit_one_association_and_129_do_not():
    assert len(plan_associations(make_contexts(128), itself)) == 1
    assert len(plan_associations(make_contexts(129), itself)) == 2


def test_same_kind_in_another_transfer_syntax_is_another_context():
    contexts = [Context("1.2", "1.2.840.10008.1.2"), Context("1.2", "1.2.840.10008.1.2.1")]

    ((negotiated, items),) = plan_associations(contexts, itself)

    assert negotiated == contexts
    assert items == contexts


@given(st.lists(st.integers(0, 9)), st.integers(1, 4))
def test_every_item_is_in_one_group_that_negotiates_its_context(numbers, limit):
    contexts = make_contexts(10)

    groups = plan_associations(numbers, lambda number: contexts[number], limit)

    assert sorted(n for _, items in groups for n in items) == sorted(numbers)
    for negotiated, items in groups:
        assert len(negotiated) == len(set(negotiated)) <= limit
        assert {contexts[number] for number in items} == set(negotiated)


def test_an_outcome_reads_as_a_sentence():
    assert str(SendOutcome("1.2", 0)) == "0000 success"
    assert str(SendOutcome("1.2", 0xA700, "disk full")) == "A700 out of resources: disk full"
    assert str(SendOutcome("1.2", None, "no answer")) == "not sent: no answer"


def test_only_success_and_warnings_count_as_delivered():
    delivered = [SendOutcome("1.2", s).is_delivered for s in (0, 0xB000, 0xBFFF, 0xA700, None)]

    assert delivered == [True, True, True, False, False]


def test_the_command_prints_no_control_characters_of_a_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = PathOutcome(tmp_path, SendOutcome("1.2", 0xA700, "\x1b[2Jfull"))
    monkeypatch.setattr(sending, "send_paths", lambda *_: iter([outcome]))

    done = CliRunner().invoke(app, ["send", str(tmp_path), "--to", "127.0.0.1:104"])

    assert done.exit_code == 6
    assert "A700 out of resources:  [2Jfull" in done.stderr
