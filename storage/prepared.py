"""Parts of statements that are built once and run for every batch.

SQLAlchemy takes longer over building a statement anew than SQLite takes over answering it. Owns how
a list of any length is one bound value, and how JSON comes as the text it is stored as: rows of a
batch are alike, and ``storage.encoding`` decodes equal texts once. Knows no table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Table, Text, bindparam, func, select, type_coerce


def among(column: ColumnElement[Any], parameter: str) -> ColumnElement[bool]:
    """True where a column's value is one of ``as_list(values)``, bound as `parameter`."""
    values = func.json_each(bindparam(parameter, type_=Text)).table_valued("value")
    return column.in_(select(values.c.value))


def as_list(values: Iterable[int] | Iterable[str]) -> str:
    """Return the bound value for ``among``."""
    return json.dumps(list(values))


def as_stored(column: ColumnElement[Any]) -> ColumnElement[str]:
    """Select a JSON column as its text."""
    return type_coerce(column, Text).label(column.key)


def tensor_as_stored(table: Table) -> tuple[ColumnElement[Any], ...]:
    """Select the columns that ``storage.encoding.tensor_from_columns`` reads."""
    texts = (table.c.shape, table.c.axes, table.c.spacing_mm, table.c.notes)
    return table.c.dtype, *(as_stored(column) for column in texts), table.c.data
