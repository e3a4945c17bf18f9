"""Summarize the images of a split: mean images, histogram, agreement of images and labels."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter, ValidationError

from schemas.contract import DatasetContract
from schemas.errors import WrongUsage
from tasks.runtime.stored_file import parse_json

Images = npt.NDArray[np.uint8]  # (N, pixels)
Labels = npt.NDArray[np.uint8]  # (N,)
Floats = npt.NDArray[np.float32]

_BINS = 16

# Bounds of stored values.
Pixel = Annotated[float, Field(ge=0, le=255)]
Share = Annotated[float, Field(ge=0, le=1)]
Correlation = Annotated[float, Field(ge=-1, le=1)]


@dataclass(frozen=True)
class ImageProfile:
    """Summary statistics of a split's images, stored as JSON.

    class_rows: images per class. mean_images: the mean image of each class present, in pixel values, by label.
    histogram: share of pixels that are background, then of the other values in 16 bins of equal width.
    varying: for each pixel, the share of images in which it is not at its value closest to the background.
    label_agreement: share of images whose most similar mean image is that of their label (`balanced_agreement`).
    label_relation: share of the pixels' variance that labels explain (`variance_explained`).
    class_histograms: the histogram of each class present, by label. class_fits: the mean over its images of the largest
    correlation with any mean image. Profiles of older releases lack both.
    """

    class_rows: Sequence[int]
    mean_images: Mapping[str, Sequence[Pixel]]
    histogram: Sequence[Share]
    varying: Sequence[Share]
    label_agreement: Share
    label_relation: Correlation
    class_histograms: Mapping[str, Sequence[Share]] = field(default_factory=dict)
    class_fits: Mapping[str, Correlation] = field(default_factory=dict)


def profile_images(images: Images, labels: Labels, contract: DatasetContract) -> ImageProfile:
    """Return the profile of at least one labelled image."""
    means = mean_images(images, labels)
    correlations = standardized(images) @ standardized(np.stack(list(means.values()))).T
    ink = above_background(images, contract)
    nearest, fits = np.array(list(means))[correlations.argmax(axis=1)], correlations.max(axis=1)
    return ImageProfile(
        class_rows=np.bincount(labels, minlength=contract.classes).tolist(),
        mean_images={str(label): np.round(mean.astype(float), 1).tolist() for label, mean in means.items()},
        histogram=np.round(histogram(images, contract), 6).tolist(),
        varying=np.round((ink != ink.min(axis=0)).mean(axis=0), 5).tolist(),
        label_agreement=round(balanced_agreement(nearest == labels, labels)[0], 4),
        label_relation=round(variance_explained(images, labels), 4),
        class_histograms={
            str(label): np.round(histogram(images[labels == label], contract), 6).tolist() for label in means
        },
        class_fits={str(label): round(float(fits[labels == label].mean()), 4) for label in means},
    )


def write_profile(path: Path, profile: ImageProfile) -> None:
    """Write one key per line, so that a diff of two profiles is readable."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in asdict(profile).items())
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def read_profile(content: bytes, contract: DatasetContract | None = None) -> ImageProfile:
    """Return a profile that `write_profile` wrote. Raises ValueError for another shape than that or the contract's."""
    parse_json(content)  # stricter than pydantic, which does not reject repeated keys and deep nesting
    try:
        profile = TypeAdapter(ImageProfile).validate_json(content, strict=True)
    except ValidationError as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error
    labels, pixels = {str(label) for label in range(len(profile.class_rows))}, len(profile.varying)
    if contract is not None and (len(labels), pixels) != (contract.classes, contract.pixels):
        raise ValueError(f"expected {contract.classes} classes of {contract.pixels} pixels")
    present = set(profile.mean_images)
    if not present or present - labels or any(len(image) != pixels for image in profile.mean_images.values()):
        raise ValueError(f"expected mean images of {pixels} pixels for labels below {len(labels)}")
    # Profiles of older releases lack both.
    by_class = [set(profile.class_histograms), set(profile.class_fits)]
    if by_class not in ([present, present], [set(), set()]):
        raise ValueError("expected a histogram and a fit for each mean image")
    if any(len(shares) != _BINS + 1 for shares in (profile.histogram, *profile.class_histograms.values())):
        raise ValueError(f"expected histograms of {_BINS + 1} shares")
    return profile


