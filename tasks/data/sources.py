"""Get the published data from scikit-learn, IDX files, mirrors, a Debian package or Kaggle."""

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
_CHUNK_BYTES = 1 << 20


class Source(Protocol):
    """A place that may have the published data. Its ``name`` appears in log lines and errors."""

    @property
    def name(self) -> str: ...

    def fetch(self, contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
        """Write both CSVs into the empty ``folder``, check every row against the published digest, return the paths.

        Raises `SourceError` or `DataContractError` if the source does not have the data; OSError if ``folder`` cannot
        be written to.
        """
        ...


def default_sources(contract: DatasetContract) -> tuple[Source, ...]:
    """Return the sources of a dataset in the order in which they are tried."""
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
    """Return an IDX file as a read-only array on ``content``.

    Images (magic number 2051): uint8, (N, height, width). Labels (2049): uint8, (N,). The header is big-endian: the
    magic number, then each dimension as 4 bytes.

    Raises `DataContractError` if ``content`` is anything else.
    """
    magic = int.from_bytes(content[:4], "big")
    dimensions = _IDX_DIMENSIONS.get(magic)
    if len(content) < 4 or dimensions is None:
        raise DataContractError(
            f"Expected an IDX file that starts with 2049 (labels) or 2051 (images), received {content[:4]!r}."
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataContractError(f"Expected an IDX header of {start} bytes, received {len(content)} bytes.")
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise DataContractError(f"Expected {expected} bytes of IDX for shape {shape}, received {len(content)}.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def rows_digest(rows: npt.NDArray[np.uint8]) -> str:
    """Return a digest that does not depend on the order of rows: sha256 of the sorted sha256 digests of the rows.

    rows: uint8, (N, 1 + pixels), label first.
    """
    return hashlib.sha256(
        b"".join(sorted(hashlib.sha256(row).digest() for row in np.ascontiguousarray(rows)))
    ).hexdigest()


def write_csv(rows: npt.NDArray[np.uint8], columns: Sequence[str], path: Path) -> None:
    """Write a header and rows of integers, with commas and LF. Equal rows give equal bytes on every machine.

    rows: uint8, (N, columns).
    """
    # A number and its separator fit in 4 bytes, so one table look-up formats a block. Then the zero padding is removed.
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


def _write_split(contract: DatasetContract, split: Split, rows: npt.NDArray[np.uint8], folder: Path) -> Path:
    """Write the rows of a split as a CSV to ``folder``, and return its path. Raises as `_check_rows` does."""
    _check_rows(contract, split, rows)
    path = folder / contract.csv_name(split)
    write_csv(rows, contract.columns, path)
    return path


def _check_rows(contract: DatasetContract, split: Split, rows: npt.NDArray[np.uint8]) -> None:
    """Raise `SourceError` unless ``rows``, uint8 (N, 1 + pixels), are the published ones in any order."""
    published = contract.published[split]
    if rows.shape != (published.rows, 1 + contract.pixels):
        raise SourceError(
            f"{split}: expected {published.rows} rows of {1 + contract.pixels} numbers, received {rows.shape}"
        )
    received = rows_digest(rows)
    if received != published.rows_sha256:
        raise SourceError(
            f"{split}: not the published rows: expected digest {published.rows_sha256}, received {received}"
        )


# --- scikit-learn ---


@dataclass(frozen=True)
class ScikitLearn:
    """Images that scikit-learn contains, if it is installed (extra "datasets")."""

    bundled: BundledData

    @property
    def name(self) -> str:
        return f"scikit-learn's {self.bundled.loader}"

    def fetch(self, contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
        try:
            from sklearn import datasets
        except ImportError as error:
            raise SourceError(
                f"scikit-learn cannot be imported ({error}); install it in the checkout with "
                "`.venv/bin/python -m pip install scikit-learn`"
            ) from error
        loaded = getattr(datasets, self.bundled.loader)()
        rows = np.column_stack([loaded.target, loaded.data]).astype(np.uint8)  # uint8, (N, 1 + pixels)
        indices = stratified_split(loaded.target, self.bundled.test_rows, self.bundled.seed)
        return {
            split: _write_split(contract, split, rows[selected], folder)
            for split, selected in zip(SPLITS, indices, strict=True)
        }


# --- sources of IDX files ---


@dataclass(frozen=True)
class IdxFolder:
    """The four IDX files on disk, compressed by any version of gzip, or plain."""

    path: Path

    @property
    def name(self) -> str:
        return f"IDX files in {self.path}"

    def fetch(self, contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
        if not self.path.is_dir():
            raise SourceError("the folder does not exist")
        return _csvs_from_idx(contract, self.path, folder)


@dataclass(frozen=True)
class IdxMirror:
    """A server with the four IDX files under ``address``."""

    address: str

    @property
    def name(self) -> str:
        return self.address

    def fetch(self, contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
        # Labels first: a server with other data is rejected after kilobytes.
        labels, images = zip(*(_idx_files(contract, split) for split in SPLITS), strict=True)
        for file in (*labels, *images):
            path = folder / file.name
            # Twice the published size, because other compression settings may give a larger file.
            download(f"{self.address.rstrip('/')}/{file.name}", path, 2 * file.gzip_bytes, limits)
            _idx_content(file, path, _largest_idx(contract))
        return _csvs_from_idx(contract, folder, folder)


@dataclass(frozen=True)
class DebianPackage:
    """A Debian package with the four IDX files in ``folder``. It is unpacked, not installed, so root is not needed."""

    package: str
    folder: str

    @property
    def name(self) -> str:
        return f"Debian package {self.package}"

    def fetch(self, contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
        apt_get, dpkg = shutil.which("apt-get"), shutil.which("dpkg")
        if apt_get is None or dpkg is None:
            raise SourceError("apt-get and dpkg are not installed")
        cache, lists, unpacked = folder / "cache", folder / "lists", folder / "unpacked"
        for path in (cache / "archives" / "partial", lists / "partial", unpacked):
            path.mkdir(parents=True)  # apt creates them only for root
        # root downloads as root, because user _apt cannot write to this folder.
        apt = [apt_get, "-q", *_apt_options("APT::Sandbox::User=root", f"Dir::Cache={cache}", "Acquire::Retries=0")]
        apt += _apt_options("Acquire::http::Timeout=5", "Acquire::https::Timeout=5")
        try:
            _command([*apt, "download", self.package], folder, limits)
        except SourceError as error:
            # Containers have no package lists, or old ones. New lists go to a temporary folder, so that fetching data
            # does not change the machine.
            if not any(text in str(error) for text in ("Unable to locate", "no installation candidate", "404")):
                raise
            logger.info("%s is not in the package lists; downloading new lists", self.package)
            apt += _apt_options(f"Dir::State::Lists={lists}")
            _command([*apt, "update"], folder, limits)
            _command([*apt, "download", self.package], folder, limits)
        archives = sorted(folder.glob("*.deb"))
        if len(archives) != 1:
            raise SourceError(f"expected one package from apt-get, received {len(archives)}")
        _command([dpkg, "-x", str(archives[0]), str(unpacked)], folder, limits)
        return _csvs_from_idx(contract, unpacked / self.folder.lstrip("/"), folder)


def _apt_options(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("-o", setting)]


def _command(arguments: Sequence[str], folder: Path, limits: Limits) -> None:
    """Run a program in ``folder``, then kill every process that it started. Raises `SourceError` if it fails."""
    name = Path(arguments[0]).name
    try:
        process = subprocess.Popen(  # noqa: S603 - an installed program, no shell
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
            raise SourceError(f"{name} did not finish within {limits.command_seconds:g} s") from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        errors = [line for line in output.splitlines() if line.startswith("E:")] or output.splitlines()[-1:]
        raise SourceError(f"{name} exited with status {process.returncode}: {' '.join(errors)[:300]}")


def _csvs_from_idx(contract: DatasetContract, source: Path, folder: Path) -> dict[Split, Path]:
    """Write the four IDX files in ``source`` as CSVs to ``folder``."""
    csvs: dict[Split, Path] = {}
    largest = _largest_idx(contract)
    for split in SPLITS:
        labels, images = (
            read_idx(_idx_content(file, source / file.name, largest)) for file in _idx_files(contract, split)
        )
        expected = (contract.published[split].rows, contract.height, contract.width)
        if images.shape != expected or labels.shape != expected[:1]:
            raise SourceError(
                f"{split}: expected images {expected} and labels {expected[:1]}, "
                f"received images {images.shape} and labels {labels.shape}"
            )
        rows = np.column_stack([labels, images.reshape(len(images), -1)])  # uint8, (N, 1 + pixels)
        csvs[split] = _write_split(contract, split, rows, folder)
    return csvs


def _idx_files(contract: DatasetContract, split: Split) -> tuple[IdxFile, IdxFile]:
    """Return the published label and image files of a split."""
    published = contract.published[split]
    if published.images is None or published.labels is None:
        raise SourceError(f"{contract.name} was not published as IDX")
    return published.labels, published.images


def _largest_idx(contract: DatasetContract) -> int:
    return 16 + contract.pixels * max(published.rows for published in contract.published.values())


def _idx_content(file: IdxFile, path: Path, largest: int) -> bytes:
    """Return the decompressed content of a published file, checked against its digest.

    The file may be plain, because some servers decompress it. At most ``largest`` bytes are read.
    """
    try:
        with path.open("rb") as plain:
            compressed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if compressed else path.open("rb") as stream:
            content = stream.read(largest + 1)
    except FileNotFoundError:
        raise SourceError(f"{path.name} does not exist") from None
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path.name} is damaged or cannot be read ({error})") from error
    received = hashlib.sha256(content).hexdigest()
    if received != file.content_sha256:
        raise SourceError(
            f"{file.name} contains other data (plain MNIST has the same file names): expected content with sha256 "
            f"{file.content_sha256}, received {received}"
        )
    return content


# --- Kaggle ---


@dataclass(frozen=True)
class KaggleZip:
    """Kaggle's zip with the two CSVs. Their row order differs from the IDX files and is kept."""

    address: str

    @property
    def name(self) -> str:
        return self.address

    def fetch(self, contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
        archive = folder / "archive.zip"
        # Text compresses well, so the size of the CSVs is a generous limit for the zip.
        download(self.address, archive, sum(_largest_csv(contract, split) for split in SPLITS), limits)
        csvs: dict[Split, Path] = {}
        for split in SPLITS:
            csvs[split] = folder / contract.csv_name(split)
            extract(archive, csvs[split], _largest_csv(contract, split))
            _check_rows(contract, split, _read_csv(contract, csvs[split]))
        archive.unlink()
        return csvs


def _largest_csv(contract: DatasetContract, split: Split) -> int:
    """Return the largest size in bytes of a CSV of the split: longest numbers, all quoted."""
    cell = len(str(contract.pixel_max)) + 3
    header = sum(len(column) + 3 for column in contract.columns)
    return header + (1 + contract.published[split].rows) * ((1 + contract.pixels) * cell + 1)


def extract(archive: Path, path: Path, largest: int) -> None:
    """Write the zip member with the base name of ``path`` to ``path``; folders in the zip are ignored.

    Raises `SourceError` unless there is exactly one, it is intact, and it has at most ``largest`` bytes.
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
            raise SourceError(f"expected at most {largest} bytes of {path.name}, the zip lists {members[0].file_size}")
        with _zip_errors():
            stream = opened.open(members[0])
        with stream:
            while True:
                with _zip_errors():
                    chunk = stream.read(_CHUNK_BYTES)  # zipfile stops at the listed size, also if there is more
                if not chunk:
                    return
                file.write(chunk)


@contextmanager
def _zip_errors() -> Iterator[None]:
    """Raise `SourceError` for a zip that is damaged, encrypted (RuntimeError) or no zip at all."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError) as error:
        raise SourceError(f"not a readable zip ({type(error).__name__}: {error})") from error


def _read_csv(contract: DatasetContract, path: Path) -> npt.NDArray[np.uint8]:
    """Return the rows of a CSV: uint8, (N, 1 + pixels). Raises `SourceError`."""
    import pyarrow as pa
    from pyarrow import csv

    # Without null values an empty cell is an error, not a null.
    convert = csv.ConvertOptions(column_types=dict.fromkeys(contract.columns, pa.uint8()), null_values=[])
    try:
        table: Any = csv.read_csv(path, convert_options=convert)
    except pa.ArrowInvalid as error:
        raise SourceError(f"{path.name} is not a CSV of numbers from 0 to 255 ({str(error)[:200]})") from error
    if tuple(table.column_names) != contract.columns:
        raise SourceError(
            f"{path.name}: expected {len(contract.columns)} columns {','.join(contract.columns[:3])},.., "
            f"received {len(table.column_names)} columns {','.join(table.column_names[:3])[:80]},.."
        )
    rows = np.empty((table.num_rows, len(contract.columns)), np.uint8)
    for number, column in enumerate(table.columns):
        rows[:, number] = column.to_numpy()
    return rows
