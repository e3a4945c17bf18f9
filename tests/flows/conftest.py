"""One Prefect server for the whole session."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from cli.server_process import restore_sigint


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Return the API address of a running embedded server with a new database."""
    with (
        prefect_test_harness(server_startup_timeout=120),
        # Joining the heartbeat thread takes 1 s per flow.
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield PREFECT_API_URL.value()


class Command:
    """`fashion-ann` in a subprocess, on the session's server."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "cli.main", *arguments],
            env=self.environment,
            cwd=Path(self.environment["FASHION_ANN_ARTIFACTS_DIR"]).parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=restore_sigint,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.fixture
def command(server: str, tmp_path: Path) -> Command:
    return Command(
        {
            **os.environ,
            "PREFECT_API_URL": server,
            "FASHION_ANN_ARTIFACTS_DIR": str(tmp_path / "artifacts"),
            "FASHION_ANN_DATA_DIR": str(Path(__file__).parents[1] / "data"),
        }
    )
