from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from schemas.contract import DatasetContract
from schemas.errors import StoredArtifactError
from tasks.model.test_predictions import (
    StoredPredictions,
    read_predictions,
    shared_rows,
    write_predictions,
)
from tests.resealed import declare_pages


def _predictions(images: str, labels: list[int]) -> StoredPredictions:
    """Return predictions for images with one-letter digests."""
    return StoredPredictions(
        [image.encode().ljust(16) for image in images],
        np.array(labels, dtype=np.int32),
        np.eye(3, dtype=np.float32)[[label % 3 for label in labels]],
    )


def test_written_predictions_are_read_unchanged(tmp_path: Path, tiny_contract: DatasetContract) -> None:
    probabilities = np.random.default_rng(0).random((4, 3), dtype=np.float32)
    written = replace(_predictions("abcd", [0, 1, 2, 1]), probabilities=probabilities)
    write_predictions(tmp_path / "predictions.parquet", written, tiny_contract)
    read = read_predictions(tmp_path / "predictions.parquet", tiny_contract)
    assert read.images == written.images
    assert np.array_equal(read.labels, written.labels)
    assert np.array_equal(read.probabilities, written.probabilities)


def test_rejects_a_page_that_declares_more_than_the_footer(tmp_path: Path, tiny_contract: DatasetContract) -> None:
    path, rows = tmp_path / "predictions.parquet", 20_000
    written = StoredPredictions([b"0" * 16] * rows, np.zeros(rows, np.int32), np.ones((rows, 3), np.float32))
    write_predictions(path, written, tiny_contract)
    read_predictions(path, tiny_contract)
    declare_pages(path, 1)  # Arrow would allocate that
    with pytest.raises(StoredArtifactError, match=r"column 1 declares 1[0-9]{6} bytes for 20000 rows"):
        read_predictions(path, tiny_contract)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        pytest.param(
            _predictions("abcd", [0, 1, 2, 0]),
            _predictions("dxcab", [0, 0, 2, 0, 2]),
            ([3, 2, 0], [0, 2, 3]),
            id="another order; x is unknown, b has another label",
        ),
        pytest.param(
            _predictions("aab", [0, 0, 1]), _predictions("aaa", [0, 0, 0]), ([0, 1], [0, 1]), id="a repeated image"
        ),
        pytest.param(_predictions("a", [0]), _predictions("b", [0]), ([], []), id="nothing in common"),
    ],
)
def test_rows_are_matched_by_image_and_label(
    one: StoredPredictions, other: StoredPredictions, expected: tuple[list[int], list[int]]
) -> None:
    rows_of_one, rows_of_other = shared_rows(one, other)
    assert (rows_of_one.tolist(), rows_of_other.tolist()) == expected
