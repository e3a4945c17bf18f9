"""A run whose tasks per shard are on machines that share only object storage with it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from cli.server_process import free_port
from schemas.config import PROJECT_ROOT
from schemas.layout import MANIFEST_NAME, PART_NAME, WEIGHTS_NAME
from tests.sample import shards_of

_BIN = Path(sys.executable).parent
_SECONDS = 300
# The default floor is for 60,000 images.
_NO_FLOOR = ("--minimum-accuracy", "0", "--minimum-recall", "0")
# Empty folders in place of those that another machine would not have. Mounts of the process end with it.
_HIDE = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && mount -t tmpfs none "$1" && shift && exec "$@"')
_MAY_MOUNT = subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


@contextmanager
def _process(*arguments: str | Path, hidden: Sequence[Path] = (), **environment: str) -> Iterator[None]:
    """Run a process of Dask until the end of the block. A worker ends with its nanny. hidden: two folders, or none."""
    command = [*((*_HIDE, *hidden) if hidden else ()), _BIN / "dask", *arguments, "--no-dashboard"]
    with subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)


def _train(data: Path, artifacts: Path, *flags: str, **environment: str) -> str:
    """Run `fashion-ann train`, and return the sha256 of the weights."""
    command = [_BIN / "fashion-ann", "train", "--data-dir", data, "--artifacts-dir", artifacts, "--epochs", "1"]
    done = subprocess.run(
        [*command, *_NO_FLOOR, *flags, "--json"],
        env=environment,
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((Path(json.loads(done.stdout)["path"]) / MANIFEST_NAME).read_bytes())
    return str(manifest["files"][WEIGHTS_NAME]["sha256"])


@pytest.mark.skipif(not _MAY_MOUNT, reason="only root hides folders from a process")
@pytest.mark.parametrize("server", ["swift"], indirect=True)
def test_dask_workers_without_the_data_and_the_artifacts_of_the_run(bucket: str, tmp_path: Path) -> None:
    data, artifacts, address = tmp_path / "csvs", tmp_path / "run", f"tcp://127.0.0.1:{free_port()}"
    shards_of(data, "train", 3)
    shards_of(data, "test", 1)
    artifacts.mkdir()
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")}
    workers = {name: tmp_path / name for name in ("one", "two")}
    with ExitStack() as running:
        port = address.rpartition(":")[2]
        running.enter_context(_process("scheduler", "--host", "127.0.0.1", "--port", port))
        for own in workers.values():
            worker = partial(_process, "worker", address, "--nthreads", "1", "--local-directory", tmp_path)
            running.enter_context(worker(hidden=(data, artifacts), FASHION_ANN_ARTIFACTS_DIR=str(own)))
        on_dask = _train(data, artifacts, "--runner", "dask", **environment, FASHION_ANN_DASK_ADDRESS=address)
    assert len([path for own in workers.values() for path in own.glob(f"data/*/{PART_NAME}")]) == 4
    assert not list(tmp_path.glob("*/data/*/*.csv*"))  # the copies of the CSVs are gone
    environment.pop("FASHION_ANN_REMOTE")
    assert _train(data, tmp_path / "threads", **environment) == on_dask
