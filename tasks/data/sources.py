"""Get the published data from scikit-learn, IDX files, mirrors, a Debian package or Kaggle."""

import errno
import gzip
import hashlib
import logging
import lzma
import os
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from schemas.config import PROJECT_ROOT
from schemas.contract import SPLITS, BundledData, DatasetContract, IdxFile, Split
from tasks.data.csv_blocks import Rows
from tasks.data.csv_file import GZIP_MAGIC
from tasks.data.csv_reader import open_csv
from tasks.data.download import Limits, SourceError, download
from tasks.data.splits import stratified_split

logger = logging.getLogger(__name__)

KAGGLE_DOWNLOAD = "https://www.kaggle.com/api/v1/datasets/download/"


class Source(NamedTuple):
    """A place that may have the published data. Its ``name`` appears in log lines and errors.

    ``fetch`` writes both CSVs into an empty folder, checks every row against the published digest, and returns the
    paths. It raises `SourceError` or `DataContractError` if the source does not have the data; OSError if the folder
    cannot be written to.
    """

    name: str
    fetch: Callable[[DatasetContract, Path, Limits], Mapping[Split, Path]]


def default_sources(contract: DatasetContract) -> list[Source]:
    """Return the sources of a dataset in the order in which they are tried."""
    listed, sources = contract.sources, list[Source]()
    if listed.bundled is not None:
        sources.append(scikit_learn(listed.bundled))
    if listed.debian_folder is not None:
        sources.append(idx_folder(Path(listed.debian_folder)))
    if listed.kaggle_slug is not None:
        sources.append(kaggle_zip(KAGGLE_DOWNLOAD + listed.kaggle_slug))
    sources += map(idx_mirror, listed.mirrors)
    if listed.debian_package is not None and listed.debian_folder is not None:
        sources.append(debian_package(listed.debian_package, listed.debian_folder))
    return sources


# --- the published data ---


def rows_digest(rows: Rows) -> str:
    """Return a digest that does not depend on the order of rows: sha256 of the sorted sha256 digests of the rows.

    rows: uint8, (N, 1 + pixels), label first.
    """
    return hashlib.sha256(
        b"".join(sorted(hashlib.sha256(row).digest() for row in np.ascontiguousarray(rows)))
    ).hexdigest()


def write_csv(rows: Rows, columns: Sequence[str], path: Path) -> None:
    """Write a header and rows of integers, with commas and LF. Equal rows give equal bytes on every machine.

    rows: uint8, (N, columns).
    """
    table = pa.Table.from_arrays([pa.array(column) for column in np.asfortranarray(rows).T], columns)
    pa_csv.write_csv(table, path, pa_csv.WriteOptions(quoting_header="none"))


def _write_split(contract: DatasetContract, split: Split, rows: Rows, folder: Path) -> Path:
    """Write the rows of a split as a CSV to ``folder``, and return its path. Raises as `_check_rows` does."""
    _check_rows(contract, split, rows)
    path = folder / contract.csv_name(split)
    write_csv(rows, contract.file_columns, path)
    return path


def _check_rows(contract: DatasetContract, split: Split, rows: Rows) -> None:
    """Raise `SourceError` unless ``rows``, uint8 (N, 1 + pixels), are the published ones in any order."""
    published = contract.published[split]
    if (received := rows_digest(rows)) != published.rows_sha256:
        raise SourceError(
            f"{split}: not the published rows: expected {published.rows} with digest {published.rows_sha256}, "
            f"received {len(rows)} with digest {received}"
        )


# --- scikit-learn ---


