"""A dataset of 200 + 100 images of 6 x 5 pixels, published in the forms of Fashion-MNIST."""

import csv
import dataclasses
import gzip
import hashlib
import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schemas.contract import FASHION_MNIST, SPLITS, DatasetContract, IdxFile, PublishedSplit, Split
from tasks.data.sources import Source, idx_folder

Rows = npt.NDArray[np.uint8]
TRAIN, TEST = "fashion-mnist_train.csv", "fashion-mnist_test.csv"


@dataclasses.dataclass(frozen=True)
class Published:
    contract: DatasetContract
    rows: Mapping[Split, Rows]
    files: Mapping[str, bytes]  # content of each IDX file, gzip-compressed, by name


def idx(array: Rows) -> bytes:
    magic = {1: 2049, 3: 2051}[array.ndim]
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def publish(seed: int) -> Published:
    random = np.random.default_rng(seed)
    rows: dict[Split, Rows] = {}
    files: dict[str, bytes] = {}
    published: dict[Split, PublishedSplit] = {}
    for split, count in (("train", 200), ("test", 100)):
        images = random.integers(0, 256, (count, 6, 5), dtype=np.uint8)
        images[:, 0, 0] = 0  # numbers of one digit, too
        labels = random.integers(0, 10, count, dtype=np.uint8)
        names = FASHION_MNIST.published[split]
        described = {}
        for kind, array in (("images", images), ("labels", labels)):
            name = getattr(names, kind).name
            files[name] = gzip.compress(idx(array), mtime=0)
            described[kind] = IdxFile(name, len(files[name]), sha256(files[name]), sha256(idx(array)))
        rows[split] = np.column_stack([labels, images.reshape(count, -1)])
        digests = sorted(hashlib.sha256(bytes(row.tolist())).digest() for row in rows[split])
        published[split] = PublishedSplit(rows=count, **described, rows_sha256=sha256(b"".join(digests)))
    contract = dataclasses.replace(FASHION_MNIST, height=6, width=5, published=published)
    return Published(contract, rows, files)


GOOD = publish(0)
OTHER = publish(1)  # the same names and shapes, other images, as plain MNIST is to Fashion-MNIST
CONTRACT = GOOD.contract
KAGGLE_ROWS = {split: rows[::-1] for split, rows in GOOD.rows.items()}
TRAIN_IMAGES = CONTRACT.published["train"].images.name
TEST_LABELS = CONTRACT.published["test"].labels.name


def as_csv(rows: Rows) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CONTRACT.columns)
    writer.writerows(rows.tolist())
    return text.getvalue().encode()


def as_zip(members: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return content.getvalue()


def kaggle_members() -> dict[str, bytes]:
    """Return the files of Kaggle's zip: CSVs in another row order, and IDX files."""
    csvs = {CONTRACT.csv_name(split): as_csv(KAGGLE_ROWS[split]) for split in SPLITS}
    return {**csvs, "train-images-idx3-ubyte": gzip.decompress(GOOD.files[TRAIN_IMAGES])}


def write_idx(folder: Path, files: Mapping[str, bytes] = GOOD.files) -> Source:
    """Write IDX files to ``folder``, and return it as a source."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return idx_folder(folder)


def supply(folder: Path, *names: str) -> None:
    """Put files into ``folder`` whose content is their name."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())
