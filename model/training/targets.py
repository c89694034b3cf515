"""What is true of each image, as the numbers a network is held against.

Owns the way from classes to outputs, and that data and configuration speak of the same classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dicom_io.wording import number_of
from model.errors import TrainingDataFault
from model.training.dataset import NO_LABEL, Dataset, LabelledImage, SplitValues
from model.training.heads import HeadValues
from model.training.plan import TrainingPlan
from model.training.plan_fit import UNWEIGHTED, DrawingValues

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


def check_classes(dataset: Dataset, plan: TrainingPlan) -> None:
    """Refuse data that do not have the classes of the plan, or no image to learn or choose by.

    Raises
    ------
    TrainingDataFault
        With everything that does not fit.
    """
    known = plan.data.classes
    faults = [
        f"class {name} is not in data.classes ({', '.join(known)})"
        for name in sorted(set(dataset.classes) - set(known))
    ]
    for split in (SplitValues.TRAIN, SplitValues.VALIDATION):
        counts = dataset.class_counts(split)
        if not dataset.images_of(split):
            faults.append(f"there is no split {split}; it is needed to learn or to choose by")
            continue
        absent = [name for name in known if not counts.get(name)]
        faults += [f"{split} holds no image of {name}{_none_in_words(name)}" for name in absent]
    if plan.head.kind is HeadValues.MULTI_CLASS:
        several = [image.name for image in dataset.images if len(image.labels) != 1]
        said = number_of(len(several), "image has", "images have")
        faults += [f"{said} not one class, for example {n}" for n in several[:1]]
    else:
        learned_from = dataset.images_of(SplitValues.TRAIN)
        faults += [
            f"every image of train has {label.name}: nothing tells it apart"
            for label in plan.labels
            if learned_from and all(each.labels & set(label.classes) for each in learned_from)
        ]
    if faults:
        raise TrainingDataFault(f"data and {plan.path.name} do not fit: {'; '.join(faults)}")


def _none_in_words(name: str) -> str:
    is_none = name.casefold() == NO_LABEL
    return " (a manifest's word for no class at all: give those images another one)" * is_none


def targets_of(images: Sequence[LabelledImage], plan: TrainingPlan) -> FloatArray:
    """Return what the network should answer; (image, outputs), 0 or 1.

    Binary and multi-label heads have an output for each label, multi-class heads one for each
    class of the data, in their order.
    """
    if plan.head.kind is HeadValues.MULTI_CLASS:
        wanted = [{name} for name in plan.data.classes]
    else:
        wanted = [set(label.classes) for label in plan.labels]
    rows = [[bool(names & image.labels) for names in wanted] for image in images]
    return np.array(rows, dtype=np.float32)


def groups_of(targets: FloatArray) -> IntArray:
    """Return which images are drawn as one class; (image,).

    Without labels an image is of group 0; with one of several it is of its rarest label's.
    """
    frequency = targets.sum(axis=0)
    order = np.argsort(frequency, kind="stable")
    rarest = np.argmax(targets[:, order] > 0, axis=1)
    grouped = np.where(targets.any(axis=1), order[rarest] + 1, 0)
    return grouped.astype(np.int64)


def class_weights_of(targets: FloatArray, plan: TrainingPlan) -> FloatArray | None:
    """Return the weights that the loss gives to classes, as ``loss_of`` takes them.

    Parameters
    ----------
    targets : ndarray
        Of the training images: ``balanced`` weighs every class as if all were equally frequent
        among the images that are drawn, so that what the drawing has evened out counts once.
    """
    head = plan.head
    if head.class_weights == UNWEIGHTED:
        return None
    if head.stated is not None:
        return _stated(head.stated, plan)
    share = np.clip(_drawn_shares(targets, plan.fit.drawing), 1e-6, 1 - 1e-6)
    if head.kind is HeadValues.MULTI_CLASS:
        return np.asarray(1 / (len(share) * share), np.float32)
    return np.stack([0.5 / (1 - share), 0.5 / share]).astype(np.float32)


def _drawn_shares(targets: FloatArray, drawing: DrawingValues) -> FloatArray:
    """Return how large a share of an epoch each output is true of; (outputs,)."""
    if drawing is DrawingValues.AS_IS:
        return np.asarray(targets.mean(axis=0))
    groups = groups_of(targets)
    means = [targets[groups == group].mean(axis=0) for group in np.unique(groups)]
    return np.asarray(np.mean(means, axis=0))


def _stated(weights: Mapping[str, float], plan: TrainingPlan) -> FloatArray:
    if plan.head.kind is HeadValues.MULTI_CLASS:
        return np.array([weights[name] for name in plan.data.classes], np.float32)
    yes = [weights[label.classes[0]] for label in plan.labels]
    if plan.head.kind is HeadValues.MULTI_LABEL:
        return np.array(yes, np.float32)
    no = next(weights[name] for name in plan.data.classes if name not in plan.labels[0].classes)
    return np.array([no, *yes], np.float32)
