import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest

from schemas.errors import LockHeld, OtherLayout, StoredArtifactError, VersionNotFound
from schemas.layout import MANIFEST_NAME, PROFILE_NAME, STORED_NAMES
from tasks.registry.alias_log import AliasLog
from tasks.registry.store import ModelStore
from tasks.runtime.files import digest_of, write_json
from tests.field_faults import field_fault
from tests.stored import add_promoted, add_stored, data_facts, event, make_older, metrics


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def test_versions_are_listed(store: ModelStore) -> None:
    for accuracy in (0.8, 0.9):
        add_stored(store.root, accuracy)
    store.aliases.append(event(2))
    assert [{**asdict(row), "settings": None} for row in store.summaries()] == [
        {
            "version": number,
            "created": "2026-01-01T00:00:00.000Z",
            "test_accuracy": accuracy,
            "test_loss": 0.3,
            "outcome": "kept",
            "aliases": aliases,
            "path": str(store.root / "versions" / f"000{number}"),
            "damaged": None,
            "other_layout": None,
            "note": None,
            "settings": None,
        }
        for number, accuracy, aliases in ((1, 0.8, []), (2, 0.9, ["champion"]))
    ]
    assert (store.aliases_of(1), store.aliases_of(2)) == ([], ["champion"])


def test_a_damaged_version_is_listed_with_the_reason(store: ModelStore) -> None:
    damaged, _ = add_stored(store.root, 0.8), add_stored(store.root, 0.7)
    path = damaged.folder / "manifest.json"
    path.write_text(path.read_text().replace("0.8", "0.9"))
    first, second = store.summaries()
    assert first.damaged is not None
    assert "manifest.json: expected content with sha256" in first.damaged
    assert (first.test_accuracy, second.test_accuracy, second.damaged) == (None, 0.7, None)


def test_a_store_without_a_folder_is_empty(store: ModelStore) -> None:
    assert (store.summaries(), store.numbers(), store.history(), store.leftovers()) == ([], [], [], [])
    with pytest.raises(VersionNotFound, match="no version: run"):
        store.resolve("1")


def test_a_version_is_read_back(store: ModelStore) -> None:
    added = add_stored(store.root, 0.8)
    stored = store.version(1)
    assert stored == added
    assert json.loads(stored.read("metrics.json")) == metrics(0.8)
    stored.check()


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["1", "0001", "v1", "v0001", "champion"])
def test_a_version_has_several_names(store: ModelStore, name: str) -> None:
    add_promoted(store.root)
    assert store.resolve(name) == store.version(name).number == 1


@pytest.mark.parametrize("name", ["2", "v0", "challenger", "", "-1", "../1", "²", "9" * 5_000])
def test_an_unknown_name_is_rejected(store: ModelStore, name: str) -> None:
    add_stored(store.root)
    with pytest.raises(VersionNotFound, match="Its newest version is 1;"):
        store.resolve(name)


def test_an_alias_of_a_removed_version_is_rejected(store: ModelStore) -> None:
    add_stored(store.root)
    store.aliases.append(event(2))
    with pytest.raises(VersionNotFound, match="champion names version 2, which was removed"):
        store.resolve("champion")
    with pytest.raises(VersionNotFound, match="no version 2"):
        store.version(2)


def test_other_folder_names_are_no_versions(store: ModelStore) -> None:
    add_stored(store.root)
    for name in ("00001", "١٢٣٤", "1", "0002.bak", ".0002.77.tmp"):
        (store.root / "versions" / name).mkdir()
    assert store.numbers() == [1]


# --- integrity -------------------------------------------------------------------------------------------------------


def test_a_changed_file_is_rejected_with_both_digests(store: ModelStore) -> None:
    stored = add_stored(store.root)
    path = stored.folder / "metrics.json"
    for content in (b'{"test_accuracy": 1.0}', b""):
        path.write_bytes(content)
        expected = stored.manifest.files["metrics.json"].sha256
        for use in (stored.check, lambda: stored.read("metrics.json")):
            with pytest.raises(StoredArtifactError, match=rf"metrics\.json: expected sha256 {expected}, received \w"):
                use()


