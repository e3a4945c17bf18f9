"""Read the bytes of a CSV: hash them, decompress gzip, and detect a file that changes meanwhile."""

import gzip
import hashlib
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from schemas.errors import DataContractError, UnreadableData
from tasks.runtime.files import sha256_file

GZIP_MAGIC = b"\x1f\x8b"
_CHUNK_BYTES = 1 << 16
FileStamp = tuple[int, int, int, int]  # device, inode, size, time of the last change


def file_stamp(path: Path) -> FileStamp | None:
    """Return what changes when a file is rewritten or replaced, or None if it cannot be examined."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def require_unchanged(
    path: Path, before: FileStamp | None, expected_sha256: str | None, cause: DataContractError | None = None
) -> None:
    """Raise `DataContractError` from ``cause`` if the file no longer has the stamp ``before``.

    A file that was rewritten with the same content is unchanged if its ``expected_sha256`` is known.
    """
    if file_stamp(path) == before:
        return
    if expected_sha256 is not None:
        with suppress(OSError):
            if sha256_file(path) == expected_sha256:
                return
    raise DataContractError(
        f"{path} changed while it was read: expected the same file from the first byte to the last. "
        "Run again when nothing writes to it."
    ) from cause


class HashedFile:
    """A file that is hashed as it is read, in its form on disk."""

    def __init__(self, path: Path) -> None:
        """Open ``path``. Raise `DataContractError` for a pipe, socket or device, and if it cannot be opened."""
        self.path = path
        self._digest = hashlib.sha256()
        try:
            # Checked before it is opened: opening a pipe would wait for a writer forever.
            if (kind := _kind_of_stream(path.stat().st_mode)) is not None:
                raise DataContractError(
                    f"{path} is not a file. Expected a CSV, received {kind}. Write it to a file, and run again."
                )
            self._file: BufferedReader = path.open("rb")
        except OSError as error:
            raise UnreadableData(path, error) from error

    def close(self) -> None:
        self._file.close()

    def peek(self, size: int) -> bytes:
        """Return the next bytes, more or fewer than ``size``, without advancing."""
        try:
            return self._file.peek(size)
        except OSError as error:
            raise UnreadableData(self.path, error) from error

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise UnreadableData(self.path, error) from error
        self._digest.update(data)
        return data

    def chunks(self, size: int, check_start: Callable[[bytes], None]) -> Iterator[bytes]:
        """Yield the content, decompressed, in chunks of up to ``size`` bytes. ``check_start`` receives its first bytes.

        Raises `DataContractError` for a gzip file that is cut off or damaged.
        """
        is_gzip = self.peek(len(GZIP_MAGIC)).startswith(GZIP_MAGIC)
        stream: Any = gzip.GzipFile(fileobj=self, mode="rb") if is_gzip else self  # type: ignore[call-overload]
        try:
            check_start(stream.peek(64))
            while chunk := stream.read(size):
                yield chunk
        except EOFError as error:
            raise DataContractError(
                f"{self.path} is a gzip file that ends too early: it was probably cut off. Replace it, and run again."
            ) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise DataContractError(
                f"{self.path} is a damaged gzip file ({error}). Replace it, and run again."
            ) from error

    def read_to_end(self) -> str:
        """Read what is left, and return the sha256 of the whole file."""
        while self.read(_CHUNK_BYTES):
            pass
        return self._digest.hexdigest()


def _kind_of_stream(mode: int) -> str | None:
    """Return what the path is if its content may never end. A folder is left to `open`, which rejects it."""
    if stat.S_ISFIFO(mode):
        return "a pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else None
