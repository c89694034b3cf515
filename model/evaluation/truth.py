"""Which label of the package each class of the data means.

Owns the mapping of names and the arrays of what is true. A class that no label speaks for counts
as negative, and that is said, never assumed in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dicom_io.wording import number_of
from model.errors import EvaluationFault
from model.labels import OutputKindValues
from model.package import ModelPackage
from model.training.dataset import LabelledImage

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ClassMap:
    """How the classes of the data become labels of the package."""

    label_of: Mapping[str, str]
    """Name of the label by class; only classes that some label speaks for."""
    negatives: tuple[str, ...]
    """Classes that no label speaks for: images of these alone are negative for every label."""
    names: tuple[str, ...]
    """The package's labels, in its order."""
    is_exclusive: bool
    """True when the labels exclude each other (softmax)."""

    def truth(self, images: Iterable[LabelledImage]) -> BoolArray:
        """Return what is true of each image; (image, label)."""
        meant = [{self.label_of.get(label, "") for label in image.labels} for image in images]
        return np.array([[name in row for name in self.names] for row in meant], dtype=np.bool_)


def match_classes(
    package: ModelPackage,
    images: Sequence[LabelledImage],
    renamed: Mapping[str, str],
    others: Sequence[LabelledImage] = (),
) -> ClassMap:
    """Match classes and labels by name, without regard to case.

    Parameters
    ----------
    package : ModelPackage
    images : sequence of LabelledImage
        Of the split that is evaluated.
    renamed : mapping
        Label by class, where the names differ.
    others : sequence of LabelledImage
        Of another split whose truth is asked for as well, as a fit asks for it.

    Raises
    ------
    EvaluationFault
        A label of the package is in no image that is evaluated, a name in `renamed` is unknown,
        or an image has several labels of a package whose labels exclude each other.
    """
    names = tuple(label.name for label in package.labels)
    everything = (*images, *others)
    classes = sorted({label for image in everything for label in image.labels})
    evaluated = {label for image in images for label in image.labels}
    by_case = {name.casefold(): name for name in names}
    faults = [
        *(f"there is no class {name}" for name in renamed if name not in classes),
        *(
            f"there is no label {name}"
            for name in renamed.values()
            if name.casefold() not in by_case
        ),
    ]
    wanted = {name: renamed.get(name, name).casefold() for name in classes}
    label_of = {name: by_case[case] for name, case in wanted.items() if case in by_case}
    seen = {label for name, label in label_of.items() if name in evaluated}
    faults += [f"no image has the label {name}" for name in names if name not in seen]
    is_exclusive = package.output.kind is OutputKindValues.SOFTMAX
    found = ClassMap(
        label_of, tuple(name for name in classes if name not in label_of), names, is_exclusive
    )
    several = int((found.truth(everything).sum(axis=1) > 1).sum()) if is_exclusive else 0
    if several:
        said = number_of(several, "image has", "images have")
        faults.append(f"{said} several labels, but the labels exclude each other")
    if faults:
        raise EvaluationFault(
            f"{package.at_version} and the data do not fit: {'; '.join(faults)}. The package's "
            f"labels are {', '.join(names)}, the classes {', '.join(classes) or 'none'}; "
            f"--class CLASS=LABEL says which class a label means"
        )
    return found
