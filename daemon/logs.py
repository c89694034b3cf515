"""How every process of medimgd speaks: one sentence for people, stable fields for machines.

Owns the field names and the two styles. Patient names, birth dates and pixels have no field here
and never will; UIDs do.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

ACTION = "action"
STUDY = "study_instance_uid"
SOP_INSTANCE = "sop_instance_uid"
ASSOCIATION = "association_id"
JOB = "job_id"
RESULT = "result_id"
MODEL = "model"
DESTINATION = "destination"
SLOT = "slot"
SECONDS = "seconds"
REASON = "reason"
COUNT = "count"
PEER = "peer"
TRANSACTION = "transaction_uid"

FIELDS = (
    ACTION, STUDY, SOP_INSTANCE, ASSOCIATION, JOB, RESULT, MODEL, DESTINATION, SLOT, SECONDS,
    REASON, COUNT, PEER, TRANSACTION,
)  # fmt: skip


class _Formatter(logging.Formatter):
    def __init__(self, slot: str) -> None:
        super().__init__()
        self.slot = slot

    def _fields(self, record: logging.LogRecord) -> dict[str, object]:
        return {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}

    def _moment(self, record: logging.LogRecord) -> str:
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class TextFormatter(_Formatter):
    """``time LEVEL slot sentence  field=value …``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, with the traceback of an unexpected error below it."""
        line = f"{self._moment(record)} {record.levelname} {self.slot} {record.getMessage()}"
        fields = " ".join(f"{name}={value}" for name, value in self._fields(record).items())
        line = f"{line}  [{fields}]" if fields else line
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JSONFormatter(_Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON, the traceback of an unexpected error as a field."""
        entry: dict[str, object] = {
            "time": self._moment(record),
            "level": record.levelname,
            SLOT: self.slot,
            "logger": record.name,
            "message": record.getMessage(),
            **self._fields(record),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def set_up_logs(slot: str, level: str, style: Literal["text", "json"]) -> None:
    """Send every record of this process to standard error in the chosen style."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter(slot) if style == "text" else JSONFormatter(slot))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    # Other people's chatter: their warnings matter, their progress does not. pydicom's and
    # pynetdicom's warnings quote attribute values, which may be a patient's.
    for name in ("apscheduler", "uvicorn", "alembic", "sqlalchemy", "PIL"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("pydicom", "pynetdicom", "highdicom", "py.warnings"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
