"""The kinds of columns the tables are made of.

Owns how an instant, a text, a count, a lease or a tensor is kept, wherever one is. Names no table
but ``study``, to which most rows belong.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Integer,
    LargeBinary,
    String,
    Text,
    TypeDecorator,
)

UID = String(64)
STATE = String(16)
SHA256 = String(64)
CONTENT_DIGEST = String(80)
"""``storage.contents`` writes up to 71 characters: the name of the algorithm and the digits."""


class UTCDateTime(TypeDecorator[datetime]):
    """An instant: aware in the program, UTC without offset in the database, microseconds kept."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn an aware instant into naive UTC; a naive one is a fault of the program."""
        del dialect
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("an instant without time zone must not be stored: use aware UTC")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the stored instant its zone back."""
        del dialect
        return None if value is None else value.replace(tzinfo=UTC)


def text(name: str) -> Column[str]:
    """A text that is empty, never NULL, when absent."""
    return Column(name, Text, nullable=False, default="", server_default="")


def count(name: str) -> Column[int]:
    """A number that is 0, never NULL, when nothing was counted."""
    return Column(name, Integer, nullable=False, default=0, server_default="0")


def instant(name: str, *, required: bool = False) -> Column[datetime]:
    """A moment, NULL while it has not come; one that is `required` always has."""
    return Column(name, UTCDateTime, nullable=not required)


def study_key() -> Column[str]:
    """The study a row belongs to."""
    return Column("study_instance_uid", UID, ForeignKey("study.study_instance_uid"), nullable=False)


def model_version() -> tuple[Column[str], ...]:
    """Which version of which model a row is about."""
    return (
        Column("model_name", String(128), nullable=False),
        Column("model_version", String(64), nullable=False),
    )


def lease() -> tuple[Column[Any], ...]:
    """Who has a row in hand, and until when; both NULL when nobody has."""
    return Column("lease_owner", String(128)), instant("lease_until")


def image_tensor() -> tuple[Column[Any], ...]:
    """An `ImageTensor`, but for what the run it belongs to says already."""
    return (
        Column("dtype", String(16), nullable=False),
        Column("shape", JSON, nullable=False),
        Column("axes", JSON, nullable=False),
        Column("spacing_mm", JSON),
        Column("notes", JSON, nullable=False),
        Column("data", LargeBinary, nullable=False),
    )
