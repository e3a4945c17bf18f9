"""The command uses our packages, with any working directory and PYTHONPATH."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.runtime.worker_process import run_worker
from tests.field_faults import field_fault

COMMAND = Path(sys.executable).with_name("fashion-ann")
WORKER = "tests.processes.worker_for_tests"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    for name in ("cli", "flows", "schemas", "tasks", "tests"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a foreign module')")
    return tmp_path


@pytest.mark.parametrize("path", ["{}", ":{}", ""], ids=["named", "after the working directory", "not set"])
@field_fault(
    "environment of the machine",
    "`tasks.py`, `schemas.py` or `cli.py` is in a folder of PYTHONPATH or in the working directory",
    "The command and its child processes import the packages of the checkout",
)
def test_the_command_imports_its_own_packages(foreign: Path, path: str) -> None:
    variables = {**os.environ, "PYTHONPATH": path.format(foreign), "FASHION_ANN_ARTIFACTS_DIR": str(foreign)}
    done = subprocess.run([COMMAND, "versions"], env=variables, cwd=foreign, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "No version in" in done.stdout


@pytest.mark.parametrize("safe", ["", "1"])
def test_a_worker_process_imports_our_packages(foreign: Path, monkeypatch: pytest.MonkeyPatch, safe: str) -> None:
    monkeypatch.setenv("PYTHONPATH", str(foreign))
    monkeypatch.setenv("PYTHONSAFEPATH", safe)
    monkeypatch.chdir(foreign)
    with run_worker(WORKER, {"n": 1}) as process:
        assert process.result()["job"] == {"n": 1}
