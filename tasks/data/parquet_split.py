"""Join the shards of a split into one folder of Parquet files, with one quarantine and one budget of bad rows."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from schemas.config import BadRows, allowed_bad_rows
from schemas.contract import DatasetContract
from schemas.errors import CellProblem, DataContractError
from schemas.layout import PART_NAME, QUARANTINE_NAME, ROW_DIGESTS_NAME, part_name
from schemas.references import CsvSplit, ParquetPart, ParquetSplit, StageRecord
from tasks.data.csv_blocks import PROBLEMS_SHOWN, list_problems, most_common_cause
from tasks.data.csv_file import file_stamp, require_unchanged
from tasks.data.csv_to_parquet import ShardFacts, check_parquet, convert_csv
from tasks.data.quarantine import join_quarantines
from tasks.runtime.files import link_or_copy, remove_path, temporary_name

_READ_BYTES = 1 << 16


@dataclass(frozen=True)
class IngestFacts:
    """Counts and faults of the CSVs of a split.

    rows, quarantined: number of good and of rejected rows.
    count: number of bad cells in the rejected rows; a row of the wrong length counts as one.
    problems: the first ten of these cells.
    content: sha256 of the row digests in order. It does not depend on how the rows are divided into files.
    part_rows: number of good rows of each file.
    labels_shifted: 1 or -1 if every label looks as if that had been added to it, else 0.
    cause: a sentence about most of the rejected rows, if they have the same fault.
    reordered: a sentence for each file whose columns were reordered.
    """

    rows: int
    quarantined: int
    count: int
    problems: tuple[CellProblem, ...]
    content: str
    part_rows: tuple[int, ...]
    labels_shifted: int = 0
    cause: str | None = None
    reordered: tuple[str, ...] = ()


def ingest_csv(
    csv: CsvSplit, target: Path, quarantine: Path, contract: DatasetContract, bad_rows: BadRows = 0
) -> IngestFacts:
    """Convert the CSVs of a split one after the other, and join them; see `convert_csv` and `join_shards`.

    Raises `DataContractError` as these and `reject_changes` do.
    """
    scratch = temporary_name(target)
    scratch.mkdir()
    try:
        shards = []
        with reject_changes(csv):
            for place, file in enumerate(csv.files):
                folder = scratch / str(place)
                folder.mkdir()
                shards.append((folder, convert_csv(file, csv.split, folder, contract)))
        return join_shards(csv, shards, target, quarantine, contract, bad_rows)
    finally:
        remove_path(scratch)  # also where inode numbers are unstable, unlike `TemporaryDirectory`


@contextmanager
def reject_changes(csv: CsvSplit) -> Iterator[None]:
    """Raise `DataContractError` if a CSV of a split changes meanwhile, at the end of a block without an error.

    A shard may change while another one is read, or if its Parquet is reused.
    """
    before = [file_stamp(file.path) for file in csv.files]
    yield
    for file, stamp in zip(csv.files, before, strict=True):
        require_unchanged(file.path, stamp, file.sha256)


def join_shards(
    csv: CsvSplit,
    shards: Sequence[tuple[Path, ShardFacts]],
    target: Path,
    quarantine: Path,
    contract: DatasetContract,
    bad_rows: BadRows = 0,
) -> IngestFacts:
    """Link the good rows of a split into the new folder ``target``, and write the rejected ones to ``quarantine``.

    shards: the folder and the facts of each file of ``csv``, from `convert_csv`.

    ``target`` has one Parquet per file, in the same order. ``quarantine`` has the schema
    `tasks.data.quarantine.SCHEMA`; it is written only if there is a bad row.

    Raises `DataContractError` before ``target`` is made:

    - for more bad rows than ``bad_rows`` allows; the problems name each bad cell, and a row of the wrong length by the
      first missing column or by the number of the first extra cell
    - for fewer rows than ``contract.minimum_rows`` in a supplied split
    - for another number of rows than published in a fetched split
    """
    names = [file.path.name for file in csv.files]
    every = [facts for _, facts in shards]
    problems = [
        replace(problem, file=name) for name, facts in zip(names, every, strict=True) for problem in facts.problems
    ]
    causes = sum((Counter(dict(facts.causes)) for facts in every), Counter[str | None]())
    facts = IngestFacts(
        rows=sum(facts.rows for facts in every),
        quarantined=sum(facts.quarantined for facts in every),
        count=sum(facts.count for facts in every),
        problems=tuple(problems[:PROBLEMS_SHOWN]),
        content=_content([folder / ROW_DIGESTS_NAME for folder, _ in shards]),
        part_rows=tuple(facts.rows for facts in every),
        labels_shifted=_label_shift(every, contract),
        cause=most_common_cause(causes),
        reordered=tuple(
            f"{name}: {facts.reordered}"
            for name, facts in zip(names, every, strict=True)
            if facts.reordered is not None
        ),
    )
    if facts.quarantined:
        rejected = [
            (name, folder / QUARANTINE_NAME)
            for name, (folder, shard) in zip(names, shards, strict=True)
            if shard.quarantined
        ]
        join_quarantines(rejected, quarantine)
    require_budget(csv, facts, bad_rows, quarantine)
    _require_rows(csv, facts, contract, quarantine)
    target.mkdir()
    for (folder, _), file in zip(shards, part_files(target, csv), strict=True):
        link_or_copy(folder / PART_NAME, file)
    return facts


def part_files(folder: Path, csv: CsvSplit) -> tuple[Path, ...]:
    """Return the Parquet files of a split in the ``folder`` that `join_shards` wrote, in the order of its CSVs."""
    return tuple(folder / part_name(place) for place in range(len(csv.files)))


def read_facts(stored: Mapping[str, Any]) -> IngestFacts:
    """Return `IngestFacts` from JSON, which may have further keys. Raises ValueError for other content."""
    return TypeAdapter(IngestFacts).validate_python(stored)


def split_reference(
    record: StageRecord, facts: IngestFacts, part_sha256: Sequence[str], csv: CsvSplit, contract: DatasetContract
) -> ParquetSplit:
    """Return the reference to a split that `join_shards` wrote to the folder of ``record``.

    part_sha256: the digest of each part.

    Raises ValueError for parts with other columns or row counts.
    """
    folder = record.path / csv.split
    parts = [
        ParquetPart(source=file.path.name, path=path, sha256=digest, rows=rows)
        for file, path, digest, rows in zip(
            csv.files, part_files(folder, csv), part_sha256, facts.part_rows, strict=True
        )
    ]
    for part in parts:
        check_parquet(part.path, contract, part.rows)
    return ParquetSplit(
        record=record,
        split=csv.split,
        path=folder,
        content=facts.content,
        parts=tuple(parts),
        rows=facts.rows,
        quarantined=facts.quarantined,
        origin=csv.origin,
        source=csv,
    )


def _content(digests: Sequence[Path]) -> str:
    content = hashlib.sha256()
    for path in digests:
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                content.update(block)
    return content.hexdigest()


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


def _label_shift(shards: Sequence[ShardFacts], contract: DatasetContract) -> int:
    """Return 1 if only the lowest label never occurs and every bad label is one above the highest.

    Return -1 for the opposite, else 0.
    """
    low, high = contract.class_labels[0], contract.class_labels[-1]
    bad = set[str]().union(*(shard.bad_labels for shard in shards))
    occurring = set[int]().union(*(shard.classes for shard in shards))
    first, *_, last = classes = range(contract.classes)
    if bad == {str(high + 1)} and occurring == {*classes} - {first}:
        return 1
    return -1 if bad == {str(low - 1)} and occurring == {*classes} - {last} else 0


def _place(csv: CsvSplit) -> Path:
    return csv.files[0].path.with_name(csv.name)
