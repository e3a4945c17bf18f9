"""Return the CSVs of the data folder, or fetch the published ones into it."""

import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from schemas.contract import SPLITS, DatasetContract, Split
from schemas.errors import DataContractError, DataUnavailable
from schemas.references import CsvFile, CsvSplit
from tasks.data.data_folder import csv_references, csv_split, present_csvs, read_record, record_path
from tasks.data.download import DEFAULT_LIMITS, Limits, SourceError
from tasks.data.sources import Source, default_sources
from tasks.runtime.files import sha256_file, sync_to_disk, write_json

logger = logging.getLogger(__name__)


def fetch_data(
    contract: DatasetContract,
    data_dir: Path,
    sources: Sequence[Source] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> dict[Split, CsvSplit]:
    """Find the CSVs of both splits in ``data_dir``, or put the published ones there.

    sources: tried in order until one does; None means `default_sources`.

    Two that fetch into one folder take turns: the second finds what the first fetched. A run that is killed leaves
    nothing that is later taken for whole, or for supplied.

    Raises `DataUnavailable` when no source did, when only one split is there, or when the folder cannot be used;
    `DataContractError` when what carries a CSV's name is no file, or one that cannot be read, and where nobody knows
    which of several files is meant.
    """
    data_dir = data_dir.absolute()
    try:
        # Without the lock first, so that CSVs in a folder that cannot be written to do.
        present = present_csvs(contract, data_dir)
        if len(present) == len(SPLITS):
            _sweep(contract, data_dir)
            return csv_references(contract, data_dir, present)
        data_dir.mkdir(parents=True, exist_ok=True)
        with _folder_lock(contract, data_dir):
            return _find_or_fetch(contract, data_dir, default_sources(contract) if sources is None else sources, limits)
    except OSError as error:
        raise DataUnavailable(
            f"The data folder {data_dir} cannot be used ({type(error).__name__}: {error}). Expected a folder that can "
            f"be read, and written to where data has to be fetched. {_by_hand(contract, data_dir)}"
        ) from error


# --- the data folder ---


def _find_or_fetch(
    contract: DatasetContract, data_dir: Path, sources: Sequence[Source], limits: Limits
) -> dict[Split, CsvSplit]:
    """`fetch_data` under the lock: nobody else is fetching into ``data_dir``."""
    present = present_csvs(contract, data_dir)
    if len(present) == len(SPLITS):
        return csv_references(contract, data_dir, present)
    ours = read_record(contract, data_dir)
    for split, paths in present.items():
        if csv_split(split, paths, "supplied").sha256 != ours.get(split):
            missing = " and ".join(contract.csv_name(other) for other in SPLITS if other not in present)
            raise DataUnavailable(
                f"{data_dir} holds {paths[0].name} but not {missing}. Expected both: one split of yours is not "
                f"completed with the published other one, because figures from such a mixture mean nothing. Add "
                f"{missing} (or {missing}.gz, or shards of it), or take {paths[0].name} away to have both fetched."
            )
        logger.info("%s was left by a fetch that was killed; both are fetched again", paths[0])

    working = _working_folder(contract, data_dir)
    shutil.rmtree(working, ignore_errors=True)  # left by a run that was killed
    working.mkdir()
    try:
        name, fetched = _fetch_from_first_source(contract, data_dir, working, sources, limits)
        if present_csvs(contract, data_dir) != present:
            raise DataUnavailable(f"{data_dir} changed while data was fetched into it. Run again to use what is there.")
        return _publish(contract, data_dir, working, name, fetched, present)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _fetch_from_first_source(
    contract: DatasetContract, data_dir: Path, working: Path, sources: Sequence[Source], limits: Limits
) -> tuple[str, Mapping[Split, Path]]:
    failures: list[str] = []
    for number, source in enumerate(sources):
        folder = working / str(number)
        folder.mkdir()
        logger.info("%s: trying %s", contract.name, source.name)
        started = time.monotonic()
        try:
            fetched = source.fetch(contract, folder, limits)
        except (SourceError, DataContractError) as error:
            logger.info("%s: %s does not do: %s", contract.name, source.name, error)
            failures.append(f"{source.name}: {str(error).rstrip('.')}")
            shutil.rmtree(folder)  # the next one may need the room
        else:
            logger.info("%s: got it from %s in %.1f s", contract.name, source.name, time.monotonic() - started)
            return source.name, fetched
    if not sources:
        raise DataUnavailable(
            f"{data_dir} holds no CSV of {contract.name}. Expected {' and '.join(map(contract.csv_name, SPLITS))}: "
            "this run is for data that was announced, and fetches none."
        )
    tried = "; ".join(f"({number}) {failure}" for number, failure in enumerate(failures, start=1))
    raise DataUnavailable(
        f"The {contract.name} data could not be fetched from any of {len(failures)} sources. Tried: {tried}. "
        f"{_by_hand(contract, data_dir)}"
    )


def _publish(
    contract: DatasetContract,
    data_dir: Path,
    working: Path,
    source: str,
    fetched: Mapping[Split, Path],
    left: Mapping[Split, Sequence[Path]],
) -> dict[Split, CsvSplit]:
    """Give the CSVs their names.

    The order is what makes a kill harmless: as soon as a fetched CSV has its name, the record tells whose it is. A CSV
    ``left`` by a killed fetch goes first, because under the new record it would pass for supplied.
    """
    files: dict[Split, CsvFile] = {}
    for split in SPLITS:
        sync_to_disk(fetched[split])
        files[split] = CsvFile(path=data_dir / contract.csv_name(split), sha256=sha256_file(fetched[split]))
    record = working / "record"
    rows = {split: contract.published[split].rows for split in SPLITS}
    entries = {split: {"sha256": file.sha256, "rows": rows[split]} for split, file in files.items()}
    write_json(record, {"source": source, "files": entries})
    for paths in left.values():
        for path in paths:
            path.unlink()
    record.replace(record_path(contract, data_dir))
    for split, file in files.items():
        fetched[split].replace(file.path)
        logger.info("%s: fetched, %d rows, sha256 %s", file.path, rows[split], file.sha256)
    return {split: CsvSplit(split=split, files=(file,), origin="fetched") for split, file in files.items()}


def _working_folder(contract: DatasetContract, data_dir: Path) -> Path:
    """Where a fetch keeps all that has no name yet. One name is enough: whoever has the lock owns it."""
    return data_dir / f".{contract.name}.fetching"


@contextmanager
def _folder_lock(contract: DatasetContract, data_dir: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the folder's lock. The kernel frees it when its holder is killed."""
    lock = FileLock(data_dir / f".{contract.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise
        logger.info("%s: another run is fetching; waiting for it", data_dir)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _sweep(contract: DatasetContract, data_dir: Path) -> None:
    """Remove what a fetch left that was killed after its last rename. Nothing hangs on it."""
    working = _working_folder(contract, data_dir)
    if working.exists():
        with suppress(OSError), _folder_lock(contract, data_dir, wait=False):
            shutil.rmtree(working)


def _by_hand(contract: DatasetContract, data_dir: Path) -> str:
    train, test = (contract.csv_name(split) for split in SPLITS)
    return (
        f"To supply the data by hand, put {train} and {test} (or both as .csv.gz) into {data_dir}, or name the folder "
        "that holds them with --data-dir or FASHION_ANN_DATA_DIR."
    )
