"""Each clause of the contract, broken once; Great Expectations is the judge, never a stand-in."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.contract import DatasetContract, Split
from schemas.errors import DataContractError
from schemas.references import ParquetSplit, ValidatedSplit
from tasks.stage import sha256_file
from tasks.validate import judge, summarize, validate


def _table(rows: int = 12) -> pd.DataFrame:
    """A frame that keeps the tiny contract: 3 classes, 4 pixels."""
    generator = np.random.default_rng(0)
    frame = pd.DataFrame({"label": np.arange(rows) % 3})
    for number in range(1, 5):
        frame[f"pixel{number}"] = generator.integers(0, 256, rows)
    return frame.astype("uint8")


def _judge(frame: pd.DataFrame, contract: DatasetContract, folder: Path, exact_rows: int | None = None) -> list[str]:
    path = folder / "data.parquet"
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path, row_group_size=5)
    broken: list[str] = summarize(judge(path, contract, "train", exact_rows=exact_rows))["broken"]
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
        pytest.param(_with("pixel3", 300, "int16"), ["pixel3", "300"], id="pixel of 300"),
        pytest.param(_with("pixel3", -1, "int16"), ["pixel3", "-1"], id="pixel of -1"),
        pytest.param(_with("pixel2", 12.5, "float32"), ["pixel2", "float"], id="pixel of 12.5"),
        pytest.param(_with("pixel2", float("nan"), "float32"), ["pixel2", "nulls"], id="NaN"),
        pytest.param(_with("pixel2", None, "UInt8"), ["pixel2", "nulls"], id="null"),
        pytest.param(_with("pixel1", 1, "int64"), ["pixel1", "int64"], id="wider type"),
        pytest.param(_with("pixel1", "1", "str"), ["pixel1", "type"], id="text"),
        pytest.param(_with("label", 3, "uint8"), ["label", "maximum 3"], id="label past the last class"),
        pytest.param(lambda frame: frame.drop(columns="pixel4"), ["(no column)"], id="missing column"),
        pytest.param(lambda frame: frame.assign(pixel5=np.uint8(0)), ["pixel5"], id="column too many"),
        pytest.param(
            lambda frame: frame[["label", "pixel2", "pixel1", "pixel3", "pixel4"]], ["pixel2", "pixel1"], id="order"
        ),
        pytest.param(lambda frame: frame[frame.label != 2], ["['2']"], id="class missing"),
        pytest.param(
            lambda frame: pd.concat([frame, frame[frame.label == 0], frame[frame.label == 0]]), ["share", "0.6"],
            id="class over half",
        ),
        pytest.param(lambda frame: frame[:5], ["rows", "6", "received 5"], id="too few rows"),
        pytest.param(lambda frame: frame[:0], ["rows"], id="no rows"),
    ],
)  # fmt: skip
def test_a_broken_clause_is_named(
    tiny_contract: DatasetContract, tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], names: list[str]
) -> None:
    broken = _judge(change(_table()), tiny_contract, tmp_path)
    assert broken
    for name in names:
        assert name in "; ".join(broken)


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
    assert "300" in "; ".join(summarize(judge(path, tiny_contract, "train"))["broken"])


def test_a_good_and_a_bad_split_are_each_judged_for_themselves(tiny_contract: DatasetContract, tmp_path: Path) -> None:
    bad = _with("pixel3", 300, "int16")(_table())
    for frame, accepted in ((_table(), True), (bad, False), (_table(), True), (bad, False)):
        assert (_judge(frame, tiny_contract, tmp_path) == []) is accepted


def test_the_sample_of_the_real_data_is_accepted_and_the_verdict_lies_beside_it(
    sample_data: dict[Split, ValidatedSplit],
) -> None:
    for validated in sample_data.values():
        verdict = json.loads(validated.result.read_bytes())
        assert {profile["success"] for profile in verdict.values()} == {True}
        assert sum(len(profile["results"]) for profile in verdict.values()) == validated.expectations == 10
        assert validated.data.path.parent in validated.result.parents


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
            validate.fn(doctored, "fashion-mnist")
        assert [problem.column for problem in caught.value.problems] == ["pixel400", "pixel400"]
    kept = list((tmp_path / "validation").glob("*/great_expectations.json"))
    assert len(kept) == 1


def test_a_parquet_that_is_changed_in_place_is_judged_anew(
    sample_data: dict[Split, ValidatedSplit], tmp_path: Path
) -> None:
    path = tmp_path / "test.parquet"
    path.write_bytes(sample_data["test"].data.path.read_bytes())
    data = sample_data["test"].data.model_copy(update={"path": path})
    validate.fn(data, "fashion-mnist")
    frame = pd.read_parquet(path).astype("int16")
    frame.loc[17, "pixel400"] = 300
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
    with pytest.raises(DataContractError, match=r"pixel400 .*maximum 300"):
        validate.fn(data, "fashion-mnist")


def test_fetched_data_must_have_the_published_rows(sample_data: dict[Split, ValidatedSplit], tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    path.write_bytes(sample_data["test"].data.path.read_bytes())
    data = sample_data["test"].data.model_copy(update={"path": path})
    validate.fn(data, "fashion-mnist")
    with pytest.raises(DataContractError, match="received 200"):
        validate.fn(data.model_copy(update={"origin": "fetched"}), "fashion-mnist")