def scikit_learn(bundled: BundledData) -> Source:
    """Return the source of images that scikit-learn contains, if it is installed (extra "datasets")."""

    def fetch(contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
        try:
            from sklearn import datasets
        except ImportError as error:
            raise SourceError(
                f"scikit-learn cannot be imported ({error}); install it with `cd {shlex.quote(str(PROJECT_ROOT))} && "
                f"{shlex.quote(sys.executable)} -m pip install --require-hashes -r requirements/datasets.lock`"
            ) from error
        loaded = getattr(datasets, bundled.loader)()
        rows = np.column_stack([loaded.target, loaded.data]).astype(np.uint8)  # (N, 1 + pixels)
        indices = stratified_split(loaded.target, bundled.test_rows, bundled.seed)
        return {
            split: _write_split(contract, split, rows[selected], folder)
            for split, selected in zip(SPLITS, indices, strict=True)
        }

    return Source(f"scikit-learn's {bundled.loader}", fetch)


# --- IDX files ---


def idx_folder(path: Path) -> Source:
    """Return the source of the four IDX files on disk, compressed by any version of gzip, or plain."""

    def fetch(contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
        if not path.is_dir():
            raise SourceError("the folder does not exist")
        return _csvs_from_idx(contract, path, folder)

    return Source(f"IDX files in {path}", fetch)


def idx_mirror(address: str) -> Source:
    """Return the source that downloads the four IDX files from below ``address``."""

    def fetch(contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
        # Labels first: a server with other data is rejected after kilobytes.
        labels, images = zip(*(_idx_files(contract, split) for split in SPLITS), strict=True)
        for file in (*labels, *images):
            # Twice the published size, because other compression settings may give a larger file.
            download(f"{address.rstrip('/')}/{file.name}", folder / file.name, 2 * file.gzip_bytes, limits)
            _read_idx(contract, file, folder)
        return _csvs_from_idx(contract, folder, folder)

    return Source(address, fetch)


def debian_package(package: str, path: str) -> Source:
    """Return the source of a Debian package with the four IDX files in the folder ``path``.

    It is unpacked, not installed, so root is not needed.
    """

    def fetch(contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
        apt_get, dpkg = shutil.which("apt-get"), shutil.which("dpkg")
        if apt_get is None or dpkg is None:
            raise SourceError("apt-get and dpkg are not installed")
        cache, lists, unpacked = folder / "cache", folder / "lists", folder / "unpacked"
        for needed in (cache / "archives" / "partial", lists / "partial", unpacked):
            needed.mkdir(parents=True)  # apt creates them only for root
        # root downloads as root, because user _apt cannot write to this folder.
        apt = [apt_get, "-q", "-oAPT::Sandbox::User=root", f"-oDir::Cache={cache}", "-oAcquire::Retries=0"]
        apt += ["-oAcquire::http::Timeout=5", "-oAcquire::https::Timeout=5"]
        try:
            _command([*apt, "download", package], folder, limits)
        except SourceError as error:
            # Containers have no package lists, or old ones. New lists go to a temporary folder, so that fetching data
            # does not change the machine.
            if not any(text in str(error) for text in ("Unable to locate", "no installation candidate", "404")):
                raise
            logger.info("%s is not in the package lists; downloading new lists", package)
            apt.append(f"-oDir::State::Lists={lists}")
            _command([*apt, "update"], folder, limits)
            _command([*apt, "download", package], folder, limits)
        archives = sorted(folder.glob("*.deb"))
        if len(archives) != 1:
            raise SourceError(f"expected one package from apt-get, received {len(archives)}")
        _command([dpkg, "-x", str(archives[0]), str(unpacked)], folder, limits)
        return _csvs_from_idx(contract, unpacked / path.lstrip("/"), folder)

    return Source(f"Debian package {package}", fetch)


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
    for split in SPLITS:
        labels, images = (_read_idx(contract, file, source) for file in _idx_files(contract, split))
        rows = np.column_stack([labels, images.reshape(len(images), -1)])  # uint8, (N, 1 + pixels)
        csvs[split] = _write_split(contract, split, rows, folder)
    return csvs


def _idx_files(contract: DatasetContract, split: Split) -> tuple[IdxFile, IdxFile]:
    """Return the published label and image files of a split."""
    published = contract.published[split]
    if published.images is None or published.labels is None:
        raise SourceError(f"{contract.name} was not published as IDX")
    return published.labels, published.images


def _read_idx(contract: DatasetContract, file: IdxFile, folder: Path) -> Rows:
    """Return the content of a published file in ``folder``: images uint8 (N, height, width), or labels uint8 (N,).

    The file may be plain, because some servers decompress it. Raises `SourceError` unless it has the published digest.
    """
    path = folder / file.name
    largest = 16 + contract.pixels * max(published.rows for published in contract.published.values())
    try:
        with path.open("rb") as plain:
            compressed = plain.read(2) == GZIP_MAGIC
        with gzip.open(path) if compressed else path.open("rb") as stream:
            content = stream.read(largest + 1)
    except FileNotFoundError:
        raise SourceError(f"{file.name} does not exist") from None
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{file.name} is damaged or cannot be read ({error})") from error
    if (received := hashlib.sha256(content).hexdigest()) != file.content_sha256:
        raise SourceError(
            f"{file.name} contains other data (plain MNIST has the same file names): expected content with sha256 "
            f"{file.content_sha256}, received {received}"
        )
    # The header is two zeros, the type, the number of dimensions, and each dimension in 4 bytes.
    shape = np.frombuffer(content, ">u4", content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + shape.nbytes).reshape(shape)


# --- Kaggle ---


def kaggle_zip(address: str) -> Source:
    """Return the source of Kaggle's zip with the two CSVs. Their row order differs from the IDX files and is kept."""

    def fetch(contract: DatasetContract, folder: Path, limits: Limits) -> Mapping[Split, Path]:
        archive = folder / "archive.zip"
        csvs = {split: folder / contract.csv_name(split) for split in SPLITS}
        # The header's cells have at most 12 bytes, and those of the rows 6: `"pixel784",` and `"255",`.
        largest = {split: 6 * len(contract.columns) * (2 + contract.published[split].rows) for split in SPLITS}
        download(address, archive, sum(largest.values()), limits)  # generous, because text compresses well
        for split, path in csvs.items():
            extract(archive, path, largest[split])
            with open_csv(path, contract) as blocks:
                _check_rows(contract, split, np.concatenate(list(blocks)))
        archive.unlink()
        return csvs

    return Source(address, fetch)


def extract(archive: Path, path: Path, largest: int) -> None:
    """Write the zip member with the base name of ``path`` to ``path``; folders in the zip are ignored.

    Raises `SourceError` unless there is exactly one, it is intact, and it has at most ``largest`` bytes.
    """
    try:
        with zipfile.ZipFile(archive) as opened, path.open("wb") as file:
            names = ((info, PurePosixPath(info.filename.replace("\\", "/")).name) for info in opened.infolist())
            members = [info for info, name in names if name == path.name]
            if len(members) != 1:
                raise SourceError(f"expected one {path.name} in the zip, received {len(members)}")
            if (size := members[0].file_size) > largest:
                raise SourceError(f"expected at most {largest} bytes of {path.name}, the zip lists {size}")
            with opened.open(members[0]) as stream:  # ends at the listed size, also if there is more
                shutil.copyfileobj(stream, file)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, OSError) as error:
        # A damaged zip has errors without errno from bz2, and EINVAL from offsets before its start.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise SourceError(f"not a readable zip ({type(error).__name__}: {error})") from error
