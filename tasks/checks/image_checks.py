"""Measure the checks of a split's images and labels, each fault once, and name the faulty shards."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from schemas.references import DuplicateReport
from tasks.checks.chunks import ONE_FILE, Compare, ScannedFile, Shards, comparison, failed_checks, measure_parts
from tasks.checks.image_profile import (
    ImageProfile,
    Images,
    Labels,
    above_background,
    baseline_profile,
    histogram,
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
from tasks.checks.near_duplicates import Sketches, copied_rows, count_duplicates, repeated_rows
from tasks.checks.scan import Drawn, PredictedImages, Sample, Scan

# Between 5 % and 95 % inverted images the split is a mixture; aggregate statistics then describe neither part.
_MIXTURE = 0.05
# Images that fail one of these have other values in most pixels.
_MISPLACED = {"polarity", "orientation", "position", "similarity"}
# The fewest images without labels whose mean has a usable standard error.
_LEAST_COMPARED = 20

_DRIFT = "distance of the distribution of pixel values from that of {}"


def measure_checks(
    scan: Scan,
    sample: Sample,
    profile: ImageProfile,
    contract: DatasetContract,
    champion: ImageProfile | None,
    shards: Shards = ONE_FILE,
) -> dict[str, Measurement]:
    """Measure the checks that need this split, the baseline and the champion's profile.

    A check is left out if another one explains its failure: each fault is reported once. The details of values beyond a
    bound name the ``shards`` that cause them.
    """
    bright = border_brightness(sample.images, contract) > 0.5
    measured = _measure_checks(scan, sample, profile, contract, champion, shards, bright)
    return _located(
        measured,
        {
            "class_imbalance": lambda: _largest_class(scan, shards),
            "blank_images": lambda: shards.named(np.flatnonzero(sample.sketches.blank)),
            "repeated_images": lambda: _repeated(sample.sketches, shards),
            "inverted_images": lambda: shards.named(sample.rows[bright]),
        },
        contract,
    )


def _measure_checks(
    scan: Scan,
    sample: Sample,
    profile: ImageProfile,
    contract: DatasetContract,
    champion: ImageProfile | None,
    shards: Shards,
    bright: npt.NDArray[np.bool_],
) -> dict[str, Measurement]:
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
        compared = compare_with_baseline(sample.images, sample.labels, contract, known, profile.label_relation)
        compare, files = comparison(known, contract), scan.files if len(scan.files) > 1 else ()
        measured |= _measure_images(sample, bright, contract, compared, compare, pixel_range, files, shards)
        if not _MISPLACED & failed_checks(compared, contract):
            pixels = scan.columns.iloc[1:]
            extremes = pixels["minimum"].to_numpy(), pixels["maximum"].to_numpy()
            measured["constant_columns"] = _constant_columns(*extremes, scan.rows, contract, baseline)
    # Inversion swaps the ends of the range.
    if "polarity" not in failed_checks(measured, contract):
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
    bright = border_brightness(drawn.images, contract) > 0.5
    pixel_range = measure_pixel_range(drawn.images, contract)
    if seen.rows < _LEAST_COMPARED:
        few = {**pixel_range, "inverted_images": _inverted_images(bright)}
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
    measured |= _measure_images(drawn, bright, contract, compared, compare, pixel_range)
    if "polarity" not in failed_checks(measured, contract):
        measured |= pixel_range
    if _MISPLACED & failed_checks(compared, contract):
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

    halves: `half_histograms`. class_rows: images per predicted class.

    The halves differ by chance only. Their squared distance is four times as large as the distance that chance adds on
    average. So few images, or those of one class, have no drift.
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


def _inverted_images(bright: npt.NDArray[np.bool_]) -> Measurement:
    return Measurement(
        float(bright.mean()), f"{int(bright.sum())} of {len(bright)} sampled images have a bright border"
    )


def _measure_images(
    drawn: Drawn,
    bright: npt.NDArray[np.bool_],
    contract: DatasetContract,
    compared: dict[str, Measurement],
    compare: Compare,
    pixel_range: dict[str, Measurement],
    files: Sequence[ScannedFile] = (),
    shards: Shards = ONE_FILE,
) -> dict[str, Measurement]:
    """Measure the checks that need the baseline. compared, pixel_range: the measurements of all drawn images.

    bright: which of the images have a bright border. files: those of a split of several files.
    """
    measured = {"inverted_images": _inverted_images(bright)}
    every = {**pixel_range, **compared}
    failed = {name: every[name].detail for name in failed_checks(every, contract)}
    chunks = measure_parts(drawn.rows, drawn.images, drawn.labels, contract, compare, failed, files, shards)
    share = measured["inverted_images"].value
    mixed = _MIXTURE < share < 1 - _MIXTURE and not contract.check("inverted_images").off
    mixture = mixed and not {"polarity", "position", "similarity"} & failed.keys()
    # If every chunk and every file is faulty and the split is too, the fault is that of the whole split.
    if chunks is not None and (chunks.value < 1 or not (failed or mixture)):
        measured["faulty_chunks"] = chunks
        mixture |= chunks.value > 0
    if not mixture:
        # Orientation and labels are meaningless for images of another dataset.
        measured |= {"similarity": compared["similarity"]} if "similarity" in failed else compared
    return measured


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


def locate_leaks(
    measured: dict[str, Measurement],
    in_train: npt.NDArray[np.uint8],
    sketches: tuple[Sketches, Sketches],
    shards: tuple[Shards, Shards],
    contract: DatasetContract,
) -> dict[str, Measurement]:
    """Return the result of `measure_leaks` with the names of the shards that cause values beyond a bound.

    in_train: the result of `find_test_images_in_train`. sketches, shards: of train and of test.
    """
    train, test = shards

    def copies() -> str:
        in_test, originals = test.named(np.flatnonzero(in_train == 2)), train.named(copied_rows(*sketches, in_train))
        return "; ".join(filter(None, (in_test, originals and f"in train, {originals}")))

    places = {
        "test_images_in_train": copies,
        "near_duplicates_in_train": lambda: test.named(np.flatnonzero(in_train == 1)),
    }
    return _located(measured, places, contract)


def _located(
    measured: dict[str, Measurement], places: Mapping[str, Callable[[], str]], contract: DatasetContract
) -> dict[str, Measurement]:
    """Add the shards with the most of the rows concerned to the details of values beyond a bound."""
    located = dict(measured)
    for name in places.keys() & measured.keys():
        if contract.check(name).warns(measured[name].value) and (place := places[name]()):
            located[name] = replace(measured[name], detail=f"{measured[name].detail}: {place}")
    return located


def _largest_class(scan: Scan, shards: Shards) -> str:
    label = scan.classes["label"].iloc[int(scan.classes["rows"].argmax())]
    counts = shards.counted([file.label_rows.get(label, 0) for file in scan.files])
    return counts and f"the largest, {label}, has {counts}"


def _repeated(sketches: Sketches, shards: Shards) -> str:
    later, earlier = repeated_rows(sketches)
    counts = shards.named(later)
    return counts and f"{counts}; the earlier rows: {shards.named(earlier)}"
