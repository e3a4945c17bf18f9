"""Fetch: the two CSVs of a dataset, from the data folder or else from the first source that has the published data.

What lies in the data folder is taken as it is. What is fetched is known to the last byte before it takes its name.
"""

import gzip
import hashlib
import json
import logging
import math
import os
import queue
import re
import shutil
import signal
import ssl
import subprocess
import threading
import time
import zipfile
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout
from prefect import task

from schemas.contract import SPLITS, BundledData, DatasetContract, IdxFile, Split, contract_of
from schemas.errors import DataContractError, DataUnavailable, UnreadableData
from schemas.references import CsvFile, CsvSplit
from tasks.prepare import stratified_split
from tasks.progress import Begun, tell
from tasks.stage import sha256_file, to_disk, write_json

logger = logging.getLogger(__name__)

KAGGLE_DOWNLOAD = "https://www.kaggle.com/api/v1/datasets/download/"
_IDX_DIMENSIONS = {2049: 1, 2051: 3}  # magic number: labels, images
_PROGRESS_SECONDS = 2.0
_PIECE = 1 << 20


class SourceError(Exception):
    """Why one source does not do. The next one is tried; people see it only when none of them did."""


@dataclass(frozen=True)
class Limits:
    """How long a source may keep people waiting: one that does not answer costs seconds.

    A server that answers is kept for as long as every ``window_seconds`` bring ``floor`` bytes a second or more, so
    that a file costs at most its largest size / ``floor``: 26 MB of images 132 s. An average over the whole file would
    let a server that stops half-way dribble for minutes.
    """

    connect_seconds: float = 3.0
    silence_seconds: float = 10.0  # without a byte
    window_seconds: float = 10.0
    floor: int = 200_000  # bytes a second
    command_seconds: float = 120.0  # each of apt-get and dpkg


DEFAULT_LIMITS = Limits()


