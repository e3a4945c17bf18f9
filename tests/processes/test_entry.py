"""The command uses our packages, with any working directory and PYTHONPATH."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.runtime.worker_process import run_worker
from tests.field_faults import field_fault
from tests.sample import SAMPLE
from tests.traps import set_traps

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


@field_fault(
    "failure without a message",
    "A command that a message names is typed in another folder, and no program of the environment is on PATH",
    "It starts, because the message has its path",
)
@pytest.mark.parametrize("name", ["fashion-ann", "prefect"])
def test_a_printed_program_starts_in_any_folder(name: str, tmp_path: Path) -> None:
    variables = {**os.environ, "PATH": "/usr/bin:/bin", "PWD": str(tmp_path), "PREFECT_HOME": str(tmp_path)}
    print_it = f"from cli.printed_commands import program; print(program('{name}'))"
    printed = subprocess.run(
        [sys.executable, "-c", print_it], env=variables, capture_output=True, text=True, check=True
    )
    command = f"{printed.stdout.strip()} --help"
    done = subprocess.run(command, shell=True, env=variables, cwd=tmp_path, capture_output=True, text=True)  # noqa: S602
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def trapped(tmp_path: Path) -> tuple[Path, Path]:
    """Return a working directory with traps, and the folder of their marks."""
    folder = tmp_path / "trapped"
    folder.mkdir()
    return folder, set_traps(folder)


@pytest.mark.parametrize(
    "arguments",
    [
        ("contract",),
        ("versions",),
        ("show", "1"),
        ("why", "1"),
        ("report", "1"),
        ("gc", "--dry-run"),
        ("status",),
        ("deploy",),
        ("down",),
        ("doctor",),
        ("predict", "images.csv.gz", "--output", "out.csv", "--version", "1"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_working_directory_is_data_not_code(
    trapped: tuple[Path, Path], sample_version: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    folder, marks = trapped
    shutil.copytree(sample_version.parents[3], tmp_path / "artifacts")
    (folder / "images.csv.gz").symlink_to(SAMPLE / "fashion-mnist_test.csv.gz")
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PREFECT_HOME": str(tmp_path / "home"),
        "PREFECT_API_URL": "",  # `make up` may have written a prefect.toml into the checkout
        "FASHION_ANN_ARTIFACTS_DIR": "../artifacts",
        "FASHION_ANN_DATA_DIR": str(SAMPLE),
    }
    done = subprocess.run([COMMAND, *arguments], env=variables, cwd=folder, capture_output=True, text=True)
    assert [mark.name for mark in marks.iterdir()] == []
    assert "127.0.0.1:9" not in done.stdout + done.stderr
    assert done.returncode == (1 if arguments[0] in ("status", "deploy") else 0), done.stderr
    assert (folder / "out.csv").exists() is (arguments[0] == "predict")


def test_the_entry_module_ignores_the_working_directory(trapped: tuple[Path, Path]) -> None:
    folder, marks = trapped
    command = [sys.executable, "-m", "fashion_ann", "versions"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert [mark.name for mark in marks.iterdir()] == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--artifacts-dir", "/nonexistent"], 0, ""),
        (["--artifacts-dir", "here"], 2, "here: expected an absolute path"),
    ],
)
def test_a_removed_working_directory_is_not_needed(
    tmp_path: Path, arguments: list[str], status: int, message: str
) -> None:
    script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    (tmp_path / "gone").mkdir()
    command = ["sh", "-c", script, "sh", tmp_path / "gone", COMMAND, "versions", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
