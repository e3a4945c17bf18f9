import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.contract import SPLITS
from schemas.errors import DataContractError, UnreadableData
from tasks.data.data_folder import (
    csv_references,
    csv_split,
    digest_of_csvs,
    folder_digest,
    present_csvs,
    read_record,
    record_path,
)
from tasks.runtime.files import sha256_file
from tests.tasks.data.published import CONTRACT, TEST, TRAIN, sha256, supply

SHARDS = ("fashion-mnist_train-10.csv", "fashion-mnist_train-2.csv.gz", "fashion-mnist_train-b a.csv")
# Names that only resemble shards: incomplete, hidden, another suffix, another split.
OTHERS = (f"{SHARDS[0]}.part", f".{SHARDS[0]}", "fashion-mnist_train-1.txt", "fashion-mnist_training-1.csv")


def record(folder: Path, content: bytes) -> None:
    record_path(CONTRACT, folder).write_bytes(content)


@pytest.mark.parametrize(
    ("names", "train"),
    [
        ([TRAIN, TEST], (TRAIN,)),
        ([f"{TRAIN}.gz", TEST], (f"{TRAIN}.gz",)),
        ([SHARDS[0], TEST], SHARDS[:1]),
        ([*reversed(SHARDS), *OTHERS, TEST], SHARDS),
        ([*OTHERS, TEST], None),
    ],
)
def test_finds_csvs_and_shards_by_name(tmp_path: Path, names: list[str], train: tuple[str, ...] | None) -> None:
    supply(tmp_path, *names)
    expected = {"test": (tmp_path / TEST,)}
    if train is not None:
        expected["train"] = tuple(tmp_path / name for name in train)
    assert present_csvs(CONTRACT, tmp_path) == expected


def link_to_nothing(path: Path) -> None:
    path.symlink_to("gone")


@pytest.mark.parametrize(
    ("name", "create", "reason"),
    [
        (TRAIN, Path.touch, rf"contains {TRAIN} and 3 shards of it \({SHARDS[0]}, "),
        (f"{TRAIN}.gz", Path.touch, rf"contains {TRAIN}.gz and 3 shards of it \({SHARDS[0]}, "),
        ("fashion-mnist_test-1.csv", Path.touch, f"contains {TEST} and its shard fashion-mnist_test-1.csv. Expected"),
        (f"{TEST}.gz", Path.touch, f"contains both {TEST} and {TEST}.gz.* Remove the wrong one"),
        (f"{SHARDS[0]}.gz", Path.touch, f"contains both {SHARDS[0]} and {SHARDS[0]}.gz"),
        ("fashion-mnist_train-\udcff.csv", Path.touch, r"a shard named 'fashion-mnist_train-\\udcff.csv'. Expected"),
        ("fashion-mnist_train-a\nb.csv", Path.touch, r"a shard named 'fashion-mnist_train-a\\nb.csv'. Expected"),
        ("fashion-mnist_train-1.csv", Path.mkdir, "received a folder"),
        (f"{TEST}.gz", Path.mkdir, "received a folder"),
        ("fashion-mnist_train-1.csv", link_to_nothing, "received a link to nothing"),
        ("fashion-mnist_train-1.csv", os.mkfifo, "a pipe"),
    ],
)
def test_rejects_ambiguous_and_unusable_files(
    tmp_path: Path, name: str, create: Callable[[Path], None], reason: str
) -> None:
    supply(tmp_path, *SHARDS, TEST)
    create(tmp_path / name)
    with pytest.raises(DataContractError, match=reason) as caught:
        present_csvs(CONTRACT, tmp_path)
    assert caught.value.exit_status == 3


def test_references_have_digest_and_origin(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tasks.data.data_folder")
    supply(tmp_path, *SHARDS, TEST)
    record(tmp_path, f'{{"files": {{"test": {{"sha256": "{sha256(TEST.encode())}"}}}}}}'.encode())
    csvs = csv_references(CONTRACT, tmp_path, present_csvs(CONTRACT, tmp_path))
    assert [(file.path, file.sha256) for file in csvs["train"].files] == [
        (tmp_path / name, sha256(name.encode())) for name in SHARDS
    ]
    assert (csvs["train"].origin, csvs["test"].origin) == ("supplied", "fetched")
    assert f"{tmp_path / SHARDS[0]} and {len(SHARDS) - 1} more: found (your files)" in caplog.messages
    assert f"{tmp_path / TEST}: found (downloaded earlier)" in caplog.messages
    assert "mixes a downloaded split with a supplied one" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"files": 3}',
        b'{"files": {"train": "x"}}',
        b'{"files": {"train": {}}}',
    ],
)
def test_ignores_an_unreadable_record(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    record(tmp_path, content)
    assert read_record(CONTRACT, tmp_path) == {}
    assert "is ignored" in caplog.text


def test_reports_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UnreadableData, match=rf"{tmp_path / TRAIN} cannot be read \(No such file or directory\)"):
        csv_split("train", [tmp_path / TRAIN])


def test_folder_digest_equals_that_of_sha256sum(tmp_path: Path) -> None:
    supply(tmp_path, *SHARDS, TEST)
    csvs = csv_references(CONTRACT, tmp_path, present_csvs(CONTRACT, tmp_path))
    command = "sha256sum fashion-mnist_test.csv fashion-mnist_train-* | sha256sum"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert folder_digest(CONTRACT, tmp_path) == digest_of_csvs(csvs) == done.stdout.split()[0]


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


@pytest.mark.parametrize(
    "change",
    [append, Path.unlink, lambda path: path.with_name(SHARDS[0]).touch()],
    ids=["grows", "removed", "new shard"],
)
def test_folder_that_changes_while_it_is_read_has_no_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, change: Callable[[Path], None]
) -> None:
    caplog.set_level(logging.INFO, "tasks.data.data_folder")
    supply(tmp_path, "fashion-mnist_train-0.csv", TEST)

    def read_during_change(path: Path) -> str:
        digest = sha256_file(path)
        if path.name != TEST:
            change(path.with_name(TEST))
        return digest

    monkeypatch.setattr("tasks.data.data_folder.sha256_file", read_during_change)
    assert folder_digest(CONTRACT, tmp_path) is None
    assert "files are still being written" in caplog.text


@pytest.mark.parametrize("split", SPLITS)
def test_folder_with_one_split_has_no_digest(tmp_path: Path, split: str) -> None:
    supply(tmp_path, CONTRACT.csv_name(split))
    assert folder_digest(CONTRACT, tmp_path) is None


def test_litter_is_no_shard(tmp_path: Path) -> None:
    supply(tmp_path, TRAIN, TEST)
    for name in (f"._{TRAIN}", "._fashion-mnist_train-1.csv", ".DS_Store", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    present = present_csvs(CONTRACT, tmp_path)
    assert {path.name for files in present.values() for path in files} == {TRAIN, TEST}
