"""Store the immutable versions of a dataset's models, and the log of their aliases.

    artifacts/models/fashion-mnist/
        index.html                   `tasks.reports.versions_page`
        aliases.jsonl                `tasks.registry.alias_log`; aliases.state.json has its length and digest
        versions/0001/manifest.json  written last; names the other files with their sha256
        versions/0001/manifest.json.sig  signature of the manifest, if the version is signed
        versions/0001/...

Readers open only files that a manifest names, after checking their digest.
"""

import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from schemas.config import REMOTE_VARIABLE
from schemas.errors import (
    FashionAnnError,
    LockHeld,
    LostRace,
    OtherLayout,
    RemoteUnavailable,
    StoredArtifactError,
    VersionNotFound,
)
from schemas.layout import (
    ALIAS_LOG_NAME,
    MANIFEST_NAME,
    PROFILE_NAME,
    SIGNATURE_NAME,
    VERSIONS_FOLDER,
    Artifacts,
    is_litter,
    name_of_temporary,
)
from schemas.store import AliasEvent, Manifest, StoredJson, VersionFacts
from tasks.registry.alias_log import AliasLog, alias_values, chain, champions, head_of
from tasks.registry.differences import settings
from tasks.registry.manifest import read_manifest, write_manifest
from tasks.registry.mirror import REMOVED, StoreMirror, signature_name
from tasks.registry.signatures import SIGNATURE_BYTES, VERIFY_VARIABLE, fingerprint, is_signed, verify_key
from tasks.runtime.files import (
    atomic_folder,
    atomic_write,
    is_discarded,
    remove_leftover,
    sweep_temporaries,
    sync_to_disk,
    temporary_name,
)
from tasks.runtime.locks import lock
from tasks.runtime.remote import Remote, StoredObject
from tasks.runtime.stored_file import check_stored, read_json, read_stored

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

logger = logging.getLogger(__name__)

Content = TypeVar("Content", bound=StoredJson)

_SECONDS_TO_REFRESH = 60  # a writer holds the lock for less

# Each number has one spelling, that of `ModelStore.folder`.
_VERSION_FOLDER = re.compile(r"[0-9]{4}|[1-9][0-9]{4,8}")

_RESTORE_LOG = (
    "Restore it from a copy. Without one, run `fashion-ann promote V --reason R --force`, which logs the recorded "
    "promotions again and then makes V champion."
)


