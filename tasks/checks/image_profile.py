"""What the images of a split look like together: their profile, and how it differs from another one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract

Images = npt.NDArray[np.uint8]  # (N, pixels)
Labels = npt.NDArray[np.uint8]  # (N,)
Floats = npt.NDArray[np.float32]

_BINS = 16


@dataclass(frozen=True)
class ImageProfile:
    """What is kept of a split's images, as JSON.

    class_rows: images of each class. mean_images: of each class present, its mean image in pixel values, by label.
    histogram: share of pixels that are background, then of the other values in 16 bins of equal width.
    varying: of each pixel, the share of images where it has another value than its smallest.
    label_agreement: share of images whose label is that of the most alike of ``mean_images`` (`agreement`).
    label_relation: share of the pixels' variance that labels explain (`variance_explained`).
    """

    class_rows: Sequence[int]
    mean_images: Mapping[str, Sequence[float]]
    histogram: Sequence[float]
    varying: Sequence[float]
    label_agreement: float
    label_relation: float


def profile_images(images: Images, labels: Labels, contract: DatasetContract) -> ImageProfile:
    """The profile of labelled images, of one at least."""
    means = mean_images(images, labels)
    present = sorted(means)
    alike = np.array(present)[most_alike(images, standardized(np.stack([means[label] for label in present])))]
    return ImageProfile(
        class_rows=np.bincount(labels, minlength=contract.classes).tolist(),
        mean_images={str(label): np.round(means[label].astype(float), 1).tolist() for label in present},
        histogram=np.round(histogram(images, contract), 6).tolist(),
        varying=np.round((images != images.min(axis=0)).mean(axis=0), 5).tolist(),
        label_agreement=round(agreement(alike == labels, labels)[0], 4),
        label_relation=round(variance_explained(images, labels), 4),
    )


def write_profile(path: Path, profile: ImageProfile) -> None:
    """One key a line: small, and a change shows."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in asdict(profile).items())
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def read_profile(content: bytes) -> ImageProfile:
    return ImageProfile(**json.loads(content))


def baseline_profile(contract: DatasetContract) -> ImageProfile | None:
    """The profile of the published train split, where the contract has one."""
    return None if contract.reference is None else read_profile(contract.reference.read_bytes())


# --- what a profile is made of ---


def mean_images(images: Images, labels: Labels) -> dict[int, Floats]:
    """The mean image, float32 (pixels,), of each label that is there."""
    return {int(label): images[labels == label].mean(axis=0, dtype=np.float32) for label in np.unique(labels)}


def histogram(images: Images, contract: DatasetContract) -> npt.NDArray[np.float64]:
    """Share of pixels that are background, then of the values above in bins of equal width; float64 (17,)."""
    counts = np.bincount(images.ravel(), minlength=256)
    values = np.arange(contract.pixel_min + 1, contract.pixel_max + 1)
    place = (values - contract.pixel_min - 1) * _BINS // (contract.pixel_max - contract.pixel_min)
    binned = np.bincount(place, weights=counts[values], minlength=_BINS)
    shares: npt.NDArray[np.float64] = np.concatenate([[counts[: contract.pixel_min + 1].sum()], binned]) / images.size
    return shares


def similarity(images: npt.NDArray[Any], others: npt.NDArray[Any]) -> Floats:
    """Pearson's correlation of each image with each of ``others``: neither brightness nor contrast changes it.

    images (N, pixels) and others (M, pixels) to float32 (N, M); 0 for an image without any contrast.
    """
    return standardized(images) @ standardized(others).T


def standardized(images: npt.NDArray[Any]) -> Floats:
    """Each image (N, pixels) less its mean, of length 1: products of two are their correlations; float32."""
    centred = images.astype(np.float32)
    centred -= centred.mean(axis=1, keepdims=True)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), np.float32(1e-6))
    return centred


def most_alike(images: Images, others: Floats) -> npt.NDArray[np.int64]:
    """Which of ``others``, (M, pixels) and `standardized`, each image correlates with most; int64 (N,).

    Brightness and contrast of an image change its products with all of them alike, so that it is taken as it is.
    """
    return np.asarray((images.astype(np.float32) @ others.T).argmax(axis=1))


def variance_explained(images: Images, labels: Labels) -> float:
    """Omega squared (Hays 1963): the share of the pixels' variance between classes, 0 on average for labels that have
    nothing to do with the images, however few they are.

    Every class weighs alike, so that the share does not hang on how many rows each has. A class of one row is taken to
    vary as the others do; 0 where all are.
    """
    present, rows = np.unique(labels, return_counts=True)
    if rows.max() < 2:
        return 0.0
    means = [images[labels == label].mean(axis=0, dtype=np.float32) for label in present]
    squares = [
        float(((images[labels == label] - mean) ** 2).sum(dtype=np.float64))
        for label, mean in zip(present, means, strict=True)
    ]
    within = np.array(squares) / np.maximum(rows - 1, 1)
    within[rows == 1] = within[rows > 1].mean()
    found = float(((np.stack(means) - np.mean(means, axis=0)) ** 2).sum(dtype=np.float64)) / len(rows)
    between = found - (1 - 1 / len(rows)) * float(np.mean(within / rows))  # by chance means differ, too
    total = between + float(np.mean(within))
    return between / total if total else 0.0


def agreement(right: npt.NDArray[np.bool_], labels: Labels) -> tuple[float, float]:
    """Share of rows that are ``right``, bool (N,), every class weighed alike; and how many rows of a balanced split
    would tell as much (Kish 1965)."""
    rows = np.bincount(labels)
    shares = np.bincount(labels, weights=right)[rows > 0] / rows[rows > 0]
    return float(shares.mean()), len(shares) ** 2 / float((1 / rows[rows > 0]).sum())
