"""Prefect's vacuum on a real server: the runs that it deletes, and when."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed

from cli.server_process import free_port
from tests.deployed.conftest import Deployed, stop
from tests.field_faults import field_fault


@flow
def short() -> None:
    return


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Deployed]:
    """Return a server that was started in the checkout, on sqlite. Its vacuum runs every second instead of hourly."""
    url = f"http://127.0.0.1:{free_port()}/api"
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        often = {"PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS": "1"}
        deployed = Deployed(tmp_path, url, client, **often)
        try:
            deployed.start_server()
            yield deployed
        finally:
            stop(deployed.server)


def _finished_run(server: Deployed, days_ago: int) -> UUID:
    run = server.client.create_flow_run(short, state=Completed())
    record = {"name": "test", "level": 20, "message": "line", "timestamp": "2026-01-01T00:00:00Z"}
    server.client.request("POST", "/logs/", json=[{**record, "flow_run_id": str(run.id)}])
    # The API sets no time in the past.
    with closing(sqlite3.connect(server.home / "prefect" / "prefect.db", timeout=60)) as database, database:
        changed = database.execute(
            "UPDATE flow_run SET end_time = datetime('now', ?) WHERE id = ?", (f"-{days_ago} days", str(run.id))
        )
        assert changed.rowcount == 1
    return run.id


def _logs(server: Deployed, run_id: UUID) -> int:
    return len(server.client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))))


@field_fault(
    "growth without bound",
    "A server runs for months",
    "A flow run that ended 91 days ago is deleted with its logs; one that ended 89 days ago stays",
)
def test_vacuum_deletes_runs_after_90_days(server: Deployed) -> None:
    kept, deleted = (_finished_run(server, days) for days in (89, 91))
    server.wait_for(lambda: [run.id for run in server.client.read_flow_runs()] == [kept], seconds=60)
    server.wait_for(lambda: _logs(server, deleted) == 0, seconds=60)
    assert _logs(server, kept) == 1
