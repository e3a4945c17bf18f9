"""Read stored files. Whoever can write to the artifacts folder may have replaced any of them by anything.

A reader opens regular files of a bounded size only: no link leads out of the store, no pipe blocks, and no file fills
the memory.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from schemas.errors import StoredArtifactError

# The largest JSON file that a run writes, the metrics of 10,000 epochs, has half of it. Parsed, JSON can take 25 times
# its size.
LARGEST_JSON = 4_000_000
# Any other file, which is hashed and read in parts: two seconds.
LARGEST_FILE = 2_000_000_000
_DEEPEST_JSON = 50

_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def largest_size(name: str) -> int:
    """Return the size in bytes that a stored file with this name may have."""
    return LARGEST_JSON if name.endswith(".json") else LARGEST_FILE


@contextmanager
def open_stored(path: Path, sha256: str | None = None, largest: int | None = None) -> Iterator[BufferedReader]:
    """Open a regular file of at most ``largest`` bytes, by default `largest_size`. ``sha256`` is named in errors only.

    Raises `StoredArtifactError` for a missing file, a link, anything else that is no file, and a larger file.
    """
    largest = largest_size(path.name) if largest is None else largest
    expected = "a file" if sha256 is None else f"a file with sha256 {sha256}"
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
        if kind == stat.S_IFREG:
            # Another process may replace it before the next line.
            opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            kind = stat.S_IFMT(os.fstat(opened).st_mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoredArtifactError(f"{path}: expected {expected}, received none.") from error
    if kind != stat.S_IFREG:
        raise StoredArtifactError(f"{path}: expected {expected}, received {_KINDS.get(kind, 'something else')}.")
    with os.fdopen(opened, "rb") as file:
        if (size := os.fstat(opened).st_size) > largest:
            raise StoredArtifactError(f"{path} has {size} bytes; expected at most {largest}.")
        yield file


def read_stored(path: Path, sha256: str | None = None, largest: int | None = None) -> bytes:
    """Return the bytes of a stored file, which have the digest ``sha256`` if one is given.

    Raises `StoredArtifactError` as `open_stored` does, and with both digests if they differ.
    """
    with open_stored(path, sha256, largest) as file:
        content = file.read(os.fstat(file.fileno()).st_size)
    if sha256 is not None:
        _require_digest(path, hashlib.sha256(content).hexdigest(), sha256)
    return content


def check_stored(path: Path, sha256: str, largest: int | None = None) -> None:
    """Check the digest of a stored file, which is read in parts. Raises `StoredArtifactError` as `read_stored` does."""
    with open_stored(path, sha256, largest) as file:
        require_digest(path, file, sha256)


def require_digest(path: Path, file: BufferedReader, sha256: str) -> None:
    """Check the digest of a stored file that is open, and go back to its start. Raises `StoredArtifactError`."""
    actual = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    _require_digest(path, actual, sha256)


def _require_digest(path: Path, actual: str, expected: str) -> None:
    if actual != expected:
        raise StoredArtifactError(f"{path}: expected sha256 {expected}, received {actual}.")


def parse_json(content: bytes) -> Any:
    """Return the value of a JSON text in UTF-8.

    Raises ValueError for repeated keys, numbers that are not finite and deep nesting too: programs differ in how they
    read these.
    """
    try:
        value = json.loads(
            content.decode(), parse_constant=_reject_number, parse_float=_finite, object_pairs_hook=_without_repetition
        )
    except RecursionError:
        raise ValueError("too many nested values") from None
    if _is_deep(value, _DEEPEST_JSON):
        raise ValueError(f"more than {_DEEPEST_JSON} nested values")
    return value


def read_json(path: Path, sha256: str | None = None) -> Any:
    """Return the value of a stored JSON file. Raises `StoredArtifactError` as `read_stored` does, or for other text."""
    content = read_stored(path, sha256)
    try:
        return parse_json(content)
    except ValueError as error:
        raise StoredArtifactError(f"{path} cannot be read as JSON ({error}).") from error


def _reject_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    return value if math.isfinite(value := float(text)) else _reject_number(text[:20])


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key occurs twice in an object")
    return value


def _is_deep(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    children = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deep(child, levels - 1) for child in children)