def test_swapped_files_are_rejected_in_both_versions(store: ModelStore) -> None:
    versions = [add_stored(store.root, accuracy) for accuracy in (0.8, 0.9)]
    first, second = (version.folder / "metrics.json" for version in versions)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    for version in versions:
        with pytest.raises(StoredArtifactError, match=rf"000{version.number}/metrics\.json: expected sha256"):
            version.check()


@pytest.mark.parametrize("name", ["model.pkl", ".hidden", "folder/file"])
def test_a_stray_file_is_rejected_and_not_opened(store: ModelStore, name: str) -> None:
    stored = add_stored(store.root)
    path = stored.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x80")
    with pytest.raises(StoredArtifactError, match="is not named by the manifest"):
        stored.check()
    with pytest.raises(StoredArtifactError, match="is not named by the manifest, so it was not opened"):
        stored.path(name)


@field_fault(
    "stray files and bad values",
    "macOS, Windows or NFS leaves files in a version's folder",
    "The version stays in service with one warning per folder; any other file is refused",
)
def test_litter_in_a_version_is_logged_once(store: ModelStore, caplog: pytest.LogCaptureFixture) -> None:
    stored = add_promoted(store.root)
    for name in (".DS_Store", "._metrics.json", "Thumbs.db", ".nfs000000000000a0d500000001"):
        (stored.folder / name).touch()
    (stored.folder / "@eaDir").mkdir()
    (store.root / "versions" / ".DS_Store").touch()
    for _ in range(2):
        store.version("champion").check()
    (message,) = caplog.messages
    assert all(
        path.name in message for path in stored.folder.iterdir() if path.name not in {*STORED_NAMES, "manifest.json"}
    )
    assert store.numbers() == [1]
    (stored.folder / "model.pkl").touch()
    with pytest.raises(StoredArtifactError, match=r"model\.pkl is not named by the manifest"):
        stored.check()


@field_fault(
    "cause named but not observed",
    "An earlier release of this project wrote a version",
    "It is listed as of an older layout with the missing key, not as damaged; new versions are added",
)
def test_an_older_layout_is_not_damage(store: ModelStore, caplog: pytest.LogCaptureFixture) -> None:
    make_older(add_promoted(store.root, key="a"))
    with pytest.raises(
        OtherLayout, match=r"Version 1 has an older layout .*\(1, expected 2\).* lineage: Field required"
    ):
        store.version(1)
    (row,) = store.summaries()
    assert (row.damaged, row.aliases) == (None, ["champion"])
    assert row.other_layout is not None
    assert store.find_by_inputs("a") is None
    assert store.recover() == []
    assert add_stored(store.root).number == 2
    assert caplog.messages == []


@pytest.mark.parametrize("replace", ["none", "a link", "a folder"])
def test_a_missing_or_replaced_file_is_rejected(store: ModelStore, tmp_path: Path, replace: str) -> None:
    stored = add_stored(store.root)
    path = stored.folder / "metrics.json"
    path.rename(tmp_path / "elsewhere")
    if replace == "a link":
        path.symlink_to(tmp_path / "elsewhere")
    elif replace == "a folder":
        path.mkdir()
    with pytest.raises(
        StoredArtifactError, match=rf"metrics\.json: expected a file with sha256 \w{{64}}, received {replace}"
    ):
        stored.check()


# --- writing ---------------------------------------------------------------------------------------------------------


def test_the_number_of_a_removed_champion_is_not_reused(store: ModelStore) -> None:
    shutil.rmtree(add_promoted(store.root).folder)
    assert add_stored(store.root).number == 2


