"""The images of a run: found, passed through the gate, decoded, and written down.

Owns the order of these steps and the records that the run folder keeps of them. A patient key
that comes from a header is never written: a number stands for it.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from model.durable import publish
from model.errors import TrainingDataFault
from model.input_distribution import DISTRIBUTION_NAME
from model.input_distribution_fitting import fit_distribution
from model.training.dataset import Dataset, LabelledImage, PatientSourceValues, SplitValues
from model.training.gate import check_data
from model.training.gate_report import CheckValues, GateReport
from model.training.inspection import InspectedImage
from model.training.loop_batches import Part
from model.training.plan import TrainingPlan
from model.training.plan_data import with_patients
from model.training.run_folder import GATE_NAME, SPLITS_NAME, RunFolder, write_text
from model.training.run_tensors import tensors_of
from model.training.targets import FloatArray, IntArray, check_classes, targets_of
from model.training.watching import Watch

LEARNING = (SplitValues.TRAIN, SplitValues.VALIDATION)
_BROKEN = (CheckValues.UNREADABLE, CheckValues.TRUNCATED, CheckValues.BLANK)
"""What the gate may let pass and no network can be shown."""


@dataclass(frozen=True, slots=True)
class RunImages:
    """What a run learns from and is judged by."""

    dataset: Dataset
    """With all splits, also what was left out of training: a broken image is refused when the
    package is measured, not overlooked."""
    gate: GateReport
    inspected: tuple[InspectedImage, ...]
    """Of the training images, then of the validation images."""
    values: FloatArray
    """Their tensors, in the same order; a mapped file."""
    targets: FloatArray
    """(image, outputs)."""
    digest: str
    """Over names, contents, labels, splits and patients of all images."""

    @property
    def images(self) -> tuple[LabelledImage, ...]:
        """Training images, then validation images."""
        return tuple(one.image for one in self.inspected)

    def places(self, split: SplitValues) -> IntArray:
        """Return the places of a split's images."""
        found = [n for n, image in enumerate(self.images) if image.split is split]
        return np.array(found, dtype=np.int64)

    def part(self, places: IntArray) -> Part:
        """Return some of the images as what a network is trained on or judged by."""
        return Part(self.values, places, self.targets[places])


def gather_images(
    dataset: Dataset, plan: TrainingPlan, folder: RunFolder, watch: Watch, stated: str | None = None
) -> RunImages:
    """Check the data, write down what was found, and decode what is learned from.

    Parameters
    ----------
    dataset : Dataset
    plan : TrainingPlan
    folder : RunFolder
    watch : Watch
    stated : str, optional
        The digest of the images that the run began with. Of other ones nothing is written.

    Raises
    ------
    DataGateFault
        The data fail checks that the configuration does not allow; the report is in the folder.
    TrainingDataFault
        They do not fit the configuration, cannot be read as ``[input]`` says, or are not those
        that the run began with.
    """
    dataset = with_patients(dataset, plan.data.patients)
    check_classes(dataset, plan)
    gate = _looked_at(dataset, plan, watch)
    left_out = _left_out(gate)
    kept = [one for one in gate.inspected if one.image.name not in left_out]
    text = splits_csv(kept)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if stated is not None:
        require_same(digest, stated)
    _pass(gate, plan, folder, watch)
    check_classes(replace(dataset, images=tuple(one.image for one in kept)), plan)
    write_text(folder.path(SPLITS_NAME), text)
    inspected = tuple(one for split in LEARNING for one in kept if one.image.split is split)
    with watch.progress("decoding", len(inspected)) as done:
        values = tensors_of(inspected, plan.recipe, folder.tensors, done)
    images = tuple(one.image for one in inspected)
    return RunImages(dataset, gate, inspected, values, targets_of(images, plan), digest)


def _looked_at(dataset: Dataset, plan: TrainingPlan, watch: Watch) -> GateReport:
    with watch.progress("checking the data", len(dataset.images)) as done:
        return check_data(
            dataset, limits=plan.data.limits, allowed=plan.data.allowed, on_image=done
        )


def _pass(gate: GateReport, plan: TrainingPlan, folder: RunFolder, watch: Watch) -> None:
    """Write down what the gate found; go on only where it is passed."""
    reasons = {str(check): reason for check, reason in plan.data.allowed.items()}
    folder.write_json(GATE_NAME, {**gate.as_mapping(), "reasons": reasons})
    gate.require()
    for check, findings in gate.by_check(gate.findings):
        watch.say(f"allowed: {check} ({len(findings)}): {plan.data.allowed[check]}")


def _left_out(gate: GateReport) -> frozenset[str]:
    """Return the names of images that are known to be broken, and were let pass."""
    return frozenset(
        name for finding in gate.findings if finding.check in _BROKEN for name in finding.files
    )


def splits_csv(inspected: Sequence[InspectedImage]) -> str:
    """Return one line per image: name, split, labels, patient and the digest of its contents."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(["image", "split", "labels", "patient", "patient_from", "sha256"])
    numbers: dict[str, str] = {}
    for one in sorted(inspected, key=lambda each: (each.image.split, each.image.name)):
        image = one.image
        writer.writerow([
            image.name, str(image.split), ";".join(sorted(image.labels)),
            _shown_patient(image, numbers), str(image.patient_source), one.content_digest,
        ])  # fmt: skip
    return written.getvalue()


def _shown_patient(image: LabelledImage, numbers: dict[str, str]) -> str:
    """Return what may be written of a patient: of a key from a header only its number."""
    if image.patient_source is PatientSourceValues.HEADER and image.patient:
        return numbers.setdefault(image.patient, f"header-{len(numbers) + 1}")
    return image.patient


def write_distribution(images: RunImages, plan: TrainingPlan, folder: RunFolder) -> None:
    """Write down what the inputs look like, where the configuration asks for it.

    Raises
    ------
    TrainingDataFault
        There are too few images to say it.
    """
    path = folder.path(DISTRIBUTION_NAME)
    if not plan.has_input_distribution or path.exists():
        return
    # Training images come first in the file: both parts stay mapped, none is copied.
    count = len(images.places(SplitValues.TRAIN))
    fitted = fit_distribution(
        images.values[:count],
        images.values[count:],
        preprocessing_digest=plan.recipe.digest,
        seed=plan.fit.seed,
    )
    part = path.with_name(f"part-{path.name}")
    fitted.write(part)
    publish(part, path)


def require_same(digest: str, stated: str) -> None:
    """Refuse to go on with other images than those a run began with.

    Raises
    ------
    TrainingDataFault
        A name, content, label, split or patient differs.
    """
    if digest != stated:
        raise TrainingDataFault(
            f"the images are not those that the run began with (the digest of {SPLITS_NAME} was "
            f"{stated}, is {digest}); name the same data, or train into a new folder"
        )
