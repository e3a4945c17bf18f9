"""What a model said of each test row, kept with its version: the report and `compare` read it instead of Keras.

A row is known by its image and not by its number, so that two versions are compared on the same images whatever the
order of the rows that each was tested on.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.contract import DatasetContract
from tasks.data.splits import unscaled_images

_DIGEST_BYTES = 16


@dataclass(frozen=True)
class StoredPredictions:
    """One entry a test row.

    ``images``: its `image_digest`; ``labels`` int32 (N,): its true class; ``probabilities`` float32 (N, classes).
    """

    images: list[bytes]
    labels: npt.NDArray[np.int32]
    probabilities: npt.NDArray[np.float32]

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """The class with the largest probability, (N,)."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def confidence(self) -> npt.NDArray[np.float32]:
        """The largest probability, (N,)."""
        return np.asarray(self.probabilities.max(axis=1))

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.predicted == self.labels)


def image_digest(image: npt.NDArray[np.uint8]) -> bytes:
    """blake2b of the bytes of one image, uint8 (pixels,), 16 bytes long."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=_DIGEST_BYTES).digest()


def image_digests(images: npt.NDArray[np.float32], contract: DatasetContract) -> list[bytes]:
    """`image_digest` of each of ``images``, float32 (N, pixels) in [0, 1]."""
    return [image_digest(image) for image in unscaled_images(images, contract)]


def write_predictions(path: Path, predictions: StoredPredictions, contract: DatasetContract) -> None:
    """A Parquet of ``row`` int64 from 0, ``image`` (its digest), ``true_label`` and ``label`` int32, ``p0`` .. float32.

    ``label`` is the predicted class, ``p<label>`` the probability of a class, as in what `predict` writes.
    """
    columns: dict[str, pa.Array] = {
        "row": pa.array(np.arange(len(predictions.labels))),
        "image": pa.array(predictions.images, pa.binary(_DIGEST_BYTES)),
        "true_label": pa.array(predictions.labels),
        "label": pa.array(predictions.predicted.astype(np.int32)),
    }
    for label in range(contract.classes):
        columns[f"p{label}"] = pa.array(np.ascontiguousarray(predictions.probabilities[:, label]))
    # Neither digests nor probabilities repeat.
    pq.write_table(pa.table(columns), path, compression="zstd", use_dictionary=False)


def read_predictions(path: Path, contract: DatasetContract) -> StoredPredictions:
    """What `write_predictions` wrote; the caller has checked the digest of the file."""
    table = pq.read_table(path)
    return StoredPredictions(
        images=table["image"].to_pylist(),
        labels=table["true_label"].to_numpy(),
        probabilities=np.column_stack([table[f"p{label}"].to_numpy() for label in range(contract.classes)]),
    )


def shared_rows(
    one: StoredPredictions, other: StoredPredictions
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row numbers in ``one`` and in ``other``, (n,) each, of the images that both were tested on with the same label.

    In the order of ``other``. An image that occurs twice in both is two pairs.
    """
    waiting: dict[tuple[bytes, int], list[int]] = {}
    for row, key in reversed(list(enumerate(_keys(one)))):
        waiting.setdefault(key, []).append(row)
    pairs = [(waiting[key].pop(), row) for row, key in enumerate(_keys(other)) if waiting.get(key)]
    rows = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def _keys(predictions: StoredPredictions) -> Iterable[tuple[bytes, int]]:
    return zip(predictions.images, predictions.labels.tolist(), strict=True)
