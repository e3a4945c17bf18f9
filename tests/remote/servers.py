"""Object storage on this machine: OpenStack Swift, a real server, and moto, a fake one in a single process.

`make test-remote` installs both in an environment of their own, from requirements/storage.lock.
"""

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
pipeline = catch_errors proxy-logging cache s3api tempauth slo proxy-logging proxy-server

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
SWIFT_KEYS = {"AWS_ACCESS_KEY_ID": "test:tester", "AWS_SECRET_ACCESS_KEY": "testing"}
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
        _await(f"http://{host}:{proxy}/", folder)
        yield proxy


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
