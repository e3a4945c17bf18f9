"""Read and write object storage, through which machines without a shared disk exchange files.

    <address>/files/ab/ab12...                          any file, once, by its sha256
    <address>/stages/<stage>/<key>/stage.json           record of a stage's output, written after its files
    <address>/models/<dataset>/versions/0001/manifest.json  written after the files of the version
    <address>/models/<dataset>/aliases/00000001.json    one line of the alias log
    <address>/returned/<id>.json                        reference that a training on another worker returned

An object appears whole or not at all. Records, manifests and lines of the log are created once and never replaced,
because a conditional creation (`If-None-Match: *`) is the one condition that all servers implement. Every file is
verified by its sha256.

Only an address causes the import of obstore: a run without one starts no slower.
"""

import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.config import REMOTE_VARIABLE, install_command, remote_address
from schemas.errors import ExtraNotInstalled, RemoteUnavailable, StoredArtifactError, WrongUsage
from tasks.runtime.stored_file import LARGEST_JSON

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

# A request is repeated for this time, with pauses of up to two seconds. Then a run ends with one error.
RETRY_SECONDS = 30
# One request moves at most this many bytes, the least that S3 accepts as a part of an upload. _PARALLEL requests share
# the link, so their time limit fails no transfer above 50 kB/s. It also ends a request on a dead link.
PIECE = 5_242_880
_PARALLEL = 2
_REQUEST_SECONDS = 240
# OpenStack Swift checks a condition before it receives the content, so two creations at the same moment can both
# succeed; the later one stays. Servers other than those of the large providers are therefore read back after this time.
# 16 writers, 40 rounds, Swift 2.38 on two loaded cores: 24 rounds had two winners without it, none with it.
_SETTLE_SECONDS = 1.0
_CLOCK_SKEW_SECONDS = 60  # the clocks of machines and servers may differ by this time
# Garbage collection deletes only objects that were unused for this time. A run writes an object that it uses again, if
# the last write is older than a third of it.
SECONDS_UNUSED = 7 * 86_400
# Folders below the address.
FILES, STAGES, STORES, RETURNED = "files", "stages", "models", "returned"
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")


@dataclass(frozen=True)
class StoredObject:
    """An object: its name below the address, its size in bytes, and the time of its last write."""

    name: str
    size: int
    modified: datetime
    e_tag: str | None = None

    @property
    def age(self) -> float:
        """Return the seconds since the last write."""
        return (datetime.now(UTC) - self.modified).total_seconds()

    @property
    def needs_rewrite(self) -> bool:
        """Return whether a run that uses the object writes it again, so that garbage collection keeps it."""
        return self.age > SECONDS_UNUSED / 3


