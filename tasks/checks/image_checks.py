"""Measure the checks of a split's images and labels, each fault once.

Chunks in file order are measured as well: a bad shard is a small part of all images, but most of a chunk.
"""

from collections.abc import Callable, Collection
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from schemas.references import DuplicateReport
from tasks.checks.image_profile import (
    ImageProfile,
    Images,
    Labels,
    above_background,
    baseline_profile,
    histogram,
    variance_explained,
)
from tasks.checks.measurements import (
    BaselineImages,
    Measurement,
    border_brightness,
    compare_unlabelled,
    compare_with_baseline,
    join_first,
    measure_pixel_range,
)
from tasks.checks.near_duplicates import count_duplicates
from tasks.checks.scan import Drawn, PredictedImages, Sample, Scan

# Between 5 % and 95 % inverted images the split is a mixture; aggregate statistics then describe neither part.
_MIXTURE = 0.05
# Enough images for bounds that were derived from 100, and of each class; few enough that one of ten shards is most of a
# chunk.
_CHUNK_IMAGES = 128
_CHUNK_IMAGES_PER_CLASS = 12
_LEAST_OF_A_CLASS = 3
# Checks run on each chunk, in order of precedence: orientation is meaningless for images of another dataset.
_CHUNK_CHECKS = (
    *("similarity", "polarity", "orientation", "position"),
    *("background", "brightest_pixel", "label_permutation", "label_agreement", "drift"),
)
# Their details contain counts that differ from chunk to chunk.
_COUNTED = ("background", "brightest_pixel", "label_agreement")
# Images that fail one of these have other values in most pixels.
_MISPLACED = {"polarity", "orientation", "position", "similarity"}
# The fewest images without labels whose mean has a usable standard error.
_LEAST_COMPARED = 20

_DRIFT = "distance of the distribution of pixel values from that of {}"

# Compares images and their labels or predicted classes with a baseline; None if a class has too few images.
Compare = Callable[[Images, Labels], dict[str, Measurement] | None]


def measure_checks(
    scan: Scan, sample: Sample, profile: ImageProfile, contract: DatasetContract, champion: ImageProfile | None
) -> dict[str, Measurement]:
    """Measure the checks that need this split, the baseline and the champion's profile.

    A check is left out if another one explains its failure: each fault is reported once.
    """
    class_rows = scan.classes["rows"]
    blank, repeated = int(sample.sketches.blank.sum()), count_duplicates(sample.sketches)
    measured = {
        "class_imbalance": Measurement(
            float(class_rows.max() / class_rows.min()), "rows of the largest class per row of the smallest"
        ),
        "blank_images": _blank_images(blank, scan.rows),
        "repeated_images": Measurement(repeated / scan.rows, f"{repeated} of {scan.rows} images repeat an earlier row"),
    }
    if measured["blank_images"].value > 0.5:
        return measured  # aggregate statistics would describe blank images
    pixel_range = measure_pixel_range(sample.images, contract)
    baseline = baseline_profile(contract)
    if baseline is not None:
        known = BaselineImages(baseline, contract)

        def compare(images: Images, labels: Labels) -> dict[str, Measurement] | None:
            if np.bincount(labels, minlength=contract.classes).min() < _LEAST_OF_A_CLASS:
                return None
            return compare_with_baseline(images, labels, contract, known, variance_explained(images, labels))

        compared = compare_with_baseline(sample.images, sample.labels, contract, known, profile.label_relation)
        measured |= _measure_images(sample, contract, compared, compare, pixel_range)
        if not _MISPLACED & _failed(compared, contract):
            pixels = scan.columns.iloc[1:]
            extremes = pixels["minimum"].to_numpy(), pixels["maximum"].to_numpy()
            measured["constant_columns"] = _constant_columns(*extremes, scan.rows, contract, baseline)
    # Inversion swaps the ends of the range.
    if "polarity" not in _failed(measured, contract):
        measured |= pixel_range
    if champion is not None:
        measured["drift"] = _drift(profile.histogram, champion.histogram, "the champion's train split")
    elif baseline is not None:
        measured["drift"] = _drift(profile.histogram, baseline.histogram, "the baseline")
    return measured


