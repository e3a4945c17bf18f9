"""Object storage on this machine: OpenStack Swift, a real server, and moto, a fake one in a single process.

`make test-remote` installs both in an environment of their own, from requirements/storage.lock.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from cli.server_process import free_port
from schemas.config import PROJECT_ROOT

BIN = Path(os.environ.get("STORAGE_BIN", PROJECT_ROOT / ".venv" / "storage" / "bin"))
_SECONDS_TO_START = 60
_PARTS = ("account", "container", "object")

_SERVER = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
mount_check = false
devices = {folder}/devices
swift_dir = {folder}
log_level = WARNING

[pipeline:main]
pipeline = {part}-server

[app:{part}-server]
use = egg:swift#{part}
allow_versions = true
"""
# s3api makes a chunked upload from segments, so slo must follow it.
_PROXY = """[DEFAULT]
bind_ip = {host}
bind_port = {port}
workers = 0
swift_dir = {folder}
log_level = WARNING

[pipeline:main]
pipeline = catch_errors proxy-logging cache s3api tempauth container-quotas slo proxy-logging proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true

[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
user_test_reader = reading

[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false

[filter:container-quotas]
use = egg:swift#container_quotas

[filter:slo]
use = egg:swift#slo

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:proxy-logging]
use = egg:swift#proxy_logging
access_log_facility = LOG_LOCAL0

[filter:cache]
use = egg:swift#memcache
"""
# `swift-ring-builder` would import swift nine times.
_RINGS = """
import sys
from swift.common.ring import RingBuilder
for part, port in (argument.split(":") for argument in sys.argv[2:]):
    builder = RingBuilder(6, 1, 0)
    device = {"id": 0, "region": 1, "zone": 1, "device": "d1", "weight": 1}
    address = {"ip": "127.0.0.1", "port": int(port), "replication_ip": "127.0.0.1", "replication_port": int(port)}
    builder.add_dev(device | address)
    builder.rebalance()
    builder.get_ring().save(f"{sys.argv[1]}/{part}.ring.gz")
"""
# The proxy without authentication, inside a process: Swift's tokens would need memcached.
_INTERNAL = """[DEFAULT]
swift_dir = {folder}

[pipeline:main]
pipeline = proxy-server

[app:proxy-server]
use = egg:swift#proxy
"""
_SET_CONTAINER = """
import json, sys
from swift.common.internal_client import InternalClient
from swift.common.utils import set_swift_dir
set_swift_dir(sys.argv[1])
client = InternalClient(f"{sys.argv[1]}/internal.conf", "a test", 1)
server = client.app
client.app = lambda environment, start: server({**environment, "swift_owner": True}, start)
client.make_request("POST", f"/v1/AUTH_test/{sys.argv[2]}", json.loads(sys.argv[3]), (2,))
"""
SWIFT_KEYS = {"AWS_ACCESS_KEY_ID": "test:tester", "AWS_SECRET_ACCESS_KEY": "testing"}
# May read a bucket after `set_container`, and write nothing.
READER_KEYS = {"AWS_ACCESS_KEY_ID": "test:reader", "AWS_SECRET_ACCESS_KEY": "reading"}
MOTO_KEYS = {"AWS_ACCESS_KEY_ID": "a key", "AWS_SECRET_ACCESS_KEY": "a-secret"}


def variables(port: int, keys: dict[str, str], bucket: str, host: str = "127.0.0.1") -> dict[str, str]:
    """Return the environment of a command that uses ``bucket`` of a server on this machine."""
    return {
        **keys,
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_REGION": "us-east-1",
        "FASHION_ANN_REMOTE": f"s3://{bucket}/project",
    }


@contextmanager
def swift(folder: Path, host: str = "127.0.0.1") -> Iterator[int]:
    """Run Swift with one replica in ``folder``, and yield the port of its S3 API."""
    (folder / "devices" / "d1").mkdir(parents=True)
    (folder / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = a\n[storage-policy:0]\nname = p\ndefault = yes\n"
    )
    ports = {part: free_port() for part in _PARTS}
    subprocess.run(
        [BIN / "python", "-c", _RINGS, folder, *(f"{part}:{port}" for part, port in ports.items())], check=True
    )
    with ExitStack() as running:
        for part, port in ports.items():
            config = folder / f"{part}.conf"
            config.write_text(_SERVER.format(port=port, folder=folder, part=part))
            running.enter_context(_process([BIN / f"swift-{part}-server", config, "-v"], folder / f"{part}.log"))
        proxy, config = free_port(), folder / "proxy.conf"
        config.write_text(_PROXY.format(port=proxy, folder=folder, host=host))
        running.enter_context(_process([BIN / "swift-proxy-server", config, "-v"], folder / "proxy.log"))
        # The proxy answers 503 until the others have started.
        for address in (*(f"127.0.0.1:{port}" for port in ports.values()), f"{host}:{proxy}"):
            _await(f"http://{address}/", folder)
        yield proxy


def set_container(folder: Path, bucket: str, **headers: str) -> None:
    """Set headers of a bucket of the Swift in ``folder``: its quota, who may read it. ``_`` in a name stands for -."""
    (folder / "internal.conf").write_text(_INTERNAL.format(folder=folder))
    named = json.dumps({name.replace("_", "-"): value for name, value in headers.items()})
    subprocess.run([BIN / "python", "-W", "ignore", "-c", _SET_CONTAINER, folder, bucket, named], check=True)


@contextmanager
def moto(folder: Path) -> Iterator[int]:
    """Run moto, and yield its port."""
    port = free_port()
    with _process([BIN / "moto_server", "-H", "127.0.0.1", "-p", str(port)], folder / "moto.log"):
        _await(f"http://127.0.0.1:{port}/", folder)
        yield port


@contextmanager
def _process(command: list[str | Path], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


def _await(url: str, folder: Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while True:
        try:
            httpx.get(url, timeout=5)
            return  # any answer
        except httpx.TransportError:
            if time.monotonic() > deadline:
                logs = "\n".join(log.read_text(errors="replace")[-2000:] for log in folder.glob("*.log"))
                raise AssertionError(f"{url} did not answer in {_SECONDS_TO_START} s.\n{logs}") from None
            time.sleep(0.1)
