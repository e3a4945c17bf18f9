"""Measure what the contract's checks compare with their bounds."""

import numpy as np

from schemas.contract import DatasetContract
from schemas.references import DuplicateReport
from tasks.checks.baseline_comparison import BaselineImages, compare_with_baseline
from tasks.checks.chunk_checks import faulty_chunks
from tasks.checks.image_profile import ImageProfile, baseline_profile
from tasks.checks.measurement import Measurement, join_first
from tasks.checks.near_duplicates import count_duplicates
from tasks.checks.pixel_checks import border_brightness, drift, pixel_range
from tasks.checks.scan import Sample, Scan

# Between 5 % and 95 % inverted images the split is a mixture; aggregate statistics then describe neither part.
_MIXTURE = 0.05


def measure_checks(
    scan: Scan, sample: Sample, profile: ImageProfile, contract: DatasetContract, champion: ImageProfile | None
) -> dict[str, Measurement]:
    """Measure the checks that need this split, the baseline and the champion's profile.

    A check is left out if another one explains its failure: each fault is reported once.
    """
    measured = _count_rows(scan, sample)
    if measured["blank_images"].value > 0.5:
        return measured  # aggregate statistics would describe blank images
    ends = pixel_range(sample.images, contract)
    baseline = baseline_profile(contract)
    if baseline is not None:
        measured |= _compare(scan, sample, profile, contract, baseline, ends)
    # Inversion swaps the ends of the range.
    if "polarity" not in _failed(measured, contract):
        measured |= ends
    if champion is not None:
        measured["drift"] = _drift(profile, champion, "the champion's train split")
    elif baseline is not None:
        measured["drift"] = _drift(profile, baseline, "the baseline")
    return measured


def _count_rows(scan: Scan, sample: Sample) -> dict[str, Measurement]:
    class_rows = scan.classes["rows"]
    blank, repeated = int(sample.sketches.blank.sum()), count_duplicates(sample.sketches)
    return {
        "class_imbalance": Measurement(
            float(class_rows.max() / class_rows.min()), "rows of the largest class per row of the smallest"
        ),
        "blank_images": Measurement(
            blank / scan.rows, f"{blank} of {scan.rows} images have the same value in every pixel"
        ),
        "repeated_images": Measurement(repeated / scan.rows, f"{repeated} of {scan.rows} images repeat an earlier row"),
    }


def _compare(
    scan: Scan,
    sample: Sample,
    profile: ImageProfile,
    contract: DatasetContract,
    baseline: ImageProfile,
    ends: dict[str, Measurement],
) -> dict[str, Measurement]:
    """Measure the checks that need the baseline. ends: `pixel_range` of the sample."""
    bright = border_brightness(sample.images, contract) > 0.5
    measured = {
        "inverted_images": Measurement(
            float(bright.mean()), f"{int(bright.sum())} of {len(bright)} sampled images have a bright border"
        )
    }
    known = BaselineImages(baseline, contract)
    compared = compare_with_baseline(sample.images, sample.labels, contract, known, profile.label_relation)
    failed = _failed({**ends, **compared}, contract)
    chunks = faulty_chunks(sample.images, sample.labels, sample.rows, contract, known, failed)
    mixture = _MIXTURE < bright.mean() < 1 - _MIXTURE and not {"polarity", "similarity"} & failed
    # If every chunk is faulty and the split is too, the fault is that of the whole split.
    if chunks is not None and (chunks.value < 1 or not (failed or mixture)):
        measured["faulty_chunks"] = chunks
        mixture |= chunks.value > 0
    if not mixture:
        # Orientation and labels are meaningless for images of another dataset.
        measured |= {"similarity": compared["similarity"]} if "similarity" in failed else compared
    if not {"polarity", "orientation"} & failed:
        measured["constant_columns"] = _constant_columns(scan, contract, baseline)
    return measured


def _failed(measured: dict[str, Measurement], contract: DatasetContract) -> set[str]:
    return {name for name, measurement in measured.items() if contract.check(name).fails(measurement.value)}


def _drift(profile: ImageProfile, baseline: ImageProfile, owner: str) -> Measurement:
    return Measurement(drift(profile, baseline), f"distance of the distribution of pixel values from that of {owner}")


def _constant_columns(scan: Scan, contract: DatasetContract, baseline: ImageProfile) -> Measurement:
    """Measure the share of pixels with one value in all rows that is not background, or that should vary.

    A pixel should vary if fewer than one split in a million would have such a constant pixel by chance.
    """
    pixels = scan.columns.iloc[1:]
    by_chance = (1 - np.asarray(baseline.varying)) ** scan.rows * contract.pixels
    # Background is the smallest value present: another background than the contract's has a check of its own.
    lit = (pixels["minimum"] > pixels["minimum"].min()).to_numpy()
    single = (pixels["minimum"] == pixels["maximum"]).to_numpy()
    constant = pixels["column"][single & (lit | (by_chance < 1e-6))].tolist()
    return Measurement(len(constant) / contract.pixels, join_first(constant, 5))


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