def baseline_profile(contract: DatasetContract) -> ImageProfile | None:
    """Return the baseline profile of a dataset, None without one. Raises `WrongUsage` for one that does not fit."""
    if contract.reference is None:
        return None
    try:
        return read_profile(contract.reference.read_bytes(), contract)
    except ValueError as error:
        raise WrongUsage(
            f"{contract.reference} is no baseline profile of {contract.name}: {error}. Make it again with `fashion-ann "
            f"dataset profile {contract.name}`."
        ) from error


def mean_images(images: Images, labels: Labels) -> dict[int, Floats]:
    """Return the mean image, float32 (pixels,), of each label present, in ascending order."""
    return {int(label): images[labels == label].mean(axis=0, dtype=np.float32) for label in np.unique(labels)}


def histogram(images: Images, contract: DatasetContract) -> npt.NDArray[np.float64]:
    """Return the share of background pixels, then of the other values in bins of equal width; float64 (17,)."""
    width = contract.pixel_max - contract.pixel_min
    counts = np.bincount(above_background(images, contract).ravel(), minlength=width + 1)
    binned = np.bincount(np.arange(width) * _BINS // width, weights=counts[1 : width + 1], minlength=_BINS)
    return np.asarray(np.concatenate([counts[:1], binned]) / images.size)


def above_background(values: npt.NDArray[Any], contract: DatasetContract) -> npt.NDArray[Any]:
    """Return the distance of pixel values from the background, or from the smallest value if there is none."""
    background = contract.scale.minimum
    if background == 0:
        return values
    return values - background if background == contract.pixel_min else background - values


def standardized(images: npt.NDArray[Any]) -> Floats:
    """Return each image (N, pixels) minus its mean, with length 1: a product of two is their correlation; float32."""
    centred = images.astype(np.float32)
    centred -= centred.mean(axis=1, keepdims=True)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), np.float32(1e-6))
    return centred


def most_similar(images: Images, others: Floats) -> npt.NDArray[np.int64]:
    """Return the index of the ``others``, (M, pixels) and `standardized`, that each image correlates with most.

    The images are not standardized: that would scale their products with all others alike. int64 (N,).
    """
    return np.asarray((images.astype(np.float32) @ others.T).argmax(axis=1))


def variance_explained(images: Images, labels: Labels) -> float:
    """Return omega squared (Hays 1963): the share of the pixels' variance between classes.

    For labels unrelated to the images it is 0 on average, for any number of images. Every class has the same weight.
    A class of one row gets the mean variance of the others; the result is 0 if every class has one row.
    """
    _, rows = np.unique(labels, return_counts=True)
    if rows.max() < 2:
        return 0.0
    by_label = mean_images(images, labels)
    squares = [((images[labels == label] - mean) ** 2).sum(dtype=np.float64) for label, mean in by_label.items()]
    within = np.array(squares) / np.maximum(rows - 1, 1)
    within[rows == 1] = within[rows > 1].mean()
    means = np.stack(list(by_label.values()))
    observed = float(((means - means.mean(axis=0)) ** 2).sum(dtype=np.float64)) / len(rows)
    # Class means also differ by chance; that part is subtracted.
    between = observed - (1 - 1 / len(rows)) * float(np.mean(within / rows))
    total = between + float(np.mean(within))
    return between / total if total else 0.0


def balanced_agreement(agree: npt.NDArray[np.bool_], labels: Labels) -> tuple[float, float]:
    """Return the share of rows that ``agree``, bool (N,), with equal weight for every class, and its sample size.

    The sample size is the effective one: that of a balanced split with the same variance (Kish 1965).
    """
    rows = np.bincount(labels)
    shares = np.bincount(labels, weights=agree)[rows > 0] / rows[rows > 0]
    return float(shares.mean()), len(shares) ** 2 / float((1 / rows[rows > 0]).sum())