@dataclass(frozen=True)
class StoredVersion:
    """One version of a store. The digest of ``manifest`` was checked, those of the other files were not.

    remote: object storage with the files that this machine lacks. None: all files are on this machine.
    """

    number: int
    folder: Path
    manifest: Manifest
    remote: Remote | None = None

    def check(self) -> None:
        """Check every file's digest, and that no others exist. Raises `StoredArtifactError` with both digests.

        Litter of the system is logged and ignored: no reader opens a file that the manifest does not name.
        """
        if litter := self.check_names():
            _warn_of_litter(self.folder, ", ".join(litter))
        for name in self.manifest.files:
            self.path(name)

    def check_names(self) -> list[str]:
        """Return the names of litter. Raises `StoredArtifactError` for another file that the manifest does not name."""
        named = {MANIFEST_NAME, *([] if self.signature() is None else [SIGNATURE_NAME]), *self.manifest.files}
        unnamed = sorted({entry.name for entry in self.folder.glob("*")} - named)
        for name in unnamed:
            if not is_litter(name):
                raise StoredArtifactError(f"{self.folder / name} is not named by the manifest. Remove it.")
        return unnamed

    def check_signature(self) -> str | None:
        """Return the fingerprint of the key of FASHION_ANN_VERIFY_KEY, None without the variable.

        Everything that uses a version calls this, not what only describes it. Raises `StoredArtifactError` unless the
        manifest, with the number and the dataset of this folder, has a signature by that key.
        """
        key = verify_key()
        if key is None:
            return None
        self.require_dataset()
        signature, path = self.signature(), self.folder / SIGNATURE_NAME
        if signature is None or not is_signed(self.manifest.text, signature, key):
            received = "no signature" if signature is None else "another signature"
            raise StoredArtifactError(
                f"Version {self.number} is not accepted. {path}: expected a signature of {MANIFEST_NAME} by the key of "
                f"{VERIFY_VARIABLE}, sha256 {fingerprint(key)}, received {received}. Choose a signed version, or sign "
                f"this one with `fashion-ann sign {self.number} --key FILE` if you trust its files."
            )
        return fingerprint(key)

    def signature(self) -> bytes | None:
        """Return the signature of the manifest without checking it, None if there is none.

        Raises `StoredArtifactError` for anything but a file of the size of a signature.
        """
        path = self.folder / SIGNATURE_NAME
        if not os.path.lexists(path):
            return None
        signature = read_stored(path, largest=SIGNATURE_BYTES)
        if len(signature) != SIGNATURE_BYTES:
            raise StoredArtifactError(
                f"{path}: expected {SIGNATURE_BYTES} bytes, received {len(signature)}. Remove it."
            )
        return signature

    def require_dataset(self) -> None:
        """Raise `StoredArtifactError` if the version was created for another dataset than that of the store."""
        dataset = self.folder.parent.parent.name
        if self.manifest.dataset != dataset:
            raise StoredArtifactError(
                f"{self.folder / MANIFEST_NAME}: expected a version of {dataset}, received one of "
                f"{self.manifest.dataset}. Remove {self.folder}."
            )

    def path(self, name: str) -> Path:
        """Return the path of a file after checking its digest. Raises `StoredArtifactError` as `check` does."""
        check_stored(self._here(name), self._sha256(name))
        return self.folder / name

    def read(self, name: str) -> bytes:
        """Return the bytes of a file after checking their digest. Raises `StoredArtifactError` as `check` does."""
        return read_stored(self._here(name), self._sha256(name))

    def read_json(self, name: str, model: type[Content]) -> Content:
        """Return a JSON file after checking its digest. Raises `StoredArtifactError`, also for its shape."""
        path = self._here(name)
        return model.parse(read_json(path, self._sha256(name)), str(path))

    @property
    def digests(self) -> dict[str, str]:
        """Return the sha256 of each file by its name."""
        return {name: entry.sha256 for name, entry in self.manifest.files.items()}

    def _here(self, name: str) -> Path:
        """Return the path of a file after fetching it, if only the remote has it."""
        path, entry = self.folder / name, self.manifest.files.get(name)
        if self.remote is not None and entry is not None and not os.path.lexists(path):
            beside = self.folder.with_name(f"{self.folder.name}.{name}")  # a reader may list the folder meanwhile
            sweep_temporaries(beside)
            with atomic_write(path, near=beside) as temporary:
                try:
                    self.remote.fetch_file(entry.sha256, entry.bytes, temporary)
                except StoredArtifactError as error:
                    raise StoredArtifactError(
                        f"Version {self.number} lacks {name}. {error} Copy {name} from the folder of this version on a "
                        "machine that has it: over that object for all machines, or into "
                        f"{self.folder} for this one. Until then, use another version."
                    ) from error
        return path

    def _sha256(self, name: str) -> str:
        if name not in self.manifest.files:
            raise StoredArtifactError(f"{self.folder / name} is not named by the manifest, so it was not opened.")
        return self.manifest.files[name].sha256


@cache  # a command may check a version more than once
def _warn_of_litter(folder: Path, names: str) -> None:
    logger.warning("%s contains %s, which is ignored: no version has such a file", folder, names)


@dataclass(frozen=True, kw_only=True)
class VersionSummary:
    """One row of `fashion-ann versions`. ``damaged`` is the reason why a manifest cannot be read, else None.

    ``other_layout`` is the reason instead if another release wrote the manifest. ``settings``: those of
    `tasks.registry.differences.settings`.
    """

    version: int
    created: str | None = None
    test_accuracy: float | None = None
    test_loss: float | None = None
    outcome: str | None = None
    aliases: list[str]
    path: str
    damaged: str | None = None
    other_layout: str | None = None
    note: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


