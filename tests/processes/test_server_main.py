"""The process of the embedded server."""

import os
import subprocess
import sys
from pathlib import Path

from schemas.config import PROJECT_ROOT


def test_ends_without_an_order_to_start(tmp_path: Path) -> None:
    variables = {**os.environ, "PREFECT_HOME": str(tmp_path)}
    command = [sys.executable, "-P", "-m", "cli.server_main", "0"]
    done = subprocess.run(command, env=variables, cwd=PROJECT_ROOT, input="", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert not (tmp_path / "prefect.db").exists()


def test_prefect_has_the_routers_that_are_put_first() -> None:
    script = (
        "from prefect.server.api import server\n"
        "from cli.server_main import FIRST_ROUTERS\n"
        "missing = {*FIRST_ROUTERS} - {router.prefix for router in server.API_ROUTERS}\n"
        "assert not missing, missing\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
