"""One package asked about one study: what it reads of it, as a tensor, or why it refuses.

Owns the way from the spooled files of a study to a tensor that a worker may compute. Whether a
package serves or is a shadow, and what becomes of its answer, is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dicom_io.errors import MedimgdError, Refusal, UnreadableInstance
from dicom_io.header import read_attributes
from dicom_io.tensors import build_tensor
from dicom_io.vocabulary import ImageTensor
from model.package import ModelPackage
from model.selection import (
    Candidate,
    OutcomeValues,
    Selection,
    StudyInstance,
    select,
    wanted_keywords,
)
from storage.spool import Spool
from storage.studies import SeriesRecord


@dataclass(frozen=True, slots=True)
class Answer:
    """What a package says of a study: a tensor, a refusal, or neither when it reads nothing."""

    package: ModelPackage
    selection: Selection
    tensor: ImageTensor | None = None
    refusal: MedimgdError | None = None

    @property
    def chosen(self) -> Candidate | None:
        """What it would read."""
        return self.selection.chosen


class SpooledStudy:
    """The files of one study, and what packages say of them.

    Parameters
    ----------
    spool : Spool
        Where they lie.
    series : sequence of SeriesRecord
        What the study holds.
    packages : iterable of ModelPackage
        Who will be asked: headers are read once for all of them.

    Raises
    ------
    UnreadableInstance, InstanceUnavailable
        A header cannot be parsed, or not be read now.
    """

    def __init__(
        self, spool: Spool, series: Sequence[SeriesRecord], packages: Iterable[ModelPackage]
    ) -> None:
        self._paths = {
            instance.sop_instance_uid: spool.absolute(instance.path)
            for each in series
            for instance in each.instances
        }
        keywords = wanted_keywords(tuple(packages))
        self._instances = [
            StudyInstance(
                instance.sop_instance_uid,
                each.series_instance_uid,
                read_attributes(self._paths[instance.sop_instance_uid], keywords),
            )
            for each in series
            for instance in each.instances
            if instance.rows > 0 and instance.columns > 0
        ]

    def ask(self, package: ModelPackage) -> Answer:
        """Let a package choose, hold its choice to its contract, and make the tensor.

        Raises
        ------
        InstanceUnavailable
            A file cannot be read now; that says nothing about the study.
        """
        selection = select(package, self._instances)
        if selection.outcome is OutcomeValues.OUTSIDE_CONTRACT:
            return Answer(package, selection, refusal=selection.refusal())
        if selection.chosen is None:
            return Answer(package, selection)
        try:
            return Answer(package, selection, self._tensor(package, selection.chosen))
        except (Refusal, UnreadableInstance) as error:
            return Answer(package, selection, refusal=error)

    def _tensor(self, package: ModelPackage, chosen: Candidate) -> ImageTensor:
        """Return the input, if it looks like those that the model was trained on."""
        files = [self._paths[uid] for uid in chosen.sop_instance_uids]
        tensor = build_tensor(files, package.recipe)
        if package.input_distribution is not None:
            package.input_distribution.check(tensor.values)
        return tensor
