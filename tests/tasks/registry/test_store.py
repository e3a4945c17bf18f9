import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import StoredArtifactError, VersionNotFound
from tasks.registry.alias_log import alias_values, append_event, champions, read_alias_log
from tasks.registry.store import (
    check_version,
    checked_path,
    find_by_inputs,
    history,
    list_versions,
    read_manifest,
    recover,
    resolve,
    show_version,
    version_folder,
    version_numbers,
)
from tasks.runtime.files import digest_of, write_json
from tests.stored import DIGEST, add_stored, event


def test_numbers_rise_and_versions_are_listed(tmp_path: Path) -> None:
    for accuracy in (0.8, 0.9):
        add_stored(tmp_path, accuracy)
    append_event(tmp_path, event(2))
    assert list_versions(tmp_path) == [
        {
            "version": number,
            "created": "2026-01-01T00:00:00.000Z",
            "test_accuracy": accuracy,
            "test_loss": 0.3,
            "outcome": "kept",
            "aliases": aliases,
            "path": str(tmp_path / "versions" / f"000{number}"),
            "damaged": None,
        }
        for number, accuracy, aliases in ((1, 0.8, []), (2, 0.9, ["champion"]))
    ]


def test_show_has_the_metrics_under_their_key(tmp_path: Path) -> None:
    add_stored(tmp_path, 0.8)
    assert show_version(tmp_path, 1)["metrics"] == {"test_accuracy": 0.8}


def test_an_empty_store_has_no_versions(tmp_path: Path) -> None:
    assert list_versions(tmp_path / "none") == []


def test_a_removed_version_that_was_champion_never_gives_its_number_away(tmp_path: Path) -> None:
    add_stored(tmp_path)
    append_event(tmp_path, event(1))
    folder = version_folder(tmp_path, 1)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert add_stored(tmp_path)["version"] == 2


def test_a_promotion_cut_off_after_its_version_is_logged_by_the_next_writer(tmp_path: Path) -> None:
    add_stored(tmp_path, promoted=True)
    assert read_alias_log(tmp_path) == []
    assert "version 1" in recover(tmp_path)[0]
    assert alias_values(read_alias_log(tmp_path)) == {"champion": 1}
    assert recover(tmp_path) == []


def test_a_line_cut_off_by_a_kill_never_happened(tmp_path: Path) -> None:
    add_stored(tmp_path)
    append_event(tmp_path, event(1))
    log = tmp_path / "aliases.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"alias": "champion", "to": 2')
    assert alias_values(read_alias_log(tmp_path)) == {"champion": 1}
    assert len(recover(tmp_path)) == 1
    assert log.read_bytes() == whole


def test_a_line_that_is_no_event_is_told_by_its_number(tmp_path: Path) -> None:
    add_stored(tmp_path)
    append_event(tmp_path, event(1))
    with (tmp_path / "aliases.jsonl").open("a") as log:
        log.write('{"alias": 1}\n')
    with pytest.raises(StoredArtifactError, match="line 2"):
        read_alias_log(tmp_path)


def _three_moves(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    for version in (1, 2, 1):
        append_event(root, event(version))
    return root / "aliases.jsonl"


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda lines: [lines[0], lines[1].replace(b"a test", b"a lie!"), lines[2]], 2),
        (lambda lines: [lines[0].replace(b'"to": 1', b'"to": 2'), *lines[1:]], 1),
        (lambda lines: [lines[0], lines[2]], 2),
        (lambda lines: lines[1:], 1),
        (lambda lines: [lines[1], lines[0], lines[2]], 1),
        (lambda lines: [lines[0].replace(b": ", b":", 1), *lines[1:]], 1),
    ],
)
def test_an_edited_log_is_refused_by_line(tmp_path: Path, edit: Any, line: int) -> None:
    log = _three_moves(tmp_path)
    assert len(read_alias_log(tmp_path)) == 3
    log.write_bytes(b"".join(edit(log.read_bytes().splitlines(keepends=True))))
    with pytest.raises(StoredArtifactError, match=f"line {line} "):
        read_alias_log(tmp_path)


