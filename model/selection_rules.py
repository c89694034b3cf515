"""Which input a model is for, in which order, and what it must satisfy: as a manifest says it.

Owns ``[selection]`` and ``[[contract]]``, their rules and their defaults; ``model.selection``
carries them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dicom_io.errors import RefusalReason
from model.condition_reading import read_condition
from model.conditions import Condition
from model.manifest import ManifestTable


class OrderValues(StrEnum):
    """How candidates are ordered by an attribute."""

    ASCENDING = "ascending"
    DESCENDING = "descending"


@dataclass(frozen=True, slots=True)
class RankBy:
    """One key of the order among candidates: an attribute or a preferred condition."""

    attribute: str = ""
    order: OrderValues = OrderValues.ASCENDING
    prefer: Condition | None = None
    """Candidates that pass come first; ``attribute`` is empty then."""

    @property
    def words(self) -> str:
        """The key as people read it."""
        if self.prefer is not None:
            return f"first those where {self.prefer.words}"
        return f"by {self.attribute}, {self.order}, absent last"


@dataclass(frozen=True, slots=True)
class SelectionRule:
    """Which images (kind image) or series (kind volume) the model is for."""

    where: Condition
    rank: tuple[RankBy, ...] = ()


@dataclass(frozen=True, slots=True)
class ContractClause:
    """One thing the chosen input must satisfy, or the model abstains."""

    require: Condition
    text: str
    """Why, as a sentence for the radiologist."""
    reason: RefusalReason = RefusalReason.OUTSIDE_CONTRACT


def read_selection(table: ManifestTable) -> SelectionRule | None:
    """Read ``[selection]``; None, with the faults added, where its condition is none."""
    where = read_condition(table.raw("where"), table.place_of("where"), table.faults)
    rank = tuple(_read_rank(item) for item in table.tables("rank", required=False))
    table.refuse_unknown()
    return None if where is None else SelectionRule(where, rank)


def _read_rank(table: ManifestTable) -> RankBy:
    if table.has("prefer"):
        place = table.place_of("prefer")
        prefer = read_condition(table.raw("prefer"), place, table.faults)
        table.refuse_unknown()
        return RankBy(prefer=prefer)
    orders = ", ".join(OrderValues)
    attribute = table.text("attribute", r"\w+", "must be a DICOM keyword, or use 'prefer'")
    order = table.text(
        "order", "|".join(OrderValues), f"must be one of {orders}", default=OrderValues.ASCENDING
    )
    table.refuse_unknown()
    # The same check of the keyword as for conditions: it must exist and name nobody.
    probe = {"attribute": attribute, "exists": True}
    if attribute:
        read_condition(probe, table.place_of("attribute"), table.faults)
    return RankBy(attribute, OrderValues(order or OrderValues.ASCENDING))


def read_clause(table: ManifestTable) -> ContractClause | None:
    """Read one ``[[contract]]``; None, with the faults added, where its condition is none."""
    reasons = [str(reason) for reason in RefusalReason]
    reason = table.text(
        "reason",
        "|".join(reasons),
        f"must be one of {', '.join(reasons)}",
        default=RefusalReason.OUTSIDE_CONTRACT,
    )
    text = table.text("text", rule="must say in a sentence why the model asks for it")
    require = read_condition(table.raw("require"), table.place_of("require"), table.faults)
    table.refuse_unknown()
    if require is None:
        return None
    return ContractClause(require, text, RefusalReason(reason or RefusalReason.OUTSIDE_CONTRACT))
