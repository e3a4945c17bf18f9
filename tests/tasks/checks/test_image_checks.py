"""Damage the sample in known ways: each fault is reported for what it is, and nothing else is."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.contract import FASHION_MNIST, Split, contract_of
from schemas.references import ValidatedSplit
from tasks.checks.image_checks import measure_checks, measure_predicted
from tasks.checks.image_profile import ImageProfile, profile_images
from tasks.checks.measurements import (
    Measurement,
    best_renaming,
    border_brightness,
    describe_renaming,
    measure_labels,
    measure_pixel_range,
    orientations,
)
from tasks.checks.scan import PredictedImages, scan_split
from tests.tasks.checks.rows import (
    Change,
    Rows,
    blank,
    in_rows,
    inverted,
    mirrored,
    on_images,
    on_labels,
    on_squares,
    read_rows,
    shifted,
    transposed,
    write_rows,
)

DIGITS = contract_of("digits")


@pytest.fixture(scope="module")
def real(sample_data: dict[Split, ValidatedSplit]) -> Rows:
    return read_rows(*sample_data["train"].data.files)


def _measure(rows: Rows, folder: Path, champion: ImageProfile | None = None) -> dict[str, Measurement]:
    scan = scan_split([write_rows(rows, folder / "data.parquet")], FASHION_MNIST)
    assert scan.sample is not None
    profile = profile_images(scan.sample.images, scan.sample.labels, FASHION_MNIST)
    return measure_checks(scan, scan.sample, profile, FASHION_MNIST, champion)


def _beyond(measured: dict[str, Measurement]) -> dict[str, str]:
    """Return the checks that warn or fail."""
    return {
        check.name: "fail" if check.fails(measured[check.name].value) else "warn"
        for check in FASHION_MNIST.checks
        if check.name in measured and check.warns(measured[check.name].value)
    }


def _of_classes(counts: dict[int, int], others: int) -> Change:
    """Take the first rows of each class: ``counts`` of its label, else ``others``."""

    def change(rows: Rows) -> Rows:
        chosen = [np.flatnonzero(rows[1] == label)[: counts.get(label, others)] for label in range(10)]
        return rows[0][np.concatenate(chosen)], rows[1][np.concatenate(chosen)]

    return change


def _set_pixel(pixel: int, value: int) -> Change:
    return on_images(lambda images: np.where(np.arange(784) == pixel, value, images))


_SHUFFLE = np.random.default_rng(0).permutation
_INVERTED = {"polarity": "fail", "inverted_images": "fail", "drift": "warn"}
_CHUNKS = {"faulty_chunks": "fail"}


@pytest.mark.parametrize(
    ("change", "beyond", "detail"),
    [
        pytest.param(lambda rows: rows, {}, "", id="correct"),
        pytest.param(inverted, _INVERTED, "the images look inverted, background is 255", id="inverted"),
        pytest.param(transposed, {"orientation": "fail"}, "transposed", id="transposed"),
        pytest.param(mirrored, {"orientation": "fail"}, "mirrored left to right", id="mirrored"),
        pytest.param(
            on_squares(lambda image: np.rot90(image, -1, (1, 2))), {"orientation": "fail"}, "90 degrees to the right",
            id="turned",
        ),
        pytest.param(
            lambda rows: shifted(transposed(inverted(rows))),
            {"orientation": "fail", "label_permutation": "fail", **_INVERTED},
            "labels look shifted by one", id="inverted, transposed and shifted",
        ),
        pytest.param(shifted, {"label_permutation": "fail"}, "shifted by one", id="labels shifted"),
        pytest.param(
            on_labels(lambda labels: (labels + 8) % 10), {"label_permutation": "fail"}, "shifted by -2",
            id="labels shifted back",
        ),
        pytest.param(
            on_labels(lambda labels: np.array([0, 8, 2, 3, 4, 5, 6, 7, 1, 9])[labels]), {"label_permutation": "fail"},
            "1 (Trouser) looks like 8 (Bag), 8 (Bag) looks like 1 (Trouser)", id="two classes swapped",
        ),
        pytest.param(
            on_labels(_SHUFFLE), {"label_relation": "fail", "label_agreement": "fail"}, "the labels look shuffled",
            id="labels shuffled",
        ),
        pytest.param(
            on_images(lambda images: np.roll(images, 1, axis=1)), {"position": "fail"}, "moved by a pixel",
            id="columns moved by one",
        ),
        pytest.param(
            on_squares(lambda image: np.roll(image, 5, 1)), {"position": "fail"},
            "moved by a pixel or more", id="rows moved by five",
        ),
        pytest.param(
            on_images(lambda images: images // 2), {"brightest_pixel": "fail", "drift": "warn"},
            "the largest pixel of the median image is 127, the range ends at 255", id="half the range",
        ),
        pytest.param(
            on_images(lambda images: images > 127),
            {"brightest_pixel": "fail", "drift": "warn", "constant_columns": "warn"},
            "the largest pixel of the median image is 1", id="zeros and ones",
        ),
        pytest.param(
            on_images(lambda images: np.maximum(images, 30)), {"background": "fail", "drift": "warn"},
            "1000 of 1000 sampled images have no pixel of 0, the background; the smallest pixel of the median image is "
            "30", id="another background",
        ),
        pytest.param(_of_classes({2: 50, 6: 50}, others=9), {}, "", id="two large classes that are similar"),
        pytest.param(
            lambda rows: (rows[0][:, _SHUFFLE(784)], rows[1]), {"similarity": "fail", "inverted_images": "fail"},
            "the pixels look permuted", id="pixels permuted",
        ),
        pytest.param(
            on_images(lambda images: np.random.default_rng(0).integers(0, 256, images.shape)),
            {"similarity": "fail", "inverted_images": "fail", "drift": "warn", "background": "warn"}, "look",
            id="noise",
        ),
        pytest.param(in_rows(0, 11, inverted), {"inverted_images": "fail"}, "11 of 1000 sampled", id="some inverted"),
        pytest.param(_set_pixel(406, 128), {"constant_columns": "warn"}, "pixel407", id="constant column"),
        pytest.param(_set_pixel(0, 255), {"constant_columns": "warn"}, "pixel1", id="constant column of the border"),
        pytest.param(
            on_images(lambda images: np.where(np.arange(784) % 10 == 3, 0, images)), {"constant_columns": "fail"},
            "pixel4, pixel14, pixel24", id="many constant columns",
        ),
        pytest.param(
            in_rows(286, 572, mirrored), _CHUNKS, "about rows 287 to 572: the images look mirrored left to right",
            id="mirrored chunks",
        ),
        pytest.param(
            in_rows(330, 480, transposed), _CHUNKS, "about rows 287 to 429: the images look transposed",
            id="transposed across a boundary",
        ),
        pytest.param(
            in_rows(0, 429, inverted),
            {"inverted_images": "fail", "drift": "warn", "background": "warn", **_CHUNKS},
            "about rows 1 to 429: the images look inverted", id="inverted chunks",
        ),
        pytest.param(
            in_rows(715, 1_000, on_images(lambda images: images // 2)), {"drift": "warn", **_CHUNKS},
            "about rows 716 to 1,000: the largest pixel of the median image is 127", id="half the range in chunks",
        ),
        pytest.param(
            in_rows(143, 429, shifted), _CHUNKS, "about rows 144 to 429: the labels look shifted by one",
            id="chunks with shifted labels",
        ),
        pytest.param(
            in_rows(143, 286, on_labels(_SHUFFLE)), _CHUNKS,
            "of 143 images are most similar to the baseline's mean image of their own class",
            id="chunk with shuffled labels",
        ),
        pytest.param(
            lambda rows: (rows[0][np.argsort(rows[1], kind="stable")], np.sort(rows[1])), {}, "", id="sorted by class",
        ),
        pytest.param(
            blank, {"blank_images": "fail", "repeated_images": "fail"},
            "1000 of 1000 images have the same value in every pixel", id="all blank",
        ),
        pytest.param(in_rows(0, 1, blank), {"blank_images": "warn"}, "1 of 1000", id="one blank"),
        pytest.param(
            in_rows(0, 11, blank), {"blank_images": "fail", "repeated_images": "warn"}, "11 of 1000 images have",
            id="some blank",
        ),
        pytest.param(
            lambda rows: (np.concatenate([rows[0], rows[0][:3]]), np.concatenate([rows[1], rows[1][:3]])),
            {"repeated_images": "warn"}, "3 of 1003 images repeat an earlier row", id="repeated rows",
        ),
        pytest.param(
            lambda rows: tuple(part[(rows[1] != 3) | (np.cumsum(rows[1] == 3) <= 5)] for part in rows),
            {"class_imbalance": "warn"}, "rows of the largest class per row of the smallest", id="a small class",
        ),
        pytest.param(
            on_images(lambda images: np.minimum(images * 1.2, 255)), {"drift": "warn"}, "from that of the baseline",
            id="brighter",
        ),
    ],
)  # fmt: skip
def test_reports_each_fault_once(
    real: Rows, tmp_path: Path, change: Change, beyond: dict[str, str], detail: str
) -> None:
    measured = _measure(change(real), tmp_path)
    assert _beyond(measured) == beyond
    assert detail in "; ".join(measured[name].detail for name in beyond)


def test_chunks_name_rows_of_the_file(real: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.checks.scan.SAMPLE_ROWS", 512)
    upside_down = in_rows(1_400, 2_000, on_squares(lambda image: image[:, ::-1]))
    rows = upside_down((np.tile(real[0], (2, 1)), np.tile(real[1], 2)))
    detail = _measure(rows, tmp_path)["faulty_chunks"].detail
    match = re.fullmatch(r"about rows ([\d,]+) to ([\d,]+): the images look mirrored top to bottom", detail)
    assert match is not None
    first, last = (int(number.replace(",", "")) for number in match.groups())
    assert 1_400 < first < 1_600
    assert 1_980 < last <= 2_000


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_labels_are_no_faulty_chunks(real: Rows, tmp_path: Path, seed: int) -> None:
    measured = _measure((real[0], np.random.default_rng(seed).permutation(real[1])), tmp_path)
    assert "the labels look shuffled" in measured["label_relation"].detail
    assert measured.get("faulty_chunks", Measurement(0)).value == 0


def test_adjacent_faults_are_separate(real: Rows, tmp_path: Path) -> None:
    rows = in_rows(286, 429, shifted)(in_rows(143, 286, transposed)(real))
    detail = _measure(rows, tmp_path)["faulty_chunks"].detail
    assert re.fullmatch("about rows 144 to 286: .* transposed .*; about rows 287 to 429: .* shifted by one: .*", detail)


def test_blank_chunks_are_only_blank(real: Rows, tmp_path: Path) -> None:
    beyond = _beyond(_measure(in_rows(143, 286, blank)(real), tmp_path))
    assert {name for name, word in beyond.items() if word == "fail"} == {"blank_images", "repeated_images"}


def test_few_inverted_images_hide_no_fault(real: Rows, tmp_path: Path) -> None:
    beyond = _beyond(_measure(in_rows(0, 20, inverted)(transposed(real)), tmp_path))
    assert beyond == {"orientation": "fail", "inverted_images": "fail", "background": "warn"}


def test_swapped_classes_show_in_100_rows(real: Rows, tmp_path: Path) -> None:
    swapped = np.array([0, 1, 6, 3, 4, 5, 2, 7, 8, 9], np.uint8)[real[1][:100]]
    measured = _measure((real[0][:100], swapped), tmp_path)
    assert "label_permutation" in _beyond(measured)
    assert "6 (Shirt) looks like 2 (Pullover)" in measured["label_permutation"].detail


@pytest.mark.parametrize("rows", [100, 300])
def test_accepts_few_correct_rows(real: Rows, tmp_path: Path, rows: int) -> None:
    for seed in range(3):
        drawn = np.random.default_rng(seed).choice(1_000, rows, replace=False)
        assert _beyond(_measure((real[0][drawn], real[1][drawn]), tmp_path)) == {}


def test_drift_is_measured_from_the_champion(real: Rows, tmp_path: Path) -> None:
    images, labels = real
    brighter = np.minimum(images * 1.3, 255).astype(np.uint8)
    champion = profile_images(brighter, labels, FASHION_MNIST)
    measured = _measure(real, tmp_path, champion)
    assert _beyond(measured) == {"drift": "warn"}
    assert "the champion's train split" in measured["drift"].detail
    assert _measure((brighter, labels), tmp_path, champion)["drift"].value == pytest.approx(0, abs=0.01)
    # By definition: the square root of the mean of two Kullback-Leibler divergences from the mean histogram.
    both = [np.array(profile_images(one, labels, FASHION_MNIST).histogram) for one in (images, brighter)]
    middle = sum(both) / 2
    divergence = sum((part * np.log2(part / middle, where=part > 0, out=np.zeros(17))).sum() for part in both)
    assert measured["drift"].value == pytest.approx((divergence / 2) ** 0.5, abs=1e-3)


# --- without labels ---


def _predicted(rows: Rows, size: int = 300) -> PredictedImages:
    """Collect images in batches, with their labels as the classes that are predicted."""
    seen = PredictedImages(FASHION_MNIST)
    for start in range(0, len(rows[1]), size):
        seen.add(rows[0][start : start + size], rows[1][start : start + size])
    return seen


def test_the_sample_does_not_depend_on_the_batches(real: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.checks.scan.SAMPLE_ROWS", 100)
    drawn = _predicted(real).drawn
    assert len(drawn.rows) == 100
    assert (np.diff(drawn.rows) > 0).all()
    assert (drawn.images == real[0][drawn.rows]).all()
    assert (drawn.labels == real[1][drawn.rows]).all()
    assert drawn.rows[0] < 100 < 900 < drawn.rows[-1]
    for size in (7, 1_000):
        assert (_predicted(real, size).drawn.rows == drawn.rows).all()


def test_all_rows_count_for_blank_and_constant(real: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.checks.scan.SAMPLE_ROWS", 100)
    profile = profile_images(*real, FASHION_MNIST)
    images = real[0].copy()
    images[:, 406] = 128
    images[[1, 500, 999]] = 128
    measured = measure_predicted(_predicted((images, real[1])), FASHION_MNIST, profile)
    assert measured["blank_images"].value == 0.003
    assert measured["constant_columns"].detail == "pixel407"


@pytest.mark.parametrize("label", range(10))
def test_drift_is_from_the_classes_predicted(real: Rows, label: int) -> None:
    profile = profile_images(*real, FASHION_MNIST)
    images = real[0][real[1] == label]
    measured = measure_predicted(_predicted((images, real[1][real[1] == label])), FASHION_MNIST, profile)
    assert not _beyond(measured)
    assert measured["drift"].value < 0.02
    brighter = np.minimum(images * 1.2, 255).astype(np.uint8)
    measured = measure_predicted(_predicted((brighter, real[1][real[1] == label])), FASHION_MNIST, profile)
    assert _beyond(measured) == {"drift": "warn"}


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (transposed, "about rows 716 to 1,000: the images look transposed (rows are columns)"),
        (on_squares(lambda image: image.repeat(2, 1).repeat(2, 2)[:, 14:42, 14:42]), "about rows 716 to 1,000: "),
    ],
    ids=["transposed", "enlarged"],
)  # fmt: skip
def test_faulty_chunks_need_no_labels(real: Rows, change: Change, detail: str) -> None:
    profile = profile_images(*real, FASHION_MNIST)
    measured = measure_predicted(_predicted(in_rows(715, 1_000, change)(real)), FASHION_MNIST, profile)
    assert "faulty_chunks" in _beyond(measured)
    assert detail in measured["faulty_chunks"].detail


# --- by hand ---


def test_orientations_differ_and_turn_right() -> None:
    image = np.arange(784, dtype=np.float32)[None]
    views = orientations(image, FASHION_MNIST)
    assert len({view.tobytes() for view in views.values()}) == 8
    right = np.rot90(image.reshape(28, 28), -1).ravel()
    np.testing.assert_array_equal(views["turned by 90 degrees to the right"][0], right)


_THREE_BY_THREE = replace(DIGITS, height=3, width=3, pixel_min=10, pixel_max=110, background=10)


def test_border_brightness_by_hand() -> None:
    images = np.full((4, 9), 10, np.uint8)
    images[1] = 110
    images[2, 4] = 110  # the only pixel that is not at the border
    images[3, [0, 1, 2, 3]] = 110
    assert border_brightness(images, _THREE_BY_THREE).tolist() == [0, 1, 0, 0.5]


def test_pixel_range_starts_at_the_smallest_pixel() -> None:
    images = np.array([[10, 110], [11, 60], [12, 35]], np.uint8)
    measured = measure_pixel_range(images, _THREE_BY_THREE)
    assert measured["background"].value == pytest.approx(2 / 3)
    assert measured["brightest_pixel"].value == 0.5
    assert "2 of 3 sampled images have no pixel of 10" in measured["background"].detail


_CLASSES = replace(DIGITS, labels=dict(enumerate("abcde")))


@pytest.mark.parametrize(
    ("nearest", "description"),
    [
        ([4, 0, 1, 2, 3], "shifted by one: each is one more than the class of its image"),
        ([1, 2, 3, 4, 0], "shifted by -1: each is one less than the class of its image"),
        ([3, 4, 0, 1, 2], "shifted by 2: each is 2 more than the class of its image"),
        ([2, 3, 4, 0, 1], "shifted by -2: each is 2 less than the class of its image"),
        ([4, 0, 1, 3, 2], "shifted by one"),  # 3 of 5
        ([4, 0, 2, 3, 1], "permuted: 0 (a) looks like 4 (e), 1 (b) looks like 0 (a), 4 (e) looks like 1 (b)"),
        ([1, 0, 2, 3, 4], "permuted: 0 (a) looks like 1 (b), 1 (b) looks like 0 (a)"),
    ],
)
def test_describes_shifts_and_permutations(nearest: list[int], description: str) -> None:
    labels = np.repeat(np.arange(5, dtype=np.uint8), 3)
    renamed = best_renaming(labels, np.repeat(nearest, 3), 5)
    assert renamed.tolist() == nearest
    assert describe_renaming(renamed, _CLASSES).startswith(f"the labels look {description}")


def test_half_of_the_classes_are_no_shift() -> None:
    contract = replace(DIGITS, labels=dict(enumerate("abcd")))
    assert "permuted" in describe_renaming(np.array([3, 0, 2, 1]), contract)


_BASELINE = ImageProfile([], {}, [], [], label_agreement=0.8, label_relation=0.5)


@pytest.mark.parametrize(
    ("nearest", "explained", "expected"),
    [
        # All of 20 images agree once labels are renamed: (1/2)^20. Wilson's upper end is 1.
        pytest.param(
            lambda labels: (labels + 4) % 5, 0.2,
            {"label_permutation": 0.5**20, "label_relation": 0.4, "label_agreement": 1.25}, id="shifted",
        ),
        # Labels that explain 8 % of what the baseline's explain are not renamed. Wilson's upper end of 0 of 20, z = 4.
        pytest.param(
            lambda labels: (labels + 4) % 5, 0.04,
            {"label_permutation": 1, "label_relation": 0.08, "label_agreement": 16 / 36 / 0.8}, id="unrelated",
        ),
        pytest.param(
            lambda labels: labels, 0.5, {"label_permutation": 1, "label_relation": 1, "label_agreement": 1.25},
            id="correct",
        ),
    ],
)  # fmt: skip
def test_label_measurements_by_hand(nearest: Any, explained: float, expected: dict[str, float]) -> None:
    labels = np.repeat(np.arange(5, dtype=np.uint8), 4)
    measured = measure_labels(labels, nearest(labels), _CLASSES, _BASELINE, explained)
    assert {name: measurement.value for name, measurement in measured.items()} == pytest.approx(expected)
