"""Write the CSVs of a split as one Parquet file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.config import BadRows, allowed_bad_rows
from schemas.contract import DatasetContract
from schemas.errors import CellProblem, DataContractError
from schemas.references import CsvFile, CsvSplit
from tasks.data.csv_reader import PROBLEMS_SHOWN, CsvRows, Rows, file_stamp, list_problems, open_csv, require_unchanged
from tasks.data.parquet import BLOCK_ROWS
from tasks.data.quarantine import Quarantine, open_quarantine
from tasks.runtime.files import atomic_write


@dataclass(frozen=True)
class IngestFacts:
    """Rows that were taken, and rows that were set aside: all that the CSVs have.

    ``count`` cells and lines are wrong in the latter, of which ``problems`` are the first ten. ``labels_shifted`` is 1
    or -1 where all labels look as if that had been added to them. ``reordered`` has a sentence for each file whose
    columns were put in order.
    """

    rows: int
    quarantined: int
    count: int
    problems: tuple[CellProblem, ...]
    labels_shifted: int = 0
    reordered: tuple[str, ...] = ()


def parquet_schema(contract: DatasetContract) -> pa.Schema:
    """The contract's columns in order, each uint8 and never null."""
    return pa.schema([pa.field(column, pa.uint8(), nullable=False) for column in contract.columns])


def ingest_csv(
    csv: CsvSplit, target: Path, quarantine: Path, contract: DatasetContract, bad_rows: BadRows = 0
) -> IngestFacts:
    """Write ``target`` as Parquet: one uint8 column for each of the contract's, at most `BLOCK_ROWS` rows a row group.

    The files are read one after the other. Each bad row goes to ``quarantine`` (`tasks.data.quarantine.SCHEMA`), which is
    not written where there is none; every other row goes to ``target``. A supplied split needs
    ``contract.minimum_rows`` of these or more, a fetched one exactly as many as were published.

    Raises `DataContractError`, and leaves no ``target``: when more rows are bad than ``bad_rows`` allows, with each bad
    cell as a problem, and each row of the wrong length, once: at the first column that it lacks, or at the number of
    the first value that is too many; a blank line is one at the first column. When there are too few rows. When a file
    cannot be read, hashes to something else than ``csv`` says, or is refused as a whole, as by its header, by a line of
    more than 1 MiB or by a damaged gzip: there is no ``quarantine`` then.
    """
    before = [file_stamp(file.path) for file in csv.files]
    with atomic_write(target) as temporary:
        with open_quarantine(quarantine) as bad, _parquet_writer(temporary, contract) as writer:
            groups = _RowGroups(writer)
            readers = [_read_into(groups, file, contract, bad) for file in csv.files]
            groups.flush()
            # A shard may change while the next one is read.
            for file, stamp in zip(csv.files, before, strict=True):
                require_unchanged(file.path, stamp, file.sha256)
        problems = [problem for reader in readers for problem in reader.problems]
        facts = IngestFacts(
            rows=sum(reader.rows for reader in readers),
            quarantined=bad.rows,
            count=sum(reader.count for reader in readers),
            problems=tuple(problems[:PROBLEMS_SHOWN]),
            labels_shifted=_labels_shifted(readers, contract),
            reordered=tuple(reader.reordered for reader in readers if reader.reordered is not None),
        )
        require_budget(csv, facts, bad_rows, quarantine)
        _check_rows(csv, facts, contract, quarantine)
    return facts


def _parquet_writer(path: Path, contract: DatasetContract) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        path,
        parquet_schema(contract),
        # Parquet keeps uint8 in 4 bytes; split into streams, three of them are zeros that LZ4 skips. On the real train
        # split that is half the time of zstd without streams to write, and to read, and fewer bytes.
        compression="lz4",
        use_dictionary=False,
        column_encoding=dict.fromkeys(contract.columns, "BYTE_STREAM_SPLIT"),
    )


