"""Start the servers once per session, and give each test a bucket of its own."""

from collections.abc import Iterator
from datetime import timedelta
from itertools import count

import httpx
import obstore
import pytest
from obstore.store import S3Store

from tasks.runtime.remote import remote_at
from tests.remote.servers import MOTO_KEYS, SWIFT_KEYS, moto, swift, variables

_numbers = count(1)


@pytest.fixture(scope="session", params=["swift", "moto"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Return the variables of a command that uses the server, with the bucket BUCKET."""
    start, keys = (swift, SWIFT_KEYS) if request.param == "swift" else (moto, MOTO_KEYS)
    with start(tmp_path_factory.mktemp(request.param)) as port:
        yield variables(port, keys, "BUCKET")


@pytest.fixture
def bucket(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Create a bucket, set the variables for it, and return its name."""
    name = f"bucket-{next(_numbers)}"
    for variable, value in server.items():
        monkeypatch.setenv(variable, value.replace("BUCKET", name))
    url = obstore.sign(S3Store(name, client_options={"allow_http": True}), "PUT", "", timedelta(seconds=60))
    httpx.put(url).raise_for_status()
    remote_at.cache_clear()  # buckets of an earlier server may have the same name
    yield name
    remote_at.cache_clear()
