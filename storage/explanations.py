"""Where a model saw what it said: one map per explained finding of a result, or why there is none.

Owns the ``explanation`` table and the stored form of a map: 256 steps, compressed. Knows nothing
of how a map is made or drawn.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, RowMapping, delete, insert, select

from dicom_io.vocabulary import Explanation
from storage import schema
from storage.database import Database

STEPS = 255
"""A map is stored in steps of 1/255 of its largest value."""


def write_explanations(
    connection: Connection, result_id: int, explanations: Sequence[Explanation]
) -> None:
    """Insert the explanations of a new result, within the caller's transaction."""
    rows = [{"result_id": result_id, **_columns(each)} for each in explanations]
    if rows:
        connection.execute(insert(schema.explanation), rows)


def read_explanations(database: Database, result_id: int) -> tuple[Explanation, ...]:
    """Return the explanations of a result, by label; empty when none was asked for or kept."""
    table = schema.explanation
    query = select(table).where(table.c.result_id == result_id).order_by(table.c.label)
    with database.read() as connection:
        return tuple(_record(row) for row in connection.execute(query).mappings())


def forget_explanations_within(connection: Connection, study_instance_uid: str) -> int:
    """Remove the maps of a study whose pixels are removed; return how many there were."""
    result, table = schema.result, schema.explanation
    results = select(result.c.id).where(result.c.study_instance_uid == study_instance_uid)
    return connection.execute(delete(table).where(table.c.result_id.in_(results))).rowcount


def stored_values(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a map as it will be read back: rounded to the stored steps."""
    return _steps(values).astype(np.float32) / np.float32(STEPS)


def _steps(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.rint(np.clip(values, 0, 1) * STEPS).astype(np.uint8)


def _columns(explanation: Explanation) -> dict[str, Any]:
    values = explanation.values
    return {
        "label": explanation.label,
        "method": explanation.method,
        "layers": list(explanation.layers),
        "region": [float(edge) for edge in explanation.region],
        "source_slices": explanation.source_slices,
        "strength": float(explanation.strength),
        "shape": [] if values is None else list(values.shape),
        "data": b"" if values is None else zlib.compress(_steps(values).tobytes()),
        "reason": explanation.reason,
    }


def _record(row: RowMapping) -> Explanation:
    values = None
    if row["data"]:
        steps = np.frombuffer(zlib.decompress(row["data"]), np.uint8).reshape(row["shape"])
        values = steps.astype(np.float32) / np.float32(STEPS)
    top, left, bottom, right = row["region"]
    return Explanation(
        label=row["label"],
        method=row["method"],
        layers=tuple(row["layers"]),
        values=values,
        strength=row["strength"],
        region=(top, left, bottom, right),
        source_slices=row["source_slices"],
        reason=row["reason"],
    )
