"""Profile statistics, compared with hand-worked arrays and with other implementations."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from schemas.contract import FASHION_MNIST, Split, contract_of
from schemas.layout import PROFILE_NAME
from schemas.references import ValidatedSplit
from tasks.checks.image_profile import (
    balanced_agreement,
    histogram,
    mean_images,
    most_similar,
    profile_images,
    read_profile,
    standardized,
    variance_explained,
    write_profile,
)
from tests.tasks.checks.rows import read_rows

DIGITS = contract_of("digits")


def test_mean_images_by_hand() -> None:
    images = np.array([[0, 10], [4, 21], [9, 30]], np.uint8)
    means = mean_images(images, np.array([0, 0, 2], np.uint8))
    assert {label: mean.tolist() for label, mean in means.items()} == {0: [2, 15.5], 2: [9, 30]}


def test_products_of_standardized_images_are_correlations() -> None:
    images = np.random.default_rng(0).integers(0, 200, (3, 50))
    np.testing.assert_allclose(standardized(images) @ standardized(images * 2 + 7).T, np.corrcoef(images), atol=1e-5)
    assert not standardized(np.full((1, 50), 7)).any()  # no contrast


def test_most_similar_has_the_largest_correlation() -> None:
    generator = np.random.default_rng(0)
    images, others = generator.integers(0, 256, (500, 50), np.uint8), generator.random((7, 50))
    expected = np.corrcoef(images, others)[:500, 500:].argmax(axis=1)
    assert most_similar(images, standardized(others)).tolist() == expected.tolist()


def test_variance_explained_matches_analysis_of_variance() -> None:
    from scipy.stats import f_oneway

    labels = np.repeat(np.arange(3, dtype=np.uint8), 20)
    generator = np.random.default_rng(0)
    assert variance_explained((labels * 50)[:, None], labels) == pytest.approx(1)
    assert variance_explained(labels[:, None], np.arange(60, dtype=np.uint8)) == 0  # one row per class
    unrelated = [variance_explained(generator.integers(0, 9, (60, 5), np.uint8), labels) for _ in range(200)]
    assert np.mean(unrelated) == pytest.approx(0, abs=0.01)
    values = (generator.integers(0, 100, 60) + labels * 20).astype(np.uint8)
    f = f_oneway(*(values[labels == label] for label in range(3))).statistic
    expected = 2 * (f - 1) / (2 * (f - 1) + 60)
    assert variance_explained(values[:, None], labels) == pytest.approx(expected, abs=1e-5)
    # A larger class does not change the result.
    more = np.concatenate([np.tile(values[:20], 9), values[20:]])
    again = variance_explained(more[:, None], np.repeat(np.arange(3, dtype=np.uint8), [180, 20, 20]))
    assert again == pytest.approx(expected, abs=0.03)


def test_agreement_weighs_classes_alike() -> None:
    labels = np.array([0, 0, 0, 2], np.uint8)
    share, rows = balanced_agreement(np.array([True, True, False, True]), labels)
    assert share == pytest.approx((2 / 3 + 1) / 2)
    assert rows == pytest.approx(2**2 / (1 / 3 + 1))


def test_histogram_separates_background() -> None:
    images = np.array([[0, 0, 1, 16, 17, 255]], np.uint8)
    assert (histogram(images, FASHION_MNIST) * 6).round().tolist() == [2, 2, 1, *[0] * 13, 1]
    assert histogram(np.arange(17, dtype=np.uint8)[None], DIGITS).tolist() == pytest.approx([1 / 17] * 17)


def test_histogram_starts_at_the_smallest_pixel() -> None:
    contract = replace(DIGITS, pixel_min=100, pixel_max=132, background=100)  # two values per bin
    images = np.array([[100, 100, 101, 102, 103, 130, 131, 132]], np.uint8)
    assert (histogram(images, contract) * 8).tolist() == [2, 2, 1, *[0] * 12, 1, 2]


def test_profile_survives_writing(sample_data: dict[Split, ValidatedSplit], tmp_path: Path) -> None:
    train = sample_data["train"]
    profile = profile_images(*read_rows(*train.data.files), FASHION_MNIST)
    write_profile(tmp_path / PROFILE_NAME, profile)
    # All 1,000 rows are within the sample that validate uses.
    assert (tmp_path / PROFILE_NAME).read_bytes() == (train.record.path / PROFILE_NAME).read_bytes()
    assert read_profile((tmp_path / PROFILE_NAME).read_bytes()) == profile
    assert profile.class_rows == [100] * 10
