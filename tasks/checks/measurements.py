"""Measure images and labels, alone and compared with the baseline's mean images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from tasks.checks.image_profile import (
    Floats,
    ImageProfile,
    Images,
    Labels,
    above_background,
    balanced_agreement,
    mean_images,
    most_similar,
    standardized,
)
from tasks.data.statistics import sign_test, wilson_interval

UPRIGHT = "as it is"
# Labels that explain less than this share of what the baseline's labels explain are reported as shuffled.
_SHUFFLED = 0.1
_NORMAL_Z = 4.0  # one in 30,000, on one side
# Pixels. Images that moved by any distance are at most two pixels from one of them.
_SHIFTS = (1, 2, 4, 8, 12)


@dataclass(frozen=True)
class Measurement:
    """The value that a check compares with its bounds. ``detail`` explains it, where the number alone does not."""

    value: float
    detail: str = ""


def join_first(values: Sequence[str], shown: int) -> str:
    """Return the first ``shown`` values, and how many more there are."""
    return ", ".join(values[:shown]) + (f" and {len(values) - shown} more" if len(values) > shown else "")


def measure_pixel_range(images: Images, contract: DatasetContract) -> dict[str, Measurement]:
    """Measure background and brightest_pixel: do pixels use the whole range of the contract?"""
    background, end = contract.scale
    sign = 1 if end > background else -1
    ink = above_background(images, contract)
    smallest, largest = ink.min(axis=1), ink.max(axis=1)
    without = int((smallest > 0).sum())
    least, most = ("smallest", "largest") if sign > 0 else ("largest", "smallest")
    middle = float(np.median(largest))
    return {
        "background": Measurement(
            without / len(images),
            f"{without} of {len(images)} sampled images have no pixel of {background}, the background; the "
            f"{least} pixel of the median image is {background + sign * np.median(smallest):g}",
        ),
        "brightest_pixel": Measurement(
            middle / (contract.pixel_max - contract.pixel_min),
            f"the {most} pixel of the median image is {background + sign * middle:g}, the range ends at {end}",
        ),
    }


def border_brightness(images: Images, contract: DatasetContract) -> npt.NDArray[np.float64]:
    """Return the mean of each image's outermost pixels, 0 for background and 1 for the brightest; float64 (N,)."""
    edge = images[:, border(contract)].mean(axis=1)
    background, end = contract.scale
    return np.asarray((edge - background) / (end - background))


def border(contract: DatasetContract) -> npt.NDArray[np.bool_]:
    """Return which pixels are in the first or last row or column of an image, bool (pixels,)."""
    frame = np.ones((contract.height, contract.width), bool)
    frame[1:-1, 1:-1] = False
    return frame.ravel()


class BaselineImages:
    """The mean images of a baseline profile, and `standardized` copies of them in every orientation and position."""

    def __init__(self, profile: ImageProfile, contract: DatasetContract) -> None:
        self.profile = profile
        self.images = np.stack([np.asarray(image, np.float32) for image in profile.mean_images.values()])
        self.labels = np.array([int(label) for label in profile.mean_images])
        upright = self.images.reshape(-1, contract.height, contract.width)
        oriented = orientations(self.images, contract)
        shifted = [
            np.roll(upright, sign * step, axis).reshape(self.images.shape)
            for axis in (1, 2)
            for step in _SHIFTS
            if 2 * step <= upright.shape[axis]
            for sign in (1, -1)
        ]
        self.views = standardized(np.concatenate([*oriented.values(), *shifted]))
        parts = np.split(self.views, len(oriented) + len(shifted))
        self.oriented, self.shifted = dict(zip(oriented, parts, strict=False)), parts[len(oriented) :]


def compare_with_baseline(
    images: Images, labels: Labels, contract: DatasetContract, baseline: BaselineImages, explained: float
) -> dict[str, Measurement]:
    """Measure how labelled images differ from the baseline.

    explained: share of the images' variance that labels explain (`variance_explained`). Each fault is reported once:
    orientation is measured in the polarity that fits better, and labels are compared in the view that fits best.
    """
    fits = baseline.profile.class_fits
    if fits and explained < _SHUFFLED * baseline.profile.label_relation:
        # With shuffled labels all mean images are similar, so each image is compared on its own.
        view, measured = _compare(images, _most, contract, baseline, float(np.mean(list(fits.values()))))
    else:
        means = np.stack(list(mean_images(images, labels).values()))
        view, measured = _compare(means, _matched, contract, baseline)
    nearest = baseline.labels[most_similar(images, view)]
    return {**measured, **measure_labels(labels, nearest, contract, baseline.profile, explained)}


