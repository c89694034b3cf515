"""Rounds: receivers in turns, each in every column, and the table of what they did.

Owns the order and the fairness of comparing. Must not know what is compared or sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from tests.benchmarks.figures import Cell, Table
from tests.benchmarks.material import StudyFiles, Workshop
from tests.benchmarks.receivers import Receiver
from tests.benchmarks.senders import Sent
from tests.benchmarks.trials import Trial, Trials, processor_per_gigabyte, try_out

ROUNDS = 5

T = TypeVar("T")

Push = Callable[[int, Sequence[StudyFiles]], Sent]
"""Sends each study on its own association to a port, all at once."""


@dataclass(frozen=True)
class Contender:
    """A receiver and how it is sent to."""

    receiver: Receiver
    share: float = 1.0
    """What part of each study it is sent, so that slow ones do not take all day."""
    push: Push | None = None
    """Instead of the columns' own, for one that does not speak DICOM."""


@dataclass(frozen=True)
class Column:
    """One way of sending, the same for all contenders."""

    title: str
    studies: Sequence[StudyFiles]
    """One for each association; never seen before by a receiver that is started anew."""
    push: Push


Results = dict[tuple[str, str], Trials]
"""By receiver and column."""


def compare(
    workshop: Workshop,
    contenders: Sequence[Contender],
    columns: Sequence[Column],
    warm_up: StudyFiles,
) -> Results:
    """Return what each contender did in each column, over all rounds."""
    results: Results = {}
    for number in range(workshop.rounds(ROUNDS)):
        for contender in in_turn(contenders, number):
            for title, trial in _turn(workshop, contender, columns, warm_up).items():
                results.setdefault((contender.receiver.name, title), Trials()).rounds.append(trial)
    return results


def in_turn(all_of_them: Sequence[T], number: int) -> Sequence[T]:
    """Return them in the order of this round: each comes first once."""
    first = number % len(all_of_them)
    return (*all_of_them[first:], *all_of_them[:first])


def _turn(
    workshop: Workshop, contender: Contender, columns: Sequence[Column], warm_up: StudyFiles
) -> dict[str, Trial]:
    """One contender's part of one round: started anew, warmed, then sent to in every way."""
    with (
        workshop.passing_room("store") as folder,
        contender.receiver.start(folder) as running,
    ):

        def trial(push: Push, studies: Sequence[StudyFiles]) -> Trial:
            push = contender.push or push
            sending = partial(push, running.port, studies)
            return try_out(running, studies, sending, contender.receiver.name)

        trial(columns[-1].push, [warm_up])
        return {
            column.title: trial(
                column.push, [study.beginning(contender.share) for study in column.studies]
            )
            for column in columns
        }


def rate_table(
    title: str, contenders: Sequence[Contender], columns: Mapping[str, str], results: Results
) -> Table:
    """Return a table of rates, the first contender's ratio to each, and processor time.

    Parameters
    ----------
    title : str
        Its title; what a rate is of.
    contenders : sequence of Contender
        The rows; the first is ours.
    columns : mapping of str to str
        What to call a column here, and its title; they may be some only.
    results : dict
        From `compare`.
    """
    ratios = [f"medimgd is, {column}" for column in columns]
    table = Table(title, ["receiver", *columns, *ratios, "CPU s/GB", "senders'"])
    ours = [results[contenders[0].receiver.name, column] for column in columns.values()]
    for contender in contenders:
        name = contender.receiver.name
        theirs = [results[name, column] for column in columns.values()]
        shares = [mine.rate / each.rate for mine, each in zip(ours, theirs, strict=True)]
        used = processor_per_gigabyte(theirs)
        cells: list[Cell] = [name, *(each.rate for each in theirs), *shares, *used]
        table.rows.append(cells)
        for column, each in zip(columns, theirs, strict=True):
            table.samples[f"{name}, {column}"] = each.rates
    return table
