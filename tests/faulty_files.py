"""Faults of file systems, as the standard library reports them."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest


def refuse(code: int) -> Callable[..., Any]:
    """Return a system call that fails with an error number."""

    def call(*arguments: Any, **options: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return call


def fill_disk(folder: Path) -> Path:
    """Write a file until the disk of ``folder`` is full, and return it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return filler


def refuse_to_rename_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the rename of a folder fail, as overlayfs does for one of a lower layer."""
    rename = os.rename

    def refused(source: Path, target: Path) -> None:
        if Path(source).is_dir():
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refused)


@contextmanager
def unstable_inodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give a file another device and inode number at each call, as some FUSE, SMB and overlay file systems do."""
    numbers = count(1)

    def unstable(real: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def examine(*arguments: Any, **options: Any) -> os.stat_result:
            status = real(*arguments, **options)
            values = list(status)
            values[stat.ST_INO], values[stat.ST_DEV] = next(numbers), next(numbers)
            precise = {name: getattr(status, name) for name in ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")}
            return os.stat_result(values, precise)

        return examine

    with monkeypatch.context() as patch:
        for name in ("stat", "lstat", "fstat"):
            patch.setattr(os, name, unstable(getattr(os, name)))
        yield