def compare_unlabelled(
    images: Images, predicted: Labels, contract: DatasetContract, baseline: BaselineImages
) -> dict[str, Measurement]:
    """Measure how images without labels differ from the baseline, image by image.

    predicted: the class that a model predicts for each image. Similarity is relative to the baseline's images of these
    classes. Every value is the end of its confidence interval on the side of correct data: few images or a single
    class exceed no bound by chance.
    """
    fits = np.array([baseline.profile.class_fits[str(label)] for label in baseline.labels])
    expected = float(fits[np.searchsorted(baseline.labels, predicted)].mean())
    return _compare(images, _most, contract, baseline, expected, _NORMAL_Z)[1]


def _compare(
    images: Images | Floats,
    match: Callable[[Floats], Floats],
    contract: DatasetContract,
    baseline: BaselineImages,
    expected: float = 1.0,
    z: float = 0.0,
) -> tuple[Floats, dict[str, Measurement]]:
    """Return the baseline's images in the view that fits best, and polarity, orientation, position and similarity.

    match: reduces the correlations (N, classes) of the images with the baseline's to those of the classes that fit.
    expected: similarity of correct data. z: standard errors that a value gives the benefit of the doubt.
    """

    def gain(of: Floats, over: Floats) -> float:
        return float((of - over).mean() - z * _standard_error(of - over))

    # One product of all views: the threads of many small ones wait for each other on a busy machine.
    tables = (standardized(images) @ baseline.views.T).reshape(len(images), -1, len(baseline.labels))
    correlations = {name: tables[:, place] for place, name in enumerate(baseline.oriented)}
    fits = {
        (inverted, name): match(-table if inverted else table)
        for inverted in (False, True)
        for name, table in correlations.items()
    }
    inverted, orientation = best = max(fits, key=lambda view: fits[view].mean())
    shifts = [match(tables[:, place]) for place in range(len(correlations), tables.shape[1])]
    nearest = int(np.argmax([fit.mean() for fit in shifts]))
    moved = shifts[nearest]
    looks_moved = moved.mean() > fits[best].mean()
    upright = [moved, *(fits[False, name] for name in correlations)]
    polarity = gain(max((fits[True, name] for name in correlations), key=np.mean), max(upright, key=np.mean))
    turned = shift = -1.0  # not measured for images in another position, polarity or orientation
    if not looks_moved:
        others = (fits[inverted, name] for name in correlations if name != UPRIGHT)
        turned = gain(max(others, key=np.mean), fits[inverted, UPRIGHT])
    if looks_moved or best == (False, UPRIGHT):
        shift = gain(moved, fits[False, UPRIGHT])
    fit = moved if looks_moved else fits[best]
    similarity = _relative(float(fit.mean() + z * _standard_error(fit)), expected)
    other = ""
    if contract.check("similarity").fails(similarity):
        other = "they look like images of another dataset"
        if _smoothness(images, contract) < _smoothness(baseline.images, contract) / 2:
            other = "neighbouring pixels are unrelated: the pixels look permuted"
    background = f"the images look inverted, background is {contract.scale.maximum}" if inverted else ""
    view = baseline.shifted[nearest]
    if not looks_moved:
        view = baseline.oriented[orientation] * np.float32(-1 if inverted else 1)
    return view, {
        "polarity": Measurement(polarity, background),
        "orientation": Measurement(turned, f"the images look {orientation}" if orientation != UPRIGHT else ""),
        "position": Measurement(shift, "the images look moved by a pixel or more" if shift > 0 else ""),
        "similarity": Measurement(similarity, other),
    }


def _standard_error(values: Floats) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def _most(correlations: Floats) -> Floats:
    """Return the largest correlation of each image."""
    return np.asarray(correlations.max(axis=1))