@pytest.mark.parametrize(
    ("moves", "stack"),
    [
        ([], []),
        ([(1, "x"), (2, "x"), (3, "x")], [1, 2, 3]),
        ([(1, "x"), (2, "x"), (3, "x"), (2, "rollback")], [1, 2]),
        ([(1, "x"), (2, "x"), (3, "x"), (2, "rollback"), (1, "rollback")], [1]),
        ([(1, "x"), (2, "x"), (1, "rollback"), (3, "x")], [1, 3]),
        ([(1, "x"), (2, "x"), (1, "x")], [1, 2, 1]),
        ([(1, "x"), (1, "x")], [1]),
    ],
)
def test_champions_one_after_the_other(moves: list[tuple[int, str]], stack: list[int]) -> None:
    assert champions([{**event(version), "by": by} for version, by in moves]) == stack


def test_a_changed_file_is_refused_with_both_digests(tmp_path: Path) -> None:
    manifest = add_stored(tmp_path)
    path = checked_path(tmp_path, manifest, "metrics.json")
    path.write_text('{"test_accuracy": 1.0}')
    with pytest.raises(StoredArtifactError, match=manifest["files"]["metrics.json"]["sha256"]):
        show_version(tmp_path, 1)


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    add_stored(tmp_path, 0.8)
    path = version_folder(tmp_path, 1) / "manifest.json"
    path.write_text(path.read_text().replace("0.8", "0.9"))
    with pytest.raises(StoredArtifactError, match=r"manifest\.json: expected content with sha256"):
        read_manifest(tmp_path, 1)
    add_stored(tmp_path, 0.7)
    damaged, whole = list_versions(tmp_path)
    assert "manifest.json" in damaged["damaged"]
    assert (whole["test_accuracy"], whole["damaged"]) == (0.7, None)


def test_every_changed_byte_of_a_version_is_refused(tmp_path: Path) -> None:
    manifest = add_stored(tmp_path)
    check_version(tmp_path, manifest)
    for name in ("manifest.json", "metrics.json"):
        path = version_folder(tmp_path, 1) / name
        whole = path.read_bytes()
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(StoredArtifactError, match=name):
                check_version(tmp_path, read_manifest(tmp_path, 1))
        path.write_bytes(whole)


