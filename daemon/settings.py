"""What every section of the configuration is made of: its base class and its field types.

Owns the types with their ranges and units. Knows no setting by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

MEBIBYTE = 1024 * 1024

AETitle = Annotated[
    str, Field(min_length=1, max_length=16, pattern=r"^[ -\[\]-~]*[!-\[\]-~][ -\[\]-~]*$")
]
"""An AE title: 1 to 16 printable ASCII characters, no backslash (PS3.5 6.2)."""
FileName = Annotated[Path | None, BeforeValidator(lambda value: value or None)]
"""A file that need not be named; an empty text names none."""
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=366 * 86400.0, allow_inf_nan=False)]
Days = Annotated[float, Field(gt=0, le=36600.0, allow_inf_nan=False)]
LeaseSeconds = Annotated[float, Field(ge=10, le=86400.0, allow_inf_nan=False)]
"""At least a few heartbeats, or work in hand would count as abandoned."""
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_HASH = re.compile(r"scrypt\$[0-9a-f]{32}\$[0-9a-f]{128}")


def _is_a_hash(value: SecretStr) -> SecretStr:
    if value.get_secret_value() and not _HASH.fullmatch(value.get_secret_value()):
        raise ValueError("must come from 'medimgd config hash-password', whole and unchanged")
    return value


PasswordHash = Annotated[SecretStr, AfterValidator(_is_a_hash)]
"""What ``medimgd config hash-password`` prints, or an empty text."""


def refuse_all(faults: Iterable[str]) -> None:
    """Raise one ValueError with every sentence, a line each; without any, do nothing.

    Pydantic stops at the first rule over several fields that is broken: rules of one section that
    may be broken together are therefore asked together.
    """
    if lines := "\n".join(faults):
        raise ValueError(lines)


class Section(BaseModel):
    """One table of the TOML file: frozen, and no setting in it may be misspelt."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