def _read_into(groups: "_RowGroups", file: CsvFile, contract: DatasetContract, quarantine: Quarantine) -> "CsvRows":
    with open_csv(file.path, contract, expected_sha256=file.sha256, quarantine=quarantine) as csv:
        for rows in csv:
            groups.add(rows)
    return csv


class _RowGroups:
    """Gathers rows into row groups of one size, turned to columns, however the blocks fell."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._columns = np.empty((len(writer.schema), BLOCK_ROWS), np.uint8)
        self._filled = 0

    def add(self, rows: Rows) -> None:
        while len(rows):
            taken = rows[: BLOCK_ROWS - self._filled]
            self._columns[:, self._filled : self._filled + len(taken)] = taken.T
            self._filled += len(taken)
            rows = rows[len(taken) :]
            if self._filled == BLOCK_ROWS:
                self.flush()

    def flush(self) -> None:
        if self._filled:
            columns = [pa.array(column) for column in self._columns[:, : self._filled]]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._writer.schema))
        self._filled = 0


def _check_rows(csv: CsvSplit, facts: IngestFacts, contract: DatasetContract, quarantine: Path) -> None:
    without = f" without the {facts.quarantined} bad ones, which are in {quarantine}" if facts.quarantined else ""
    if csv.origin == "fetched":
        published = contract.published[csv.split].rows
        if facts.rows != published:
            raise DataContractError(
                f"{csv.name} has {facts.rows} rows{without}: expected the {published} of the {csv.split} split as it "
                f"was published. Delete {_place(csv)}, and run again to fetch it anew.",
                problems=facts.problems,
                count=facts.count,
            )
    elif facts.rows < contract.minimum_rows[csv.split]:
        raise DataContractError(
            f"{csv.name} has {facts.rows} rows{without}: expected at least {contract.minimum_rows[csv.split]} for the "
            f"{csv.split} split. Add rows to {_place(csv)}, or supply another file, and run again.",
            problems=facts.problems,
            count=facts.count,
        )


def require_budget(csv: CsvSplit, facts: IngestFacts, bad_rows: BadRows, quarantine: Path) -> None:
    if facts.quarantined <= allowed_bad_rows(bad_rows, facts.rows + facts.quarantined):
        return
    cure = (
        "Delete the CSV, and run again to fetch it anew"
        if csv.origin == "fetched"
        else "Correct the CSV, or allow more, and run again"
    )
    shifted = []
    if facts.labels_shifted:
        way, other = ("above", "lowest") if facts.labels_shifted > 0 else ("below", "highest")
        shifted = [f"The labels look shifted by one: some are one {way} their range, and its {other} never occurs."]
    raise DataContractError(
        "\n".join(
            [
                *list_problems(facts.problems, facts.count),
                *shifted,
                f"Nothing was taken from {_place(csv)}: {quarantined_share(facts)}, --bad-rows allows {bad_rows}. What is bad is "
                f"in {quarantine}. {cure}.",
            ]
        ),
        facts.problems,
        facts.count,
    )


def _labels_shifted(readers: Sequence["CsvRows"], contract: DatasetContract) -> int:
    """1 where each label but the lowest occurs and all others are one above the highest; -1 the other way; else 0."""
    low, high = contract.bounds(contract.label_column)
    bad = set[str]().union(*(reader.bad_labels for reader in readers))
    seen = np.logical_or.reduce([reader.labels for reader in readers])[low : high + 1]
    if bad == {str(high + 1)} and seen[1:].all() and not seen[0]:
        return 1
    return -1 if bad == {str(low - 1)} and seen[:-1].all() and not seen[-1] else 0


def quarantined_share(facts: IngestFacts) -> str:
    are = "is" if facts.quarantined == 1 else "are"
    return f"{facts.quarantined} of {facts.rows + facts.quarantined} rows {are} bad"


def _place(csv: CsvSplit) -> Path:
    return csv.files[0].path.with_name(csv.name)
