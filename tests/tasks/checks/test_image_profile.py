"""What is measured of images, against the same by another way."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.make_profile import make_reference
from schemas.contract import DIGITS, FASHION_MNIST, Split
from schemas.errors import WrongUsage
from schemas.layout import PROFILE_NAME
from schemas.references import ValidatedSplit
from tasks.checks.image_checks import orientations
from tasks.checks.image_profile import (
    histogram,
    most_alike,
    profile_images,
    read_profile,
    similarity,
    standardized,
    variance_explained,
    write_profile,
)
from tasks.data.splits import read_images


def test_likeness_is_pearsons_correlation_whatever_the_brightness() -> None:
    images = np.random.default_rng(0).integers(0, 200, (3, 50))
    expected = np.corrcoef(images)
    np.testing.assert_allclose(similarity(images, images * 2 + 7), expected, atol=1e-5)
    assert similarity(np.zeros((1, 50)), images).tolist() == [[0, 0, 0]]


def test_the_most_alike_is_that_with_the_largest_correlation() -> None:
    generator = np.random.default_rng(0)
    images, others = generator.integers(0, 256, (500, 50), np.uint8), generator.random((7, 50))
    expected = np.corrcoef(images, others)[:500, 500:].argmax(axis=1)
    assert most_alike(images, standardized(others)).tolist() == expected.tolist()


def test_variance_explained_is_all_nothing_or_what_analysis_of_variance_says() -> None:
    from scipy.stats import f_oneway

    labels = np.repeat(np.arange(3, dtype=np.uint8), 20)
    generator = np.random.default_rng(0)
    assert variance_explained((labels * 50)[:, None], labels) == pytest.approx(1)
    unrelated = [variance_explained(generator.integers(0, 9, (60, 5), np.uint8), labels) for _ in range(200)]
    assert np.mean(unrelated) == pytest.approx(0, abs=0.01)
    values = (generator.integers(0, 100, 60) + labels * 20).astype(np.uint8)
    f = f_oneway(*(values[labels == label] for label in range(3))).statistic
    assert variance_explained(values[:, None], labels) == pytest.approx(2 * (f - 1) / (2 * (f - 1) + 60), abs=1e-5)
    # Some rows of a class more say the same.
    more = np.concatenate([np.tile(values[:20], 9), values[20:]])
    again = variance_explained(more[:, None], np.repeat(np.arange(3, dtype=np.uint8), [180, 20, 20]))
    assert again == pytest.approx(2 * (f - 1) / (2 * (f - 1) + 60), abs=0.03)


def test_the_histogram_keeps_background_apart_and_has_every_pixel() -> None:
    images = np.array([[0, 0, 1, 16, 17, 255]], np.uint8)
    shares = histogram(images, FASHION_MNIST)
    assert (shares * 6).round().tolist() == [2, 2, 1, *[0] * 13, 1]
    assert histogram(np.arange(17, dtype=np.uint8)[None], DIGITS).tolist() == pytest.approx([1 / 17] * 17)


def test_every_orientation_is_another_and_turns_as_it_says() -> None:
    image = np.arange(784, dtype=np.float32)[None]
    laid = orientations(image, FASHION_MNIST)
    assert len({one.tobytes() for one in laid.values()}) == 8
    right = np.rot90(image.reshape(28, 28), -1).ravel()
    np.testing.assert_array_equal(laid["turned by 90 degrees to the right"][0], right)


def test_a_profile_is_read_as_it_was_written(sample_data: dict[Split, ValidatedSplit], tmp_path: Path) -> None:
    train = sample_data["train"]
    images, labels = read_images(train.data.path, FASHION_MNIST)
    profile = profile_images(images, labels.astype(np.uint8), FASHION_MNIST)
    write_profile(tmp_path / PROFILE_NAME, profile)
    # All 1,000 rows are within the sample that validate looks at.
    assert (tmp_path / PROFILE_NAME).read_bytes() == (train.record.path / PROFILE_NAME).read_bytes()
    assert read_profile((tmp_path / PROFILE_NAME).read_bytes()) == profile
    assert profile.class_rows == [100] * 10


def test_the_reference_of_the_digits_is_what_the_command_makes_of_them(tmp_path: Path) -> None:
    make_reference("digits", tmp_path, tmp_path / "digits.json")
    assert DIGITS.reference is not None
    assert json.loads((tmp_path / "digits.json").read_bytes()) == json.loads(DIGITS.reference.read_bytes())


def test_a_reference_is_made_of_published_data_alone(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"digits_{split}.csv").write_text("label\n")
    with pytest.raises(WrongUsage, match="published train split was expected"):
        make_reference("digits", tmp_path, tmp_path / "digits.json")
