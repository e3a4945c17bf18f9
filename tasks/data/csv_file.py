"""Read the bytes of a CSV: hash them, decompress gzip, and detect a file that changes meanwhile."""

import gzip
import hashlib
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

from schemas.errors import DataContractError, UnreadableData

GZIP_MAGIC = b"\x1f\x8b"
FileStamp = tuple[int, int, int]  # size, times of the last change of the content and of the file's properties
_COARSEST_TIME_NS = 3_000_000_000

# Their content may never end. A folder is left to `open`, which rejects it.
_STREAMS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def file_stamp(path: Path) -> FileStamp | None:
    """Return what changes when a file is rewritten or replaced, or None if it cannot be examined.

    Device and inode are excluded: on FUSE, SMB and overlay file systems they may change while the file does not.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_unchanged(path: Path, before: FileStamp | None, sha256: str) -> bool:
    """Return whether the file has the stamp ``before``, or its size and the digest ``sha256``.

    Times are coarse, 2 s on some file systems. The digest of a file that was just written is therefore always compared.
    """
    now = file_stamp(path)
    if before is None or now is None or now[0] != before[0]:
        return False
    if now == before and time.time_ns() - max(before[1:]) > _COARSEST_TIME_NS:
        return True
    with suppress(DataContractError), HashedFile(path) as file:
        return file.read_to_end() == sha256
    return False


def require_unchanged(
    path: Path, before: FileStamp | None, sha256: str, cause: DataContractError | None = None
) -> None:
    """Raise `DataContractError` from ``cause`` unless the file `is_unchanged`."""
    if is_unchanged(path, before, sha256):
        return
    raise DataContractError(
        f"{path} changed while it was read: expected the same file from the first byte to the last. "
        "Run again when nothing writes to it."
    ) from cause


class HashedFile(FileIO):
    """A file that is hashed as it is read by `readinto`, in its form on disk."""

    def __init__(self, path: Path) -> None:
        """Open ``path``. Raise `DataContractError` for a pipe, socket or device, and if it cannot be opened."""
        self.path = path
        self._digest = hashlib.sha256()
        try:
            # Checked before it is opened: opening a pipe would wait for a writer forever.
            if (kind := _STREAMS.get(stat.S_IFMT(path.stat().st_mode))) is not None:
                raise DataContractError(
                    f"{path} is not a file. Expected a CSV, received {kind}. Write it to a file, and run again."
                )
            super().__init__(path)
        except OSError as error:
            raise UnreadableData.of(path, error) from error

    def readinto(self, buffer: Any, /) -> int:
        """Read the next bytes into ``buffer``, and return their number. Raise `UnreadableData` if that fails."""
        try:
            size = super().readinto(buffer)
        except OSError as error:
            raise UnreadableData.of(self.path, error) from error
        self._digest.update(memoryview(buffer)[:size])
        return size

    def read_to_end(self) -> str:
        """Read what is left, and return the sha256 of the whole file."""
        buffer = bytearray(1 << 16)
        while self.readinto(buffer):
            pass
        return self._digest.hexdigest()


def decompressed(
    file: "BufferedReader[HashedFile]", size: int, check_start: Callable[[bytes], None]
) -> Iterator[bytes]:
    """Yield the content of ``file``, decompressed, in chunks of up to ``size`` bytes.

    ``check_start`` receives the first bytes. Raises `DataContractError` for a gzip file that is cut off or damaged.
    """
    stream = gzip.GzipFile(fileobj=file) if file.peek(2).startswith(GZIP_MAGIC) else file
    try:
        check_start(stream.peek(64))
        while chunk := stream.read(size):
            yield chunk
    except EOFError as error:
        raise DataContractError(
            f"{file.raw.path} is a gzip file that ends too early: it was probably cut off. Replace it, and run again."
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataContractError(
            f"{file.raw.path} is a damaged gzip file ({error}). Replace it, and run again."
        ) from error
