"""From what a person types to one study; nothing typed is repeated unless it looks like a UID."""

from __future__ import annotations

import re

from daemon.errors import UnknownStudy
from storage.database import Database
from storage.errors import NotFound
from storage.studies import get_study, studies_named

_LIKE_A_UID = re.compile(r"[0-9.]{1,64}")
_WHAT_TO_TYPE = (
    "type the whole Study Instance UID, a beginning of it that only one study has, or the whole "
    "accession number; 'medimgd studies' lists them"
)


def find_study(database: Database, text: str) -> str:
    """Return the UID of the one study that `text` means.

    Parameters
    ----------
    database : Database
        Read only will do.
    text : str
        A Study Instance UID, a unique beginning of one, or an accession number.

    Raises
    ------
    UnknownStudy
        None or several match. The message never holds a name: who types one finds it not repeated.
    """
    text = text.strip()
    if not text:
        raise UnknownStudy(f"no study was named: {_WHAT_TO_TYPE}")
    try:
        return get_study(database, text).study_instance_uid
    except NotFound:
        found = studies_named(database, text)
    if len(found) == 1:
        return found[0]
    shown = f" {text!r}" if _LIKE_A_UID.fullmatch(text) else " what was typed"
    if found:
        raise UnknownStudy(f"{len(found)} studies match{shown}: {_WHAT_TO_TYPE}")
    raise UnknownStudy(f"no study matches{shown}: {_WHAT_TO_TYPE}")