def test_files_are_synced_before_a_version_gets_its_name(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut then leaves a complete version or none."""
    synced: list[int] = []
    replace = Path.replace

    def replace_after_sync(self: Path, target: Path) -> Path:
        assert {path.stat().st_ino for path in self.iterdir()} < set(synced)
        assert synced[-1] == self.stat().st_ino
        synced.clear()
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(Path, "replace", replace_after_sync)
    stored = add_stored(store.root)
    assert synced == [stored.folder.parent.stat().st_ino]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_failed_write_leaves_nothing_and_names_a_file(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, failing: str, named: bool
) -> None:
    add_stored(store.root)

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", *(["a file"] if named else []))

    monkeypatch.setattr(*((Path, "replace") if failing == "replace" else (os, "fsync")), fail)
    with pytest.raises(OSError, match="No space left on device: .*" + ("a file" if named else "versions/0002")):
        add_stored(store.root)
    assert [path.name for path in (store.root / "versions").iterdir()] == ["0001"]


def test_the_newest_version_of_the_same_inputs_is_found(store: ModelStore) -> None:
    versions = [add_stored(store.root, key=key) for key in ("a", "b", "a")]
    assert store.find_by_inputs("a") == versions[2]
    assert store.find_by_inputs("c") is None


def test_a_damaged_version_is_logged_and_not_found(store: ModelStore, caplog: pytest.LogCaptureFixture) -> None:
    first, second = add_stored(store.root, key="a"), add_stored(store.root, key="b")
    (second.folder / "manifest.json").write_text("{}")
    assert store.recover() == []
    assert store.find_by_inputs("a") == first
    assert store.find_by_inputs("b") is None
    assert "0002" in caplog.text
    (first.folder / "metrics.json").write_text("{}")
    assert store.find_by_inputs("a") is None
    assert add_stored(store.root).number == 3


def test_a_writer_that_waits_logs_it(store: ModelStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tasks.runtime.locks")
    with ThreadPoolExecutor(1) as other:
        with store.lock():
            added = other.submit(add_stored, store.root)
            deadline = time.monotonic() + 10
            while not caplog.messages and time.monotonic() < deadline:
                time.sleep(0.01)
        assert added.result().number == 1
    assert caplog.messages == [f"{store.root}: waiting for another process that writes to the store"]


def test_a_writer_with_a_time_limit_gives_up(store: ModelStore) -> None:
    with (
        store.lock(),
        ThreadPoolExecutor(1) as other,
        pytest.raises(LockHeld, match=f"{store.root}: waiting .* after 0.1 s"),
    ):
        other.submit(lambda: store.lock(0.1).__enter__()).result()


# --- recovery --------------------------------------------------------------------------------------------------------


def test_a_promotion_cut_off_by_a_kill_is_logged_later(store: ModelStore) -> None:
    add_stored(store.root, promoted=True)
    assert (store.aliases.read(), store.history()) == ([], [event(1)])
    assert "promotion of version 1" in store.recover()[0]
    assert store.aliases.champion() == 1
    assert store.recover() == []


def test_leftovers_are_removed_but_links_not_followed(store: ModelStore, tmp_path: Path) -> None:
    add_stored(store.root).folder.rename(tmp_path / "elsewhere")
    for leftover, target in ((".0001.1.tmp", tmp_path / "elsewhere"), (".0002.1.tmp", None)):
        path = store.root / "versions" / leftover
        path.symlink_to(target) if target else path.mkdir()
    assert [path.name for path in store.leftovers()] == [".0001.1.tmp", ".0002.1.tmp"]
    assert len(store.recover()) == 2
    assert list((store.root / "versions").iterdir()) == []
    assert (tmp_path / "elsewhere" / "manifest.json").exists()


@pytest.mark.parametrize("content", [None, b""], ids=["removed", "empty"])
def test_a_lost_log_is_detected_and_restored(store: ModelStore, content: bytes | None) -> None:
    for _ in range(2):
        add_promoted(store.root)
    add_stored(store.root)
    moves = store.history()
    store.aliases.path.unlink()
    if content is not None:
        store.aliases.path.write_bytes(content)
    for read in (store.history, store.recover):
        with pytest.raises(StoredArtifactError, match="lacks the promotion of version 1"):
            read()
    assert [line.partition(",")[0] for line in store.recover(restore=True)] == [
        "logged the promotion of version 1",
        "logged the promotion of version 2",
    ]
    assert store.history() == store.aliases.read() == moves


Edit = Callable[[list[bytes]], list[bytes]]


@pytest.mark.parametrize("recorded", ["by the next version", "beside the log"])
@pytest.mark.parametrize(
    ("edit", "lines"),
    [(lambda lines: lines[:-1], 2), (lambda lines: lines[:1], 1)],
    ids=["last line", "two lines"],
)
@field_fault(
    "operator's decision overwritten",
    "The last lines of the alias log, moves by hand, are cut off",
    "`verify --all` and every command that writes report the missing lines; an accepted loss is not reported again",
)
def test_a_cut_off_move_by_hand_is_noticed(store: ModelStore, edit: Edit, lines: int, recorded: str) -> None:
    for _ in range(2):
        add_stored(store.root)
    store.aliases.append(event(1))
    for move in (event(2, 1), event(2, alias="staging")):
        store.aliases.append(move)
    if recorded == "by the next version":
        add_stored(store.root)
        store.aliases.state_path.unlink()
    store.aliases.path.write_bytes(b"".join(edit(store.aliases.path.read_bytes().splitlines(keepends=True))))
    for read in (store.history, store.recover):
        with pytest.raises(StoredArtifactError, match=rf"has {lines} lines: expected the first 3 up to sha256 \w+"):
            read()
    assert "continued without the lost moves" in store.recover(restore=True)[0]
    assert len(store.history()) == lines
    assert store.recover() == []

    # Later moves and versions are covered again.
    store.aliases.append(event(2, 1))
    add_stored(store.root)
    store.aliases.path.write_bytes(b"")
    with pytest.raises(StoredArtifactError, match=f"expected the first {lines + 1}"):
        store.history()


def test_rewritten_moves_are_noticed(store: ModelStore) -> None:
    for _ in range(2):
        add_stored(store.root)
    store.aliases.append(event(1))
    store.aliases.append(event(2, 1))
    add_stored(store.root)
    forged = AliasLog(store.root / "forged.jsonl")
    for move in (event(1), event(1, 1), event(1, 1)):
        forged.append(move)
    forged.path.rename(store.aliases.path)
    with pytest.raises(StoredArtifactError, match="as the manifest of version 3 records"):
        store.history()


def test_a_manifest_without_a_head_is_accepted(store: ModelStore) -> None:
    """Versions before this key exist."""
    stored = add_promoted(store.root)
    content = json.loads((stored.folder / MANIFEST_NAME).read_bytes())
    del content["alias_log"], content["manifest_sha256"]
    write_json(stored.folder / MANIFEST_NAME, {**content, "manifest_sha256": digest_of(content)})
    assert store.version(1).manifest.alias_log is None
    assert [move.to for move in store.history()] == [1]


# --- baseline --------------------------------------------------------------------------------------------------------


def test_the_baseline_is_the_last_champion_on_other_data(store: ModelStore, caplog: pytest.LogCaptureFixture) -> None:
    this, other = "1" * 64, "2" * 64
    assert store.baseline_profile(this) is None
    baselines = []
    for content, profile in ((other, b"a"), (other, None), (this, b"c"), (other, b"d")):

        def write(folder: Path, profile: bytes | None = profile) -> None:
            if profile is not None:
                (folder / PROFILE_NAME).write_bytes(profile)

        add_promoted(store.root, write=write, data=data_facts(content))
        baselines.append(store.baseline_profile(this))
    # The second has no profile. The third was trained on these rows, so the second still counts.
    assert baselines == [b"a", None, None, b"d"]
    assert caplog.text.count("profile.json is not named by the manifest") == 2
    shutil.rmtree(store.folder(4))
    shutil.rmtree(store.folder(2))
    assert store.baseline_profile(this) == b"a"
    (store.folder(1) / PROFILE_NAME).write_bytes(b"changed")
    assert store.baseline_profile(this) is None
    assert "drift from the champion's train data is not measured" in caplog.text
