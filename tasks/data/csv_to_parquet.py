"""Write a CSV as Parquet: one shard of a split."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.contract import DatasetContract, Split
from schemas.errors import CellProblem
from schemas.layout import PART_NAME, QUARANTINE_NAME, ROW_DIGESTS_NAME
from schemas.references import CsvFile
from tasks.data.csv_blocks import Rows
from tasks.data.csv_reader import open_csv
from tasks.data.parquet import BLOCK_ROWS, open_parquet, row_count
from tasks.data.quarantine import open_quarantine

DIGEST_BYTES = 16


@dataclass(frozen=True)
class ShardFacts:
    """Counts and faults of one CSV. They do not depend on its name, so that a renamed file is the same shard.

    rows, quarantined: number of good rows of the split, and of rejected rows.
    count: number of bad cells in the rejected rows; a row of the wrong length counts as one.
    problems: the first ten of these cells, without the name of the file.
    classes: the classes that occur in good rows.
    bad_labels: up to two different cells that are no label.
    causes: a sentence about a fault with its cure, None for unknown faults, and the number of rows that have it.
    reordered: how the columns were reordered, if they were.
    """

    rows: int
    quarantined: int
    count: int
    problems: tuple[CellProblem, ...]
    classes: tuple[int, ...]
    bad_labels: tuple[str, ...]
    causes: tuple[tuple[str | None, int], ...]
    reordered: str | None


def parquet_schema(contract: DatasetContract) -> pa.Schema:
    """Return the contract's columns in order, each uint8 and never null."""
    return pa.schema([pa.field(column, pa.uint8(), nullable=False) for column in contract.columns])


def check_parquet(path: Path, contract: DatasetContract, rows: int) -> None:
    """Raise ValueError for other columns or another number of rows than `convert_csv` wrote."""
    with open_parquet(path) as file:
        if not file.schema_arrow.equals(parquet_schema(contract), check_metadata=False) or row_count(file) != rows:
            raise ValueError(f"expected {rows} rows of {len(contract.columns)} columns of uint8 in {path.name}")


def convert_csv(csv: CsvFile, split: Split, folder: Path, contract: DatasetContract) -> ShardFacts:
    """Write the good rows of a CSV to ``folder`` as Parquet, with their digests, and quarantine the rejected rows.

    The Parquet has one uint8 column per column of the contract and at most `BLOCK_ROWS` rows per row group. There is a
    digest of `DIGEST_BYTES` bytes per row, see `row_digests`. The quarantine file is written only if there is
    a bad row, and does not contain the name of the CSV.

    Raises `DataContractError` for a file that is rejected as a whole, cannot be read, or does not have the digest in
    ``csv``.
    """
    schema = parquet_schema(contract)
    with (
        # The train split quarantines the bad rows of files that both splits are taken from.
        open_quarantine(folder / QUARANTINE_NAME, discard=contract.holdout is not None and split == "test") as bad,
        (folder / ROW_DIGESTS_NAME).open("wb") as digests,
        pq.ParquetWriter(
            folder / PART_NAME,
            schema,
            # Parquet stores uint8 in 4 bytes. Split into byte streams, three are zeros, which LZ4 skips: half the
            # time of zstd without streams to write and to read the published train split, and fewer bytes.
            compression="lz4",
            use_dictionary=False,
            column_encoding=dict.fromkeys(contract.columns, "BYTE_STREAM_SPLIT"),
        ) as writer,
        open_csv(csv.path, contract, expected_sha256=csv.sha256, quarantine=bad) as reader,
    ):
        good = 0

        def of_split() -> Iterator[Rows]:
            for rows in reader:
                if contract.holdout is not None:
                    rows = rows[held_out(rows[:, 1:], contract.holdout) == (split == "test")]
                digests.write(row_digests(rows))
                yield rows

        for group in _row_groups(of_split(), len(schema)):
            writer.write_table(pa.Table.from_arrays([pa.array(column) for column in group], schema=schema))
            good += group.shape[1]
    tally = reader.tally
    return ShardFacts(
        rows=good,
        quarantined=bad.rows,
        count=tally.count if bad.rows else 0,
        problems=tuple(replace(problem, file=None) for problem in tally.problems) if bad.rows else (),
        classes=tuple(np.flatnonzero(tally.classes).tolist()),
        bad_labels=tuple(sorted(tally.bad_labels)),
        causes=tuple(tally.causes.items()) if bad.rows else (),
        reordered=reader.reordered,
    )


def row_digests(rows: Rows) -> bytes:
    """Return the blake2b digest of each row, uint8 (N, columns), one after the other: `DIGEST_BYTES` bytes per row."""
    # A block of the other split has no rows, and a view of it cannot be cast.
    content, width = np.ascontiguousarray(rows).reshape(-1).data, rows.shape[1]
    blake2b = hashlib.blake2b
    starts = range(0, len(content), width)
    return b"".join([blake2b(content[at : at + width], digest_size=DIGEST_BYTES).digest() for at in starts])


def held_out(images: Rows, share: float) -> npt.NDArray[np.bool_]:
    """Return which rows are in the test split, bool (N,): about ``share`` of all, chosen by a digest of the image.

    images: uint8 (N, pixels). A row's split does not depend on other rows, so further rows and shards do not change
    it, and copies of an image are in one split.
    """
    numbers = np.frombuffer(row_digests(images), np.uint64)[:: DIGEST_BYTES // 8]
    return np.asarray(numbers < share * 2.0**64)


def _row_groups(blocks: Iterable[Rows], columns: int) -> Iterator[Rows]:
    """Yield the same rows as uint8 (columns, up to `BLOCK_ROWS`). Each array is valid until the next one."""
    group = np.empty((columns, BLOCK_ROWS), np.uint8)
    filled = 0
    for rows in blocks:
        while len(rows):
            part = rows[: BLOCK_ROWS - filled]
            group[:, filled : filled + len(part)] = part.T
            filled += len(part)
            rows = rows[len(part) :]
            if filled == BLOCK_ROWS:
                yield group
                filled = 0
    if filled:
        yield group[:, :filled]
