"""Images that occur more than once: counted by hand, and found all but to the byte."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.contract import DIGITS, FASHION_MNIST, DatasetContract
from tasks.checks import near_duplicates as module
from tasks.checks.near_duplicates import Sketches, count_duplicates, duplicate_report, find_test_images_in_train, sketch


def _sketched(images: npt.NDArray[np.uint8], contract: DatasetContract, path: Path) -> Sketches:
    table = np.ascontiguousarray(np.column_stack([np.zeros(len(images), np.uint8), images]).T)
    pq.write_table(pa.table(dict(zip(contract.columns, table, strict=True))), path)
    return sketch(np.ascontiguousarray(images.T), contract)


def _find(
    train: npt.NDArray[np.uint8], test: npt.NDArray[np.uint8], contract: DatasetContract, folder: Path
) -> npt.NDArray[np.uint8]:
    known, ours = folder / "train.parquet", folder / "test.parquet"
    return find_test_images_in_train(
        _sketched(train, contract, known), known, _sketched(test, contract, ours), ours, contract
    )


def _blobs(count: int, contract: DatasetContract, seed: int) -> npt.NDArray[np.uint8]:
    """Images of a few bright squares each, on background."""
    generator = np.random.default_rng(seed)
    images = np.zeros((count, contract.height, contract.width), np.uint8)
    for image in images:
        for _ in range(4):
            top, left = generator.integers(0, contract.height - 2, 2)
            image[top : top + contract.height // 3, left : left + contract.width // 3] = generator.integers(
                contract.pixel_max // 2, contract.pixel_max
            )
    return images.reshape(count, -1)


def test_duplicates_are_counted_by_hand() -> None:
    train, test = (
        Sketches(np.array(numbers, np.uint64), np.zeros((4, 9), np.int16), np.zeros(4, np.bool_))
        for numbers in ([1, 3, 1, 1], [1, 5, 5, 1])
    )
    counted = duplicate_report(train, test, np.array([2, 1, 0, 2], np.uint8))
    assert (counted.within_train, counted.within_test) == (2, 2)
    assert (counted.test_rows_in_train, counted.test_rows_near_train) == (2, 1)


@pytest.mark.parametrize("contract", [FASHION_MNIST, DIGITS], ids=lambda contract: contract.name)
def test_each_image_has_the_sketch_that_it_has_alone(
    contract: DatasetContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scipy.fft import dctn

    monkeypatch.setattr(module, "_SUMMED_UP_AT_ONCE", 7)
    images = np.random.default_rng(0).integers(0, 256, (23, contract.pixels), np.uint8)
    images[[2, 11, 22]] = np.array([[0], [200], [255]], np.uint8)  # blank, one in each of three pieces
    together = sketch(np.ascontiguousarray(images.T), contract)
    alone = [sketch(image[:, None], contract) for image in images]
    assert together.numbers.tolist() == [one.numbers.item() for one in alone]
    assert together.blank.tolist() == [at in (2, 11, 22) for at in range(23)]
    assert together.frequencies.dtype == np.int16
    # The lowest of a cosine transform of sums over cells, by scipy in float64; half a unit is rounding.
    side = min(7, contract.height)
    of_cell = np.arange(contract.height) * side // contract.height
    sums = np.zeros((23, side, side))
    np.add.at(sums, np.s_[:, of_cell[:, None], of_cell], images.reshape(23, contract.height, contract.width))
    size = np.outer(np.bincount(of_cell), np.bincount(of_cell))
    exact = dctn(sums / np.sqrt(size), axes=(1, 2), norm="ortho")[:, :3, :3].reshape(23, 9)
    unit = 255 * contract.pixels**0.5 / 32_767
    np.testing.assert_allclose(together.frequencies, exact / unit, atol=0.52, rtol=0)


@pytest.mark.parametrize(("compared_at_once", "in_a_tree"), [(7, 50), (4096, 65_536)])
@pytest.mark.parametrize("contract", [FASHION_MNIST, DIGITS], ids=lambda contract: contract.name)
def test_the_same_and_nearly_the_same_are_told_from_others(
    contract: DatasetContract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared_at_once: int, in_a_tree: int
) -> None:
    monkeypatch.setattr(module, "_COMPARED_AT_ONCE", compared_at_once)
    monkeypatch.setattr(module, "_IN_A_TREE", in_a_tree)
    train, test = _blobs(300, contract, 0), _blobs(60, contract, 1)
    assert _find(train, test, contract, tmp_path).tolist() == [0] * 60
    near = contract.near_duplicate * contract.pixel_max
    test[:20] = train[100:120]
    noisy = train[200:220].astype(int)
    # Changed by one level in so many pixels that the root mean square is just within, or well past, what is allowed.
    for row, share in zip(noisy, [0.8] * 10 + [3] * 10, strict=True):
        level = 1 if near < 1 else round(near)
        changed = round(min(1, share * (near / level) ** 2) * len(row))
        row[:changed] += np.where(row[:changed] > 0, -level, level) * (1 if share < 1 else 2)
    test[20:40] = noisy.clip(0, contract.pixel_max)
    assert _find(train, test, contract, tmp_path).tolist() == [2] * 20 + [1] * 10 + [0] * 30


def test_images_that_share_all_sums_are_no_duplicates(tmp_path: Path) -> None:
    image = _blobs(1, FASHION_MNIST, 0).reshape(28, 28)
    other = image.copy()
    other[:4, :4] = np.arange(16).reshape(4, 4)  # the same values in another order, within one cell
    image[:4, :4] = np.arange(15, -1, -1).reshape(4, 4)
    pair = np.stack([image, other]).reshape(2, -1)
    sketches = sketch(np.ascontiguousarray(pair.T), FASHION_MNIST)
    assert np.array_equal(sketches.frequencies[0], sketches.frequencies[1])
    assert count_duplicates(sketches) == 0
    twice = Sketches.allocate(4, FASHION_MNIST)
    twice.fill(2, sketches)
    twice.fill(0, sketches)
    assert count_duplicates(twice) == 2


def test_every_row_of_train_in_test_is_found_without_a_look_at_pixels(tmp_path: Path) -> None:
    train = _blobs(50, DIGITS, 0)
    missing = tmp_path / "not there"
    sketches = sketch(np.ascontiguousarray(train.T), DIGITS)
    assert find_test_images_in_train(sketches, missing, sketches, missing, DIGITS).tolist() == [2] * 50


def test_sketches_are_kept_as_they_are(tmp_path: Path) -> None:
    sketches = sketch(np.ascontiguousarray(_blobs(5, DIGITS, 0).T), DIGITS)
    sketches.save(tmp_path / "sketches.npz")
    stored = Sketches.load(tmp_path / "sketches.npz")
    for name, values in vars(sketches).items():
        np.testing.assert_array_equal(getattr(stored, name), values)


def _in_pixel_values(images: npt.NDArray[np.uint8], contract: DatasetContract) -> npt.NDArray[np.float64]:
    frequencies = sketch(np.ascontiguousarray(images.T), contract).frequencies
    assert frequencies.dtype == np.int16
    return frequencies * (255 * contract.pixels**0.5 / 32_767)


@pytest.mark.parametrize("contract", [FASHION_MNIST, DIGITS], ids=lambda contract: contract.name)
def test_frequencies_never_make_two_images_more_distant_than_they_are(contract: DatasetContract) -> None:
    generator = np.random.default_rng(0)
    images = np.concatenate(
        [_blobs(40, contract, 0), generator.integers(0, contract.pixel_max + 1, (40, contract.pixels), np.uint8)]
    )
    frequencies = _in_pixel_values(images, contract)
    assert frequencies.shape == (80, 9)

    def distances(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.linalg.norm(rows[:, None] - rows[None], axis=2)

    rounded = 3 * 255 * contract.pixels**0.5 / 32_767
    assert (distances(frequencies) <= distances(images.astype(float)) + rounded).all()
    # Nor less by much where only slow changes tell them apart.
    even = np.array([np.full(contract.pixels, level, np.uint8) for level in (0, contract.pixel_max)])
    share = distances(_in_pixel_values(even, contract))[0, 1] / distances(even.astype(float))[0, 1]
    assert share == pytest.approx(1 if contract is FASHION_MNIST else 0.98, abs=0.02)


def test_blank_images_are_those_of_one_value() -> None:
    images = np.zeros((4, 784), np.uint8)
    images[1] = 255
    images[2, 400] = 1
    images[3].reshape(28, 28)[:, ::2] = 9  # every cell has the same mean
    assert sketch(np.ascontiguousarray(images.T), FASHION_MNIST).blank.tolist() == [True, True, False, False]


def test_the_nearest_are_those_of_all_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    known, asked = (generator.integers(-9_000, 9_000, (rows, 9), np.int16) for rows in (100, 20))
    apart = np.linalg.norm(asked[:, None].astype(float) - known[None], axis=2)
    expected = np.sort(apart, axis=1)[:, :4]
    reach = float(np.median(expected))  # beyond it nothing is told
    for in_a_tree, asked_at_once in ((7, 6), (100, 16_384)):
        monkeypatch.setattr(module, "_IN_A_TREE", in_a_tree)
        monkeypatch.setattr(module, "_ASKED_AT_ONCE", asked_at_once)
        distances, places = module._nearest(known, asked, reach)
        np.testing.assert_allclose(distances, np.where(expected < reach, expected, np.inf))
        within = np.isfinite(distances)
        assert 0 < within.sum() < within.size
        assert (places[within] == np.argsort(apart, axis=1)[:, :4][within]).all()


def test_rounded_frequencies_hide_no_image_that_is_just_near_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every pixel is brighter by as much as is allowed: all of the difference is in the lowest frequency.
    contract = replace(FASHION_MNIST, near_duplicate=5.001 / 255)
    train = np.random.default_rng(0).integers(0, 251, (200, 784), np.uint8)
    monkeypatch.setattr(module, "_NEAREST", 100)  # images of noise are all near each other by their sums
    assert _find(train, train + np.uint8(5), contract, tmp_path).tolist() == [1] * 200
