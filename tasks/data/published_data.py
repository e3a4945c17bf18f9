"""Return the CSVs of the data folder, and download the published ones if it contains none."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

from schemas.contract import SPLITS, DatasetContract, Split
from schemas.errors import DataContractError, DataUnavailable, LocksUnavailable
from schemas.references import CsvFile, CsvSplit
from tasks.data.data_folder import csv_references, csv_split, present_csvs, read_record, record_path
from tasks.data.download import DEFAULT_LIMITS, Limits, SourceError
from tasks.data.missing_data import describe_missing
from tasks.data.sources import Source, default_sources
from tasks.runtime.files import remove_leftover, remove_path, sha256_file, sync_to_disk, write_json
from tasks.runtime.locks import lock

logger = logging.getLogger(__name__)


def fetch_data(
    contract: DatasetContract, data_dir: Path, sources: Sequence[Source] | None = None, limits: Limits = DEFAULT_LIMITS
) -> dict[Split, CsvSplit]:
    """Return the CSVs of both splits in ``data_dir``; download the published ones if it contains none.

    sources: tried in this order; None means `default_sources`.

    Runs that share a folder take turns: the second finds the files of the first. A killed run leaves no file that
    counts as complete or as supplied.

    Raises `DataUnavailable` if no source has the data or the folder cannot be used; `DataContractError` if only one
    split is present, a CSV is not a readable file, or several files could be meant.
    """
    data_dir = data_dir.absolute()
    with _folder_errors(contract, data_dir):
        # First without the lock: a folder that already contains the CSVs may be read-only.
        if (present := find_data(contract, data_dir)) is not None:
            return present
        data_dir.mkdir(parents=True, exist_ok=True)
        with lock(_lock_path(contract, data_dir), waiting=f"{data_dir}: another run is fetching; waiting for it"):
            return _fetch(contract, data_dir, default_sources(contract) if sources is None else sources, limits)


def find_data(
    contract: DatasetContract, data_dir: Path, splits: Sequence[Split] = SPLITS
) -> dict[Split, CsvSplit] | None:
    """Return the CSVs of ``splits`` in ``data_dir``, None if one is missing. Raises as `fetch_data` does."""
    data_dir = data_dir.absolute()
    with _folder_errors(contract, data_dir):
        present = present_csvs(contract, data_dir, splits)
        if len(present) < len(splits):
            return None
        working = _working_folder(contract, data_dir)
        if working.exists():  # left by a run that was killed after its last rename, or in use by another run
            with suppress(OSError, LocksUnavailable), lock(_lock_path(contract, data_dir)) as held:
                if held:
                    remove_path(working)
        return csv_references(contract, data_dir, present)


def require_supplied(contract: DatasetContract, data_dir: Path) -> None:
    """Raise `DataContractError`, with what ``data_dir`` contains instead, unless it has the CSVs of both splits."""
    if (problem := describe_missing(contract, data_dir)) is not None:
        if not contract.can_be_fetched:
            raise DataContractError(
                f"{problem} Nothing was downloaded, because {contract.path} lists no published data. "
                f"{_how_to_supply(contract, data_dir)}"
            )
        raise DataContractError(
            f"{problem} Nothing was downloaded, because published data never replaces or completes yours. "
            f"{_how_to_supply(contract, data_dir)} To train on the published data instead, use --fetch (flow parameter "
            "fetch) with a folder without CSVs."
        )


def _fetch(
    contract: DatasetContract, data_dir: Path, sources: Sequence[Source], limits: Limits
) -> dict[Split, CsvSplit]:
    """Fetch under the lock of ``data_dir``."""
    present = present_csvs(contract, data_dir)
    if len(present) == len(SPLITS):
        return csv_references(contract, data_dir, present)
    fetched_digests = read_record(contract, data_dir)
    for split, paths in present.items():
        if csv_split(split, paths).sha256 != fetched_digests.get(split):
            require_supplied(contract, data_dir)
        logger.info("%s: left by an interrupted fetch; fetching both splits again", paths[0])

    working = _working_folder(contract, data_dir)
    if working.exists():  # left by a killed run
        remove_path(working)
    working.mkdir()
    try:
        name, fetched = _fetch_from_first_source(contract, data_dir, working, sources, limits)
        if present_csvs(contract, data_dir) != present:
            raise DataUnavailable(f"{data_dir} changed during the fetch. Run again to use the files in it.")
        return _publish(contract, data_dir, working, name, fetched, present)
    finally:
        remove_leftover(working)


def _fetch_from_first_source(
    contract: DatasetContract, data_dir: Path, working: Path, sources: Sequence[Source], limits: Limits
) -> tuple[str, Mapping[Split, Path]]:
    """Return the name of the first source that has the data, and the CSVs that it wrote below ``working``."""
    failures: list[str] = []
    for number, source in enumerate(sources, start=1):
        folder = working / str(number)
        folder.mkdir()
        logger.info("trying %s", source.name)
        started = time.monotonic()
        try:
            fetched = source.fetch(contract, folder, limits)
        except (SourceError, DataContractError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            logger.info("not available: %s%s", reason, "; trying the next source" if number < len(sources) else "")
            failures.append(f"({number}) {source.name}: {reason}")
            remove_path(folder)  # frees the disk space for the next source
        else:
            logger.info("fetched from %s in %.1f s", source.name, time.monotonic() - started)
            return source.name, fetched
    raise DataUnavailable(
        f"The {contract.name} data is not available from any of {len(failures)} sources. "
        f"Tried: {'; '.join(failures)}. {_how_to_supply(contract, data_dir)}"
    )


def _publish(
    contract: DatasetContract,
    data_dir: Path,
    working: Path,
    source: str,
    fetched: Mapping[Split, Path],
    leftovers: Mapping[Split, Sequence[Path]],
) -> dict[Split, CsvSplit]:
    """Move the fetched CSVs to their final names.

    The order makes a kill harmless: the record exists before the CSVs that it describes. The CSVs that a killed fetch
    left are removed before, because they would count as supplied under the new record.
    """
    entries, csvs = {}, {}
    for split in SPLITS:
        sync_to_disk(fetched[split])
        file = CsvFile(path=data_dir / contract.csv_name(split), sha256=sha256_file(fetched[split]))
        entries[split] = {"sha256": file.sha256, "rows": contract.published[split].rows}
        csvs[split] = CsvSplit(split=split, files=(file,), origin="fetched")
    record = working / "record"
    write_json(record, {"source": source, "files": entries})
    for path in chain.from_iterable(leftovers.values()):
        path.unlink()
    record.replace(record_path(contract, data_dir))
    for split, csv in csvs.items():
        fetched[split].replace(csv.files[0].path)
        logger.info("%s: fetched, %d rows", csv.files[0].path, contract.published[split].rows)
    return csvs


def _working_folder(contract: DatasetContract, data_dir: Path) -> Path:
    """Return the folder of unfinished files. The holder of the lock owns it."""
    return data_dir / f".{contract.name}.fetching"


def _lock_path(contract: DatasetContract, data_dir: Path) -> Path:
    return data_dir / f".{contract.name}.lock"


@contextmanager
def _folder_errors(contract: DatasetContract, data_dir: Path) -> Iterator[None]:
    """Report an OSError of the block as a data folder that cannot be used."""
    try:
        yield
    except OSError as error:
        raise DataUnavailable(
            f"The data folder {data_dir} cannot be used ({type(error).__name__}: {error}). Expected a folder that can "
            f"be read, and written to if data has to be fetched. {_how_to_supply(contract, data_dir)}"
        ) from error


def _how_to_supply(contract: DatasetContract, data_dir: Path) -> str:
    names = " and ".join(map(contract.csv_name, contract.csv_splits))
    return (
        f"To supply the data yourself, put {names} (or {'both ' if contract.holdout is None else ''}as .csv.gz) into "
        f"{data_dir}, or name the folder that contains them with --data-dir or FASHION_ANN_DATA_DIR."
    )
