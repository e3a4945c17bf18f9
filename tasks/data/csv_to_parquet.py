"""Write the CSVs of a split as one Parquet file."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.config import BadRows, allowed_bad_rows
from schemas.contract import DatasetContract
from schemas.errors import CellProblem, DataContractError
from schemas.references import CsvSplit
from tasks.data.csv_blocks import PROBLEMS_SHOWN, Rows, Tally, common_cause, list_problems
from tasks.data.csv_file import file_stamp, require_unchanged
from tasks.data.csv_reader import CsvRows, open_csv
from tasks.data.parquet import BLOCK_ROWS, open_parquet, row_count
from tasks.data.quarantine import Quarantine, open_quarantine
from tasks.runtime.files import atomic_write


@dataclass(frozen=True)
class IngestFacts:
    """Counts and faults of the CSVs of a split.

    rows, quarantined: number of good and of rejected rows.
    count: number of bad cells in the rejected rows; a row of the wrong length counts as one.
    problems: the first ten of these.
    labels_shifted: 1 or -1 if every label looks as if that had been added to it, else 0.
    cause: a sentence about most of the rejected rows, if they have the same fault.
    reordered: a sentence for each file whose columns were reordered.
    """

    rows: int
    quarantined: int
    count: int
    problems: tuple[CellProblem, ...]
    labels_shifted: int = 0
    cause: str | None = None
    reordered: tuple[str, ...] = ()


def check_parquet(path: Path, contract: DatasetContract, rows: int) -> None:
    """Raise ValueError for other columns or another number of rows than `ingest_csv` wrote."""
    with open_parquet(path) as file:
        if not file.schema_arrow.equals(parquet_schema(contract), check_metadata=False) or row_count(file) != rows:
            raise ValueError(f"expected {rows} rows of {len(contract.columns)} columns of uint8 in {path.name}")


def parquet_schema(contract: DatasetContract) -> pa.Schema:
    """Return the contract's columns in order, each uint8 and never null."""
    return pa.schema([pa.field(column, pa.uint8(), nullable=False) for column in contract.columns])


def ingest_csv(
    csv: CsvSplit, target: Path, quarantine: Path, contract: DatasetContract, bad_rows: BadRows = 0
) -> IngestFacts:
    """Write the good rows of a split to the Parquet ``target``, and the bad ones to ``quarantine``.

    ``target`` has one uint8 column per column of the contract and at most `BLOCK_ROWS` rows per row group.
    ``quarantine`` has the schema `tasks.data.quarantine.SCHEMA`; it is written only if there is a bad row.

    Raises `DataContractError`, and leaves no ``target``:

    - for more bad rows than ``bad_rows`` allows; the problems name each bad cell, and a row of the wrong length by the
      first missing column or by the number of the first extra cell
    - for fewer rows than ``contract.minimum_rows`` in a supplied split
    - for another number of rows than published in a fetched split
    - for a file that is rejected as a whole, cannot be read, or does not have the digest in ``csv``; then there is no
      ``quarantine`` either
    """
    before = [file_stamp(file.path) for file in csv.files]
    schema = parquet_schema(contract)
    with atomic_write(target) as temporary:
        readers: list[CsvRows] = []
        with (
            # The train split quarantines the bad rows of files that both splits are taken from.
            open_quarantine(quarantine, discard=contract.holdout is not None and csv.split == "test") as bad,
            pq.ParquetWriter(
                temporary,
                schema,
                # Parquet stores uint8 in 4 bytes. Split into byte streams, three are zeros, which LZ4 skips: half the
                # time of zstd without streams to write and to read the published train split, and fewer bytes.
                compression="lz4",
                use_dictionary=False,
                column_encoding=dict.fromkeys(contract.columns, "BYTE_STREAM_SPLIT"),
            ) as writer,
        ):
            good = 0
            for group in _row_groups(_read(csv, contract, bad, readers), len(schema)):
                writer.write_table(pa.Table.from_arrays([pa.array(column) for column in group], schema=schema))
                good += group.shape[1]
            # A shard may change while the next one is read.
            for file, stamp in zip(csv.files, before, strict=True):
                require_unchanged(file.path, stamp, file.sha256)
        tallies = [reader.tally for reader in readers]
        problems = [problem for tally in tallies for problem in tally.problems]
        facts = IngestFacts(
            rows=good,
            quarantined=bad.rows,
            count=sum(tally.count for tally in tallies) if bad.rows else 0,
            problems=tuple(problems[:PROBLEMS_SHOWN]) if bad.rows else (),
            labels_shifted=_label_shift(tallies, contract),
            cause=common_cause(tallies) if bad.rows else None,
            reordered=tuple(reader.reordered for reader in readers if reader.reordered is not None),
        )
        require_budget(csv, facts, bad_rows, quarantine)
        _require_rows(csv, facts, contract, quarantine)
    return facts


