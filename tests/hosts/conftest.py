"""Three hosts without a shared disk, and OpenStack Swift. Host one has the Prefect server and the cpu worker."""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import obstore
import pytest
from obstore.store import S3Store
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from cli.deploy import pool_names
from schemas.config import PROJECT_ROOT
from tests.deployed.conftest import Deployed
from tests.hosts.hosts import Host, Network, network
from tests.remote.servers import SWIFT_KEYS, set_container, swift, variables
from tests.sample import SAMPLE

BIN = Path(sys.executable).parent
_PREFECT_PORT = 4200


class Hosts(Deployed):
    """The hosts, and a client of the Prefect server on host one."""

    network: Network
    one: Host
    two: Host
    three: Host

    def worker_on(self, host: Host, role: str) -> None:
        """Start a worker for the pool of a role, whose log is the file NAME.log."""
        name = f"worker-{host.name}"
        host.start(
            f"{name}.log",
            BIN / "python",
            "-m",
            "prefect",
            "worker",
            "start",
            "--pool",
            pool_names()[role],
            "--name",
            name,
        )

    def fashion_ann(self, host: Host, *arguments: str, **environment: str) -> Any:
        """Run `fashion-ann` on a host, and return its JSON."""
        done = host.run(BIN / "fashion-ann", *arguments, "--json", **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    assert os.geteuid() == 0, "namespaces need root"
    folder = tmp_path_factory.mktemp("hosts")
    swift_folder = tmp_path_factory.mktemp("swift")
    with network(folder) as made, swift(swift_folder, made.address) as swift_port:
        one, two, three = map(made.host, ("one", "two", "three"))
        url = f"http://{one.address}:{_PREFECT_PORT}/api"
        with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
            hosts = Hosts(folder, url, client)
            hosts.network, hosts.one, hosts.two, hosts.three = made, one, two, three
            remote = variables(swift_port, SWIFT_KEYS, "models", made.address)
            _create_bucket(remote)
            set_container(swift_folder, "models", X_Container_Read="test:reader")
            for host in (one, two, three):
                host.environment = remote | {
                    "PYTHONPATH": str(PROJECT_ROOT),
                    "HOME": str(folder),
                    "TMPDIR": str(folder),
                    "PREFECT_API_URL": url,
                    "PREFECT_HOME": str(folder / "prefect"),
                    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                    "PREFECT_WORKER_QUERY_SECONDS": "1",
                    "FASHION_ANN_DATA_DIR": str(folder / "csvs"),
                    "FASHION_ANN_ARTIFACTS_DIR": str(folder / "artifacts"),
                }
            shutil.copytree(SAMPLE, one.folder / "csvs")
            listen = ("--host", one.address, "--port", str(_PREFECT_PORT))
            one.start("server.log", BIN / "python", "-m", "prefect", "server", "start", *listen)
            _await(f"{url}/ready", one)
            done = one.run(BIN / "fashion-ann", "deploy", FASHION_ANN_NOTIFY="")
            assert done.returncode == 0, done.stderr
            hosts.worker_on(one, "cpu")
            yield hosts


def _create_bucket(remote: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in remote.items():
            patch.setenv(name, value)
        url = obstore.sign(S3Store("models", client_options={"allow_http": True}), "PUT", "", timedelta(seconds=60))
    httpx.put(url).raise_for_status()


def _await(url: str, host: Host) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            if httpx.get(url, timeout=5).is_success:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, (host.folder / "server.log").read_text()
        time.sleep(0.3)
