"""Compare labelled images with the baseline's mean images: polarity, orientation, position, similarity, labels."""

import numpy as np

from schemas.contract import DatasetContract
from tasks.checks.image_profile import (
    Floats,
    ImageProfile,
    Images,
    Labels,
    mean_images,
    most_similar,
    similarity,
    standardized,
)
from tasks.checks.label_checks import measure_labels
from tasks.checks.measurement import Measurement

UPRIGHT = "as it is"


class BaselineImages:
    """The mean images of a baseline profile, and `standardized` copies of them in every orientation and position."""

    def __init__(self, profile: ImageProfile, contract: DatasetContract) -> None:
        self.profile = profile
        self.images = np.stack([np.asarray(image, np.float32) for image in profile.mean_images.values()])
        self.labels = np.array([int(label) for label in profile.mean_images])
        self.oriented = {name: standardized(view) for name, view in orientations(self.images, contract).items()}
        self.shifted = [standardized(view) for view in _shifted(self.images, contract)]


def compare_with_baseline(
    images: Images, labels: Labels, contract: DatasetContract, baseline: BaselineImages, explained: float
) -> dict[str, Measurement]:
    """Measure how labelled images differ from the baseline.

    explained: share of the images' variance that labels explain (`variance_explained`). Each fault is reported once:
    orientation is measured in the polarity that fits better, and labels are compared in the orientation that fits best.
    """
    means = np.stack(list(mean_images(images, labels).values()))
    normalized = standardized(means)
    correlations = {name: normalized @ view.T for name, view in baseline.oriented.items()}
    fits = {
        (inverted, name): _matched(-table if inverted else table)
        for inverted in (False, True)
        for name, table in correlations.items()
    }
    inverted, orientation = best = max(fits, key=lambda view: fits[view])
    polarity = max(fits[True, name] for name in correlations) - max(fits[False, name] for name in correlations)
    turned = max(fits[inverted, name] for name in correlations if name != UPRIGHT) - fits[inverted, UPRIGHT]
    shift = -1.0  # not measured for images in another polarity or orientation
    if best == (False, UPRIGHT):
        shift = max(_matched(normalized @ view.T) for view in baseline.shifted) - fits[best]
    other = contract.check("similarity").fails(fits[best])
    nearest = baseline.labels[most_similar(images, baseline.oriented[orientation] * np.float32(-1 if inverted else 1))]
    return {
        "polarity": Measurement(
            polarity, f"the images look inverted, background is {contract.pixel_max}" if inverted else ""
        ),
        "orientation": Measurement(turned, f"the images look {orientation}" if orientation != UPRIGHT else ""),
        "position": Measurement(shift, "the images look moved by a pixel or more" if shift > 0 else ""),
        "similarity": Measurement(
            fits[best], _describe_other_images(means, baseline.images, contract) if other else ""
        ),
        **measure_labels(labels, nearest, contract, baseline.profile, explained),
    }


def _matched(correlations: Floats) -> float:
    """Return the mean correlation of the best one-to-one match, so that permuted labels have no effect."""
    from scipy.optimize import linear_sum_assignment

    return float(correlations[linear_sum_assignment(correlations, maximize=True)].mean())


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


def _shifted(images: Floats, contract: DatasetContract) -> list[Floats]:
    """Return images (N, pixels) shifted by one pixel to each side."""
    upright = images.reshape(-1, contract.height, contract.width)
    return [np.roll(upright, step, axis).reshape(len(images), -1) for step, axis in ((1, 2), (-1, 2), (1, 1), (-1, 1))]


def _describe_other_images(means: Floats, expected: Floats, contract: DatasetContract) -> str:
    """Describe mean images that fit the baseline's in no orientation."""
    if _smoothness(means, contract) < _smoothness(expected, contract) / 2:
        return "neighbouring pixels are unrelated: the pixels look permuted"
    return "they look like images of another dataset"


def _smoothness(means: Floats, contract: DatasetContract) -> float:
    """Return the correlation of the pixels of the overall mean image with their right and lower neighbours."""
    image = means.mean(axis=0).reshape(contract.height, contract.width)
    pairs = np.concatenate(
        [np.stack([image[:, 1:], image[:, :-1]]).reshape(2, -1), np.stack([image[1:], image[:-1]]).reshape(2, -1)],
        axis=1,
    )
    return float(similarity(pairs[:1], pairs[1:])[0, 0])
