"""What an epoch is made of: targets, groups, order, folds, and batches that repeat."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.errors import TrainingDataFault
from model.training.augmentation_ranges import AugmentationRanges
from model.training.dataset import Dataset, LabelledImage, SplitValues
from model.training.folds import folds_of, spread
from model.training.loop_batches import Part, epoch_batches, steps_per_epoch
from model.training.plan import TrainingPlan, read_plan
from model.training.plan_fit import DrawingValues, FitPlan
from model.training.targets import check_classes, class_weights_of, groups_of, targets_of
from tests.tiny_training import changed, write_config

CLASSES = ["DARK", "MIDDLE", "BRIGHT"]
STILL = AugmentationRanges.none()
FIT = FitPlan(epochs=2, batch_size=4, seed=3)


def labels(*names: str) -> list[dict[str, object]]:
    return [{"name": name.title(), "class": name, "code": [name, "99T", name]} for name in names]


def plan_of(folder: Path, kind: str, *names: str, **head: object) -> TrainingPlan:
    classes = ["DARK", "BRIGHT"] if kind == "binary" else CLASSES
    values = {**changed(data={"classes": classes}, head={"kind": kind, **head}),
              "labels": labels(*names)}  # fmt: skip
    return read_plan(write_config(folder, values))


def image(name: str, *classes: str, split: SplitValues = SplitValues.TRAIN) -> LabelledImage:
    return LabelledImage(name, (Path(name),), split, frozenset(classes), name.partition("_")[0])


@pytest.mark.parametrize(
    ("kind", "names", "expected"),
    [
        ("binary", ("BRIGHT",), [[0], [1]]),
        ("multi-class", ("BRIGHT",), [[1, 0, 0], [0, 0, 1]]),
        ("multi-label", ("BRIGHT", "MIDDLE"), [[0, 0], [1, 0]]),
    ],
)
def test_targets_are_what_each_head_answers(tmp_path, kind, names, expected):
    found = targets_of([image("a", "DARK"), image("b", "BRIGHT")], plan_of(tmp_path, kind, *names))

    assert found.tolist() == expected
    assert found.dtype == np.float32


def test_label_of_several_classes_is_true_for_each_of_them(tmp_path):
    values = changed(data={"classes": CLASSES})
    values["labels"] = [{"name": "Lit", "classes": ["MIDDLE", "BRIGHT"], "code": ["1", "99T", "L"]}]
    plan = read_plan(write_config(tmp_path, values))

    assert targets_of([image(n, n) for n in CLASSES], plan).tolist() == [[0], [1], [1]]


def test_image_with_several_labels_is_drawn_as_its_rarest():
    targets = np.array([[1, 0], [1, 1], [1, 0], [0, 0]], dtype=np.float32)

    assert groups_of(targets).tolist() == [1, 2, 1, 0]


def drawn_as_is(plan: TrainingPlan) -> TrainingPlan:
    return replace(plan, fit=replace(plan.fit, drawing=DrawingValues.AS_IS))


@pytest.mark.parametrize(
    ("kind", "weights", "expected"),
    [
        ("binary", "balanced", [[2 / 3], [2.0]]),
        ("binary", {"DARK": 0.5, "BRIGHT": 3.0}, [0.5, 3.0]),
        ("binary", "none", None),
        ("multi-class", {"DARK": 1, "MIDDLE": 2, "BRIGHT": 3}, [1, 2, 3]),
        ("multi-label", {"DARK": 1, "MIDDLE": 2, "BRIGHT": 3}, [3]),
    ],
)
def test_class_weights_are_given_as_the_loss_takes_them(tmp_path, kind, weights, expected):
    plan = drawn_as_is(plan_of(tmp_path, kind, "BRIGHT", class_weights=weights))
    targets = np.array([[1], [0], [0], [0]], dtype=np.float32)

    found = class_weights_of(targets, plan)

    assert found is None if expected is None else found == pytest.approx(np.array(expected))


def test_balanced_weights_of_classes_are_those_of_equal_shares(tmp_path):
    plan = drawn_as_is(plan_of(tmp_path, "multi-class", "BRIGHT", class_weights="balanced"))
    targets = np.eye(3, dtype=np.float32)[[0, 0, 0, 0, 1, 1, 2, 2]]

    assert class_weights_of(targets, plan) == pytest.approx([2 / 3, 4 / 3, 4 / 3])


@pytest.mark.parametrize("drawing", DrawingValues)
@pytest.mark.parametrize("kind", ["binary", "multi-class", "multi-label"])
def test_balanced_weights_make_every_class_count_the_same_however_it_is_drawn(
    tmp_path, kind, drawing
):
    # Given classes of very different frequency, drawn equally often or as they are,
    names = ("BRIGHT",) if kind == "binary" else ("BRIGHT", "MIDDLE")
    plan = plan_of(tmp_path, kind, *names, class_weights="balanced")
    plan = replace(plan, fit=replace(FIT, drawing=drawing, batch_size=1))
    part = part_of(240, 24)
    if kind == "multi-class":
        part = replace(part, targets=np.eye(3, dtype=np.float32)[[0] * 24 + [1] * 72 + [2] * 144])
    if kind == "multi-label":
        rows = [[1, 1]] * 12 + [[1, 0]] * 12 + [[0, 1]] * 72 + [[0, 0]] * 144
        part = replace(part, targets=np.array(rows, np.float32))

    # when an epoch is drawn and weighted, then no class outweighs another.
    weights = class_weights_of(part.targets, plan)
    drawn = np.concatenate([t for _, t in epoch_batches(part, plan.fit, STILL, epoch=0)])
    if kind == "multi-class":
        totals = drawn.sum(axis=0) * weights
    else:
        totals = np.stack([(1 - drawn).sum(axis=0), drawn.sum(axis=0)]) * weights
    assert totals == pytest.approx(np.full(totals.shape, totals.flat[0]), rel=0.06)


def dataset_of(*images: LabelledImage) -> Dataset:
    classes = sorted({label for each in images for label in each.labels})
    return Dataset(images, tuple(classes))


def test_data_that_do_not_fit_the_configuration_are_refused_with_everything(tmp_path):
    plan = plan_of(tmp_path, "multi-class", "BRIGHT")
    data = dataset_of(image("a", "DARK"), image("b", "BLUE", "BRIGHT"))

    with pytest.raises(TrainingDataFault) as caught:
        check_classes(data, plan)

    for words in (
        "class BLUE is not in data.classes", "train holds no image of MIDDLE",
        "there is no split validation", "1 image has not one class, for example b",
    ):  # fmt: skip
        assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["binary", "multi-label"])
def test_images_without_any_class_are_what_a_label_is_told_from(tmp_path, kind):
    # Given a manifest that names one class, or none,
    values = {**changed(data={"classes": ["BRIGHT"]}, head={"kind": kind})}
    plan = read_plan(write_config(tmp_path, values))
    validation = (
        image("c", split=SplitValues.VALIDATION),
        image("d", "BRIGHT", split=SplitValues.VALIDATION),
    )

    # then images of none are the rest,
    with_rest = dataset_of(image("a"), image("b", "BRIGHT"), *validation)
    check_classes(with_rest, plan)
    assert targets_of(with_rest.images, plan).tolist() == [[0], [1], [0], [1]]

    # and without them there is nothing to learn.
    with pytest.raises(TrainingDataFault, match="every image of train has Bright"):
        check_classes(dataset_of(image("b", "BRIGHT"), *validation), plan)


def test_class_named_as_the_word_for_no_class_is_said_to_be_that_word(tmp_path):
    values = changed(data={"classes": ["none", "BRIGHT"]})
    data = dataset_of(image("a"), image("b", "BRIGHT"))

    with pytest.raises(TrainingDataFault, match="a manifest's word for no class"):
        check_classes(data, read_plan(write_config(tmp_path, values)))


def part_of(count: int, positives: int) -> Part:
    targets = (np.arange(count) < positives).astype(np.float32)[:, None]
    values = np.arange(2 * count, dtype=np.float32).reshape(-1, 1, 1, 1) / (2 * count)
    return Part(values, np.arange(1, 2 * count, 2), targets)


def test_part_takes_its_own_rows_with_their_targets():
    part = part_of(4, 1)

    values, targets = part.take(np.array([2, 0]))

    assert values.ravel().tolist() == pytest.approx([5 / 8, 1 / 8])
    assert targets.ravel().tolist() == [0, 1]
    assert [len(chunk) for chunk in part.chunks(3)] == [3, 1]


def test_balanced_epoch_draws_each_class_equally_and_uses_every_rare_image():
    part = part_of(40, 8)

    batches = list(epoch_batches(part, FIT, STILL, epoch=0))

    drawn = Counter(float(v) for values, _ in batches for v in values.ravel())
    positives = [n for value, n in drawn.items() if value * 80 < 16]
    assert len(batches) == steps_per_epoch(part, FIT) == 10
    assert sum(positives) == 20
    assert sorted(positives) == [2, 2, 2, 2, 3, 3, 3, 3]
    assert max(n for value, n in drawn.items() if value * 80 > 16) == 1


def test_epoch_as_it_is_holds_every_image_once():
    fit = replace(FIT, drawing=DrawingValues.AS_IS)

    batches = list(epoch_batches(part_of(40, 8), fit, STILL, epoch=0))

    drawn = [float(v) for values, _ in batches for v in values.ravel()]
    assert len(set(drawn)) == len(drawn) == 40


def test_batches_depend_on_seed_and_epoch_and_not_on_threads():
    part = part_of(16, 8)
    ranges = replace(STILL, noise=0.1, mixup_alpha=0.2)

    def epoch(number: int, **changes: int) -> np.ndarray:
        batches = epoch_batches(part, replace(FIT, **changes), ranges, number)
        return np.concatenate([values.ravel() for values, _ in batches])

    np.testing.assert_array_equal(epoch(1), epoch(1, readers=3))
    assert not np.array_equal(epoch(1), epoch(0))
    assert not np.array_equal(epoch(1), epoch(1, seed=4))


@pytest.mark.parametrize(
    ("count", "outputs", "batch_size"), [(9, 1, 1), (320, 3, 2), (199, 20, 8), (2, 3, 1), (7, 7, 7)]
)
def test_every_batch_of_a_balanced_epoch_is_full(count, outputs, batch_size):
    # Given images whose groups cannot all be drawn equally often without leaving some out,
    targets = np.eye(max(outputs, 2), dtype=np.float32)[np.arange(count) % max(outputs, 2)]
    part = replace(part_of(count, 0), targets=targets[:, -outputs:])
    fit = replace(FIT, batch_size=batch_size)

    # when an epoch is drawn, then none of its batches lacks images, and all are announced.
    sizes = [len(values) for values, _ in epoch_batches(part, fit, STILL, epoch=0)]

    assert sizes == [batch_size] * steps_per_epoch(part, fit)


def test_fewer_images_than_a_batch_make_one_smaller_batch():
    (batch,) = epoch_batches(part_of(3, 1), FIT, STILL, epoch=0)

    assert len(batch[0]) == 2  # one of each class, as often as the rarer allows at all


def test_fault_while_a_batch_is_made_reaches_the_training():
    broken = replace(part_of(16, 8), rows=np.full(16, 99))

    with pytest.raises(IndexError):
        list(epoch_batches(broken, FIT, STILL, epoch=0))


def folded(count: int = 3) -> tuple[list[LabelledImage], np.ndarray]:
    images = [
        image(f"p{patient}_{film}", ("DARK", "BRIGHT")[patient % 2])
        for patient in range(12)
        for film in range(2)
    ]
    return images, np.array([["BRIGHT" in each.labels] for each in images], dtype=np.float32)


def test_folds_divide_no_patient_and_hold_every_class():
    images, targets = folded()

    folds = folds_of(images, targets, 3, seed=1)

    held = np.concatenate([fold.held_out for fold in folds])
    assert sorted(held) == list(range(24))
    for fold in folds:
        learned = {images[place].patient for place in fold.training}
        assert not learned & {images[place].patient for place in fold.held_out}
        assert targets[fold.held_out].mean() == 0.5
    assert [f.held_out.tolist() for f in folds] == [
        f.held_out.tolist() for f in folds_of(images, targets, 3, seed=1)
    ]


def test_more_folds_than_patients_of_a_class_are_refused():
    images, targets = folded()

    with pytest.raises(TrainingDataFault, match="one class has 6"):
        folds_of(images, targets, 7, seed=1)


def test_spread_is_mean_and_deviation():
    assert spread([{"auc": 0.8}, {"auc": 0.9}, {"auc": 1.0}]) == {
        "auc": {"mean": 0.9, "deviation": 0.1}
    }