def measure_predicted(
    seen: PredictedImages, contract: DatasetContract, profile: ImageProfile
) -> dict[str, Measurement]:
    """Measure the checks that need no labels. profile: that of the train split of the version that predicts.

    A check is left out if the images are too few for it, or if another one explains its failure. Repeated images are
    not counted, because they do not change a prediction.
    """
    measured = {"blank_images": _blank_images(seen.blank, seen.rows)}
    if measured["blank_images"].value > 0.5:
        return measured
    drawn = seen.drawn
    pixel_range = measure_pixel_range(drawn.images, contract)
    if seen.rows < _LEAST_COMPARED:
        few = {**pixel_range, "inverted_images": _inverted_images(drawn, contract)}
        for name, measurement in few.items():
            check = contract.check(name)
            if check.fails(measurement.value) or not check.warns(measurement.value):  # between them it may be chance
                measured[name] = measurement
        return measured
    known, enough = BaselineImages(profile, contract), contract.minimum_rows["test"]

    def compare(images: Images, predicted: Labels) -> dict[str, Measurement]:
        measured = compare_unlabelled(images, predicted, contract, known)
        if len(images) >= enough:
            measured["drift"] = _drift_of_classes(images, predicted, contract, profile)
        return measured

    compared = compare(drawn.images, drawn.labels)
    measured |= _measure_images(drawn, contract, compared, compare, pixel_range)
    if "polarity" not in _failed(measured, contract):
        measured |= pixel_range
    if _MISPLACED & _failed(compared, contract):
        measured.pop("drift", None)  # other classes are predicted for such images
    elif len(drawn.rows) >= enough:
        measured["drift"] = compared["drift"]  # also beside faulty chunks
        # Rows of a balanced part of the images, because pixels vary less within a class.
        balanced = int(seen.class_rows.min()) * contract.classes
        measured["constant_columns"] = _constant_columns(*seen.extremes, balanced, contract, profile)
    return measured


def _drift_of_classes(
    images: Images, predicted: Labels, contract: DatasetContract, profile: ImageProfile
) -> Measurement:
    """Measure drift from a train split with the same share of each class, less what chance explains."""
    rows = np.bincount(predicted, minlength=contract.classes)
    owner = "the version's train split, for the classes that are predicted"
    return Measurement(drift_of_classes(half_histograms(images, contract), rows, profile), _DRIFT.format(owner))


def half_histograms(images: Images, contract: DatasetContract) -> npt.NDArray[np.float64]:
    """Return the pixel histogram of every other image, and that of the rest, as numbers of pixels, (2, 17)."""
    shares = histogram(images, contract)  # of one image the rest is empty, and has no histogram
    rest = histogram(images[1::2], contract) * images[1::2].size if len(images) > 1 else np.zeros_like(shares)
    return np.rint(np.stack([shares * images.size - rest, rest]))


def drift_of_classes(
    halves: npt.NDArray[np.float64], class_rows: npt.NDArray[np.integer[Any]], profile: ImageProfile
) -> float:
    """Return the drift of images from a train split with the same share of each class, less what chance explains.

    halves: `half_histograms`. class_rows: images per predicted class. The halves differ by chance only. Their squared
    distance is four times as large as that which chance adds on average: few images, or those of one class, then have
    no drift.
    """
    from scipy.spatial.distance import jensenshannon

    expected = sum(class_rows[int(label)] * np.asarray(shares) for label, shares in profile.class_histograms.items())
    pairs = ((halves.sum(axis=0), expected), tuple(halves))
    value, chance = (float(jensenshannon(*pair, base=2)) ** 2 for pair in pairs)
    return float(max(0.0, value - chance) ** 0.5)


def _blank_images(blank: int, rows: int) -> Measurement:
    return Measurement(blank / rows, f"{blank} of {rows} images have the same value in every pixel")


def _drift(observed: npt.ArrayLike, earlier: npt.ArrayLike, owner: str) -> Measurement:
    from scipy.spatial.distance import jensenshannon

    return Measurement(float(jensenshannon(observed, earlier, base=2)), _DRIFT.format(owner))


def _inverted_images(drawn: Drawn, contract: DatasetContract) -> Measurement:
    bright = border_brightness(drawn.images, contract) > 0.5
    return Measurement(
        float(bright.mean()), f"{int(bright.sum())} of {len(bright)} sampled images have a bright border"
    )


def _measure_images(
    drawn: Drawn,
    contract: DatasetContract,
    compared: dict[str, Measurement],
    compare: Compare,
    pixel_range: dict[str, Measurement],
) -> dict[str, Measurement]:
    """Measure the checks that need the baseline. compared, pixel_range: the measurements of all drawn images."""
    measured = {"inverted_images": _inverted_images(drawn, contract)}
    failed = _failed({**pixel_range, **compared}, contract)
    chunks = _measure_chunks(drawn, contract, compare, failed)
    share = measured["inverted_images"].value
    mixed = _MIXTURE < share < 1 - _MIXTURE and not contract.check("inverted_images").off
    mixture = mixed and not {"polarity", "position", "similarity"} & failed
    # If every chunk is faulty and the split is too, the fault is that of the whole split.
    if chunks is not None and (chunks.value < 1 or not (failed or mixture)):
        measured["faulty_chunks"] = chunks
        mixture |= chunks.value > 0
    if not mixture:
        # Orientation and labels are meaningless for images of another dataset.
        measured |= {"similarity": compared["similarity"]} if "similarity" in failed else compared
    return measured


