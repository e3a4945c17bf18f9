"""CSVs below an address are copied to this machine, and only what changed is copied again."""

import os
from pathlib import Path

import pytest

from schemas.config import data_folder
from schemas.errors import DataUnavailable
from tasks.data.remote_folder import local_data_folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source" / "below").mkdir(parents=True)
    for name in ("fashion-mnist_train.csv", "fashion-mnist_test.csv.gz", "notes.txt", "below/other.csv"):
        (tmp_path / "source" / name).write_text(name)
    return tmp_path / "source"


def test_csvs_are_copied_and_copied_again_if_they_change(source: Path, tmp_path: Path) -> None:
    address = Path(f"file://{source}")
    folder = local_data_folder(address, tmp_path / "artifacts")
    assert sorted(path.name for path in folder.iterdir()) == ["fashion-mnist_test.csv.gz", "fashion-mnist_train.csv"]
    kept, changed = folder / "fashion-mnist_test.csv.gz", folder / "fashion-mnist_train.csv"
    before = kept.stat().st_ino
    (source / changed.name).write_text("other rows")
    os.utime(source / changed.name, (1, 1))
    assert local_data_folder(address, tmp_path / "artifacts") == folder
    assert (kept.stat().st_ino, changed.read_text()) == (before, "other rows")
    (source / changed.name).unlink()
    local_data_folder(address, tmp_path / "artifacts")
    assert list(folder.iterdir()) == [kept]


def test_a_folder_is_used_in_place(tmp_path: Path) -> None:
    assert local_data_folder(tmp_path, tmp_path / "artifacts") == tmp_path
    assert data_folder(f"file://{tmp_path}") == tmp_path
    assert data_folder("s3://bucket/data/") == Path("s3://bucket/data")


def test_a_csv_that_changes_while_it_is_read_is_not_used(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.runtime.remote.Remote.stat", lambda *_: None)  # deleted meanwhile
    monkeypatch.setattr("tasks.runtime.remote.Remote.pieces", lambda *_: iter([b"half"]))
    with pytest.raises(DataUnavailable, match="changed while it was read"):
        local_data_folder(Path(f"file://{source}"), tmp_path / "artifacts")
    assert not list((tmp_path / "artifacts").rglob("*.csv"))