class ModelStore:
    """The versions of one dataset and their aliases, in the folder ``root``, which may not exist yet."""

    def __init__(self, root: Path, dataset: str | None = None, mirror: StoreMirror | None = None) -> None:
        self.root = root
        self._dataset = dataset  # None: not checked
        self.mirror = mirror
        self.removed_elsewhere: set[int] = set()  # known after `refresh` or `synchronize`
        self.copied = False  # whether these copied a version or a line from the mirror
        self.aliases = AliasLog(root / ALIAS_LOG_NAME, mirror)
        self._versions = root / VERSIONS_FOLDER

    @classmethod
    def of(cls, artifacts_dir: Path, dataset: str) -> "ModelStore":
        """Return the store of a dataset. With FASHION_ANN_REMOTE it is a copy, see `refresh`."""
        return cls(Artifacts(artifacts_dir).store(dataset), dataset, StoreMirror.configured(dataset))

    def refresh(self) -> Self:
        """Copy what other machines added, if the store has a mirror. Return this store.

        While the mirror cannot be reached, log a warning and use the copy on this machine, if it has a version.
        """
        if self.mirror is not None:
            try:
                with self.lock(_SECONDS_TO_REFRESH):
                    self._exchange(push=False)
            except (RemoteUnavailable, LockHeld, OSError) as error:
                if not self.numbers():
                    raise
                logger.warning("%s is used as it is on this machine, and may be outdated: %s", self.root, error)
        return self

    def synchronize(self) -> None:
        """Copy what other machines added, and store what they lack. The caller holds `lock`.

        Raises `RemoteUnavailable`, and `StoredArtifactError` if both sides added different versions or moves.
        """
        self._exchange(push=True)

    def _exchange(self, *, push: bool) -> None:
        if self.mirror is None:
            return
        # Versions first, so that each new line names a version that is on this machine. Repeated until there is no new
        # line, because a line may name a version that was added meanwhile.
        new_lines = True
        while new_lines:
            self._exchange_versions(self.mirror, push=push)
            new_lines = self._exchange_lines(self.mirror, push=push)

    def _exchange_versions(self, mirror: StoreMirror, *, push: bool) -> None:
        local = set(self.numbers())
        stored = mirror.versions(max([*local, *(event.to for event in self.aliases.read())], default=0))
        self.removed_elsewhere = {number for number, objects in stored.items() if REMOVED in objects}
        shared = sorted(number for number in stored.keys() - self.removed_elsewhere if MANIFEST_NAME in stored[number])
        for number in shared:
            if number not in local:
                self._fetch_version(mirror, number, newest=number == max(stored))
            elif any(name.endswith(".sig") for name in stored[number]):
                self._fetch_signature(mirror, number, stored[number])
        for number in sorted(local.difference(shared)) if push else ():
            if mirror.is_removed(number):
                self.removed_elsewhere.add(number)
                continue
            try:
                version = self.version(number)
                version.check()
            except StoredArtifactError as error:  # must not prevent a new version
                logger.warning("version %d is not stored in %s: %s", number, mirror.remote.address, error)
                continue
            if not mirror.create_version(number, version.folder, version.manifest):
                raise _diverged(mirror, self.root, f"version {number}")
        if (both := local.intersection(shared)) and (number := max(both)):
            content = mirror.manifest(number)
            if content is not None and content != read_stored(self.folder(number) / MANIFEST_NAME):
                raise _diverged(mirror, self.root, f"version {number}")

    def _fetch_version(self, mirror: StoreMirror, number: int, *, newest: bool) -> None:
        content = mirror.manifest(number, settled=newest)
        if content is None:
            return  # removed meanwhile
        signature = mirror.signature(number, content)
        self._versions.mkdir(parents=True, exist_ok=True)
        self.copied = True
        with atomic_folder(self.folder(number)) as temporary:
            (temporary / MANIFEST_NAME).write_bytes(content)
            if signature is not None:
                (temporary / SIGNATURE_NAME).write_bytes(signature)

    def _fetch_signature(self, mirror: StoreMirror, number: int, objects: Mapping[str, StoredObject]) -> None:
        """Fetch the signature of a version that another machine signed after this machine copied it."""
        path = self.folder(number) / SIGNATURE_NAME
        content = read_stored(self.folder(number) / MANIFEST_NAME)
        entry = objects.get(signature_name(content))
        if entry is None or (path.exists() and path.stat().st_mtime >= entry.modified.timestamp()):
            return
        if (signature := mirror.signature(number, content)) is not None:
            with atomic_write(path, near=self.folder(number)) as temporary:
                temporary.write_bytes(signature)

    def _exchange_lines(self, mirror: StoreMirror, *, push: bool) -> bool:
        """Return whether the log on this machine has new lines."""
        self.aliases.repair()
        lines = self.aliases.lines()
        common = len(lines)
        while common and (line := mirror.line(common)) != lines[common - 1]:
            if line is not None:
                raise _diverged(mirror, self.root, f"line {common} of the alias log")
            common -= 1
        if common < len(lines):
            for number in range(common + 1, len(lines) + 1) if push else ():
                if not mirror.create_line(number, lines[number - 1]):
                    raise _diverged(mirror, self.root, f"line {number} of the alias log")
            return False
        new = mirror.lines(common)
        if new:
            self.copied = True
            self.aliases.extend(new, f"{mirror.remote.address}, the alias log of {mirror.dataset},")
        return bool(new)

    def folder(self, number: int) -> Path:
        return self._versions / f"{number:04d}"

    def numbers(self) -> list[int]:
        """Return the numbers of all versions, ascending. Temporary and half removed folders do not count."""
        return sorted(int(folder.name) for folder in self._folders() if not is_discarded(folder, MANIFEST_NAME))

    def _folders(self) -> list[Path]:
        self._require_folders()
        if not self._versions.exists():
            return []
        return [folder for folder in self._versions.iterdir() if _VERSION_FOLDER.fullmatch(folder.name)]

    def _require_folders(self) -> None:
        """Raise `StoredArtifactError` for what is no folder. The folder of the stores may be a link to another disk."""
        for folder in (self.root.parent, self.root, self._versions):
            linked = folder == self._versions and folder.is_symlink()  # it would lead a writer out of the store
            if linked or (os.path.lexists(folder) and not folder.is_dir()):
                raise StoredArtifactError(f"{folder}: expected a folder, received a link or a file.")

    def version(self, name: int | str) -> StoredVersion:
        """Return a version by its number or by a name that `resolve` takes.

        Raises `VersionNotFound`, or `StoredArtifactError` if the manifest was changed.
        """
        number = name if isinstance(name, int) else self.resolve(name)
        folder = self.folder(number)
        manifest = read_manifest(folder, number)
        if self._dataset not in (None, manifest.dataset):
            raise StoredArtifactError(
                f"{folder / MANIFEST_NAME} describes a version of {manifest.dataset}, expected {self._dataset}."
            )
        return StoredVersion(number, folder, manifest, None if self.mirror is None else self.mirror.remote)

    def resolve(self, name: str) -> int:
        """Return the number of a version named "3", "0003", "v3" or by an alias. Raises `VersionNotFound`."""
        numbers = self.numbers()
        digits = name.removeprefix("v")
        if digits.isdigit():
            # Compared as text: Python refuses to parse integers of more than 4,300 digits.
            for number in numbers:
                if str(number) == digits.lstrip("0"):
                    return number
        elif name in (aliases := alias_values(self.aliases.read())):
            if aliases[name] not in numbers:
                raise VersionNotFound(f"{name} names version {aliases[name]}, which was removed from {self.root}.")
            return aliases[name]
        raise VersionNotFound(
            f"There is no version or alias {name!r} in {self.root}. "
            + (
                f"Its newest version is {numbers[-1]}; `fashion-ann versions` lists all with their aliases."
                if numbers
                else "It contains no version: run `fashion-ann train` first."
            )
        )

    def aliases_of(self, number: int) -> list[str]:
        """Return the aliases that name a version, sorted."""
        return sorted(alias for alias, version in alias_values(self.aliases.read()).items() if version == number)

    def summaries(self) -> list[VersionSummary]:
        """Return one row per version, oldest first. A damaged one has its number, aliases and path only."""
        rows = []
        values = alias_values(self.aliases.read())
        for number in self.numbers():
            aliases = sorted(alias for alias, version in values.items() if version == number)
            row = VersionSummary(version=number, aliases=aliases, path=str(self.folder(number)))
            try:
                read = self.version(number).manifest
            except VersionNotFound:
                continue  # removed by `gc` in the meantime
            except OtherLayout as error:
                rows.append(replace(row, other_layout=str(error)))
            except StoredArtifactError as error:
                rows.append(replace(row, damaged=str(error)))
            else:
                facts = read.model_dump(include={"created", "test_accuracy", "test_loss", "note"})
                rows.append(replace(row, outcome=read.verdict.outcome, settings=settings(read), **facts))
        return rows

    def history(self) -> list[AliasEvent]:
        """Return the alias log as the next `recover` will complete it, oldest first.

        Raises `StoredArtifactError` if the log lacks a promotion that a manifest records, or a line that a manifest or
        the record beside the log covers: a lost or shortened log names another champion.
        """
        missing, lost = self._compare_log(restore=False)
        if lost:
            raise StoredArtifactError(lost)
        return [*self.aliases.read(), *missing]

    def baseline_profile(self, train_content: str) -> bytes | None:
        """Return the train profile of the last champion that was trained on other train rows, if there is one.

        A run's own version has the same rows: skipping it leaves the baseline as it was before the run. Logs a warning
        if the profile cannot be read.
        """
        try:
            numbers = self.numbers()
            for number in reversed(champions(self.aliases.read())):
                if number not in numbers:
                    continue  # removed by `gc`
                version = self.version(number)
                if version.manifest.data.train.content_sha256 != train_content:
                    version.check_signature()
                    return version.read(PROFILE_NAME)
        except FashionAnnError as error:
            logger.warning("drift from the champion's train data is not measured: %s", error)
        return None

    def find_by_inputs(self, key: str, *, accepted: bool = False) -> StoredVersion | None:
        """Return the newest intact version that was created from the inputs with this cache key, if any.

        accepted: only one whose signature is accepted, see `StoredVersion.check_signature`.
        """
        for number in reversed(self.numbers()):
            try:
                version = self.version(number)
                if version.manifest.made_from == key:
                    if accepted:
                        version.check_signature()
                    version.check()
                    return version
            except OtherLayout:
                continue  # its inputs are of another release
            except StoredArtifactError as error:
                # A damaged version must not prevent a new one.
                logger.warning("%s", error)
        return None

    def lock(self, seconds: float = math.inf) -> AbstractContextManager[bool]:
        """Hold the lock of writers during the block. Logs if it waits for another writer.

        Raises `LockHeld` after ``seconds``.
        """
        self._require_folders()
        self.root.mkdir(parents=True, exist_ok=True)
        waiting = f"{self.root}: waiting for another process that writes to the store"
        return lock(self.root / ".lock", waiting=waiting, seconds=seconds)

    def add(self, build: Callable[[Path, int], VersionFacts], key: "Ed25519PrivateKey | None" = None) -> StoredVersion:
        """Add the next version. The caller holds `lock` and has called `recover`.

        build: receives an empty folder and the version number, writes the files, and returns the manifest's facts.
        key: signs the manifest.

        If the process is killed, the version is complete or absent. A number is never used twice.

        Raises `LostRace` if another machine added a version with the same number first.
        """
        number = max([*self.numbers(), *(event.to for event in self.aliases.read())], default=0) + 1
        folder = self.folder(number)
        self._versions.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_folder(folder) as temporary:
                manifest = write_manifest(temporary, number, build(temporary, number), self.aliases.head())
                if key is not None:
                    (temporary / SIGNATURE_NAME).write_bytes(key.sign(manifest.text))
                for path in (*temporary.iterdir(), temporary):
                    sync_to_disk(path)
                if self.mirror is not None and not self.mirror.create_version(number, temporary, manifest):
                    raise LostRace(f"{folder}: another machine added version {number} first.")
            sync_to_disk(self._versions)
        except OSError as error:
            # The error of a full disk names no file.
            error.filename = error.filename or str(folder)
            raise
        return StoredVersion(number, folder, manifest)

    def sign(self, number: int, key: "Ed25519PrivateKey") -> StoredVersion:
        """Sign the manifest of a version after checking every file. Replaces an earlier signature.

        Raises `StoredArtifactError` as `StoredVersion.check` does, and for a version of another dataset.
        """
        with self.lock():
            version = self.version(number)
            version.require_dataset()
            version.check()
            # Beside the folder: `recover` removes what a killed process leaves there.
            temporary = temporary_name(version.folder)
            try:
                temporary.write_bytes(key.sign(version.manifest.text))
                sync_to_disk(temporary)
                temporary.replace(version.folder / SIGNATURE_NAME)
            finally:
                temporary.unlink(missing_ok=True)
            sync_to_disk(version.folder)
            if self.mirror is not None:
                self.mirror.sign(number, version.folder, version.manifest)
        return version

    def leftovers(self) -> list[Path]:
        """Return what writers and removals that are running or were killed left: folders, then temporary names.

        In this order, because a folder whose removal has begun counts as a version again without its temporary file.
        """
        discarded = [folder for folder in self._folders() if is_discarded(folder, MANIFEST_NAME)]
        temporaries = [
            path
            for path in self._versions.glob(".*.tmp")
            if _VERSION_FOLDER.fullmatch((name_of_temporary(path.name) or "").removesuffix(f".{MANIFEST_NAME}"))
        ]
        return [*sorted(discarded), *sorted(temporaries)]

    def recover(self, *, restore: bool = False) -> list[str]:
        """Complete or undo what a killed writer left, and `synchronize`. Return what was done, for people.

        The caller holds `lock`.

        Raises `StoredArtifactError` as `history` does, unless ``restore``: then the missing promotions are logged.
        """
        done = []
        for leftover in self.leftovers():
            if not remove_leftover(leftover):
                break  # a later one may mark this one as removed
            done.append(f"removed {leftover}, an incomplete version that a killed process left")
        done += self.aliases.repair()
        self.synchronize()
        missing, lost = self._compare_log(restore=restore)
        if lost and not restore:
            raise StoredArtifactError(lost)
        for event in missing:
            try:
                self.aliases.append(event)
            except LostRace:
                return [*done, *self.recover(restore=restore)]  # another machine logged this promotion, or a move
            done.append(f"logged the promotion of version {event.to}, which its manifest records")
        if lost:
            self.aliases.record(head=self.aliases.head(), abandoned=max(self.numbers(), default=0))
            done.append(f"continued without the lost moves: {lost}")
        return done

    def intact_manifests(self, after: int = 0) -> list[Manifest]:
        """Return the manifests of the versions after a number, oldest first, without the damaged ones."""
        return [version.manifest for version in self._with_manifests(after)]

    def _with_manifests(self, after: int = 0) -> list[StoredVersion]:
        versions = []
        for number in (number for number in self.numbers() if number > after):
            with suppress(StoredArtifactError, VersionNotFound):
                versions.append(self.version(number))
        return versions

    def _compare_log(self, *, restore: bool) -> tuple[list[AliasEvent], str | None]:
        """Return the promotions that the log lacks, and a message if it lost another line that a record covers.

        A process that was killed between adding a version and logging its promotion leaves that of the newest version.
        Raises `StoredArtifactError` for an earlier one unless ``restore``.
        """
        # The log is read last: another process may add a version and its moves meanwhile.
        state, newest = self.aliases.state(), max(self.numbers(), default=0)
        versions = self._with_manifests()
        entries = self.aliases.entries()
        lines, events = len(entries), [event for event, _ in entries]
        missing = []
        heads = [(str(self.aliases.state_path), state.head)]
        for version in versions:
            manifest, number = version.manifest, version.number
            event = manifest.verdict.event
            if manifest.alias_log is not None and number > state.abandoned:
                heads.append((f"the manifest of version {number}", manifest.alias_log))
            if event is None or event in events:
                continue
            if number < newest and not restore:
                raise StoredArtifactError(
                    f"{self.aliases.path} lacks the promotion of version {number}, which its manifest records: the log "
                    f"was lost or shortened. {_RESTORE_LOG}"
                )
            if not restore:
                version.check_signature()  # any writer of the store could have written an unsigned promotion
            missing.append(event)
            entries.append((event, chain(event.as_json(), head_of(entries).sha256)))
        for source, head in heads:
            if head_of(entries[: head.lines]) != head:
                return missing, (
                    f"{self.aliases.path} has {lines} lines: expected the first {head.lines} up to sha256 "
                    f"{head.sha256}, as {source} records. A move of an alias was removed or rewritten. {_RESTORE_LOG}"
                )
        return missing, None


def _diverged(mirror: StoreMirror, root: Path, what: str) -> StoredArtifactError:
    return StoredArtifactError(
        f"{root} and {mirror.remote.address} have different contents of {what}: each was written without the other. "
        f"Keep one of them: move {root} away to use that of the remote, or set {REMOTE_VARIABLE} to another prefix."
    )