def _failed(measured: dict[str, Measurement], contract: DatasetContract) -> set[str]:
    """Return the checks whose value is beyond their last bound, which is a warning for a few."""
    return {
        name
        for name, measurement in measured.items()
        if (check := contract.check(name)).fails(measurement.value)
        or (check.fail is None and check.warns(measurement.value))
    }


def _constant_columns(
    minimum: npt.NDArray[Any], maximum: npt.NDArray[Any], rows: int, contract: DatasetContract, baseline: ImageProfile
) -> Measurement:
    """Measure the share of pixels with one value in all rows that is not background, or that should vary.

    A pixel should vary if fewer than one split of ``rows`` in a million would have such a constant pixel by chance.
    """
    # Ordered by distance from the background.
    minimum, maximum = np.sort([above_background(end, contract) for end in (minimum, maximum)], axis=0)
    by_chance = (1 - np.asarray(baseline.varying)) ** rows * contract.pixels
    # Background is the smallest value present: another background than the contract's has a check of its own.
    constant = (minimum == maximum) & ((minimum > minimum.min()) | (by_chance < 1e-6))
    names = [name for name, single in zip(contract.columns[1:], constant, strict=True) if single]
    return Measurement(len(names) / contract.pixels, join_first(names, 5))


class _Chunk(NamedTuple):
    """A chunk and its first fault. kind: equal for chunks with the same fault, "" for none, None if not measured."""

    first_row: int
    last_row: int
    kind: str | None
    detail: str


def _measure_chunks(
    drawn: Drawn, contract: DatasetContract, compare: Compare, failed: Collection[str]
) -> Measurement | None:
    """Measure the share of chunks that would fail on their own; None if fewer than two can be measured.

    failed: the checks that the whole split fails. A check that is less certain on few images than on all is not
    repeated on chunks then.
    """
    skipped = {"position", "label_permutation", "drift"} & set(failed)
    if {"label_permutation", "label_relation", "label_agreement"} & set(failed):
        skipped.add("label_agreement")
    names = [name for name in _CHUNK_CHECKS if name not in skipped]
    chunks = []
    size = max(_CHUNK_IMAGES, _CHUNK_IMAGES_PER_CLASS * contract.classes)
    for part in np.array_split(np.arange(len(drawn.labels)), max(1, len(drawn.labels) // size)):
        images, labels = drawn.images[part], drawn.labels[part]
        fault = _first_fault(images, labels, contract, compare, names)
        chunks.append(_Chunk(int(drawn.rows[part[0]]), int(drawn.rows[part[-1]]), *fault))
    measured = [chunk.kind for chunk in chunks if chunk.kind is not None]
    if len(measured) < 2:
        return None
    return Measurement(sum(map(bool, measured)) / len(measured), _describe(chunks))


def _first_fault(
    images: Images, labels: Labels, contract: DatasetContract, compare: Compare, names: Collection[str]
) -> tuple[str | None, str]:
    """Return kind and detail of a chunk's first fault. Chunks that ``compare`` returns None for are not measured."""
    blank = images.min(axis=1) == images.max(axis=1)  # reported by blank_images
    if blank.mean() > 0.5 or (compared := compare(images, labels)) is None:
        return None, ""
    measured = {**compared, **measure_pixel_range(images, contract)}
    failed = _failed(measured, contract)
    for name in names:
        if name in failed:
            detail = measured[name].detail
            return (name if name in _COUNTED else detail), detail
    return "", ""


def _describe(chunks: list[_Chunk]) -> str:
    """Return one line per run of chunks with the same fault, the first three."""
    runs = [(kind, list(members)) for kind, members in groupby(chunks, key=lambda chunk: chunk.kind)]
    lines = []
    for place, (kind, members) in enumerate(runs):
        beside = [runs[at][0] for at in (place - 1, place + 1) if 0 <= at < len(runs)]
        # A chunk on the boundary of a faulty run is only partly faulty, and its labels agree with few images.
        boundary = kind == "label_agreement" and len(members) == 1 and any(beside)
        if kind and not boundary:
            lines.append(
                f"about rows {members[0].first_row + 1:,} to {members[-1].last_row + 1:,}: {members[0].detail}"
            )
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")


def measure_leaks(duplicates: DuplicateReport, rows: int) -> dict[str, Measurement]:
    """Measure the checks that compare a test split of ``rows`` images with train."""
    counts = {
        "test_images_in_train": (duplicates.test_rows_in_train, "copies"),
        "near_duplicates_in_train": (duplicates.test_rows_near_train, "near duplicates"),
    }
    return {
        name: Measurement(count / rows, f"{count} of {rows} test images are {kind} of train images")
        for name, (count, kind) in counts.items()
    }
