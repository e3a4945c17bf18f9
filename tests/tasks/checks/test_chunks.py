"""Parts of a split that are faulty on their own, and the shards that they are named by."""

import numpy as np
import pytest

from schemas.contract import FASHION_MNIST
from tasks.checks.chunks import ScannedFile, Shards, measure_parts
from tasks.checks.image_profile import Images, Labels
from tasks.checks.measurements import Measurement

THREE = Shards(["a.csv", "b.csv", "c.csv"], [100, 10, 1_000])
MIRRORED = {"orientation": "the images look mirrored"}


@pytest.mark.parametrize(
    ("first", "last", "place"),
    [
        (0, 99, "rows 1 to 100 of a.csv"),
        (100, 109, "rows 1 to 10 of b.csv"),
        (1_000, 1_109, "rows 891 to 1,000 of c.csv"),
        (99, 110, "row 100 of a.csv to row 1 of c.csv"),
    ],
)
def test_a_place_is_the_shard_and_its_rows(first: int, last: int, place: str) -> None:
    assert THREE.place(first, last) == place


def test_one_file_needs_no_name() -> None:
    one = Shards(["a.csv"], [2_000])
    assert (one.place(999, 1_999), one.named(np.array([3]))) == ("rows 1,000 to 2,000", "")


def test_the_shards_with_the_most_rows_come_first() -> None:
    assert THREE.named(np.array([0, 99, 100, 110, 500, 600])) == "3 in c.csv, 2 in a.csv, 1 in b.csv"
    assert THREE.named(np.array([], np.int64)) == ""
    assert Shards(list("abcde"), [1] * 5).named(np.arange(5)) == "1 in a, 1 in b, 1 in c and 2 more"


def measure(faults: list[dict[str, str] | None], rows: int = 2_000, faulty_from: int | None = None) -> Measurement:
    """Measure a split in equal files with these faults, sampled in 10 chunks, of which some may be faulty."""

    def compare(images: Images, labels: Labels) -> dict[str, Measurement]:
        bad = faulty_from is not None and images[0, 0] * 10 >= faulty_from
        return {"orientation": Measurement(1.0, "the images look mirrored") if bad else Measurement(-0.2)}

    images = np.zeros((1_280, 784), np.uint8)
    images[:, 0], images[:, 1] = np.arange(1_280) // 128, 255
    drawn, size = np.linspace(0, rows - 1, 1_280).astype(np.int64), rows // len(faults)
    files = [ScannedFile(size, {}, fault) for fault in faults]
    names = [f"{name}.csv" for name in range(len(files))]
    labels, shards = np.zeros(1_280, np.uint8), Shards(names, [size] * len(files))
    measured = measure_parts(drawn, images, labels, FASHION_MNIST, compare, {}, files, shards)
    assert measured is not None
    return measured


def test_a_faulty_file_that_no_chunk_shows() -> None:
    measured = measure([{}, {}, MIRRORED, *[{}] * 17])
    assert measured == Measurement(1 / 30, "rows 1 to 100 of 2.csv: the images look mirrored")


def test_files_that_are_too_small_are_not_counted() -> None:
    assert measure([None, MIRRORED, *[None] * 18]).value == 1 / 11
    assert measure([None] * 20) == Measurement(0.0)


def test_chunks_of_a_faulty_file_are_reported_once() -> None:
    # From the fifth chunk on, which begins within the first file.
    measured = measure([{}, MIRRORED], faulty_from=50)
    assert measured == Measurement(6 / 12, "rows 1 to 1,000 of 1.csv: the images look mirrored")


def test_a_file_that_is_faulty_in_part_is_described_by_its_rows() -> None:
    assert measure([{}, MIRRORED], faulty_from=80).detail == (
        "about rows 601 to 1,000 of 1.csv: the images look mirrored"
    )


def test_a_check_that_the_whole_split_fails_is_not_repeated() -> None:
    files = [ScannedFile(1_000, {}, {"label_agreement": "labels"}), ScannedFile(1_000, {}, {})]
    images = np.tile(np.array([0, 255], np.uint8), (1_280, 392))
    arguments = np.arange(1_280), images, np.zeros(1_280, np.uint8), FASHION_MNIST, lambda *_: {}
    for failed, value in ({}, 1 / 12), ({"label_relation": ""}, 0):
        measured = measure_parts(*arguments, failed, files, Shards(["a", "b"], [1_000, 1_000]))
        assert measured is not None
        assert measured.value == value
