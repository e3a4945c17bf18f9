"""Start the servers once per session, and give each test a bucket of its own."""

from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import NamedTuple

import httpx
import obstore
import pytest
from obstore.store import S3Store

from tasks.runtime.remote import remote_at
from tests.remote.link import Link
from tests.remote.servers import MOTO_KEYS, SWIFT_KEYS, moto, swift, variables

_numbers = count(1)


class Server(NamedTuple):
    """A server on this machine, and the folder of its files. keys: the credentials for it."""

    port: int
    keys: dict[str, str]
    folder: Path


@pytest.fixture(scope="session", params=["swift", "moto"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    start, keys = (swift, SWIFT_KEYS) if request.param == "swift" else (moto, MOTO_KEYS)
    folder = tmp_path_factory.mktemp(request.param)
    with start(folder) as port:
        yield Server(port, keys, folder)


@pytest.fixture
def bucket(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Create a bucket, set the variables for it, and return its name."""
    name = f"bucket-{next(_numbers)}"
    for variable, value in variables(server.port, server.keys, name).items():
        monkeypatch.setenv(variable, value)
    url = obstore.sign(S3Store(name, client_options={"allow_http": True}), "PUT", "", timedelta(seconds=60))
    httpx.put(url).raise_for_status()
    remote_at.cache_clear()  # buckets of an earlier server may have the same name
    yield name
    remote_at.cache_clear()


@pytest.fixture
def link(bucket: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    """Return the link to the server, which `remote_at` uses from now on."""
    with Link(server.port) as link:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{link.port}")
        remote_at.cache_clear()
        yield link
