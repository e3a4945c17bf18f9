import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.contract import FASHION_MNIST
from schemas.errors import StoredArtifactError, WrongUsage
from tasks.data.splits import scale_pixels
from tasks.model.test_predictions import StoredPredictions, image_digest, write_predictions
from tasks.registry.store import ModelStore
from tasks.reports.comparison import compare, write_comparison
from tests.stored import add_stored, data_facts
from tests.tasks.reports.test_version_report import Page

KEY = "ab" * 32


def _images() -> Any:
    """Six different images, uint8."""
    return np.random.default_rng(0).integers(0, 256, (6, FASHION_MNIST.pixels), dtype=np.uint8)


def _add(artifacts: Path, rows: list[int], said: list[int], **configuration: Any) -> int:
    """A version that said of these rows of `_images`, whose labels are 0 .. 5, what it said, with probability 0.91."""
    probabilities = np.full((len(rows), 10), 0.01, dtype=np.float32)
    probabilities[range(len(rows)), said] = 0.91

    def write(folder: Path) -> None:
        digests = [image_digest(image) for image in _images()[rows]]
        judged = StoredPredictions(digests, np.array(rows, dtype=np.int32), probabilities)
        write_predictions(folder / "test_predictions.parquet", judged, FASHION_MNIST)

    return add_stored(
        ModelStore.of(artifacts, FASHION_MNIST.name).root,
        write=write,
        configuration=configuration,
        data=data_facts(KEY, "fashion-mnist_test.csv"),
        lineage=[{"stage": "prepare", "split": None, "key": KEY, "digest": KEY, "reused": False, "seconds": 1.0}],
        code={"revision": "c0ffee", "dirty": False},
    ).number


def _prepared(artifacts: Path) -> None:
    folder = artifacts / "prepared" / KEY[:16]
    folder.mkdir(parents=True)
    np.save(folder / "test_images.npy", scale_pixels(_images(), FASHION_MNIST))


def _compare(artifacts: Path, data: Path | None = None) -> Any:
    return compare(ModelStore.of(artifacts, FASHION_MNIST.name), artifacts, data or artifacts / "none", 1, 2)


def test_fixed_and_broken_images_whatever_the_order_of_the_rows(tmp_path: Path) -> None:
    _add(tmp_path, [0, 1, 2, 3, 4], [0, 1, 2, 9, 9], seed=0)
    _add(tmp_path, [5, 4, 3, 2, 1], [5, 9, 3, 9, 1], seed=1)
    _prepared(tmp_path)
    done = _compare(tmp_path)
    found = done.figures
    assert (found["rows"], found["fixed"], found["broken"]) == (4, 1, 1)
    assert found["rows_of_one_alone"] == {"before": 1, "after": 1}
    assert found["test_accuracy"] == {"before": 0.5, "after": 0.5}
    assert found["p_value"] == 1
    assert found["differs"] == [{"what": "seed", "before": 0, "after": 1}]
    (fixed,), (broken,) = done.fixed, done.broken
    assert (fixed.row, fixed.true, fixed.before.name, fixed.after.true) == (2, "Dress", "Ankle boot", True)
    assert (broken.row, broken.true, broken.before.true, broken.after.name) == (3, "Pullover", True, "Ankle boot")
    assert fixed.uri is not None
    assert fixed.uri != broken.uri
    assert done.without_pictures is None
    per_class = {row["name"]: (row["fixed"], row["broken"]) for row in found["per_class"]}
    assert per_class == {"Trouser": (0, 0), "Pullover": (0, 1), "Dress": (1, 0), "Coat": (0, 0)}


def test_pictures_come_from_the_csv_when_the_arrays_are_gone_and_are_the_same(tmp_path: Path) -> None:
    artifacts, data = tmp_path / "artifacts", tmp_path / "data"
    _add(artifacts, [0, 1, 2], [0, 9, 2])
    _add(artifacts, [0, 1, 2], [0, 1, 9])
    data.mkdir()
    lines = [",".join(FASHION_MNIST.columns)]
    lines += [",".join(map(str, [label, *image])) for label, image in enumerate(_images().tolist())]
    (data / "fashion-mnist_test.csv").write_text("\n".join(lines) + "\n")
    by_csv = _compare(artifacts, data)
    _prepared(artifacts)
    assert _compare(artifacts) == by_csv
    assert by_csv.without_pictures is None


def test_without_any_source_the_page_says_what_is_missing_and_what_to_do(tmp_path: Path) -> None:
    _add(tmp_path, [0, 1], [0, 9])
    _add(tmp_path, [0, 1], [0, 1])
    done = _compare(tmp_path)
    assert done.fixed[0].uri is None
    write_comparison(done, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not page.all("img")
    assert "Pictures are missing. 1 of 1 images cannot be had" in page.text
    assert "--data-dir" in page.text


def test_an_array_that_was_changed_gives_no_wrong_picture(tmp_path: Path) -> None:
    _add(tmp_path, [0, 1], [0, 9])
    _add(tmp_path, [0, 1], [0, 1])
    folder = tmp_path / "prepared" / KEY[:16]
    folder.mkdir(parents=True)
    np.save(folder / "test_images.npy", scale_pixels(255 - _images(), FASHION_MNIST))
    assert _compare(tmp_path).fixed[0].uri is None


def test_versions_of_different_images_are_refused(tmp_path: Path) -> None:
    _add(tmp_path, [0, 1], [0, 1])
    _add(tmp_path, [2, 3], [2, 3])
    with pytest.raises(WrongUsage, match="none in both"):
        _compare(tmp_path)


def test_a_version_is_not_compared_with_itself(tmp_path: Path) -> None:
    _add(tmp_path, [0, 1], [0, 1])
    with pytest.raises(WrongUsage, match="Both are version 1: two different versions were expected"):
        compare(ModelStore.of(tmp_path, FASHION_MNIST.name), tmp_path, tmp_path, 1, 1)


def test_a_damaged_version_is_not_compared(tmp_path: Path) -> None:
    _add(tmp_path, [0, 1], [0, 1])
    _add(tmp_path, [0, 1], [0, 1])
    folder = ModelStore.of(tmp_path, FASHION_MNIST.name).root / "versions"
    shutil.copyfile(folder / "0001" / "verdict.json", folder / "0002" / "test_predictions.parquet")
    with pytest.raises(StoredArtifactError, match=r"test_predictions\.parquet"):
        _compare(tmp_path)


def test_the_page_stands_alone(tmp_path: Path) -> None:
    _add(tmp_path, [0, 1, 2], [0, 9, 2])
    _add(tmp_path, [0, 1, 2], [0, 1, 9])
    _prepared(tmp_path)
    write_comparison(_compare(tmp_path), tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "://" not in html
    assert len(page.all("img")) == 2
    assert "fixed 1 and broke 1" in page.text
    assert "A row counts the test rows of version 2" in page.text
