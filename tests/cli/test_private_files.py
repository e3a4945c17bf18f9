"""Rejected rows, logs and the state of services are 0640 or stricter under any umask."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.services import ServicePaths, State
from schemas.config import PROJECT_ROOT
from schemas.layout import QUARANTINE_NAME
from tasks.data.quarantine import export_rejected, list_quarantine
from tasks.ingest import ingest
from tasks.runtime.log_rotation import LARGEST_BYTES, rotate_logs
from tests.registered import register
from tests.tasks.data.csv_cases import GOOD, REGISTERED, TINY
from tests.tasks.data.csv_oracle import supplied


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def ingest_bad_row(folder: Path) -> Path:
    source = folder / "tiny_train.csv"
    source.write_bytes(GOOD + b"10,1,256,x,-1\r\n")
    ingest.fn(supplied(source, split="train"), "tiny", folder / "artifacts", 1)
    (stored,) = list_quarantine(folder / "artifacts")[0]
    return stored.path


def copies_of_the_stages(folder: Path) -> Path:
    ingest_bad_row(folder)
    shard, split = (folder / "artifacts" / "data").glob(f"*/{QUARANTINE_NAME}")
    assert shard.stat().st_mode == split.stat().st_mode
    return split


def restored_quarantine(folder: Path) -> Path:
    path = ingest_bad_row(folder)
    path.unlink()
    return ingest_bad_row(folder)


def exported_rows(folder: Path) -> Path:
    ingest_bad_row(folder)
    (stored,) = list_quarantine(folder / "artifacts")[0]
    export = export_rejected(stored, TINY, [folder / "tiny_train.csv"])
    return export.shards[0].path


def state(folder: Path) -> Path:
    State(port=None, processes={}).write(folder / "state.json")
    return folder / "state.json"


def rotated_log(folder: Path) -> Path:
    with (folder / "server.log").open("wb") as log:
        log.truncate(LARGEST_BYTES + 1)
    rotate_logs(folder)
    return folder / "server.log.1"


def log_of_a_run(folder: Path) -> Path:
    script = "from pathlib import Path; from cli.terminal import *; Screen(Path({!r}), Progress(), quiet=True)"
    subprocess.run([sys.executable, "-c", script.format(str(folder))], cwd=PROJECT_ROOT, check=True)
    (log,) = (folder / "logs").iterdir()
    return log


WRITERS = [
    ingest_bad_row,
    copies_of_the_stages,
    restored_quarantine,
    exported_rows,
    state,
    rotated_log,
    log_of_a_run,
]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize(("mask", "mode"), [(0, 0o640), (0o022, 0o640), (0o007, 0o640), (0o077, 0o600)], ids=oct)
def test_others_cannot_read(
    write: Callable[[Path], Path], mask: int, mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, tmp_path / "datasets", REGISTERED)
    with umask(mask):
        assert stat.S_IMODE(write(tmp_path).stat().st_mode) == mode


@pytest.mark.parametrize("earlier", [None, 0o777], ids=["new", "of an earlier version"])
@pytest.mark.parametrize(("mask", "mode"), [(0, 0o750), (0o027, 0o750), (0o077, 0o700)], ids=oct)
def test_folder_of_the_services_is_closed_to_others(tmp_path: Path, mask: int, mode: int, earlier: int | None) -> None:
    paths = ServicePaths(tmp_path / "artifacts")
    with umask(mask):
        if earlier is not None:
            paths.folder.mkdir(earlier, parents=True)
        paths.create()
        paths.create()
    assert stat.S_IMODE(paths.folder.stat().st_mode) == mode
    assert paths.logs.is_dir()
    assert paths.home.is_dir()
