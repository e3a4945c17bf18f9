from dataclasses import replace
from pathlib import Path

import numpy as np

from schemas.contract import DatasetContract
from tasks.data.splits import scale_pixels, unscale_pixels
from tasks.model.test_predictions import (
    StoredPredictions,
    image_digest,
    read_predictions,
    shared_rows,
    write_predictions,
)


def _judged(images: list[bytes], labels: list[int]) -> StoredPredictions:
    return StoredPredictions(
        [image.ljust(16) for image in images],
        np.array(labels, dtype=np.int32),
        np.eye(3, dtype=np.float32)[[label % 3 for label in labels]],
    )


def test_predictions_come_back_as_they_were_written(tmp_path: Path, tiny_contract: DatasetContract) -> None:
    generator = np.random.default_rng(0)
    wrote = replace(
        _judged([b"a", b"b", b"c", b"d"], [0, 1, 2, 1]), probabilities=generator.random((4, 3), dtype=np.float32)
    )
    write_predictions(tmp_path / "predictions.parquet", wrote, tiny_contract)
    read = read_predictions(tmp_path / "predictions.parquet", tiny_contract)
    assert read.images == wrote.images
    assert np.array_equal(read.labels, wrote.labels)
    assert np.array_equal(read.probabilities, wrote.probabilities)


def test_rows_are_matched_by_image_and_label_whatever_their_order() -> None:
    one = _judged([b"a", b"b", b"c", b"d"], [0, 1, 2, 0])
    other = _judged([b"d", b"x", b"c", b"a", b"b"], [0, 0, 2, 0, 2])  # b with another label, x unknown
    in_one, in_other = shared_rows(one, other)
    assert in_one.tolist() == [3, 2, 0]
    assert in_other.tolist() == [0, 2, 3]


def test_an_image_that_occurs_twice_in_both_is_matched_twice_and_no_more() -> None:
    one = _judged([b"a", b"a", b"b"], [0, 0, 1])
    other = _judged([b"a", b"a", b"a"], [0, 0, 0])
    in_one, in_other = shared_rows(one, other)
    assert in_one.tolist() == [0, 1]
    assert in_other.tolist() == [0, 1]


def test_nothing_in_common_is_no_row() -> None:
    in_one, in_other = shared_rows(_judged([b"a"], [0]), _judged([b"b"], [0]))
    assert (len(in_one), len(in_other)) == (0, 0)


def test_scaled_images_have_the_digest_of_the_pixels_that_they_came_from(tiny_contract: DatasetContract) -> None:
    for low, high in ((0, 255), (0, 16), (3, 250)):
        contract = replace(tiny_contract, pixel_min=low, pixel_max=high)
        images = np.arange(low, high + 1, dtype=np.uint8)[: (high - low + 1) // 4 * 4].reshape(-1, 4)
        again = unscale_pixels(scale_pixels(images, contract), contract)
        assert [image_digest(image) for image in again] == [image_digest(image) for image in images]
