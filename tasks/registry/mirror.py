"""Mirror the model store of a dataset in object storage, so that machines without a shared disk have one store.

    models/<dataset>/versions/0001/manifest.json      created once, after the files that it names
    models/<dataset>/versions/0001/<sha256>.sig       signature of the manifest with this sha256
    models/<dataset>/versions/0001/removed            garbage collection removed the version everywhere
    models/<dataset>/aliases/00000001.json            line 1 of the alias log, created once

The objects decide: a version exists as soon as its manifest does, and an alias has moved as soon as the line does. The
store on this machine is a copy. It has every manifest and line, and the other files of a version after their first use.
"""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from uuid import uuid4

from schemas.errors import StoredArtifactError
from schemas.layout import MANIFEST_NAME, SIGNATURE_NAME
from schemas.store import Manifest
from tasks.runtime.files import canonical_json
from tasks.runtime.remote import STORES, Remote, StoredObject, configured_remote
from tasks.runtime.stored_file import parse_json

REMOVED = "removed"
_VERSION_OBJECT = re.compile(r".*/versions/([0-9]{4}|[1-9][0-9]{4,8})/([a-z0-9.]+)")
_LINE_OBJECT = re.compile(r".*/aliases/([0-9]{8})\.json")
_PARALLEL = 16


@dataclass(frozen=True)
class StoreMirror:
    """The objects of one dataset's store."""

    remote: Remote
    dataset: str

    @classmethod
    def configured(cls, dataset: str) -> "StoreMirror | None":
        """Return the mirror below FASHION_ANN_REMOTE, None without that variable."""
        remote = configured_remote()
        return None if remote is None else cls(remote, dataset)

    def line(self, number: int, *, settled: bool = False) -> bytes | None:
        """Return a line of the alias log, counted from 1; None if it does not exist. The line is not verified.

        settled: required for the newest line, see `Remote.read_settled`. Its writer has read the lines before it so.
        """
        name = self._line_name(number)
        content = self.remote.read_settled(name) if settled else self.remote.read(name)
        if content is None:
            return None
        try:
            event = parse_json(content)
            event.pop("writer")
        except (ValueError, AttributeError, LookupError) as error:
            raise StoredArtifactError(
                f"{self.remote.address}/{name}: expected a line of an alias log ({error})."
            ) from error
        return json.dumps(event, sort_keys=True).encode()

    def lines(self, after: int) -> list[bytes]:
        """Return the lines of the alias log after a number, in their order, up to the first that does not exist."""
        listed = sum(1 for entry in self.remote.objects(self._name("aliases")) if _LINE_OBJECT.fullmatch(entry.name))
        with ThreadPoolExecutor(_PARALLEL) as pool:
            lines = list(takewhile(lambda line: line is not None, pool.map(self.line, range(after + 1, listed + 1))))
        # A listing may miss the newest.
        while (line := self.line(after + len(lines) + 1)) is not None:
            lines.append(line)
        if lines:
            lines[-1] = self.line(after + len(lines), settled=True)
        return [line for line in lines if line is not None]

    def create_line(self, number: int, line: bytes) -> bool:
        """Add a line to the alias log, and return whether it has this number now: False if another writer has it.

        The object contains the writer's name, so that two writers of the same line create different objects.
        """
        return self.remote.create(
            self._line_name(number), canonical_json({**json.loads(line), "writer": uuid4().hex}), raced=True
        )

    def versions(self, newest: int) -> dict[int, dict[str, StoredObject]]:
        """Return the objects of each version by name. ``newest``: the largest version number that this machine has."""
        versions: dict[int, dict[str, StoredObject]] = {}
        for entry in self.remote.objects(self._name("versions")):
            if match := _VERSION_OBJECT.fullmatch(entry.name):
                versions.setdefault(int(match[1]), {})[match[2]] = entry
        # A listing may miss the newest.
        number = max([newest, *versions]) + 1
        while (manifest := self.remote.stat(self._version_name(number, MANIFEST_NAME))) is not None:
            versions[number] = {MANIFEST_NAME: manifest}
            number += 1
        return versions

    def manifest(self, number: int, *, settled: bool = False) -> bytes | None:
        """Return the manifest of a version, None if it does not exist. It is not verified. ``settled``: see `line`."""
        name = self._version_name(number, MANIFEST_NAME)
        return self.remote.read_settled(name) if settled else self.remote.read(name)

    def signature(self, number: int, manifest: bytes) -> bytes | None:
        """Return the signature of a version's manifest, None if there is none."""
        return self.remote.read(self._version_name(number, signature_name(manifest)))

    def is_removed(self, number: int) -> bool:
        """Return whether garbage collection removed a version."""
        return self.remote.stat(self._version_name(number, REMOVED)) is not None

    def create_version(self, number: int, folder: Path, manifest: Manifest) -> bool:
        """Store the version in ``folder``. Return False if another one has its number."""
        for name, entry in manifest.files.items():
            self.remote.push_file(folder / name, entry.sha256)
        if (folder / SIGNATURE_NAME).exists():
            self.sign(number, folder, manifest)  # first, so that no machine sees the version without it
        return self.remote.create(self._version_name(number, MANIFEST_NAME), manifest.text, raced=True)

    def sign(self, number: int, folder: Path, manifest: Manifest) -> None:
        """Store the signature of a version, in place of an earlier one."""
        content = (folder / SIGNATURE_NAME).read_bytes()
        self.remote.write(self._version_name(number, signature_name(manifest.text)), content)

    def remove_version(self, number: int) -> None:
        """Remove a version everywhere: no machine stores it again. Its files stay until no other object names them."""
        self.remote.create(self._version_name(number, REMOVED), b"")
        prefix = self._name(f"versions/{number:04d}")
        self.remote.delete([entry.name for entry in self.remote.objects(prefix) if not entry.name.endswith(REMOVED)])
        self.remote.delete([self._version_name(number, MANIFEST_NAME)])  # a listing may miss it

    def _line_name(self, number: int) -> str:
        return self._name(f"aliases/{number:08d}.json")

    def _version_name(self, number: int, name: str) -> str:
        return self._name(f"versions/{number:04d}/{name}")

    def _name(self, name: str) -> str:
        return f"{STORES}/{self.dataset}/{name}"


def signature_name(manifest: bytes) -> str:
    """Return the name of a signature. It contains the manifest's digest: two writers may race for a version number."""
    return f"{hashlib.sha256(manifest).hexdigest()}.sig"