def _read(csv: CsvSplit, contract: DatasetContract, bad: Quarantine, readers: list[CsvRows]) -> Iterator[Rows]:
    """Yield the good rows of every file that are in the split. Append the reader of each to ``readers``."""
    seen = np.zeros(contract.classes, np.int64)
    for file in csv.files:
        with open_csv(file.path, contract, expected_sha256=file.sha256, quarantine=bad) as reader:
            readers.append(reader)
            for rows in reader:
                if contract.holdout is not None:
                    rows = rows[held_out(rows[:, 0], seen, contract.holdout) == (csv.split == "test")]
                yield rows


def held_out(classes: npt.NDArray[np.uint8], seen: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.bool_]:
    """Return which of the next rows are in the test split, bool (N,): ``share`` of each class, at equal distances.

    classes: that of each row, uint8 (N,). seen: the rows of each class so far, int64 (classes,); this call adds to it.
    """
    order = np.argsort(classes, kind="stable")
    counts = np.bincount(classes, minlength=len(seen))
    places = np.empty(len(classes), np.int64)  # of each row among those of its class
    places[order] = np.arange(len(classes)) - (np.cumsum(counts) - counts)[classes[order]]
    places += seen[classes]
    seen += counts
    return np.asarray(np.floor((places + 1) * share) > np.floor(places * share))


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


def require_budget(csv: CsvSplit, facts: IngestFacts, bad_rows: BadRows, quarantine: Path) -> None:
    """Raise `DataContractError` if more rows are bad than ``bad_rows`` allows."""
    if facts.quarantined <= allowed_bad_rows(bad_rows, facts.rows + facts.quarantined):
        return
    lines = list_problems(facts.problems, facts.count, facts.cause)
    if facts.labels_shifted:
        side, missing = ("above", "lowest") if facts.labels_shifted > 0 else ("below", "highest")
        lines.append(
            f"The labels look shifted by one: some are one {side} their range, and the {missing} label never occurs."
        )
    fetched = csv.origin == "fetched"
    fix = "Delete the CSV, and run again to fetch it" if fetched else "Correct the CSV, or allow more, and run again"
    lines.append(
        f"{_place(csv)} {'was' if len(csv.files) == 1 else 'were'} not used: {quarantined_share(facts)}, "
        f"--bad-rows allows {bad_rows}. The bad rows are in {quarantine}. {fix}."
    )
    raise DataContractError("\n".join(lines), facts.problems, facts.count)


def quarantined_share(facts: IngestFacts) -> str:
    """Return how many rows are bad, as part of a sentence."""
    verb = "is" if facts.quarantined == 1 else "are"
    return f"{facts.quarantined} of {facts.rows + facts.quarantined} rows {verb} bad"


def _require_rows(csv: CsvSplit, facts: IngestFacts, contract: DatasetContract, quarantine: Path) -> None:
    """Raise `DataContractError` unless there are as many good rows as the contract requires."""
    minimum = contract.minimum_rows[csv.split]
    if csv.origin == "fetched":
        published = contract.published[csv.split].rows
        enough, expected = facts.rows == published, f"the {published} of the published"
        fix = f"Delete {_place(csv)}, and run again to fetch it"
    else:
        enough, expected = facts.rows >= minimum, f"at least {minimum} for the"
        fix = f"Add rows to {_place(csv)}, or supply another file, and run again"
    if enough:
        return
    rest = f" without the {facts.quarantined} bad ones, which are in {quarantine}" if facts.quarantined else ""
    message = f"{csv.name} has {facts.rows} rows{rest}: expected {expected} {csv.split} split. {fix}."
    raise DataContractError(message, facts.problems, facts.count)


def _label_shift(tallies: Sequence[Tally], contract: DatasetContract) -> int:
    """Return 1 if only the lowest label never occurs and every bad label is one above the highest.

    Return -1 for the opposite, else 0.
    """
    low, high = contract.class_labels[0], contract.class_labels[-1]
    bad = set[str]().union(*(tally.bad_labels for tally in tallies))
    occurs = np.logical_or.reduce([tally.classes for tally in tallies])[: contract.classes]
    if bad == {str(high + 1)} and occurs[1:].all() and not occurs[0]:
        return 1
    return -1 if bad == {str(low - 1)} and occurs[:-1].all() and not occurs[-1] else 0


def _place(csv: CsvSplit) -> Path:
    return csv.files[0].path.with_name(csv.name)
