"""Sources of the published data: scikit-learn, IDX files, mirrors, a Debian package, Kaggle."""

import gzip
import hashlib
import logging
import math
import os
import shutil
import signal
import subprocess
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from schemas.contract import SPLITS, BundledData, DatasetContract, IdxFile, Split
from schemas.errors import DataContractError
from tasks.data.download import Limits, SourceError, download
from tasks.data.splits import stratified_split

logger = logging.getLogger(__name__)


KAGGLE_DOWNLOAD = "https://www.kaggle.com/api/v1/datasets/download/"
_IDX_DIMENSIONS = {2049: 1, 2051: 3}  # magic number: labels, images
_PIECE = 1 << 20


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
