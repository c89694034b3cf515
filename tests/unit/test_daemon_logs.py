"""A log line is a sentence and stable fields."""

from __future__ import annotations

import json
import logging

from daemon.logs import ACTION, STUDY, JSONFormatter, TextFormatter


def record(**fields: object) -> logging.LogRecord:
    made = logging.LogRecord("daemon.courier", logging.INFO, "", 0, "sent %d", (2,), None)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_text_holds_the_sentence_the_slot_and_the_fields() -> None:
    line = TextFormatter("courier-1").format(record(**{ACTION: "sent", STUDY: "1.2.3"}))

    assert " INFO courier-1 sent 2  [action=sent study_instance_uid=1.2.3]" in line


def test_json_is_one_object_with_the_same_fields() -> None:
    line = JSONFormatter("courier-1").format(record(**{ACTION: "sent"}))

    entry = json.loads(line)
    assert entry["message"] == "sent 2"
    assert entry["slot"] == "courier-1"
    assert entry["action"] == "sent"


def test_fields_outside_the_vocabulary_do_not_reach_a_line() -> None:
    line = TextFormatter("x").format(record(patient_name="Marked^Name"))

    assert "Marked" not in line
