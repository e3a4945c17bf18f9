"""Measure the checks of a split's images and labels, each fault once.

Chunks in file order are measured as well: a bad shard is a small part of all images, but most of a chunk.
"""

from collections.abc import Collection
from itertools import groupby
from typing import NamedTuple

import numpy as np

from schemas.contract import DatasetContract
from schemas.references import DuplicateReport
from tasks.checks.image_profile import ImageProfile, baseline_profile, variance_explained
from tasks.checks.measurements import (
    BaselineImages,
    Measurement,
    border_brightness,
    compare_with_baseline,
    join_first,
    measure_pixel_range,
)
from tasks.checks.near_duplicates import count_duplicates
from tasks.checks.scan import Sample, Scan

# Between 5 % and 95 % inverted images the split is a mixture; aggregate statistics then describe neither part.
_MIXTURE = 0.05
# Enough images for bounds that were derived from 100; few enough that one of ten shards is most of a chunk.
_CHUNK_IMAGES = 128
_LEAST_OF_A_CLASS = 3
# Checks run on each chunk, in order of precedence: orientation is meaningless for images of another dataset.
_CHUNK_CHECKS = (
    *("similarity", "polarity", "orientation", "position"),
    *("background", "brightest_pixel", "label_permutation", "label_agreement"),
)
# Their details contain counts that differ from chunk to chunk.
_COUNTED = ("background", "brightest_pixel", "label_agreement")


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
        "blank_images": Measurement(
            blank / scan.rows, f"{blank} of {scan.rows} images have the same value in every pixel"
        ),
        "repeated_images": Measurement(repeated / scan.rows, f"{repeated} of {scan.rows} images repeat an earlier row"),
    }
    if measured["blank_images"].value > 0.5:
        return measured  # aggregate statistics would describe blank images
    pixel_range = measure_pixel_range(sample.images, contract)
    baseline = baseline_profile(contract)
    if baseline is not None:
        measured |= _compare(scan, sample, profile, contract, baseline, pixel_range)
    # Inversion swaps the ends of the range.
    if "polarity" not in _failed(measured, contract):
        measured |= pixel_range
    earlier, owner = (baseline, "the baseline") if champion is None else (champion, "the champion's train split")
    if earlier is not None:
        from scipy.spatial.distance import jensenshannon

        measured["drift"] = Measurement(
            float(jensenshannon(profile.histogram, earlier.histogram, base=2)),
            f"distance of the distribution of pixel values from that of {owner}",
        )
    return measured


def _compare(
    scan: Scan,
    sample: Sample,
    profile: ImageProfile,
    contract: DatasetContract,
    baseline: ImageProfile,
    pixel_range: dict[str, Measurement],
) -> dict[str, Measurement]:
    """Measure the checks that need the baseline. pixel_range: `measure_pixel_range` of the sample."""
    bright = border_brightness(sample.images, contract) > 0.5
    measured = {
        "inverted_images": Measurement(
            float(bright.mean()), f"{int(bright.sum())} of {len(bright)} sampled images have a bright border"
        )
    }
    known = BaselineImages(baseline, contract)
    compared = compare_with_baseline(sample.images, sample.labels, contract, known, profile.label_relation)
    failed = _failed({**pixel_range, **compared}, contract)
    chunks = _measure_chunks(sample, contract, known, failed)
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


class _Chunk(NamedTuple):
    """A chunk and its first fault. kind: equal for chunks with the same fault, "" for none, None if not measured."""

    first_row: int
    last_row: int
    kind: str | None
    detail: str


def _measure_chunks(
    sample: Sample, contract: DatasetContract, baseline: BaselineImages, failed: Collection[str]
) -> Measurement | None:
    """Measure the share of chunks that would fail on their own; None if fewer than two can be measured.

    failed: the checks that the whole split fails. A check that is less certain on few images than on all is not
    repeated on chunks then.
    """
    skipped = {"position", "label_permutation"} & set(failed)
    if {"label_permutation", "label_relation", "label_agreement"} & set(failed):
        skipped.add("label_agreement")
    names = [name for name in _CHUNK_CHECKS if name not in skipped]
    chunks = []
    for part in np.array_split(np.arange(len(sample.labels)), max(1, len(sample.labels) // _CHUNK_IMAGES)):
        fault = _first_fault(sample, slice(part[0], part[-1] + 1), contract, baseline, names)
        chunks.append(_Chunk(int(sample.rows[part[0]]), int(sample.rows[part[-1]]), *fault))
    measured = [chunk.kind for chunk in chunks if chunk.kind is not None]
    if len(measured) < 2:
        return None
    return Measurement(sum(map(bool, measured)) / len(measured), _describe(chunks))


def _first_fault(
    sample: Sample, part: slice, contract: DatasetContract, baseline: BaselineImages, names: Collection[str]
) -> tuple[str | None, str]:
    """Return kind and detail of a chunk's first fault. Chunks with too few images of a class are not measured."""
    images, labels = sample.images[part], sample.labels[part]
    blank = images.min(axis=1) == images.max(axis=1)  # reported by blank_images
    few = np.bincount(labels, minlength=contract.classes).min() < _LEAST_OF_A_CLASS
    if few or blank.mean() > 0.5:
        return None, ""
    explained = variance_explained(images, labels)
    measured = compare_with_baseline(images, labels, contract, baseline, explained)
    measured |= measure_pixel_range(images, contract)
    for name in names:
        if contract.check(name).fails(measured[name].value):
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