def _matched(correlations: Floats) -> Floats:
    """Return the correlations of the best one-to-one match, so that permuted labels have no effect."""
    from scipy.optimize import linear_sum_assignment

    matched: Floats = correlations[linear_sum_assignment(correlations, maximize=True)]
    return matched


def orientations(images: Floats, contract: DatasetContract) -> dict[str, Floats]:
    """Return images (N, pixels) in every orientation that fits their frame, by its description."""
    upright = images.reshape(-1, contract.height, contract.width)
    views = {
        UPRIGHT: upright,
        "upside down (turned by 180 degrees)": upright[:, ::-1, ::-1],
        "mirrored left to right": upright[:, :, ::-1],
        "mirrored top to bottom": upright[:, ::-1],
    }
    if contract.height == contract.width:
        transposed = upright.transpose(0, 2, 1)
        views |= {
            "transposed (rows are columns)": transposed,
            "turned by 90 degrees to the right": transposed[:, :, ::-1],
            "turned by 90 degrees to the left": transposed[:, ::-1],
            "transposed along the other diagonal": transposed[:, ::-1, ::-1],
        }
    return {name: view.reshape(len(images), -1) for name, view in views.items()}


def _smoothness(images: Images | Floats, contract: DatasetContract) -> float:
    """Return the correlation of the pixels of the overall mean image with their right and lower neighbours."""
    image = images.mean(axis=0).reshape(contract.height, contract.width)
    pixels = np.concatenate([image[:, :-1].ravel(), image[:-1].ravel()])
    neighbours = np.concatenate([image[:, 1:].ravel(), image[1:].ravel()])
    one, other = standardized(np.stack([pixels, neighbours]))
    return float(one @ other)


def measure_labels(
    labels: Labels, nearest: npt.NDArray[Any], contract: DatasetContract, baseline: ImageProfile, explained: float
) -> dict[str, Measurement]:
    """Measure label_relation, label_permutation and label_agreement.

    nearest: for each image, the class of the baseline's most similar mean image. explained: share of the variance that
    labels explain. Agreement is that of labels renamed in the best way, so that a permutation is reported once.
    """
    relation = _relative(explained, baseline.label_relation)
    shuffled = relation < _SHUFFLED
    renamed = best_renaming(labels, nearest, contract.classes)
    p_value = 1.0  # shuffled labels have a best renaming too, but no right one
    if not shuffled:  # McNemar's exact test: do more images agree with renamed labels by chance?
        before, after = labels == nearest, renamed[labels] == nearest
        p_value = sign_test(int((after & ~before).sum()), int((before & ~after).sum()))
    permuted = contract.check("label_permutation").warns(p_value)
    agree = (renamed[labels] if permuted else labels) == nearest
    share, rows = balanced_agreement(agree, labels)
    return {
        "label_relation": Measurement(
            relation, "the labels look shuffled: the mean images of all classes are similar" if shuffled else ""
        ),
        "label_permutation": Measurement(p_value, describe_renaming(renamed, contract) if permuted else ""),
        "label_agreement": Measurement(
            _relative(wilson_interval(share * rows, rows, _NORMAL_Z)[1], baseline.label_agreement),
            f"{int(agree.sum())} of {len(labels)} images are most similar to the baseline's mean image of their own "
            f"class, {baseline.label_agreement:.0%} in the baseline",
        ),
    }


def _relative(value: float, baseline: float) -> float:
    # A baseline whose images and labels are unrelated confirms nothing.
    return value / baseline if baseline > 0 else 0.0


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
    contiguous = contract.class_labels[-1] - contract.class_labels[0] == classes - 1
    # Most, not all: with few rows a class or two match others.
    if shift and shifts[shift] > classes / 2 and contiguous:
        amount = shift if shift <= classes - shift else shift - classes
        size = "one" if abs(amount) == 1 else str(abs(amount))
        return (
            f"the labels look shifted by {'one' if amount == 1 else amount}: each is {size} "
            f"{'more' if amount > 0 else 'less'} than the class of its image"
        )
    texts = [f"{label} ({contract.labels[label]})" for label in contract.class_labels]
    pairs = enumerate(renamed.tolist())
    moved = join_first([f"{texts[one]} looks like {texts[like]}" for one, like in pairs if one != like], 10)
    return f"the labels look permuted: {moved}"
