"""Templates to HTML, every value escaped.

Owns the Jinja environment: autoescape always on, unknown names are errors, and no template may
mark anything as safe. Knows no route.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from daemon.role import now_utc
from daemon.web import wording
from daemon.worklist.flags import FlagValues

STATIC_FOLDER = Path(__file__).parent / "static"
_TEMPLATES = Path(__file__).parent / "templates"


def make_environment() -> Environment:
    """Return the environment that all pages are rendered in."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        person_name=wording.person_name,
        dicom_date=wording.dicom_date,
        local_time=wording.local_time,
        machine_time=wording.machine_time,
        span=wording.span,
        certainty=wording.certainty,
        file_size=wording.file_size,
    )
    # Escaping cannot be switched off by accident from a template.
    del environment.filters["safe"]
    environment.globals["FlagValues"] = FlagValues
    environment.globals["flag_meanings"] = wording.FLAG_MEANINGS
    return environment


class Pages:
    """Renders pages by name."""

    def __init__(self) -> None:
        self._environment = make_environment()

    def render(self, name: str, **values: object) -> str:
        """Return the HTML of one template; ``now`` and ``age`` are known to all of them."""
        now = now_utc()
        return self._environment.get_template(f"{name}.html").render(
            now=now, age=lambda moment: wording.age(moment, now), **values
        )
