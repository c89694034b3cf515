"""What a training configuration says for the package: its words, labels, selection and contract.

Owns those tables. What the package's manifest reads by itself later is read here by the same
functions, so that a fault is named before anything is trained and not after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dicom_io.vocabulary import Code
from model.explanation_plan import read_explanation_plan
from model.labels import Label, add_repeated_labels
from model.manifest import ManifestTable
from model.package import NAME_PATTERN, VERSION_PATTERN
from model.region_plan import read_region_plan
from model.selection_rules import read_clause, read_selection

DEFAULT_PROBES = 2
MOST_PROBES = 16
COPIED = ("selection", "contract", "explanation", "regions")
"""Tables that reach the manifest as they are."""


@dataclass(frozen=True, slots=True)
class PackageWords:
    """What a person has to say about the model."""

    name: str
    version: str
    title: str
    intended_use: str
    limits: tuple[str, ...]
    demonstration: bool
    readme: Path | None
    """Copied into the package."""
    source: str
    """Where the images come from, as it is to be cited."""
    licence: str
    """Of the images."""

    @property
    def at_version(self) -> str:
        """``name-version``: the package's folder."""
        return f"{self.name}-{self.version}"


@dataclass(frozen=True, slots=True)
class LabelPlan:
    """One label of the package and the classes of the data it stands for."""

    name: str
    classes: tuple[str, ...]
    code: Code
    site: Code | None
    rule: str
    """How its threshold is chosen; empty takes the rule of ``[threshold]``."""


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """Inputs kept with the package, to prove later that it still computes the same."""

    count: int = DEFAULT_PROBES
    show_images: bool = False
    """True takes validation images, whose scores lie near the threshold; false takes patterns
    that show nobody."""


def read_words(table: ManifestTable, folder: Path) -> PackageWords:
    """Read ``[package]``; paths start in `folder`."""
    limits = table.texts("limits")
    if not limits:
        table.add_fault("limits", "must name what the model is known not to do, one sentence each")
    readme = table.text("readme", default="")
    if readme and not (folder / readme).is_file():
        table.add_fault("readme", f"there is no such file in {folder}")
    words = PackageWords(
        name=table.text(
            "name", NAME_PATTERN, "must be lower case letters, digits and hyphens, at most 48"
        ),
        version=table.text(
            "version", VERSION_PATTERN, "must be a version such as 1.0.0 or 1.0.0-rc1"
        ),
        title=table.text("title", r"[^\n]{1,64}", "must be one line of at most 64 characters"),
        intended_use=table.text(
            "intended_use", rule="must say in a sentence whom and what the model is for"
        ),
        limits=limits,
        demonstration=table.flag("demonstration", default=False),
        readme=folder / readme if readme else None,
        source=table.text("source", default=""),
        licence=table.text("licence", default=""),
    )
    table.refuse_unknown()
    return words


def read_labels(root: ManifestTable) -> tuple[LabelPlan, ...]:
    """Read ``[[labels]]``."""
    labels = tuple(_read_label(table) for table in root.tables("labels"))
    claimed = [name for label in labels for name in label.classes]
    for name in sorted({name for name in claimed if claimed.count(name) > 1}):
        root.faults.append(f"labels: class {name} belongs to several labels; name it once")
    add_repeated_labels(root, [(label.name, label.code) for label in labels])
    return labels


def _read_label(table: ManifestTable) -> LabelPlan:
    given = table.texts("classes")
    if table.has("class") == table.has("classes"):
        table.add_fault("class", "must name the class of the data, or classes several; not both")
    label = LabelPlan(
        name=table.text("name", r"[^\n]{1,64}", "must be one line of at most 64 characters"),
        classes=given or (table.text("class"),) if table.has("class") or given else (),
        code=table.code("code"),
        site=table.code("site") if table.has("site") else None,
        rule=table.text("rule", default=""),
    )
    table.refuse_unknown()
    return label


def read_probes(table: ManifestTable) -> ProbePlan:
    """Read ``[probes]``; two patterns when it is absent."""
    count = table.whole_number("count", 1, MOST_PROBES, DEFAULT_PROBES)
    shows = table.flag("show_images", default=False)
    table.refuse_unknown()
    return ProbePlan(count, shows)


def read_copied(
    root: ManifestTable, labels: Sequence[LabelPlan], output_kind: str
) -> Mapping[str, object]:
    """Return the tables that the manifest shall have, checked as far as they can be by now.

    Parameters
    ----------
    root : ManifestTable
    labels : sequence of LabelPlan
    output_kind : str
        What the manifest's ``[output]`` will be: ``logit`` or ``softmax``.
    """
    read_selection(root.table("selection"))
    for clause in root.tables("contract", required=False):
        read_clause(clause)
    read_explanation_plan(root.table("explanation", required=False))
    known = [
        Label(each.name, each.code, each.site, 0.5, 0.5, 0.5, number)
        for number, each in enumerate(labels)
    ]
    read_region_plan(root, known, output_kind)
    return {key: root.raw(key) for key in COPIED if root.has(key)}
