"""Each clause of the contract, broken once; Great Expectations is the judge, never a stand-in."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.contract import FASHION_MNIST, DatasetContract, Split
from schemas.errors import DataContractError
from schemas.layout import TEST_IN_TRAIN_NAME
from schemas.references import ParquetSplit, ValidatedSplit
from tasks.checks.image_checks import Measurement, measure_checks
from tasks.checks.image_profile import ImageProfile, profile_images
from tasks.checks.scan import scan_parquet
from tasks.checks.suite import summarize, validate_parquet
from tasks.data.splits import read_images
from tasks.runtime.files import sha256_file
from tasks.validate import validate


@pytest.fixture
def _without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.validate.write_data_docs", lambda artifacts_dir, *_: artifacts_dir / "index.html")


# What the stage makes of a verdict, but for its pages: they are test_data_docs.py's, and take half of the time.
without_pages = pytest.mark.usefixtures("_without_pages")


def _table(rows: int = 12) -> pd.DataFrame:
    """A frame that keeps the tiny contract: 3 classes, 4 pixels."""
    generator = np.random.default_rng(0)
    frame = pd.DataFrame({"label": np.arange(rows) % 3})
    for number in range(1, 5):
        frame[f"pixel{number}"] = generator.integers(0, 256, rows)
    # Both ends of the range in each image.
    frame[["pixel1", "pixel4"]] = 0, 255
    return frame.astype("uint8")


def _judge(frame: pd.DataFrame, contract: DatasetContract, folder: Path, exact_rows: int | None = None) -> list[str]:
    path = folder / "data.parquet"
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path, row_group_size=5)
    broken: list[str] = summarize(validate_parquet(path, contract, "train", exact_rows=exact_rows).result)["broken"]
    return broken


def test_good_data_is_accepted(tiny_contract: DatasetContract, tmp_path: Path) -> None:
    assert _judge(_table(), tiny_contract, tmp_path) == []


def _with(column: str, value: object, dtype: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame[column] = frame[column].astype(dtype)
        frame.loc[7, column] = value
        return frame

    return change


@pytest.mark.parametrize(
    ("change", "names"),
    [
        pytest.param(_with("pixel3", 300, "int16"), ["pixel3 (maximum 300, expected <= 255)"], id="pixel of 300"),
        pytest.param(_with("pixel3", -1, "int16"), ["pixel3 (minimum -1, expected >= 0)"], id="pixel of -1"),
        pytest.param(_with("pixel2", 12.5, "float32"), ["pixel2 (type float, expected uint8)"], id="pixel of 12.5"),
        pytest.param(_with("pixel2", float("nan"), "float32"), ["pixel2 (nulls 1, expected 0)"], id="NaN"),
        pytest.param(_with("pixel2", None, "UInt8"), ["pixel2 (nulls 1, expected 0)"], id="null"),
        pytest.param(_with("pixel1", 1, "int64"), ["pixel1 (type int64, expected uint8)"], id="wider type"),
        pytest.param(_with("pixel1", "1", "str"), ["pixel1 (type large_string, expected uint8)"], id="text"),
        pytest.param(
            _with("label", 3, "uint8"),
            ["label (maximum 3, expected <= 2)", "no other label; expected 0, 1, 2, received 3 besides"],
            id="label past the last class",
        ),
        pytest.param(
            lambda frame: frame.assign(pixel5=np.uint8(0)), ["pixel5 (expected (no column))"], id="column too many"
        ),
        pytest.param(
            lambda frame: frame[["label", "pixel2", "pixel1", "pixel3", "pixel4"]],
            ["order: ", "pixel2 (expected pixel1), pixel1 (expected pixel2)"],
            id="order",
        ),
        pytest.param(lambda frame: frame[frame.label != 2], ["expected 0, 1, 2, received no 2"], id="class missing"),
        pytest.param(
            lambda frame: pd.concat([frame, frame[frame.label == 0], frame[frame.label == 0]]),
            ["shares: no class should have more than 50% of the rows; expected <= 0.5, received 0.6"],
            id="class over half",
        ),
        pytest.param(
            lambda frame: frame[:5],
            ["rows: there should be enough, of all classes; expected >= 6, received 5"],
            id="too few rows",
        ),
    ],
)  # fmt: skip
def test_a_broken_clause_is_named(
    tiny_contract: DatasetContract, tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], names: list[str]
) -> None:
    broken = _judge(change(_table()), tiny_contract, tmp_path)
    assert broken
    for name in names:
        assert name in "; ".join(broken)


_ORDER = "order: the columns should be the contract's, each in its place; broken by"
_TYPES = "types: every column should be uint8; broken by"
_NULLS = "nulls: no value should be missing; broken by"
_TEXTS = ("label", "pixel1", "pixel2", "pixel3")
_LARGEST = "largest values: none should be above the bound of its column; broken by"


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        pytest.param(
            lambda frame: frame.assign(pixel2=pd.array([None] * len(frame), "UInt8")),
            [f"{_NULLS} pixel2 (nulls 12, expected 0)"],
            id="nulls alone",
        ),
        pytest.param(
            lambda frame: frame.assign(pixel2="1", pixel3=np.int32(1234567)),
            [
                f"{_TYPES} pixel2 (type large_string, expected uint8), pixel3 (type int32, expected uint8)",
                f"{_LARGEST} pixel3 (maximum 1234567, expected <= 255)",
            ],
            id="text beside a large number",
        ),
        pytest.param(
            lambda frame: frame.drop(columns="pixel4").astype(str),
            [
                f"{_ORDER} (no column) (expected pixel4)",
                f"{_TYPES} {', '.join(f'{name} (type large_string, expected uint8)' for name in _TEXTS)}",
            ],
            id="text alone, and a column missing",
        ),
        pytest.param(
            lambda frame: frame.assign(pixel2=255.0001),
            [
                f"{_TYPES} pixel2 (type double, expected uint8)",
                f"{_LARGEST} pixel2 (maximum 255.0001, expected <= 255)",
            ],
            id="hardly too large",
        ),
        pytest.param(
            lambda frame: frame.assign(pixel2=float("inf")),
            [f"{_TYPES} pixel2 (type double, expected uint8)", f"{_LARGEST} pixel2 (maximum inf, expected <= 255)"],
            id="infinite",
        ),
        pytest.param(
            lambda frame: frame.assign(pixel2=[float("inf")] * 10 + [float("nan")] * 2),
            [
                f"{_TYPES} pixel2 (type double, expected uint8)",
                f"{_NULLS} pixel2 (nulls 2, expected 0)",
                f"{_LARGEST} pixel2 (maximum inf, expected <= 255)",
            ],
            id="infinite, then NaN alone",
        ),
        pytest.param(
            lambda frame: frame.assign(pixel2=np.float16(300)),
            [
                f"{_TYPES} pixel2 (type halffloat, expected uint8)",
                f"{_LARGEST} pixel2 (maximum 300.0, expected <= 255)",
            ],
            id="16 bits",
        ),
        pytest.param(
            lambda frame: frame.drop(columns="pixel4"), [f"{_ORDER} (no column) (expected pixel4)"], id="column missing"
        ),
        pytest.param(
            lambda frame: frame.assign(**{"(no column)": np.uint8(0)}),
            [f"{_ORDER} (no column) (expected ((no column)))"],
            id="column too many, by the name of none",
        ),
        pytest.param(
            lambda frame: frame.assign(pixel5=np.uint8(0), pixel6=0, pixel7=0, pixel8=0, pixel9=0, pixel10=0),
            [
                f"{_ORDER} {', '.join(f'pixel{number} (expected (no column))' for number in range(5, 10))} and 1 more",
                f"{_TYPES} {', '.join(f'pixel{number} (type int64, expected uint8)' for number in range(6, 11))}",
            ],
            id="many columns too many",
        ),
        pytest.param(
            lambda frame: frame[:0],
            [
                "classes: each should be there, and no other label; expected 0, 1, 2, received no 0, 1, 2",
                "rows: there should be enough, of all classes; expected >= 6, received 0",
            ],
            id="no rows",
        ),
    ],
)
def test_what_is_not_broken_is_not_named(
    tiny_contract: DatasetContract, tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], broken: list[str]
) -> None:
    assert _judge(change(_table()), tiny_contract, tmp_path) == broken


def test_labels_that_are_lists_are_told(tiny_contract: DatasetContract, tmp_path: Path) -> None:
    broken = _judge(_table().assign(label=[[0]] * 12), tiny_contract, tmp_path)
    assert broken[0].startswith(f"{_TYPES} label (type list")
    assert "received no 0, 1, 2 and [0] besides" in "; ".join(broken)


def test_of_many_labels_that_are_none_the_first_are_told(tiny_contract: DatasetContract, tmp_path: Path) -> None:
    broken = _judge(_table(3000).assign(label=np.arange(3000)), tiny_contract, tmp_path)
    told = ", ".join(str(label) for label in range(3, 23))
    assert f"no other label; expected 0, 1, 2, received {told} and 2977 more besides" in "; ".join(broken)


def test_an_expectation_that_cannot_be_judged_is_broken_and_says_why() -> None:
    config = {"type": "expect_every_column_to_be", "severity": "critical"}
    config["kwargs"] = {"found": "type", "relation": "==", "owed": "expected_type"}  # type: ignore[assignment]
    raised = {"raised_exception": True, "exception_message": "the frame is gone"}
    for info in (raised, {"('table.frame', '', ())": raised}):
        entry = {"success": False, "result": {}, "expectation_config": config, "exception_info": info}
        assert summarize({"columns": {"results": [entry]}})["broken"] == [
            "expect_every_column_to_be of columns.type could not be judged: the frame is gone"
        ]


def test_published_data_must_have_its_exact_rows(tiny_contract: DatasetContract, tmp_path: Path) -> None:
    assert _judge(_table(12), tiny_contract, tmp_path, exact_rows=12) == []
    assert "received 12" in _judge(_table(12), tiny_contract, tmp_path, exact_rows=13)[0]


def test_the_values_are_judged_and_not_the_statistics_of_the_footer(
    tiny_contract: DatasetContract, tmp_path: Path
) -> None:
    path = tmp_path / "data.parquet"
    frame = _table().astype("int16")
    frame.loc[7, "pixel3"] = 300
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path, write_statistics=False)
    assert "300" in "; ".join(summarize(validate_parquet(path, tiny_contract, "train").result)["broken"])


def test_rows_are_counted_where_they_are_and_not_in_the_footer(tiny_contract: DatasetContract, tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pandas(_table(12), preserve_index=False), path)
    content = path.read_bytes()
    # The footer's own count comes before those of the groups: field 3 of Thrift's compact protocol, 12 as a zigzag.
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    path.write_bytes(content[:footer] + content[footer:].replace(b"\x16\x18", b"\x16\x1c", 1))
    assert pq.ParquetFile(path).metadata.num_rows == 14
    judged = validate_parquet(path, tiny_contract, "train", exact_rows=12)
    assert summarize(judged.result)["broken"] == []
    assert judged.sketches is not None
    assert len(judged.sketches.numbers) == 12


def test_a_good_and_a_bad_split_are_each_judged_for_themselves(tiny_contract: DatasetContract, tmp_path: Path) -> None:
    bad = _with("pixel3", 300, "int16")(_table())
    for frame, accepted in ((_table(), True), (bad, False), (_table(), True), (bad, False)):
        assert (_judge(frame, tiny_contract, tmp_path) == []) is accepted


def test_the_sample_of_the_real_data_is_accepted_and_the_verdict_lies_beside_it(
    sample_data: dict[Split, ValidatedSplit],
) -> None:
    for split, validated in sample_data.items():
        verdict = json.loads(validated.result.read_bytes())
        assert {profile["success"] for profile in verdict.values()} == {True}
        of_checks = [
            check
            for check in FASHION_MNIST.checks
            for bound in (check.warn, check.fail)
            if bound is not None and (split == "test" or "in_train" not in check.name)
            # The 200 rows of test are one part.
            if split == "train" or check.name != "faulty_chunks"
        ]
        # Five of the columns, three of the classes.
        expected = 8 + len(of_checks)
        assert sum(len(profile["results"]) for profile in verdict.values()) == validated.expectations == expected
        assert validated.warnings == ()
        assert validated.data.path.parent in validated.result.parents


# --- what it knows beyond types and ranges ---

Rows = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


@pytest.fixture(scope="module")
def real(sample_data: dict[Split, ValidatedSplit]) -> dict[Split, Rows]:
    """Images and labels of the sample."""
    read = {split: read_images(validated.data.path, FASHION_MNIST) for split, validated in sample_data.items()}
    return {split: (images, labels.astype(np.uint8)) for split, (images, labels) in read.items()}


def _write(rows: Rows, path: Path) -> Path:
    columns = np.column_stack([rows[1], rows[0]]).T
    table = pa.table(dict(zip(FASHION_MNIST.columns, map(np.ascontiguousarray, columns), strict=True)))
    pq.write_table(table, path, use_dictionary=False, compression="none")
    return path


def _turned(turn: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]) -> Callable[[Rows], Rows]:
    return lambda rows: (turn(rows[0].reshape(-1, 28, 28)).reshape(-1, 784), rows[1])


def _labelled(change: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]) -> Callable[[Rows], Rows]:
    return lambda rows: (rows[0], change(rows[1]).astype(np.uint8))


def _some(rows: Rows, count: int, change: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]) -> Rows:
    images = rows[0].copy()
    images[:count] = change(images[:count])
    return images, rows[1]


def _part(change: Callable[[Rows], Rows], first: int, last: int) -> Callable[[Rows], Rows]:
    """Rows ``first`` to ``last`` alone, as a shard would."""

    def changed(rows: Rows) -> Rows:
        images, labels = rows[0].copy(), rows[1].copy()
        images[first:last], labels[first:last] = change((images[first:last], labels[first:last]))
        return images, labels

    return changed


def _of_classes(rows: Rows, counts: dict[int, int], others: int) -> Rows:
    """The first rows of each class, so many as stand in ``counts``, else ``others``."""
    wanted = [np.flatnonzero(rows[1] == label)[: counts.get(label, others)] for label in range(10)]
    chosen = np.concatenate(wanted)
    return rows[0][chosen], rows[1][chosen]


def test_two_classes_swapped_in_few_rows_are_told(real: dict[Split, Rows], tmp_path: Path) -> None:
    images, labels = real["train"]
    figures = _figures((images[:100], np.array([0, 1, 6, 3, 4, 5, 2, 7, 8, 9], np.uint8)[labels[:100]]), tmp_path)
    assert "label_permutation" in _past(figures)
    assert "6 (Shirt) looks like 2 (Pullover)" in figures["label_permutation"].says


_MIXED = np.random.default_rng(0).permutation


@pytest.mark.parametrize(
    ("change", "past", "says"),
    [
        pytest.param(lambda rows: rows, {}, "", id="right"),
        pytest.param(
            lambda rows: (255 - rows[0], rows[1]),
            {"polarity": "fail", "inverted_images": "fail", "drift": "warn"},
            "the images look inverted, background is 255",
            id="inverted",
        ),
        pytest.param(
            _turned(lambda image: image.transpose(0, 2, 1)), {"orientation": "fail"}, "transposed", id="transposed"
        ),
        pytest.param(
            _turned(lambda image: image[:, :, ::-1]), {"orientation": "fail"}, "mirrored left to right", id="mirrored"
        ),
        pytest.param(
            _turned(lambda image: np.rot90(image, -1, (1, 2))), {"orientation": "fail"}, "90 degrees to the right",
            id="turned",
        ),
        pytest.param(
            lambda rows: ((255 - rows[0]).reshape(-1, 28, 28).transpose(0, 2, 1).reshape(-1, 784), (rows[1] + 1) % 10),
            {
                "polarity": "fail", "orientation": "fail", "label_permutation": "fail", "inverted_images": "fail",
                "drift": "warn",
            },
            "labels look shifted by one",
            id="inverted, transposed and shifted",
        ),
        pytest.param(
            _labelled(lambda labels: (labels + 1) % 10), {"label_permutation": "fail"}, "shifted by one", id="shifted"
        ),
        pytest.param(
            _labelled(lambda labels: (labels + 8) % 10), {"label_permutation": "fail"}, "shifted by -2",
            id="shifted back",
        ),
        pytest.param(
            _labelled(lambda labels: np.array([0, 8, 2, 3, 4, 5, 6, 7, 1, 9])[labels]),
            {"label_permutation": "fail"},
            "1 (Trouser) looks like 8 (Bag), 8 (Bag) looks like 1 (Trouser)",
            id="two classes swapped",
        ),
        pytest.param(
            _labelled(_MIXED), {"label_relation": "fail", "label_agreement": "fail"}, "the labels look shuffled",
            id="labels shuffled",
        ),
        pytest.param(
            lambda rows: (np.roll(rows[0], 1, axis=1), rows[1]), {"position": "fail"}, "moved by a pixel",
            id="columns moved by one",
        ),
        pytest.param(
            lambda rows: (rows[0] // 2, rows[1]), {"brightest_pixel": "fail", "drift": "warn"},
            "the largest pixel of the median image is 127, the range ends at 255", id="half the range",
        ),
        pytest.param(
            lambda rows: ((rows[0] > 127).astype(np.uint8), rows[1]),
            {"brightest_pixel": "fail", "drift": "warn", "constant_columns": "warn"},
            "the largest pixel of the median image is 1", id="zeros and ones",
        ),
        pytest.param(
            lambda rows: (np.maximum(rows[0], 30), rows[1]), {"background": "fail", "drift": "warn"},
            "1000 of 1000 images looked at have no pixel of 0, the background; the smallest pixel of the median image "
            "is 30", id="another background",
        ),
        pytest.param(
            lambda rows: _of_classes(rows, {2: 50, 6: 50}, others=9), {}, "", id="two classes that are alike and large",
        ),
        pytest.param(
            lambda rows: (rows[0][:, _MIXED(784)], rows[1]),
            {"similarity": "fail", "inverted_images": "fail"},
            "the pixels look permuted",
            id="pixels permuted",
        ),
        pytest.param(
            lambda rows: (np.random.default_rng(0).integers(0, 256, rows[0].shape).astype(np.uint8), rows[1]),
            {"similarity": "fail", "inverted_images": "fail", "drift": "warn", "background": "warn"},
            "look",
            id="noise",
        ),
        pytest.param(
            lambda rows: _some(rows, 11, lambda images: 255 - images), {"inverted_images": "fail"},
            "11 of 1000 images", id="some inverted",
        ),
        pytest.param(
            lambda rows: (np.where(np.arange(784) == 406, 128, rows[0]).astype(np.uint8), rows[1]),
            {"constant_columns": "warn"}, "pixel407", id="constant column",
        ),
        pytest.param(
            lambda rows: (np.where(np.arange(784) == 0, 255, rows[0]).astype(np.uint8), rows[1]),
            {"constant_columns": "warn"}, "pixel1", id="constant column of the border, where few images have anything",
        ),
        pytest.param(
            _part(_turned(lambda image: image[:, :, ::-1]), 286, 572), {"faulty_chunks": "fail"},
            "about rows 287 to 572: the images look mirrored left to right", id="a part mirrored",
        ),
        pytest.param(
            _part(_turned(lambda image: image.transpose(0, 2, 1)), 330, 480), {"faulty_chunks": "fail"},
            "about rows 287 to 429: the images look transposed", id="a part transposed that begins anywhere",
        ),
        pytest.param(
            _part(lambda rows: (255 - rows[0], rows[1]), 0, 429),
            {"faulty_chunks": "fail", "inverted_images": "fail", "drift": "warn", "background": "warn"},
            "about rows 1 to 429: the images look inverted", id="a part inverted",
        ),
        pytest.param(
            _part(lambda rows: (rows[0] // 2, rows[1]), 715, 1_000), {"faulty_chunks": "fail", "drift": "warn"},
            "about rows 716 to 1,000: the largest pixel of the median image is 127", id="half the range in a part",
        ),
        pytest.param(
            _part(_labelled(lambda labels: (labels + 1) % 10), 143, 429), {"faulty_chunks": "fail"},
            "about rows 144 to 429: the labels look shifted by one", id="labels of a part shifted",
        ),
        pytest.param(
            _part(_labelled(_MIXED), 143, 286), {"faulty_chunks": "fail"},
            "of 143 images are most like the reference's mean image of their own class", id="labels of a part shuffled",
        ),
        pytest.param(
            lambda rows: (rows[0][np.argsort(rows[1], kind="stable")], np.sort(rows[1])), {}, "", id="sorted by class",
        ),
        pytest.param(
            lambda rows: (rows[0] * 0, rows[1]), {"blank_images": "fail", "repeated_images": "fail"},
            "1000 of 1000 images are of one value", id="all blank",
        ),
        pytest.param(
            lambda rows: (np.where(np.arange(784) % 10 == 3, 0, rows[0]).astype(np.uint8), rows[1]),
            {"constant_columns": "fail"}, "pixel4, pixel14, pixel24", id="many constant columns",
        ),
        pytest.param(
            lambda rows: _some(rows, 1, lambda images: images * 0), {"blank_images": "warn"}, "1 of 1000",
            id="one blank",
        ),
        pytest.param(
            lambda rows: _some(rows, 11, lambda images: images * 0),
            {"blank_images": "fail", "repeated_images": "warn"}, "11 of 1000 images are of one value", id="some blank",
        ),
        pytest.param(
            lambda rows: (np.concatenate([rows[0], rows[0][:3]]), np.concatenate([rows[1], rows[1][:3]])),
            {"repeated_images": "warn"}, "3 of 1003 images repeat an earlier row", id="rows repeated",
        ),
        pytest.param(
            lambda rows: tuple(part[(rows[1] != 3) | (np.cumsum(rows[1] == 3) <= 5)] for part in rows),
            {"class_imbalance": "warn"}, "", id="a small class",
        ),
        pytest.param(
            lambda rows: (np.minimum(rows[0] * 1.2, 255).astype(np.uint8), rows[1]), {"drift": "warn"}, "the reference",
            id="brighter",
        ),
    ],
)  # fmt: skip
def test_wrong_data_is_named_for_what_it_is_and_for_nothing_else(
    real: dict[Split, Rows], tmp_path: Path, change: Callable[[Rows], Rows], past: dict[str, str], says: str
) -> None:
    figures = _figures(change(real["train"]), tmp_path)
    assert _past(figures) == past
    assert says in "; ".join(figures[name].says for name in past)


def test_the_rows_of_a_part_are_those_of_the_file_where_not_all_are_looked_at(
    real: dict[Split, Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.checks.scan.SAMPLE_ROWS", 512)
    rows = tuple(np.concatenate([part] * 2) for part in real["train"])
    change = _part(_turned(lambda image: image[:, ::-1]), 1_400, 2_000)
    says = _figures(change((rows[0], rows[1])), tmp_path)["faulty_chunks"].says
    found = re.fullmatch(r"about rows ([\d,]+) to ([\d,]+): the images look mirrored top to bottom", says)
    assert found is not None
    first, last = (int(number.replace(",", "")) for number in found.groups())
    assert 1_400 < first < 1_600
    assert 1_980 < last <= 2_000


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_labels_are_told_as_such_and_not_by_parts(real: dict[Split, Rows], tmp_path: Path, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(real["train"][1])
    figures = _figures((real["train"][0], shuffled), tmp_path)
    assert "the labels look shuffled" in figures["label_relation"].says
    assert figures.get("faulty_chunks", Measurement(0)).value == 0


def test_parts_that_touch_are_each_named_for_what_they_are(real: dict[Split, Rows], tmp_path: Path) -> None:
    turned = _part(_turned(lambda image: image.transpose(0, 2, 1)), 143, 286)
    shifted = _part(_labelled(lambda labels: (labels + 1) % 10), 286, 429)
    says = _figures(shifted(turned(real["train"])), tmp_path)["faulty_chunks"].says
    assert re.fullmatch("about rows 144 to 286: .* transposed .*; about rows 287 to 429: .* shifted by one: .*", says)


def test_a_blank_part_is_told_as_blank_alone(real: dict[Split, Rows], tmp_path: Path) -> None:
    figures = _figures(_part(lambda rows: (rows[0] * 0, rows[1]), 143, 286)(real["train"]), tmp_path)
    assert {name for name, word in _past(figures).items() if word == "fail"} == {"blank_images", "repeated_images"}


def test_a_few_inverted_images_hide_nothing_else(real: dict[Split, Rows], tmp_path: Path) -> None:
    turned = _turned(lambda image: image.transpose(0, 2, 1))(real["train"])
    past = _past(_figures(_some(turned, 20, lambda images: 255 - images), tmp_path))
    assert past == {"orientation": "fail", "inverted_images": "fail", "background": "warn"}


def _figures(rows: Rows, folder: Path, champion: ImageProfile | None = None) -> dict[str, Measurement]:
    scan = scan_parquet(_write(rows, folder / "data.parquet"), FASHION_MNIST)
    assert scan.sample is not None
    profile = profile_images(scan.sample.images, scan.sample.labels, FASHION_MNIST)
    return measure_checks(scan, scan.sample, profile, FASHION_MNIST, champion)


def _past(figures: dict[str, Measurement]) -> dict[str, str]:
    """Which bound of its check each figure is past, the stricter one first."""
    found = {}
    for check in FASHION_MNIST.checks:
        for word, bound in (("warn", check.warn), ("fail", check.fail)):
            if bound is None or check.name not in figures:
                continue
            value = figures[check.name].value
            if value < bound if check.low_is_bad else value > bound:
                found[check.name] = word
    return found


@pytest.mark.parametrize("rows", [100, 300])
def test_few_rows_of_right_data_are_not_warned_of(real: dict[Split, Rows], tmp_path: Path, rows: int) -> None:
    for seed in range(3):
        drawn = np.random.default_rng(seed).choice(1_000, rows, replace=False)
        assert _past(_figures((real["train"][0][drawn], real["train"][1][drawn]), tmp_path)) == {}


def test_drift_is_told_from_the_champions_data(real: dict[Split, Rows], tmp_path: Path) -> None:
    images, labels = real["train"]
    brighter = np.minimum(images * 1.3, 255).astype(np.uint8)
    champion = profile_images(brighter, labels, FASHION_MNIST)
    assert _past(_figures((images, labels), tmp_path, champion)) == {"drift": "warn"}
    assert _figures((brighter, labels), tmp_path, champion)["drift"].value == pytest.approx(0, abs=0.01)
    # Twice the same by scipy's definition: the square root of the mean of two Kullback-Leibler divergences.
    found, known = (np.array(profile_images(one, labels, FASHION_MNIST).histogram) for one in (images, brighter))
    middle = (found + known) / 2
    divergence = sum((part * np.log2(part / middle, where=part > 0, out=np.zeros(17))).sum() for part in (found, known))
    assert _figures((images, labels), tmp_path, champion)["drift"].value == pytest.approx(
        (divergence / 2) ** 0.5, abs=1e-3
    )


@without_pages
def test_a_failing_check_is_an_error_and_a_warning_one_is_told(
    real: dict[Split, Rows], sample_data: dict[Split, ValidatedSplit], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def validated(rows: Rows, folder: str) -> ValidatedSplit:
        (tmp_path / folder).mkdir()
        path = _write(rows, tmp_path / folder / "test.parquet")
        data = sample_data["test"].data.model_copy(update={"path": path, "sha256": sha256_file(path)})
        return validate.fn(data, "fashion-mnist", tmp_path, sample_data["train"])

    images, labels = real["test"]
    brighter = (np.minimum(images * 1.2, 255).astype(np.uint8), labels)
    (warning,) = validated(brighter, "warned").warnings
    assert (
        "drift: distance of the distribution of pixel values from that of the reference; expected at most 0.1"
        in warning
    )
    assert warning in caplog.text
    with pytest.raises(DataContractError, match=r"the images look transposed \(rows are columns\); expected at most 0"):
        validated((images.reshape(-1, 28, 28).transpose(0, 2, 1).reshape(-1, 784), labels), "refused")
    verdict = json.loads(next((tmp_path / "refused").rglob("great_expectations.json")).read_bytes())
    broken = [entry for entry in verdict["classes"]["results"] if not entry["success"]]
    assert [entry["expectation_config"]["severity"] for entry in broken] == ["critical"]


@without_pages
def test_train_rows_in_the_test_file_are_named(
    real: dict[Split, Rows], sample_data: dict[Split, ValidatedSplit], tmp_path: Path
) -> None:
    def validated(known: int, near: int) -> ValidatedSplit:
        images, labels = (part.copy() for part in real["test"])
        images[:known], labels[:known] = (part[:known] for part in real["train"])
        taken = slice(known, known + near)
        images[taken], labels[taken] = (part[taken] for part in real["train"])
        images[taken][images[taken] > 0] -= 1
        folder = tmp_path / f"{known}-{near}"
        folder.mkdir()
        path = _write((images, labels), folder / "test.parquet")
        data = sample_data["test"].data.model_copy(update={"path": path, "sha256": sha256_file(path)})
        return validate.fn(data, "fashion-mnist", tmp_path, sample_data["train"])

    some = validated(7, 5)
    assert some.duplicates is not None
    assert (some.duplicates.test_rows_in_train, some.duplicates.test_rows_near_train) == (7, 5)
    assert "7 of 200 test images stand in train, too" in "; ".join(some.warnings)
    assert "5 of 200 test images are near duplicates of train images" in "; ".join(some.warnings)
    marked = np.load(some.record.path / TEST_IN_TRAIN_NAME)
    assert marked.tolist() == [2] * 7 + [1] * 5 + [0] * 188
    with pytest.raises(DataContractError, match="test_images_in_train: 150 of 200 test images stand in train, too"):
        validated(150, 0)


@without_pages
def test_a_parquet_with_a_300_goes_straight_to_validate_and_is_refused(
    sample_data: dict[Split, ValidatedSplit], tmp_path: Path
) -> None:
    good = sample_data["test"].data
    frame = pd.read_parquet(good.path)
    frame["pixel400"] = frame["pixel400"].astype("int16")
    frame.loc[17, "pixel400"] = 300
    path = tmp_path / "test.parquet"
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
    doctored: ParquetSplit = good.model_copy(update={"path": path, "sha256": sha256_file(path)})
    for _ in range(2):  # the refusal is remembered as well as an acceptance
        with pytest.raises(DataContractError, match=r"pixel400 .*maximum 300") as caught:
            validate.fn(doctored, "fashion-mnist", tmp_path)
        assert [str(problem) for problem in caught.value.problems] == [
            "column pixel400: expected type uint8, received int16",
            "column pixel400: expected maximum <= 255, received 300",
        ]
    kept = list((tmp_path / "validation").glob("*/great_expectations.json"))
    assert len(kept) == 1


@without_pages
def test_a_parquet_that_is_changed_in_place_is_judged_anew(
    sample_data: dict[Split, ValidatedSplit], tmp_path: Path
) -> None:
    path = tmp_path / "test.parquet"
    path.write_bytes(sample_data["test"].data.path.read_bytes())
    data = sample_data["test"].data.model_copy(update={"path": path})
    validate.fn(data, "fashion-mnist", tmp_path)
    frame = pd.read_parquet(path).astype("int16")
    frame.loc[17, "pixel400"] = 300
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
    with pytest.raises(DataContractError, match=r"pixel400 .*maximum 300"):
        validate.fn(data, "fashion-mnist", tmp_path)


@without_pages
def test_fetched_data_must_have_the_published_rows(sample_data: dict[Split, ValidatedSplit], tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    path.write_bytes(sample_data["test"].data.path.read_bytes())
    data = sample_data["test"].data.model_copy(update={"path": path})
    validate.fn(data, "fashion-mnist", tmp_path)
    with pytest.raises(DataContractError, match="received 200"):
        validate.fn(data.model_copy(update={"origin": "fetched"}), "fashion-mnist", tmp_path)
