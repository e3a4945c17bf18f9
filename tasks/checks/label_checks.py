"""Measure how well labels agree with images: renamed, shuffled and wrong labels."""

from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from tasks.checks.image_profile import ImageProfile, Labels, balanced_agreement
from tasks.checks.measurement import Measurement
from tasks.data.statistics import sign_test, wilson_interval

# Labels that explain less than this share of what the baseline's labels explain are reported as shuffled.
_SHUFFLED = 0.1
_WILSON_Z = 4.0  # one in 30,000, on one side


def measure_labels(
    labels: Labels, nearest: npt.NDArray[Any], contract: DatasetContract, baseline: ImageProfile, explained: float
) -> dict[str, Measurement]:
    """Measure label_relation, label_permutation and label_agreement.

    nearest: for each image, the class of the baseline's most similar mean image. explained: share of the variance that
    labels explain. Agreement is that of labels renamed in the best way, so that a permutation is reported once.
    """
    relation = explained / baseline.label_relation
    shuffled = relation < _SHUFFLED
    renamed = best_renaming(labels, nearest, contract.classes)
    # Shuffled labels have a best renaming too, but no right one.
    p_value = 1.0 if shuffled else _renaming_p_value(labels, nearest, renamed)
    permuted = contract.check("label_permutation").warns(p_value)
    agree = (renamed[labels] if permuted else labels) == nearest
    share, rows = balanced_agreement(agree, labels)
    return {
        "label_relation": Measurement(
            relation, "the labels look shuffled: the mean images of all classes are similar" if shuffled else ""
        ),
        "label_permutation": Measurement(p_value, describe_renaming(renamed, contract) if permuted else ""),
        "label_agreement": Measurement(
            wilson_interval(share * rows, rows, _WILSON_Z)[1] / baseline.label_agreement,
            f"{int(agree.sum())} of {len(labels)} images are most similar to the baseline's mean image of their own "
            f"class, {baseline.label_agreement:.0%} in the baseline",
        ),
    }


def best_renaming(labels: Labels, nearest: npt.NDArray[Any], classes: int) -> npt.NDArray[np.int64]:
    """Return the class that each label is best renamed to, int64 (classes,), so that most images agree."""
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, nearest), 1)
    return np.asarray(linear_sum_assignment(counts, maximize=True)[1])


def describe_renaming(renamed: npt.NDArray[np.int64], contract: DatasetContract) -> str:
    """Describe labels of which each looks like class ``renamed[label]``: as a shift if most move by the same amount."""
    classes = len(renamed)
    shifts = np.bincount((np.arange(classes) - renamed) % classes, minlength=classes)
    shift = int(shifts.argmax())
    # Most, not all: with few rows a class or two match others.
    if shift and shifts[shift] > classes / 2:
        amount = shift if shift <= classes - shift else shift - classes
        size = "one" if abs(amount) == 1 else str(abs(amount))
        return (
            f"the labels look shifted by {'one' if amount == 1 else amount}: each is {size} "
            f"{'more' if amount > 0 else 'less'} than the class of its image"
        )
    names = contract.class_names
    moved = ", ".join(
        f"{label} ({names[label]}) looks like {like} ({names[like]})"
        for label, like in enumerate(renamed.tolist())
        if label != like
    )
    return f"the labels look permuted: {moved}"


def _renaming_p_value(labels: Labels, nearest: npt.NDArray[Any], renamed: npt.NDArray[np.int64]) -> float:
    """Return the one-sided p-value of McNemar's exact test: do more images agree with renamed labels by chance?"""
    before, after = labels == nearest, renamed[labels] == nearest
    return sign_test(int((after & ~before).sum()), int((before & ~after).sum()))
