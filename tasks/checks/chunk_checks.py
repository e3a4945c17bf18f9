"""Measure chunks of a split in file order: a bad shard is a small part of all images, but most of a chunk."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from schemas.contract import DatasetContract
from tasks.checks.baseline_comparison import BaselineImages, compare_with_baseline
from tasks.checks.image_profile import Images, Labels, variance_explained
from tasks.checks.measurement import Measurement
from tasks.checks.pixel_checks import pixel_range

# Enough images for bounds that were derived from 100; few enough that one of ten shards is most of a chunk.
_CHUNK_IMAGES = 128
_LEAST_OF_A_CLASS = 3
# Checks run on each chunk, in order of precedence: orientation is meaningless for images of another dataset.
_CHECKS = (
    "similarity",
    "polarity",
    "orientation",
    "position",
    "background",
    "brightest_pixel",
    "label_permutation",
    "label_agreement",
)
# Their details contain counts that differ from chunk to chunk.
_COUNTED = ("background", "brightest_pixel", "label_agreement")


@dataclass(frozen=True)
class _Chunk:
    """A chunk and its first fault. kind: equal for chunks with the same fault, "" for none, None if not measured."""

    first_row: int
    last_row: int
    kind: str | None
    detail: str = ""


def faulty_chunks(
    images: Images,
    labels: Labels,
    rows: npt.NDArray[np.int64],
    contract: DatasetContract,
    baseline: BaselineImages,
    failed: Collection[str],
) -> Measurement | None:
    """Measure the share of chunks that would fail on their own; None if fewer than two can be measured.

    rows: the row of each image in the split, int64 (N,), ascending. failed: the checks that the whole split fails. A
    check that is less certain on few images than on all is not repeated on chunks then.
    """
    skipped = {"position", "label_permutation"} & set(failed)
    if {"label_permutation", "label_relation", "label_agreement"} & set(failed):
        skipped.add("label_agreement")
    names = [name for name in _CHECKS if name not in skipped]
    chunks = []
    for part in np.array_split(np.arange(len(labels)), max(1, len(labels) // _CHUNK_IMAGES)):
        here = slice(part[0], part[-1] + 1)
        kind, detail = _fault(images[here], labels[here], contract, baseline, names)
        chunks.append(_Chunk(int(rows[part[0]]), int(rows[part[-1]]), kind, detail))
    measured = [chunk.kind for chunk in chunks if chunk.kind is not None]
    if len(measured) < 2:
        return None
    return Measurement(sum(map(bool, measured)) / len(measured), _describe(chunks))


def _fault(
    images: Images, labels: Labels, contract: DatasetContract, baseline: BaselineImages, names: Collection[str]
) -> tuple[str | None, str]:
    """Return kind and detail of a chunk's first fault. Chunks with too few images of a class are not measured."""
    blank = images.min(axis=1) == images.max(axis=1)  # reported by blank_images
    few = np.bincount(labels, minlength=contract.classes).min() < _LEAST_OF_A_CLASS
    if few or blank.mean() > 0.5:
        return None, ""
    explained = variance_explained(images, labels)
    measured = compare_with_baseline(images, labels, contract, baseline, explained) | pixel_range(images, contract)
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
            first, last = members[0].first_row + 1, members[-1].last_row + 1
            lines.append(f"about rows {first:,} to {last:,}: {members[0].detail}")
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")
