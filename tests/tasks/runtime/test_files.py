import errno
import fcntl
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tasks.runtime.files import (
    atomic_folder,
    atomic_write,
    contains_mount_point,
    describe_files,
    discard_folder,
    is_discarded,
    remove_path,
    sweep_temporaries,
    sync_to_disk,
    write_json,
)
from tests.faulty_files import refuse, refuse_to_rename_folders, unstable_inodes
from tests.field_faults import field_fault


@field_fault(
    "identity by something that changes",
    "Two containers with equal pids write one file on a shared volume",
    "Each has its own temporary file, and neither removes that of the other",
)
def test_a_temporary_file_in_use_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path = tmp_path / "out"
    with atomic_write(path) as first:
        first.write_text("first")
        with atomic_write(path) as second:
            second.write_text("second")
            sweep_temporaries(path)
            assert {first, second} <= set(tmp_path.iterdir())
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_file_of_a_killed_process_is_swept(tmp_path: Path) -> None:
    left = tmp_path / f".out.{os.getpid()}.tmp"
    left.touch()
    sweep_temporaries(tmp_path / "out")
    assert not left.exists()


@field_fault(
    "environment of the machine",
    "A killed process leaves temporary files on a file system without locks",
    "They are removed once they have not changed for a day",
)
def test_without_locks_old_temporary_files_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOSYS))
    new, old = tmp_path / ".out.a.tmp", tmp_path / ".out.b.tmp"
    for path, age in ((new, 3_600), (old, 90_000)):
        path.touch()
        os.utime(path, (time.time() - age, time.time() - age))
    with atomic_write(tmp_path / "out") as temporary:
        sweep_temporaries(tmp_path / "out")
        assert set(tmp_path.iterdir()) == {new, temporary}


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS])
@field_fault(
    "environment of the machine",
    "`fsync` is refused for a file or a folder (EINVAL, ENOTSUP)",
    "The file is written, with one warning that names the error",
)
def test_refused_sync_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    monkeypatch.setattr(os, "fsync", refuse(code))
    for name in ("a.json", "b.json"):
        write_json(tmp_path / name, {})
        sync_to_disk(tmp_path)
    assert (tmp_path / "b.json").read_text() == "{}\n"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"cannot be synced to disk ({os.strerror(code)})" in caplog.text


def test_a_full_disk_at_sync_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "a.json", {})


@field_fault(
    "failure without a message",
    "The disk is full for several runs of a schedule",
    "The errors are equal and name the final file, so that they cause one notification",
)
@pytest.mark.parametrize("write", [atomic_write, atomic_folder])
def test_errors_name_no_temporary_file(tmp_path: Path, write: Callable[[Path], AbstractContextManager[Path]]) -> None:
    with pytest.raises(FileNotFoundError) as not_created, write(tmp_path / "missing" / "out"):
        raise AssertionError("the folder exists")
    with pytest.raises(OSError, match="No space left") as not_written, write(tmp_path / "out") as temporary:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary / "part"))
    named = [not_created.value.filename, Path(not_written.value.filename)]
    assert named == [str(tmp_path / "missing" / "out"), tmp_path / "out" / "part"]


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o027, 0o640, 0o750), (0o007, 0o660, 0o770)])
@field_fault(
    "environment of the machine",
    "A second user of the group reads what a user with umask 027 wrote",
    "Files and folders have the permissions that the umask leaves, not those of private temporary files",
)
def test_permissions_follow_the_umask(tmp_path: Path, mask: int, file: int, folder: int) -> None:
    before = os.umask(mask)
    try:
        with atomic_folder(tmp_path / "folder") as temporary, atomic_write(temporary / "file") as written:
            written.write_text("x")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "folder", tmp_path / "folder" / "file")]
    assert modes == [folder, file]


def test_litter_is_not_described(tmp_path: Path) -> None:
    for name in ("data.bin", ".DS_Store", "@eaDir/data.bin", "sub/._x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(describe_files(tmp_path)) == ["data.bin"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "0001"
    folder.mkdir()
    for name in ("index", "a", "b"):
        (folder / name).touch()
    return folder


@field_fault(
    "environment of the machine",
    "overlayfs refuses to rename a folder of an image's layer (EXDEV)",
    "Garbage collection removes the folder, and a kill in between leaves it absent for readers",
)
def test_a_folder_that_cannot_be_renamed_is_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_rename_folders(monkeypatch)

    def killed(path: Path) -> None:
        (path / "a").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        discard_folder(folder, "index")
    assert folder.exists()
    assert is_discarded(folder, "index")
    assert discard_folder(folder, "index")
    assert not folder.exists()


@field_fault(
    "stray files and bad values",
    "NFS keeps a file of a removed version while a process has it open",
    "The removal is complete for readers, logged, and repeated by the next garbage collection",
)
def test_a_file_that_stays_is_logged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse(errno.EBUSY))
        assert not discard_folder(folder, "index")
    assert not folder.exists()
    assert "cannot be removed yet (Device or resource busy)" in caplog.text


def test_a_folder_with_unstable_inodes_is_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "below").mkdir()
    (folder / "below" / "link").symlink_to(folder.parent)
    with unstable_inodes(monkeypatch):
        remove_path(folder)
    assert not folder.exists()
    assert folder.parent.exists()


def test_finds_mount_points_below_a_folder(tmp_path: Path) -> None:
    assert contains_mount_point(Path("/proc"))
    assert contains_mount_point(Path("/"))
    assert not contains_mount_point(tmp_path)
