"""Store the predictions for each test row with a version. The report and `compare` read them without Keras.

Rows are matched by image digest, not by number: two versions may have been tested on the rows in another order.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.contract import DatasetContract

_DIGEST_BYTES = 16


@dataclass(frozen=True)
class StoredPredictions:
    """Predictions with one entry per test row.

    images: the `image_digest` of each row. labels: true classes, int32 (N,). probabilities: float32 (N, classes).
    """

    images: list[bytes]
    labels: npt.NDArray[np.int32]
    probabilities: npt.NDArray[np.float32]

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """Return the class with the largest probability, (N,)."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def confidence(self) -> npt.NDArray[np.float32]:
        """Return the largest probability, (N,)."""
        return np.asarray(self.probabilities.max(axis=1))

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Return which rows are predicted correctly, bool (N,)."""
        return np.asarray(self.predicted == self.labels)


def image_digest(image: npt.NDArray[np.uint8]) -> bytes:
    """Return the 16-byte blake2b digest of one image, uint8 (pixels,)."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=_DIGEST_BYTES).digest()


def write_predictions(path: Path, predictions: StoredPredictions, contract: DatasetContract) -> None:
    """Write a Parquet file with one row per test row.

    Columns: ``row`` int64 from 0; ``image``, its digest; ``true_label`` and the predicted ``label`` int32; the
    probabilities ``p0``, ``p1``, ... float32, as in the output of `predict`.
    """
    columns: dict[str, pa.Array] = {
        "row": pa.array(np.arange(len(predictions.labels))),
        "image": pa.array(predictions.images, pa.binary(_DIGEST_BYTES)),
        "true_label": pa.array(predictions.labels),
        "label": pa.array(predictions.predicted.astype(np.int32)),
    }
    for label in range(contract.classes):
        columns[f"p{label}"] = pa.array(np.ascontiguousarray(predictions.probabilities[:, label]))
    # A dictionary saves nothing: digests and probabilities do not repeat.
    pq.write_table(pa.table(columns), path, compression="zstd", use_dictionary=False)


def read_predictions(path: Path, contract: DatasetContract) -> StoredPredictions:
    """Read the file that `write_predictions` wrote. The caller has checked its digest."""
    table = pq.read_table(path)
    return StoredPredictions(
        images=table["image"].to_pylist(),
        labels=table["true_label"].to_numpy(),
        probabilities=np.column_stack([table[f"p{label}"].to_numpy() for label in range(contract.classes)]),
    )


def shared_rows(one: StoredPredictions, other: StoredPredictions) -> npt.NDArray[np.int64]:
    """Return the rows of ``one`` and of ``other``, (2, n), that have the same image and label.

    The order is that of ``other``. An image that occurs twice in both gives two pairs.
    """
    keys, other_keys = (list(zip(each.images, each.labels.tolist(), strict=True)) for each in (one, other))
    unmatched: dict[tuple[bytes, int], list[int]] = {}
    for row in reversed(range(len(keys))):
        unmatched.setdefault(keys[row], []).append(row)
    pairs = [(unmatched[key].pop(), row) for row, key in enumerate(other_keys) if unmatched.get(key)]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2).T