class Remote:
    """Object storage below an address. Methods raise `RemoteUnavailable` after `RETRY_SECONDS` of failures.

    settle_seconds: see `_SETTLE_SECONDS`.
    """

    def __init__(self, address: str, store: "ObjectStore", settle_seconds: float = 0) -> None:
        self.address = address
        self._settle_seconds = settle_seconds
        self._store = store
        # sha256 of objects with other content, which the next push replaces.
        self._damaged: set[str] = set()

    def read(self, name: str, largest: int = LARGEST_JSON) -> bytes | None:
        """Return a small object, None if it does not exist. Raises `StoredArtifactError` for a larger one."""
        found = self.get(name, largest)
        return None if found is None else found[1]

    def read_settled(self, name: str) -> bytes | None:
        """Return a small object as `read` does, after a race of two creations for it has ended."""
        found = self.get(name)
        if found is None:
            return None
        if self._settle_seconds and found[0].age < _CLOCK_SKEW_SECONDS:
            time.sleep(self._settle_seconds)
            return self.read(name)
        return found[1]

    def get(self, name: str, largest: int = LARGEST_JSON) -> tuple[StoredObject, bytes] | None:
        """Return the metadata and the content of a small object. None and errors as `read`."""
        import obstore

        with self._errors(f"read {name}", missing=True):
            try:
                result = obstore.get(self._store, name)
            except FileNotFoundError:
                return None
            stored = _described(result.meta)
            if stored.size > largest:
                raise StoredArtifactError(
                    f"{self.address}/{name}: expected at most {largest} bytes, received {stored.size}."
                )
            return stored, bytes(result.bytes())

    def create(self, name: str, content: bytes, *, raced: bool = False) -> bool:
        """Create a small object, and return whether it has this ``content`` now: False if another one exists.

        The answer to a request may be lost, so a failed creation is read back.

        raced: several machines may create it with other content, and each relies on the result.
        """
        import obstore

        try:
            with self._errors(f"write {name}"):
                obstore.put(self._store, name, content, mode="create", use_multipart=False)
            if not raced or not self._settle_seconds:
                return True
            time.sleep(self._settle_seconds)
            return self.read(name) == content
        except RemoteUnavailable:
            if (received := self.read(name)) is None:
                raise
            return received == content
        except obstore.exceptions.AlreadyExistsError:
            return self.read(name) == content

    def write(self, name: str, content: bytes) -> None:
        """Write a small object, and replace one that exists."""
        import obstore

        with self._errors(f"write {name}"):
            obstore.put(self._store, name, content, use_multipart=False)

    def stat(self, name: str) -> StoredObject | None:
        """Return the metadata of an object, None if it does not exist."""
        import obstore

        with self._errors(f"look up {name}", missing=True):
            try:
                return _described(obstore.head(self._store, name))
            except FileNotFoundError:
                return None

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects whose names begin with the folder ``prefix``. The newest may be missing from a listing."""
        import obstore

        with self._errors(f"list {prefix}"):
            for batch in obstore.list(self._store, prefix or None):
                yield from map(_described, batch)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects. One that does not exist is ignored."""
        import obstore

        for name in names:
            with self._errors(f"delete {name}", missing=True), suppress(FileNotFoundError):
                obstore.delete(self._store, name)

    def push_file(self, path: Path, sha256: str) -> None:
        """Store a file by its sha256. An equal one that was stored or used lately is not sent again."""
        import obstore

        name, size = file_name(sha256), path.stat().st_size
        stored = None if sha256 in self._damaged else self.stat(name)
        if stored is None or stored.size != size or stored.needs_rewrite:
            with self._errors(f"write {name}"):
                obstore.put(self._store, name, path, chunk_size=PIECE, max_concurrency=_PARALLEL)
            self._damaged.discard(sha256)

    def fetch_file(self, sha256: str, size: int, path: Path) -> None:
        """Write the file with this sha256 to ``path``. Raises `StoredArtifactError` if it is missing or damaged."""
        name, digest = file_name(sha256), hashlib.sha256()
        try:
            with path.open("wb") as file:
                for piece in self.pieces(name, size):
                    digest.update(piece)
                    file.write(piece)
            if digest.hexdigest() != sha256:
                raise StoredArtifactError(
                    f"{self.address}/{name}: expected content with this sha256, received {digest.hexdigest()}."
                )
        except StoredArtifactError:
            self._damaged.add(sha256)
            raise

    def pieces(self, name: str, size: int) -> Iterator[bytes]:
        """Yield the content of an object of ``size`` bytes. Raises `StoredArtifactError` for another size or none."""
        import obstore

        def piece(start: int) -> bytes:
            return bytes(obstore.get_range(self._store, name, start=start, end=min(start + PIECE, size)))

        stored = self.stat(name)
        if stored is None or stored.size != size:
            received = "none" if stored is None else f"one of {stored.size} bytes"
            raise StoredArtifactError(
                f"{self.address}/{name}: expected an object of {size} bytes, received {received}."
            )
        with ThreadPoolExecutor(_PARALLEL) as pool:
            for first in range(0, size, _PARALLEL * PIECE):  # as many pieces as are in memory at once
                with self._errors(f"read {name}", missing=True):
                    try:
                        pieces = list(pool.map(piece, range(first, min(first + _PARALLEL * PIECE, size), PIECE)))
                    except FileNotFoundError as error:  # deleted meanwhile
                        raise StoredArtifactError(f"{self.address}/{name} does not exist.") from error
                yield from pieces

    @contextmanager
    def _errors(self, action: str, *, missing: bool = False) -> Iterator[None]:
        """Raise `RemoteUnavailable` for an error in the block. missing: the block handles a missing object itself."""
        from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except AlreadyExistsError:
            raise
        except (BaseError, OSError) as error:
            if isinstance(error, FileNotFoundError):
                if missing:
                    raise
                cure = "Expected a bucket or container that exists. Create it, or correct the address."
            elif (
                isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError)
                or _reason(error).startswith(("401", "403"))  # a listing raises the general error
            ):
                cure = "Expected credentials, in the provider's variables, that may read, write, list and delete there."
            else:
                cure = (
                    f"Tried for up to {RETRY_SECONDS} s. What this machine has built is kept, and the next run stores "
                    "what is missing there."
                )
            # Without its cause, whose text contains the request with its signature.
            raise RemoteUnavailable(f"{self.address}: cannot {action} ({_reason(error)}). {cure}") from None


