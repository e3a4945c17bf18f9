"""Find copies and near duplicates, compared with counts by hand and with exact distances."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from schemas.contract import FASHION_MNIST, DatasetContract, contract_of
from tasks.checks import near_duplicates
from tasks.checks.near_duplicates import (
    Sketches,
    count_duplicates,
    duplicate_report,
    find_test_images_in_train,
    nearest_rows,
    sketch,
)
from tests.tasks.checks.rows import Bytes, write_rows

DIGITS = contract_of("digits")

each_contract = pytest.mark.parametrize("contract", [FASHION_MNIST, DIGITS], ids=lambda contract: contract.name)


def _sketch(images: Bytes, contract: DatasetContract) -> Sketches:
    return sketch(np.ascontiguousarray(images.T), contract)


def _find(train: Bytes, test: Bytes, contract: DatasetContract, folder: Path) -> npt.NDArray[np.uint8]:
    paths = [
        write_rows((images, np.zeros(len(images), np.uint8)), folder / name, contract)
        for images, name in ((train, "train.parquet"), (test, "test.parquet"))
    ]
    return find_test_images_in_train(_sketch(train, contract), paths[:1], _sketch(test, contract), paths[1:], contract)


def _blobs(count: int, contract: DatasetContract, seed: int) -> Bytes:
    """Return images of a few bright squares each, on background."""
    generator = np.random.default_rng(seed)
    images = np.zeros((count, contract.height, contract.width), np.uint8)
    for image in images:
        for _ in range(4):
            top, left = generator.integers(0, contract.height - 2, 2)
            image[top : top + contract.height // 3, left : left + contract.width // 3] = generator.integers(
                contract.pixel_max // 2, contract.pixel_max
            )
    return images.reshape(count, -1)


def test_duplicates_by_hand() -> None:
    train, test = (
        Sketches(np.array(numbers, np.uint64), np.zeros((4, 9), np.int16), np.zeros(4, np.bool_))
        for numbers in ([1, 3, 1, 1], [1, 5, 5, 1])
    )
    counted = duplicate_report(train, test, np.array([2, 1, 0, 2], np.uint8))
    assert (counted.within_train, counted.within_test) == (2, 2)
    assert (counted.test_rows_in_train, counted.test_rows_near_train) == (2, 1)


@each_contract
def test_sketches_match_exact_transforms(contract: DatasetContract, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.fft import dctn

    monkeypatch.setattr(near_duplicates, "SKETCHED_AT_ONCE", 7)
    images = np.random.default_rng(0).integers(0, 256, (23, contract.pixels), np.uint8)
    images[[2, 11, 22]] = np.array([[0], [200], [255]], np.uint8)  # blank, one in each of three batches
    together = _sketch(images, contract)
    alone = [_sketch(image[None], contract) for image in images]
    assert together.numbers.tolist() == [one.numbers.item() for one in alone]
    assert together.blank.tolist() == [at in (2, 11, 22) for at in range(23)]
    assert together.frequencies.dtype == np.int16
    # The lowest frequencies of a cosine transform of sums over cells, by scipy in float64; half a unit is rounding.
    side = min(7, contract.height)
    cell = np.arange(contract.height) * side // contract.height
    sums = np.zeros((23, side, side))
    np.add.at(sums, np.s_[:, cell[:, None], cell], images.reshape(23, contract.height, contract.width))
    size = np.outer(np.bincount(cell), np.bincount(cell))
    exact = dctn(sums / np.sqrt(size), axes=(1, 2), norm="ortho")[:, :3, :3].reshape(23, 9)
    unit = 255 * contract.pixels**0.5 / 32_767
    np.testing.assert_allclose(together.frequencies, exact / unit, atol=0.52, rtol=0)


@pytest.mark.parametrize(("pairs_at_once", "tree_rows"), [(7, 50), (4096, 65_536)])
@each_contract
def test_separates_copies_near_duplicates_and_others(
    contract: DatasetContract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs_at_once: int, tree_rows: int
) -> None:
    monkeypatch.setattr(near_duplicates, "PAIRS_AT_ONCE", pairs_at_once)
    monkeypatch.setattr(near_duplicates, "TREE_ROWS", tree_rows)
    train, test = _blobs(300, contract, 0), _blobs(60, contract, 1)
    assert _find(train, test, contract, tmp_path).tolist() == [0] * 60
    near = contract.near_duplicate * contract.pixel_max
    test[:20] = train[100:120]
    noisy = train[200:220].astype(int)
    # One level more or less in so many pixels that the root mean square is just within the bound, or far beyond it.
    for row, share in zip(noisy, [0.8] * 10 + [3] * 10, strict=True):
        level = 1 if near < 1 else round(near)
        changed = round(min(1, share * (near / level) ** 2) * len(row))
        row[:changed] += np.where(row[:changed] > 0, -level, level) * (1 if share < 1 else 2)
    test[20:40] = noisy.clip(0, contract.pixel_max)
    assert _find(train, test, contract, tmp_path).tolist() == [2] * 20 + [1] * 10 + [0] * 30


def test_equal_sums_are_no_duplicates() -> None:
    image = _blobs(1, FASHION_MNIST, 0).reshape(28, 28)
    other = image.copy()
    other[:4, :4] = np.arange(16).reshape(4, 4)  # the same values in another order, within one cell
    image[:4, :4] = np.arange(15, -1, -1).reshape(4, 4)
    sketches = _sketch(np.stack([image, other]).reshape(2, -1), FASHION_MNIST)
    assert np.array_equal(sketches.frequencies[0], sketches.frequencies[1])
    assert count_duplicates(sketches) == 0
    twice = Sketches.allocate(4, FASHION_MNIST)
    twice.fill(2, sketches)
    twice.fill(0, sketches)
    assert count_duplicates(twice) == 2


def test_copies_are_found_without_reading_images(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    sketches = _sketch(_blobs(50, DIGITS, 0), DIGITS)
    assert find_test_images_in_train(sketches, [missing], sketches, [missing], DIGITS).tolist() == [2] * 50


def test_sketches_survive_saving(tmp_path: Path) -> None:
    sketches = _sketch(_blobs(5, DIGITS, 0), DIGITS)
    sketches.save(tmp_path / "sketches.npz")
    stored = Sketches.load(tmp_path / "sketches.npz", 5, DIGITS)
    for name, values in vars(sketches).items():
        np.testing.assert_array_equal(getattr(stored, name), values)


@each_contract
def test_frequencies_are_a_lower_bound_of_distances(contract: DatasetContract) -> None:
    unit = 255 * contract.pixels**0.5 / 32_767

    def distances(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.linalg.norm(rows[:, None] - rows[None], axis=2)

    noise = np.random.default_rng(0).integers(0, contract.pixel_max + 1, (40, contract.pixels), np.uint8)
    images = np.concatenate([_blobs(40, contract, 0), noise])
    frequencies = _sketch(images, contract).frequencies * unit
    assert frequencies.shape == (80, 9)
    assert (distances(frequencies) <= distances(images.astype(float)) + 3 * unit).all()
    # Nearly equal for images that differ in their lowest frequencies only.
    even = np.array([np.full(contract.pixels, level, np.uint8) for level in (0, contract.pixel_max)])
    share = distances(_sketch(even, contract).frequencies * unit)[0, 1] / distances(even.astype(float))[0, 1]
    assert share == pytest.approx(1 if contract is FASHION_MNIST else 0.98, abs=0.02)


def test_blank_images_have_one_value() -> None:
    images = np.zeros((4, 784), np.uint8)
    images[1] = 255
    images[2, 400] = 1
    images[3].reshape(28, 28)[:, ::2] = 9  # every cell has the same mean
    assert _sketch(images, FASHION_MNIST).blank.tolist() == [True, True, False, False]


def test_nearest_rows_are_those_of_all_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    rows, queries = (generator.integers(-9_000, 9_000, (count, 9), np.int16) for count in (100, 20))
    exact = np.linalg.norm(queries[:, None].astype(float) - rows[None], axis=2)
    expected = np.sort(exact, axis=1)[:, :4]
    reach = float(np.median(expected))
    for tree_rows, query_rows in ((7, 6), (100, 16_384)):
        monkeypatch.setattr(near_duplicates, "TREE_ROWS", tree_rows)
        monkeypatch.setattr(near_duplicates, "QUERY_ROWS", query_rows)
        distances, places = nearest_rows(rows, queries, reach)
        np.testing.assert_allclose(distances, np.where(expected < reach, expected, np.inf))
        within = np.isfinite(distances)
        assert 0 < within.sum() < within.size
        assert (places[within] == np.argsort(exact, axis=1)[:, :4][within]).all()


def test_rounding_hides_no_near_duplicate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every pixel is brighter by the largest allowed difference, all of which is in the lowest frequency.
    contract = replace(FASHION_MNIST, near_duplicate=5.001 / 255)
    train = np.random.default_rng(0).integers(0, 251, (200, 784), np.uint8)
    monkeypatch.setattr(near_duplicates, "NEAREST", 100)  # noise images have similar sums
    assert _find(train, train + np.uint8(5), contract, tmp_path).tolist() == [1] * 200
