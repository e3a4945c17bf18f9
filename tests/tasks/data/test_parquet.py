from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.data.parquet import batches, blocks, column_bytes, page_bytes, select_rows
from tests.resealed import declare_pages


@pytest.mark.parametrize("group_rows", [3, 10, 11, 25, 100])
def test_yields_all_rows_in_order_whatever_the_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_rows: int
) -> None:
    monkeypatch.setattr("tasks.data.parquet.BLOCK_ROWS", 10)
    values = np.random.default_rng(0).integers(0, 256, (3, 55), np.uint8)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(dict(zip("abc", values, strict=True))), path, row_group_size=group_rows)
    received = list(blocks([path], ["c", "a"]))
    assert all(block.shape[1] <= 10 for _, block in received)
    assert [start for start, _ in received] == np.cumsum([0, *(block.shape[1] for _, block in received)])[:-1].tolist()
    np.testing.assert_array_equal(np.concatenate([block for _, block in received], axis=1), values[[2, 0]])
    assert [batch.schema.names for batch in batches(pq.ParquetFile(path))] == [["a", "b", "c"]] * len(received)


def test_reads_a_row_group_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)  # needs more than twice the memory
    pq.write_table(pa.table({"a": pa.array(range(100), pa.uint8())}), tmp_path / "a.parquet", row_group_size=30)
    assert sum(block.shape[1] for _, block in blocks([tmp_path / "a.parquet"], ["a"])) == 100


def test_rejects_other_types_and_nulls(tmp_path: Path) -> None:
    for values in (pa.array([1, 2], pa.int16()), pa.array([1, None], pa.uint8()), pa.array([], pa.uint8())):
        assert column_bytes(pa.record_batch({"a": values})) is None
    pq.write_table(pa.table({"a": pa.array([1, None], pa.uint8())}), tmp_path / "a.parquet")
    with pytest.raises(TypeError, match="expected uint8 columns without nulls"):
        list(blocks([tmp_path / "a.parquet"], ["a"]))


def test_selects_the_rows_that_are_in_a_block() -> None:
    block = np.arange(20, dtype=np.uint8).reshape(2, 10)
    assert select_rows(block, 30, np.array([3, 29, 30, 33, 39, 40])).tolist() == [[0, 3, 9], [10, 13, 19]]
    assert select_rows(block, 30, np.array([], np.int64)).shape == (2, 0)


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"data_page_version": "2.0"}], ids=str)
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_sum_of_the_sizes_that_pages_declare(tmp_path: Path, options: dict[str, Any], compression: str) -> None:
    path = tmp_path / "a.parquet"
    values = np.random.default_rng(0).integers(0, 2**40, 5000)
    pq.write_table(pa.table({"a": values}), path, compression=compression, data_page_size=1000, **options)
    with path.open("rb") as content:
        file = pq.ParquetFile(content)
        total = file.metadata.row_group(0).column(0).total_uncompressed_size
        # That of the footer contains the headers.
        assert 0.9 * total < page_bytes(file, content, 0, 0) < total


def test_pages_that_declare_more_or_none(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": pa.array(range(200), pa.uint8())}), path, use_dictionary=False)
    declare_pages(path, 0)
    with path.open("rb") as content:
        file = pq.ParquetFile(content)
        assert page_bytes(file, content, 0, 0) == 8191
        with pytest.raises(ValueError, match="header of a page"):
            page_bytes(file, BytesIO(b"\xff" * 1000), 0, 0)
        with pytest.raises(ValueError, match="its footer declares"):
            page_bytes(file, BytesIO(), 0, 0)