def test_files_that_no_manifest_names_and_links_are_refused(tmp_path: Path) -> None:
    manifest = add_stored(tmp_path)
    folder = version_folder(tmp_path, 1)
    (folder / "model.pkl").write_bytes(b"")
    with pytest.raises(StoredArtifactError, match=r"model\.pkl is not named"):
        check_version(tmp_path, manifest)
    (folder / "model.pkl").unlink()
    (folder / "metrics.json").rename(tmp_path / "elsewhere.json")
    (folder / "metrics.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(StoredArtifactError, match=r"metrics\.json: expected a file"):
        check_version(tmp_path, manifest)


def test_a_version_under_another_number_is_refused(tmp_path: Path) -> None:
    add_stored(tmp_path)
    version_folder(tmp_path, 1).rename(version_folder(tmp_path, 2))
    with pytest.raises(StoredArtifactError, match=r"0002/manifest\.json"):
        read_manifest(tmp_path, 2)


def test_a_damaged_version_is_said_and_keeps_no_new_one_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_stored(tmp_path, key="a")
    add_stored(tmp_path, key="b")
    (version_folder(tmp_path, 2) / "manifest.json").write_text("{}")
    assert recover(tmp_path) == []
    assert find_by_inputs(tmp_path, "a") == 1
    assert find_by_inputs(tmp_path, "b") is None
    assert "0002" in caplog.text
    (version_folder(tmp_path, 1) / "metrics.json").write_text("{}")
    assert find_by_inputs(tmp_path, "a") is None
    assert add_stored(tmp_path)["version"] == 3


def test_a_file_that_no_manifest_names_and_a_link_are_not_opened(tmp_path: Path) -> None:
    manifest = add_stored(tmp_path)
    folder = version_folder(tmp_path, 1)
    (folder / "extra.pkl").write_bytes(b"\x80")
    with pytest.raises(StoredArtifactError, match="not named"):
        checked_path(tmp_path, manifest, "extra.pkl")
    outside = tmp_path / "outside.json"
    (folder / "metrics.json").rename(outside)
    (folder / "metrics.json").symlink_to(outside)
    with pytest.raises(StoredArtifactError, match="metrics"):
        checked_path(tmp_path, manifest, "metrics.json")


@pytest.mark.parametrize("name", ["1", "0001", "v1", "v0001", "champion"])
def test_a_version_has_several_names(tmp_path: Path, name: str) -> None:
    add_stored(tmp_path)
    append_event(tmp_path, event(1))
    assert resolve(tmp_path, name) == 1


@pytest.mark.parametrize("name", ["2", "v0", "challenger", "", "-1", "../1", "²"])
def test_a_name_that_names_nothing_is_told(tmp_path: Path, name: str) -> None:
    add_stored(tmp_path)
    with pytest.raises(VersionNotFound, match="versions 1 to 1"):
        resolve(tmp_path, name)


def test_the_newest_version_of_the_same_inputs_is_found(tmp_path: Path) -> None:
    for key in ("a", "b", "a"):
        add_stored(tmp_path, key=key)
    assert find_by_inputs(tmp_path, "a") == 3
    assert find_by_inputs(tmp_path, "c") is None


def _state(root: Path, change: Callable[[dict[str, Any]], Any], version: int = 1) -> None:
    """Write a manifest anew with digests that fit: what somebody does who knows the form."""
    path = version_folder(root, version) / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    manifest.pop("manifest_sha256")
    write_json(path, {**manifest, "manifest_sha256": digest_of(manifest)})


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest.update(files=[]),
        lambda manifest: manifest["files"].update({"metrics.json": {}}),
        lambda manifest: manifest["files"].update({"../../outside.txt": {"bytes": 0, "sha256": DIGEST}}),
        lambda manifest: manifest["files"].pop("verdict.json"),
        lambda manifest: manifest.pop("verdict"),
        lambda manifest: manifest.pop("created"),
        lambda manifest: manifest.pop("lineage"),
        lambda manifest: manifest.update(version=True),
        lambda manifest: manifest.update(version=2),
        lambda manifest: manifest.update(test_accuracy="0.9"),
        lambda manifest: manifest["verdict"].update(event={"alias": "champion", "to": 77}),
        lambda manifest: manifest["verdict"].update(event=event(77)),
    ],
)
def test_a_manifest_of_another_shape_is_refused_though_its_digest_fits(tmp_path: Path, change: Any) -> None:
    add_stored(tmp_path)
    _state(tmp_path, change)
    with pytest.raises(StoredArtifactError, match=r"0001/manifest\.json"):
        read_manifest(tmp_path, 1)
    assert recover(tmp_path) == []  # and keeps no writer out
    assert list_versions(tmp_path)[0]["damaged"]


def test_a_version_or_a_log_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "store"
    add_stored(root)
    version_folder(root, 1).rename(tmp_path / "elsewhere")
    version_folder(root, 1).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoredArtifactError, match="is a link"):
        read_manifest(root, 1)
    (root / "versions" / ".0002.1.tmp").symlink_to(tmp_path / "elsewhere")
    assert len(recover(root)) == 1
    assert (tmp_path / "elsewhere" / "manifest.json").exists()
    (root / "aliases.jsonl").symlink_to(tmp_path / "log")
    with pytest.raises(StoredArtifactError, match="it is a link"):
        read_alias_log(root)


