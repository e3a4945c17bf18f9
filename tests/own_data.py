"""Datasets in the forms that people have, made from scikit-learn's digits, and smooth grey images for photographs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

Images = npt.NDArray[np.uint8]  # (N, height, width)
Labels = npt.NDArray[np.int64]


def digits(side: int, scale: int) -> tuple[Images, Labels]:
    """Return the 1,797 digits, enlarged ``scale`` times, in the middle of ``side`` x ``side`` pixels of 0 to 255."""
    images, labels = load_digits(return_X_y=True)
    large = np.kron(images.reshape(-1, 8, 8), np.ones((scale, scale))) * (255 / 16)
    margin = (side - 8 * scale) // 2
    return np.pad(large, ((0, 0), (margin, margin), (margin, margin))).astype(np.uint8), labels.astype(np.int64)


def letters() -> tuple[Images, Labels]:
    """Return 26 classes with labels from 1: the digits upright, mirrored, and without their middle rows."""
    images, labels = digits(28, 3)
    cut = images.copy()
    cut[:, 11:17] = 0
    everything = np.concatenate([images, images[:, :, ::-1], cut])
    classes = np.concatenate([labels, labels + 10, labels + 20])
    kept = classes < 26
    return everything[kept], classes[kept] + 1


def photographs(labels: Sequence[int], each: int, seed: int = 0) -> tuple[Images, Labels]:
    """Return ``each`` smooth grey images of 28 x 28 pixels per label, in other light and with a pattern per label."""
    generator = np.random.default_rng(seed)
    across = np.cos(np.pi * np.outer(np.arange(4), np.arange(28) + 0.5) / 28)
    waves = np.random.default_rng(99).normal(size=(len(labels), 4, 4))
    images = []
    for wave in waves:
        mixed = wave + generator.normal(scale=0.35, size=(each, 4, 4))
        pattern = across.T @ mixed @ across
        pattern *= 45 / pattern.std(axis=(1, 2), keepdims=True)
        light = generator.normal(130, 15, (each, 1, 1))
        images.append(pattern + light + generator.normal(scale=4, size=(each, 28, 28)))
    return np.clip(np.concatenate(images), 5, 250).astype(np.uint8), np.repeat(labels, each)


def split(images: Images, labels: Labels, test_share: float = 0.2) -> dict[str, tuple[Images, Labels]]:
    """Return both splits, drawn at random."""
    order = np.random.default_rng(0).permutation(len(labels))
    test = order[: int(len(order) * test_share)]
    train = order[len(test) :]
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}


def write_csv(path: Path, images: Images, labels: Labels | None, header: Sequence[str] = ()) -> Path:
    """Write images row by row, below ``header`` if there is one, with the labels as first column if there are any."""
    rows = images.reshape(len(images), -1)
    table = rows if labels is None else np.column_stack([labels, rows])
    np.savetxt(path, table, fmt="%d", delimiter=",", header=",".join(header), comments="")
    if not header:  # `savetxt` writes an empty line
        path.write_bytes(path.read_bytes().removeprefix(b"\n"))
    return path


def numbered(pixels: int, start: int) -> list[str]:
    return [f"pixel{number}" for number in range(start, start + pixels)]


def sign_language(folder: Path) -> None:
    """Write photographs in 24 classes, none of which has the label 9."""
    labels = [label for label in range(25) if label != 9]
    for name, each, seed in (("train", 80, 0), ("test", 30, 1)):
        images, classes = photographs(labels, each, seed)
        order = np.random.default_rng(2).permutation(len(classes))
        header = ["label", *numbered(784, 1)]
        write_csv(folder / f"sign_mnist_{name}.csv", images[order], classes[order], header)


def emnist_letters(folder: Path) -> None:
    """Write CSVs without a header, with labels from 1 and transposed images."""
    for name, (images, labels) in split(*letters()).items():
        write_csv(folder / f"emnist-letters-{name}.csv", images.transpose(0, 2, 1), labels)


def kmnist(folder: Path) -> None:
    """Write CSVs with a header such as 1x1..28x28."""
    header = ["label", *(f"{row}x{column}" for row in range(1, 29) for column in range(1, 29))]
    for name, (images, labels) in split(*digits(28, 3)).items():
        write_csv(folder / f"kmnist_{name}.csv", images, labels, header)


def digit_recognizer(folder: Path) -> None:
    """Write CSVs with pixels from 0, and a test file without labels."""
    parts = split(*digits(28, 3))
    header = ["label", *numbered(784, 0)]
    write_csv(folder / "train.csv", *parts["train"], header)
    write_csv(folder / "test.csv", parts["test"][0], None, header[1:])


def three_classes(folder: Path) -> None:
    """Write CSVs with 3 classes of 20 x 20 pixels, dark on a light background."""
    images, labels = digits(20, 2)
    few = labels < 3
    for name, (some, classes) in split(255 - images[few], labels[few]).items():
        write_csv(folder / f"shapes_{name}.csv", some, classes, ["label", *numbered(400, 1)])
