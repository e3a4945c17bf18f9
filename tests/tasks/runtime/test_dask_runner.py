"""Joining a cluster: by threads at once, and with an address that cannot be used."""

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import dask
import pytest
from prefect_dask import DaskTaskRunner

from schemas.config import DASK_ADDRESS_VARIABLE
from schemas.errors import DaskUnavailable, FashionAnnError, WrongUsage
from tasks.runtime.dask_runner import DaskRunner


def ignore(*arguments: object) -> None:
    """Accept what a client is given."""


def test_threads_that_submit_at_once_share_one_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[SimpleNamespace] = []

    def client(runner: DaskTaskRunner) -> SimpleNamespace:
        if not started:
            time.sleep(0.05)  # a cluster takes seconds
            started.append(SimpleNamespace(register_plugin=ignore, subscribe_topic=ignore))
        return started[0]

    monkeypatch.setattr(DaskTaskRunner, "client", property(client))
    runner = DaskRunner()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: runner.client, range(4)))
    assert len(started) == 1


@pytest.mark.parametrize(("address", "error"), [("nonsense", WrongUsage), ("tcp://127.0.0.1:1", DaskUnavailable)])
def test_an_unusable_address_is_named(
    monkeypatch: pytest.MonkeyPatch, address: str, error: type[FashionAnnError]
) -> None:
    monkeypatch.setenv(DASK_ADDRESS_VARIABLE, address)
    with dask.config.set({"distributed.comm.timeouts.connect": "0.1s"}), pytest.raises(error, match=address):
        _ = DaskRunner().client