@pytest.mark.parametrize("edit", [lambda log: log[:-1] + b"x", lambda log: log[:-1] + b"\x8a", lambda log: log + b"{}"])
def test_an_edited_end_of_the_log_is_no_line_that_was_cut_off(tmp_path: Path, edit: Any) -> None:
    log = _three_moves(tmp_path)
    log.write_bytes(edit(log.read_bytes()))
    for read in (read_alias_log, recover):
        with pytest.raises(StoredArtifactError, match="line"):
            read(tmp_path)


def test_a_log_that_lost_its_last_line_end_alone_says_what_it_said(tmp_path: Path) -> None:
    log = _three_moves(tmp_path)
    whole = log.read_bytes()
    log.write_bytes(whole[:-1])
    assert len(read_alias_log(tmp_path)) == 3
    assert "line end" in recover(tmp_path)[0]
    assert log.read_bytes() == whole


@pytest.mark.parametrize("left", [None, b""])
def test_a_lost_log_is_told_from_what_the_manifests_state(tmp_path: Path, left: bytes | None) -> None:
    for _ in range(2):
        append_event(tmp_path, add_stored(tmp_path, promoted=True)["verdict"]["event"])
    add_stored(tmp_path)
    history(tmp_path)
    if left is None:
        (tmp_path / "aliases.jsonl").unlink()
    else:
        (tmp_path / "aliases.jsonl").write_bytes(left)
    for judge in (history, recover):
        with pytest.raises(StoredArtifactError, match="lacks the promotion of version 1"):
            judge(tmp_path)
    assert [line.split(",")[0] for line in recover(tmp_path, restore=True)] == [
        "logged the promotion of version 1",
        "logged the promotion of version 2",
    ]
    history(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"to": True}, {"to": -1}, {"by": None}, {"from": "1"}, {"more": 1}, {"when": 0}],
)
def test_an_event_of_another_shape_is_refused_though_its_digest_fits(tmp_path: Path, change: Any) -> None:
    moved = {**event(1), **change}
    (tmp_path / "aliases.jsonl").write_bytes(
        json.dumps({**moved, "sha256": digest_of({"before": "", "event": moved})}, sort_keys=True).encode() + b"\n"
    )
    with pytest.raises(StoredArtifactError, match="line 1, "):
        read_alias_log(tmp_path)


def test_a_full_disk_leaves_the_log_as_it_was_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = _three_moves(tmp_path)
    before = log.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*aliases\.jsonl"):
        append_event(tmp_path, event(2))
    assert log.read_bytes() == before


def test_names_that_no_version_has_are_not_taken_for_one(tmp_path: Path) -> None:
    add_stored(tmp_path)
    for name in ("00001", "١٢٣٤", "1"):
        (tmp_path / "versions" / name).mkdir()
    assert version_numbers(tmp_path) == [1]
    with pytest.raises(VersionNotFound):
        resolve(tmp_path, "9" * 5_000)


def test_an_alias_of_a_version_that_is_gone_says_so(tmp_path: Path) -> None:
    add_stored(tmp_path)
    append_event(tmp_path, event(2))
    with pytest.raises(VersionNotFound, match="champion names version 2, which is gone"):
        resolve(tmp_path, "champion")


def test_a_pair_of_files_swapped_between_two_versions_is_refused_in_both(tmp_path: Path) -> None:
    for accuracy in (0.8, 0.9):
        add_stored(tmp_path, accuracy)
    paths = [version_folder(tmp_path, number) / "metrics.json" for number in (1, 2)]
    first, second = (path.read_bytes() for path in paths)
    paths[0].write_bytes(second)
    paths[1].write_bytes(first)
    for number in (1, 2):
        with pytest.raises(StoredArtifactError, match=rf"000{number}/metrics\.json: expected sha256"):
            check_version(tmp_path, read_manifest(tmp_path, number))