def _described(meta: "ObjectMeta") -> StoredObject:
    return StoredObject(meta["path"], meta["size"], meta["last_modified"], meta["e_tag"])


def _reason(error: Exception) -> str:
    """Return the server's status and message, else the first line and its cause, without a query or a signature."""
    text, _, details = str(error).partition("\n")
    messages = re.findall(r"<Message>([^<]+)<", details) or re.findall(r'message: "([^"]+)"', details)
    cause = f": {messages[-1]}" if messages else ""
    if status := re.search(r"status code: ([^:<]+)", text):
        return f"{status[1].strip()}{cause}".rstrip(".")
    return re.sub(r"\?[^\s)]+", "", f"{text.strip()}{cause}")[:400].rstrip(".")


def file_name(sha256: str) -> str:
    """Return the name of the object with a file's content."""
    return f"{FILES}/{sha256[:2]}/{sha256}"


def configured_remote() -> Remote | None:
    """Return the object storage of FASHION_ANN_REMOTE, None without that variable."""
    address = remote_address()
    return None if address is None else remote_at(address)


@cache
def remote_at(address: str) -> Remote:
    """Return the object storage at an address that `schemas.config.as_address` returned.

    Credentials, regions and endpoints are read from the variables of the provider: AWS_*, GOOGLE_* and AZURE_*. Raises
    `ExtraNotInstalled` without obstore.
    """
    try:
        from obstore.store import LocalStore, from_url
    except ImportError as error:
        raise ExtraNotInstalled(
            f"{address} needs obstore, which is not installed. Run `{install_command('remote')}`, or unset "
            f"{REMOTE_VARIABLE}."
        ) from error
    if address.startswith("file://"):
        folder = Path(address.removeprefix("file://"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise WrongUsage(f"{address}: expected a folder, or one that can be created; there is a file.") from error
        except OSError as error:  # such as a disk that is not mounted
            raise RemoteUnavailable(
                f"{address} cannot be created ({error.strerror}). Mount its disk, or permit this user to write there."
            ) from error
        return Remote(address, LocalStore(folder))
    endpoints = [endpoint for name in _ENDPOINT_VARIABLES if (endpoint := os.environ.get(name))]
    # Unencrypted only if an endpoint has the scheme http://.
    plain = any(endpoint.startswith("http://") for endpoint in endpoints)
    options: dict[str, Any] = {
        "client_options": {
            "allow_http": plain,
            "connect_timeout": timedelta(seconds=5),
            "timeout": timedelta(seconds=_REQUEST_SECONDS),
        },
        "retry_config": {
            "max_retries": 1_000,  # the time is the limit
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            "backoff": {
                "init_backoff": timedelta(seconds=0.1),
                "max_backoff": timedelta(seconds=2),
                "base": 2,
            },
        },
    }
    return Remote(address, from_url(address, **options), _SETTLE_SECONDS if endpoints else 0)
