"""A run whose tasks per shard are on other hosts, of which one dies and one loses its link."""

import json
import secrets
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from schemas.layout import MANIFEST_NAME, WEIGHTS_NAME
from tests.hosts.conftest import BIN, Hosts
from tests.hosts.hosts import Host
from tests.sample import shards_of

_SECONDS = 1200  # on a busy machine
_TRAIN = ("train", "--data-dir", "shards", "--epochs", "1", "--minimum-accuracy", "0", "--minimum-recall", "0")


def _weights(hosts: Hosts, result: dict[str, Any]) -> str:
    """Return the sha256 of the weights of the version that a run on host one returned."""
    folder = hosts.one.folder / Path(result["path"]).relative_to(hosts.network.folder)
    return str(json.loads((folder / MANIFEST_NAME).read_bytes())["files"][WEIGHTS_NAME]["sha256"])


def test_workers_that_die_and_lose_their_link(hosts: Hosts) -> None:
    seed = secrets.randbelow(1_000_000)
    chance, address = np.random.default_rng(seed), f"tcp://{hosts.one.address}:8786"
    shards_of(hosts.one.folder / "shards", "train", 6)
    shards_of(hosts.one.folder / "shards", "test", 1)
    hosts.one.start(
        "scheduler.log", BIN / "dask", "scheduler", "--host", hosts.one.address, "--port", "8786", "--no-dashboard"
    )

    # Nothing that another test left is reused.
    own = {
        "FASHION_ANN_ARTIFACTS_DIR": str(hosts.network.folder / "dask"),
        "FASHION_ANN_REMOTE": f"{hosts.one.environment['FASHION_ANN_REMOTE']}/dask",
    }

    def start_worker(host: Host) -> None:
        host.start("dask.log", BIN / "dask", "worker", address, "--nthreads", "1", "--no-dashboard", **own)

    start_worker(hosts.two)
    start_worker(hosts.three)
    command = hosts.one.command(
        BIN / "fashion-ann", *_TRAIN, "--runner", "dask", "--json", FASHION_ANN_DASK_ADDRESS=address, **own
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        hosts.wait_for(lambda: list(hosts.network.folder.glob("t*/dask/data")), every=0.01)  # the first task
        for _ in range(3):
            time.sleep(chance.uniform(0, 3))
            lost = (hosts.two, hosts.three)[chance.integers(2)]
            if chance.random() < 0.5:
                lost.cut_link(chance.uniform(1, 6))
            else:
                lost.power_off()
                lost.power_on()
                start_worker(lost)
        output, errors = run.communicate(timeout=_SECONDS)
    assert run.returncode == 0, f"seed {seed}\n{errors}"
    on_dask = _weights(hosts, json.loads(output))
    without = {"FASHION_ANN_REMOTE": "", "FASHION_ANN_ARTIFACTS_DIR": str(hosts.network.folder / "threads")}
    assert _weights(hosts, hosts.fashion_ann(hosts.one, *_TRAIN, **without)) == on_dask