class Source(Protocol):
    """A place that may have the published data. ``name`` is for people."""

    @property
    def name(self) -> str: ...

    def fetch(self, contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
        """Write both CSVs into the empty ``folder``, and return them once every row in them is the published one.

        Raises `SourceError` or `DataContractError` when this source does not do, OSError when ``folder`` cannot be
        written to.
        """
        ...


@task(name="fetch", task_run_name="fetch")
def fetch(dataset: str, data_dir: Path, present_alone: bool = False) -> dict[Split, CsvSplit]:
    """The CSVs of ``dataset``, see `fetch_data`; with ``present_alone`` those that are there, and no others.

    No retries: when this fails, each source has been tried, and a wrong digest stays wrong.
    """
    tell(Begun("fetch", None))
    return fetch_data(contract_of(dataset), data_dir, sources=() if present_alone else None)


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
            return _references(contract, data_dir, present)
        data_dir.mkdir(parents=True, exist_ok=True)
        with _alone(contract, data_dir):
            return _find_or_fetch(contract, data_dir, default_sources(contract) if sources is None else sources, limits)
    except OSError as error:
        raise DataUnavailable(
            f"The data folder {data_dir} cannot be used ({type(error).__name__}: {error}). Expected a folder that can "
            f"be read, and written to where data has to be fetched. {_by_hand(contract, data_dir)}"
        ) from error


def default_sources(contract: DatasetContract) -> tuple[Source, ...]:
    """Where the published data is looked for, in this order."""
    sources: list[Source] = []
    if contract.bundled is not None:
        sources.append(ScikitLearn(contract.bundled))
    if contract.debian_folder is not None:
        sources.append(IdxFolder(Path(contract.debian_folder)))
    if contract.kaggle_slug is not None:
        sources.append(KaggleZip(KAGGLE_DOWNLOAD + contract.kaggle_slug))
    sources += [IdxMirror(address) for address in contract.mirrors]
    if contract.debian_package is not None and contract.debian_folder is not None:
        sources.append(DebianPackage(contract.debian_package, contract.debian_folder))
    return tuple(sources)


# --- the data folder ---


def _find_or_fetch(
    contract: DatasetContract, data_dir: Path, sources: Sequence[Source], limits: Limits
) -> dict[Split, CsvSplit]:
    """`fetch_data` under the lock: nobody else is fetching into ``data_dir``."""
    present = present_csvs(contract, data_dir)
    if len(present) == len(SPLITS):
        return _references(contract, data_dir, present)
    ours = _read_record(contract, data_dir)
    for split, paths in present.items():
        if _split_of(split, paths, "supplied").sha256 != ours.get(split):
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
        name, fetched = _first_that_does(contract, data_dir, working, sources, limits)
        if present_csvs(contract, data_dir) != present:
            raise DataUnavailable(f"{data_dir} changed while data was fetched into it. Run again to use what is there.")
        return _publish(contract, data_dir, working, name, fetched, present)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _first_that_does(
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
        to_disk(fetched[split])
        files[split] = CsvFile(path=data_dir / contract.csv_name(split), sha256=sha256_file(fetched[split]))
    record = working / "record"
    rows = {split: contract.published[split].rows for split in SPLITS}
    entries = {split: {"sha256": file.sha256, "rows": rows[split]} for split, file in files.items()}
    write_json(record, {"source": source, "files": entries})
    for paths in left.values():
        for path in paths:
            path.unlink()
    record.replace(_record_path(contract, data_dir))
    for split, file in files.items():
        fetched[split].replace(file.path)
        logger.info("%s: fetched, %d rows, sha256 %s", file.path, rows[split], file.sha256)
    return {split: CsvSplit(split=split, files=(file,), origin="fetched") for split, file in files.items()}


def present_csvs(contract: DatasetContract, data_dir: Path) -> dict[Split, tuple[Path, ...]]:
    """The CSV of each split that is there, or its shards in the order of their names, each of them packed or not.

    Names decide; nothing is opened.
    """
    present: dict[Split, tuple[Path, ...]] = {}
    names = {path.name for path in data_dir.iterdir()} if data_dir.is_dir() else set()
    for split in SPLITS:
        whole = contract.csv_name(split)
        shard = re.compile(rf"{re.escape(whole.removesuffix('.csv'))}-.*\.csv", re.DOTALL)
        # By the name of the CSV: sorted, and packed beside plain.
        found: dict[str, list[Path]] = {}
        for name in sorted(names):
            plain = name.removesuffix(".gz")
            if plain == whole or shard.fullmatch(plain):
                _demand_plain_name(data_dir, name)
                found.setdefault(plain, []).append(data_dir / name)
        for paths in found.values():
            _demand_one_file(data_dir, paths)
        if whole in found and len(found) > 1:
            first = next(paths[0] for plain, paths in found.items() if plain != whole)
            raise DataContractError(
                f"{data_dir} holds {found[whole][0].name} and shards of it, {first.name} the first of "
                f"{len(found) - 1}. Expected one or the other, because rows may stand in both: remove what is not "
                f"meant, or give {found[whole][0].name} the name of a shard, too."
            )
        if found:
            present[split] = tuple(path for _, (path,) in sorted(found.items()))
    return present


def _demand_plain_name(data_dir: Path, name: str) -> None:
    """The name of a shard stands in manifests, quarantine and messages."""
    if not name.isprintable():
        raise DataContractError(
            f"{data_dir} holds a shard of the name {name!a}: expected a name of characters that can be printed, in "
            "UTF-8. Rename the file, and run again."
        )


def _demand_one_file(data_dir: Path, paths: Sequence[Path]) -> None:
    """``paths``: a CSV, its packed form, or both of them."""
    for path in paths:
        if not path.is_file():
            received = "a folder" if path.is_dir() else "a link to nothing, a pipe or a device"
            raise DataContractError(
                f"{path} is not a file. Expected a CSV, received {received}. Take it away, or put a CSV there."
            )
    if len(paths) > 1:
        raise DataContractError(
            f"{data_dir} holds both {paths[0].name} and {paths[1].name}. Expected one of them, because they may "
            "differ: remove the one that is not meant."
        )


def _references(
    contract: DatasetContract, data_dir: Path, present: Mapping[Split, Sequence[Path]]
) -> dict[Split, CsvSplit]:
    found = {split: _split_of(split, paths, "supplied") for split, paths in present.items()}
    # The record after the files: it is written before they get their names.
    ours = _read_record(contract, data_dir)
    for split, csv in found.items():
        if ours.get(split) == csv.sha256:
            found[split] = csv.model_copy(update={"origin": "fetched"})
        for file in csv.files:
            logger.info("%s: found, %s", file.path, found[split].origin)
    if len({csv.origin for csv in found.values()}) > 1:
        logger.warning("%s mixes a fetched split with a supplied one: are they of one dataset?", data_dir)
    return found


def _split_of(split: Split, paths: Sequence[Path], origin: Literal["supplied", "fetched"]) -> CsvSplit:
    return CsvSplit(split=split, files=tuple(_hashed(path) for path in paths), origin=origin)


def _hashed(path: Path) -> CsvFile:
    try:
        return CsvFile(path=path, sha256=sha256_file(path))
    except OSError as error:
        raise UnreadableData(path, error) from error


def _record_path(contract: DatasetContract, data_dir: Path) -> Path:
    return data_dir / f"{contract.name}.source.json"


def _read_record(contract: DatasetContract, data_dir: Path) -> dict[str, str]:
    """Digest of each CSV that was fetched here, by split. A record that cannot be read says nothing."""
    path = _record_path(contract, data_dir)
    try:
        files = json.loads(path.read_bytes())["files"]
        return {split: str(entry["sha256"]) for split, entry in files.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be read (%s) and is ignored: the CSVs beside it count as supplied", path, error)
        return {}


def _working_folder(contract: DatasetContract, data_dir: Path) -> Path:
    """Where a fetch keeps all that has no name yet. One name is enough: whoever has the lock owns it."""
    return data_dir / f".{contract.name}.fetching"


@contextmanager
def _alone(contract: DatasetContract, data_dir: Path, *, wait: bool = True) -> Iterator[None]:
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
        with suppress(OSError), _alone(contract, data_dir, wait=False):
            shutil.rmtree(working)


def _by_hand(contract: DatasetContract, data_dir: Path) -> str:
    train, test = (contract.csv_name(split) for split in SPLITS)
    return (
        f"To supply the data by hand, put {train} and {test} (or both as .csv.gz) into {data_dir}, or name the folder "
        "that holds them with --data-dir or FASHION_ANN_DATA_DIR."
    )


# --- the published data ---


def read_idx(content: bytes) -> npt.NDArray[np.uint8]:
    """An IDX file as an array.

    Images (magic 2051): uint8, (N, height, width). Labels (magic 2049): uint8, (N,). Read-only views of ``content``.
    The header is big-endian: the magic number, then each dimension as 4 bytes.

    Raises `DataContractError` when ``content`` is anything else.
    """
    magic = int.from_bytes(content[:4], "big")
    dimensions = _IDX_DIMENSIONS.get(magic)
    if len(content) < 4 or dimensions is None:
        raise DataContractError(
            f"An IDX file begins with 2049 (labels) or 2051 (images), this one with {content[:4]!r}."
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataContractError(f"An IDX header of {start} bytes was expected, {len(content)} bytes were received.")
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise DataContractError(f"IDX of shape {shape} takes {expected} bytes, {len(content)} were received.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def rows_digest(rows: npt.NDArray[np.uint8]) -> str:
    """Digest of the same rows in any order.

    rows: uint8, (N, 1 + pixels), label first. sha256 of the sorted sha256 digests of each row's bytes.
    """
    return hashlib.sha256(
        b"".join(sorted(hashlib.sha256(row).digest() for row in np.ascontiguousarray(rows)))
    ).hexdigest()


def write_csv(rows: npt.NDArray[np.uint8], columns: Sequence[str], path: Path) -> None:
    """Write rows as CSV: a header, then integers; commas, LF. The same rows give the same bytes, everywhere.

    rows: uint8, (N, columns).
    """
    # Each number with its separator fits in 4 bytes, so that a block of rows is one look-up; then the padding goes.
    within, last = (
        np.array([list(f"{value}{separator}".encode().ljust(4, b"\0")) for value in range(256)], np.uint8)
        .view(np.uint32)
        .ravel()
        for separator in (",", "\n")
    )
    with path.open("wb") as file:
        file.write(f"{','.join(columns)}\n".encode())
        for start in range(0, len(rows), 2048):
            block = rows[start : start + 2048]
            cells = within[block]  # (2048, columns)
            cells[:, -1] = last[block[:, -1]]
            file.write(cells.tobytes().translate(None, b"\0"))


def _check_rows(contract: DatasetContract, split: Split, rows: npt.NDArray[np.uint8]) -> None:
    published = contract.published[split]
    if rows.shape != (published.rows, 1 + contract.pixels):
        raise SourceError(
            f"{split}: expected {published.rows} rows of {1 + contract.pixels} numbers, received {rows.shape}"
        )
    received = rows_digest(rows)
    if received != published.rows_sha256:
        raise SourceError(
            f"{split}: these are not the published rows: expected digest {published.rows_sha256}, received {received}"
        )


# --- scikit-learn ---


@dataclass(frozen=True)
class ScikitLearn:
    """Images that come with scikit-learn, where that is installed (the extra "datasets")."""

    bundled: BundledData

    @property
    def name(self) -> str:
        return f"scikit-learn's {self.bundled.loader}"

    def fetch(self, contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
        try:
            from sklearn import datasets
        except ImportError as error:
            raise SourceError(
                f"scikit-learn cannot be imported ({error}): in the checkout, "
                "`.venv/bin/python -m pip install scikit-learn`"
            ) from error
        loaded = getattr(datasets, self.bundled.loader)()
        rows = np.column_stack([loaded.target, loaded.data]).astype(np.uint8)  # uint8, (N, 1 + pixels)
        places = stratified_split(loaded.target, self.bundled.test_rows, self.bundled.seed)
        csvs: dict[Split, Path] = {}
        for split, taken in zip(SPLITS, places, strict=True):
            _check_rows(contract, split, rows[taken])
            csvs[split] = folder / contract.csv_name(split)
            write_csv(rows[taken], contract.columns, csvs[split])
        return csvs


# --- sources of IDX files ---


@dataclass(frozen=True)
class IdxFolder:
    """The four files on disk, packed by whomever."""

    path: Path

    @property
    def name(self) -> str:
        return f"IDX files in {self.path}"

    def fetch(self, contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
        if not self.path.is_dir():
            raise SourceError("there is no such folder")
        return _csvs_from_idx(contract, self.path, folder)


@dataclass(frozen=True)
class IdxMirror:
    """A server with the four files under ``address``."""

    address: str

    @property
    def name(self) -> str:
        return self.address

    def fetch(self, contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
        # Small files first: a server that hands out other data is found out after kilobytes.
        labels, images = zip(*(_idx_files(contract, split) for split in SPLITS), strict=True)
        for file in (*labels, *images):
            path = folder / file.name
            # Twice: packed by someone else it may be somewhat larger.
            download(f"{self.address.rstrip('/')}/{file.name}", path, 2 * file.gzip_bytes, limits)
            _idx_content(file, path, _largest_idx(contract))
        return _csvs_from_idx(contract, folder, folder)


@dataclass(frozen=True)
class DebianPackage:
    """A Debian package with the four files in ``folder``. It is unpacked, not installed; no root is needed."""

    package: str
    folder: str

    @property
    def name(self) -> str:
        return f"Debian package {self.package}"

    def fetch(self, contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
        apt_get, dpkg = shutil.which("apt-get"), shutil.which("dpkg")
        if apt_get is None or dpkg is None:
            raise SourceError("apt-get and dpkg are not on this machine")
        cache, lists, unpacked = folder / "cache", folder / "lists", folder / "unpacked"
        for path in (cache / "archives" / "partial", lists / "partial", unpacked):
            path.mkdir(parents=True)  # apt makes them for root alone
        apt = [apt_get, "-q", *_apt_options("APT::Sandbox::User=root", f"Dir::Cache={cache}", "Acquire::Retries=0")]
        # root downloads as root, because user _apt cannot write to this folder.
        apt += _apt_options("Acquire::http::Timeout=5", "Acquire::https::Timeout=5")
        try:
            _command([*apt, "download", self.package], folder, limits)
        except SourceError as error:
            # Containers come without lists, or with stale ones. Fresh ones go to a folder of our own: fetching data
            # changes nothing about the machine.
            if not any(sign in str(error) for sign in ("Unable to locate", "no installation candidate", "404")):
                raise
            logger.info("%s: not in this machine's package lists; fetching lists", self.package)
            apt += _apt_options(f"Dir::State::Lists={lists}")
            _command([*apt, "update"], folder, limits)
            _command([*apt, "download", self.package], folder, limits)
        archives = sorted(folder.glob("*.deb"))
        if len(archives) != 1:
            raise SourceError(f"apt-get was expected to download one package, {len(archives)} are there")
        _command([dpkg, "-x", str(archives[0]), str(unpacked)], folder, limits)
        return _csvs_from_idx(contract, unpacked / self.folder.lstrip("/"), folder)


def _apt_options(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("-o", setting)]


def _command(arguments: Sequence[str], folder: Path, limits: Limits) -> None:
    """Run a program in ``folder``. It and whatever it started are gone when this returns or raises."""
    name = Path(arguments[0]).name
    try:
        process = subprocess.Popen(  # noqa: S603 - programs of this machine, no shell
            arguments,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise SourceError(f"{name} cannot be started ({error})") from error
    with process:
        try:
            output, _ = process.communicate(timeout=limits.command_seconds)
        except subprocess.TimeoutExpired as error:
            raise SourceError(f"{name} was not done within {limits.command_seconds:g} s") from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        errors = [line for line in output.splitlines() if line.startswith("E:")] or output.splitlines()[-1:]
        raise SourceError(f"{name} ended with status {process.returncode}: {' '.join(errors)[:300]}")


def _csvs_from_idx(contract: DatasetContract, source: Path, folder: Path) -> dict[Split, Path]:
    """Write the CSVs of the four IDX files in ``source`` to ``folder``."""
    csvs: dict[Split, Path] = {}
    for split in SPLITS:
        largest = _largest_idx(contract)
        labels, images = (
            read_idx(_idx_content(file, source / file.name, largest)) for file in _idx_files(contract, split)
        )
        expected = (contract.published[split].rows, contract.height, contract.width)
        if images.shape != expected or labels.shape != expected[:1]:
            raise SourceError(
                f"{split}: expected images {expected} and a label each, received images {images.shape} and labels "
                f"{labels.shape}"
            )
        rows = np.column_stack([labels, images.reshape(len(images), -1)])  # uint8, (N, 1 + pixels)
        _check_rows(contract, split, rows)
        csvs[split] = folder / contract.csv_name(split)
        write_csv(rows, contract.columns, csvs[split])
    return csvs


def _idx_files(contract: DatasetContract, split: Split) -> tuple[IdxFile, IdxFile]:
    """Labels and images."""
    published = contract.published[split]
    if published.images is None or published.labels is None:
        raise SourceError(f"{contract.name} was not published as IDX")
    return published.labels, published.images


def _largest_idx(contract: DatasetContract) -> int:
    return 16 + contract.pixels * max(published.rows for published in contract.published.values())


def _idx_content(file: IdxFile, path: Path, largest: int) -> bytes:
    """What is inside a published file, at most ``largest`` bytes, checked against its digest.

    Packed or not: a server may unpack on the way.
    """
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            content = stream.read(largest + 1)
    except FileNotFoundError:
        raise SourceError(f"{path.name} is not there") from None
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path.name} is damaged or cannot be read ({error})") from error
    received = hashlib.sha256(content).hexdigest()
    if received != file.content_sha256:
        raise SourceError(
            f"{file.name} holds other data (plain MNIST goes by the same file names): expected sha256 "
            f"{file.content_sha256} of its content, received {received}"
        )
    return content


# --- Kaggle ---


@dataclass(frozen=True)
class KaggleZip:
    """Kaggle's zip with the two CSVs, whose rows come in an order of their own. They are kept as they are."""

    address: str

    @property
    def name(self) -> str:
        return self.address

    def fetch(self, contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
        archive = folder / "archive.zip"
        # Its numbers are text, which packing makes smaller: unpacked size is a bound with room for all else in it.
        download(self.address, archive, sum(_largest_csv(contract, split) for split in SPLITS), limits)
        csvs: dict[Split, Path] = {}
        for split in SPLITS:
            csvs[split] = folder / contract.csv_name(split)
            extract(archive, csvs[split], _largest_csv(contract, split))
            _check_rows(contract, split, _read_csv(contract, csvs[split]))
        archive.unlink()
        return csvs


def _largest_csv(contract: DatasetContract, split: Split) -> int:
    """Bytes that no CSV of the published split exceeds: every number at its longest, quoted, and a separator."""
    cell = len(str(contract.pixel_max)) + 3
    header = sum(len(column) + 3 for column in contract.columns)
    return header + (1 + contract.published[split].rows) * ((1 + contract.pixels) * cell + 1)


def extract(archive: Path, path: Path, largest: int) -> None:
    """Write the one member of a zip whose base name is that of ``path`` to ``path``, wherever the zip wants it.

    Raises `SourceError` when there is not exactly one, it is damaged, or it is larger than ``largest`` bytes.
    """
    with _zip_errors():
        opened = zipfile.ZipFile(archive)
    with opened, path.open("wb") as file:
        members = [
            info for info in opened.infolist() if PurePosixPath(info.filename.replace("\\", "/")).name == path.name
        ]
        if len(members) != 1:
            raise SourceError(f"expected one {path.name} in the zip, received {len(members)}")
        if members[0].file_size > largest:
            raise SourceError(f"{path.name} says it has {members[0].file_size} bytes, at most {largest} were expected")
        with _zip_errors():
            stream = opened.open(members[0])
        with stream:
            while True:
                # What a zip says about a size binds zipfile too: it reads no further.
                with _zip_errors():
                    piece = stream.read(_PIECE)
                if not piece:
                    return
                file.write(piece)


@contextmanager
def _zip_errors() -> Iterator[None]:
    # RuntimeError: encrypted, or packed by a method that zipfile does not know.
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError) as error:
        raise SourceError(f"the zip is damaged or is none ({type(error).__name__}: {error})") from error


def _read_csv(contract: DatasetContract, path: Path) -> npt.NDArray[np.uint8]:
    """uint8, (N, 1 + pixels)."""
    import pyarrow as pa
    from pyarrow import csv

    # Without null values an empty cell is an error, not a null.
    convert = csv.ConvertOptions(column_types=dict.fromkeys(contract.columns, pa.uint8()), null_values=[])
    try:
        table: Any = csv.read_csv(path, convert_options=convert)
    except pa.ArrowInvalid as error:
        raise SourceError(f"{path.name} is no CSV of numbers from 0 to 255 ({str(error)[:200]})") from error
    if tuple(table.column_names) != contract.columns:
        raise SourceError(
            f"{path.name}: expected the header {','.join(contract.columns[:3])},.. of {len(contract.columns)} columns, "
            f"received {','.join(table.column_names[:3])[:80]},.. of {len(table.column_names)}"
        )
    rows = np.empty((table.num_rows, len(contract.columns)), np.uint8)
    for number, column in enumerate(table.columns):
        rows[:, number] = column.to_numpy()
    return rows


# --- downloads ---


def download(address: str, path: Path, largest: int, limits: Limits = DEFAULT_LIMITS) -> None:
    """Write what a server has under ``address`` to ``path``, ``largest`` bytes at most.

    Raises `SourceError` when it does not answer, answers with anything but 200, cuts off, or is slower than ``limits``.
    """
    started = reported = time.monotonic()
    received = 0
    total: int | None = None
    name = address.rpartition("/")[2]
    try:
        with path.open("wb") as file, closing(_events(address, limits)) as events:
            for event in events:
                if isinstance(event, _Answer):
                    total = event.length
                else:
                    received += len(event)
                    file.write(event)
                if max(received, total or 0) > largest:
                    raise SourceError(
                        f"at most {largest} bytes were expected, {max(received, total or 0)} were received"
                    )
                if time.monotonic() - reported >= _PROGRESS_SECONDS:
                    reported = time.monotonic()
                    of = "" if total is None else f" of {total / 1e6:.1f}"
                    logger.info("%s: %.1f%s MB", name, received / 1e6, of)
    except SourceError as error:
        raise SourceError(f"{name}: {error}") from error
    logger.info("%s: %.1f MB in %.1f s", name, received / 1e6, time.monotonic() - started)


def _events(address: str, limits: Limits) -> Generator["_Answer | bytes", None, None]:
    """The answer, then its body in pieces. Raises `SourceError`.

    The socket is read in a thread, because neither looking up a host nor reading a header that comes byte by byte obeys
    httpx's time-outs: whoever waits here has to be able to leave. A thread left behind ends with its socket.
    """
    events: queue.SimpleQueue[_Answer | bytes | SourceError | None] = queue.SimpleQueue()
    left = threading.Event()
    threading.Thread(target=_receive, args=(address, limits, events, left), name="download", daemon=True).start()
    answered, in_window = False, 0
    window_seconds = limits.connect_seconds + limits.silence_seconds  # until the answer
    window_ends = time.monotonic() + window_seconds
    try:
        while True:
            now = time.monotonic()
            if now >= window_ends:
                if not answered:
                    raise SourceError(f"no answer within {window_seconds:g} s")
                wanted = int(limits.floor * window_seconds)
                if in_window < wanted:
                    raise SourceError(
                        f"too slow: {in_window} bytes in {window_seconds:g} s, at least {wanted} were expected"
                    )
                in_window, window_ends = 0, now + window_seconds
            try:
                event = events.get(timeout=window_ends - now)
            except queue.Empty:
                continue
            if event is None:
                return
            if isinstance(event, SourceError):
                raise event
            if isinstance(event, _Answer):
                answered, window_seconds = True, limits.window_seconds
                window_ends = time.monotonic() + window_seconds
            else:
                in_window += len(event)
            yield event
    finally:
        left.set()


@dataclass(frozen=True)
class _Answer:
    """The server answered 200. ``length`` is that of the body in bytes, where it says so."""

    length: int | None


@cache
def _certificates() -> ssl.SSLContext:
    """Read once: it takes longer than a small file from a server nearby."""
    import httpx

    return httpx.create_ssl_context()


def _receive(
    address: str,
    limits: Limits,
    events: "queue.SimpleQueue[_Answer | bytes | SourceError | None]",
    left: threading.Event,
) -> None:
    """The other thread of `_events`: an `_Answer`, the body in pieces, then None or what went wrong."""
    import httpx

    timeout = httpx.Timeout(limits.silence_seconds, connect=limits.connect_seconds)
    # The bytes as they are stored: what a server packs for the way is nobody's published file.
    headers = {"Accept-Encoding": "identity"}
    try:
        with (
            httpx.Client(verify=_certificates(), timeout=timeout, headers=headers, follow_redirects=True) as client,
            client.stream("GET", address) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise SourceError(f"HTTP status {response.status_code}, expected 200")
            length = response.headers.get("Content-Length", "")
            events.put(_Answer(int(length) if length.isdecimal() else None))
            for piece in response.iter_raw():
                if left.is_set():
                    return
                events.put(piece)
        events.put(None)
    except SourceError as error:
        events.put(error)
    except Exception as error:  # whatever it is, the one who waits has to hear of it, and the next source be tried
        events.put(SourceError(f"{type(error).__name__}: {error}"))
