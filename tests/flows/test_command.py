"""`fashion-ann train` as people run it: a process, its exit status, its output, and what a kill leaves."""

import gzip
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from tasks.registry.store import ModelStore
from tests.flows.conftest import Command
from tests.sample import SAMPLE

# The floor is for 60,000 images: a thousand teach less.
NO_FLOOR = ("--minimum-accuracy", "0", "--minimum-recall", "0")
FLAGS = ("--batch-size", "64", "--validation-size", "100", *NO_FLOOR)


def _supply(folder: Path, change: Callable[[list[bytes]], None] = lambda lines: None) -> Path:
    """The sample as plain CSVs; ``change`` edits the lines of train."""
    folder.mkdir()
    for split in ("train", "test"):
        lines = gzip.decompress((SAMPLE / f"fashion-mnist_{split}.csv.gz").read_bytes()).splitlines(keepends=True)
        if split == "train":
            change(lines)
        (folder / f"fashion-mnist_{split}.csv").write_bytes(b"".join(lines))
    return folder


def _damage(lines: list[bytes]) -> None:
    cells = lines[411].rstrip(b"\n").split(b",")
    cells[17] = b"300"
    lines[411] = b",".join(cells) + b"\n"


def test_a_damaged_cell_is_named_with_its_line_and_column_and_nothing_is_stored(
    command: Command, tmp_path: Path
) -> None:
    done = command.run("train", "--data-dir", str(_supply(tmp_path / "data", _damage)), *FLAGS)
    assert done.returncode == 3
    assert done.stdout == ""
    assert "fashion-mnist_train.csv" in done.stderr
    assert "line 412" in done.stderr
    assert "pixel17" in done.stderr
    assert "300" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 10
    assert ModelStore.of(tmp_path / "artifacts", "fashion-mnist").summaries() == []
    (quarantine,) = (tmp_path / "artifacts" / "quarantine").iterdir()
    assert str(quarantine) in done.stderr


def test_within_the_budget_the_good_rows_are_trained_on_and_the_manifest_counts_the_others(
    command: Command, tmp_path: Path
) -> None:
    def change(lines: list[bytes]) -> None:
        _damage(lines)
        lines.append(lines[-1])  # 1,000 good ones are needed

    data = str(_supply(tmp_path / "data", change))
    done = command.run("train", "--data-dir", data, "--epochs", "1", "--bad-rows", "0.1%", *FLAGS)
    assert done.returncode == 0, done.stderr
    assert "1 of 1001 rows is bad" in done.stderr
    assert "line 412, column pixel17" in done.stderr
    (quarantine,) = (tmp_path / "artifacts" / "quarantine").iterdir()
    data = ModelStore.of(tmp_path / "artifacts", "fashion-mnist").version(1).manifest.data
    assert (data.train.rows, data.train.quarantined, data.test.quarantined) == (1_000, 1, 0)
    assert quarantine.name == f"train-{data.train.csv_sha256}.parquet"


def _wait_for(process: subprocess.Popen[str], artifacts: Path, sign: str) -> None:
    """Until the file that stands for a moment of the run is there."""
    deadline = time.monotonic() + 120
    while not list(artifacts.glob(sign)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{sign} never appeared"
        time.sleep(0.002)


def _kill_when(process: subprocess.Popen[str], artifacts: Path, sign: str) -> str:
    """SIGKILL at once when ``sign`` is there; returns what it said until then."""
    _wait_for(process, artifacts, sign)
    os.kill(process.pid, signal.SIGKILL)
    return process.communicate()[1]


def test_a_run_killed_in_every_stage_is_finished_by_the_next_without_repeating_one(
    command: Command, tmp_path: Path
) -> None:
    artifacts = tmp_path / "artifacts"
    store = ModelStore.of(artifacts, "fashion-mnist")
    flags = ("train", "--epochs", "60", "--seed", "7", "--dropout", "0.1", *FLAGS)
    said = {}
    for sign in (
        *("data/.*.tmp", "data/*/validation/.*.tmp", "prepared/.*.tmp", "checkpoints/*.npz"),
        *("evaluated/.*.tmp", "models/fashion-mnist/versions/.*.tmp"),
    ):
        said[sign] = _kill_when(command.start(*flags), artifacts, sign)
        assert store.numbers() == []
    assert "train: resuming after epoch " in said["evaluated/.*.tmp"]
    done = command.run(*flags, "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)  # JSON is all that goes to stdout
    assert (made["version"], made["created"], made["champion"]) == (1, True, True)
    stored = store.version(1)
    assert all(entry.reused for entry in stored.manifest.lineage)
    # 60 epochs were trained by two runs, none of them twice, each after the one before.
    assert len(json.loads(stored.read("metrics.json"))["history"]) == 60
    assert not list(artifacts.rglob(".*.tmp"))

    # As if it had never been killed: what trains it again from its manifest is not.
    again = command.run("reproduce", "1", "--json")
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert found["identical"]
    assert found["test_accuracy"]["found"] == found["test_accuracy"]["expected"] == made["test_accuracy"]
    assert (found["paired"]["fixed"], found["paired"]["broken"], found["differs"]) == (0, 0, [])


@pytest.fixture
def without_api(command: Command, tmp_path: Path) -> Command:
    """One that brings its own server, on a database that is not there yet."""
    environment = {**command.environment, "PREFECT_HOME": str(tmp_path / "home")}
    del environment["PREFECT_API_URL"]
    return Command(environment)


def _servers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    assert process.poll() is None, process.communicate()
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "uvicorn" in child.cmdline()]


def test_the_embedded_server_ends_with_a_command_that_is_killed(without_api: Command) -> None:
    process = without_api.start("train", "--epochs", "1", *FLAGS)
    while not (servers := _servers(process)):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(servers, timeout=30)
    assert alive == []


def test_a_command_whose_embedded_server_is_killed_ends_at_once_and_says_so(
    without_api: Command, tmp_path: Path
) -> None:
    process = without_api.start("train", "--epochs", "10000", *FLAGS)
    _wait_for(process, tmp_path / "artifacts", "checkpoints/*.npz")
    children = psutil.Process(process.pid).children(recursive=True)
    for server in _servers(process):
        server.kill()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    said = "fashion-ann: The embedded Prefect server ended with status -9 while it was in use (SIGKILL, "
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


def test_embedded_servers_on_one_database_start_one_after_the_other(without_api: Command, tmp_path: Path) -> None:
    """Two that make the tables of a new one at once would fail."""
    (tmp_path / "home").mkdir()
    with FileLock(tmp_path / "home" / ".fashion-ann-starts.lock"):
        process = without_api.start("train", "--epochs", "1", *FLAGS)
        _wait_for(process, tmp_path / "artifacts", "logs/*")
        time.sleep(1)
        assert _servers(process) == []
    other = without_api.start("train", "--epochs", "1", "--seed", "1", *FLAGS)
    for both in (process, other):
        _, err = both.communicate(timeout=240)
        assert both.returncode == 0, err
    assert len(ModelStore.of(tmp_path / "artifacts", "fashion-mnist").summaries()) == 2


def test_without_a_configured_api_the_command_brings_its_own_and_quiet_says_the_answer_alone(
    without_api: Command, tmp_path: Path
) -> None:
    done = without_api.run("train", "--epochs", "1", "--quiet", *FLAGS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("version 1 made, champion")
    # But for a warning, from the process that trains.
    assert done.stderr == "warning: batch_size 64 leaves too few steps for 900 images: 36 a step\n"
    assert (tmp_path / "home" / "prefect.db").exists()


def test_a_version_below_the_floor_ends_with_4_and_is_kept(command: Command, tmp_path: Path) -> None:
    done = command.run("train", "--epochs", "1", "--learning-rate", "1e-6", "--data-dir", str(SAMPLE))
    assert done.returncode == 4
    assert "Rejected: test accuracy is" in done.stderr
    (row,) = ModelStore.of(tmp_path / "artifacts", "fashion-mnist").summaries()
    assert (row.outcome, row.aliases) == ("refused", [])
    told = command.run("why", "1", "--json")
    assert json.loads(told.stdout)["verdict"]["rules"][0]["bound"] == ">= 0.8"


def test_a_configured_api_that_is_dead_is_named_before_anything_runs(command: Command, tmp_path: Path) -> None:
    dead = Command({**command.environment, "PREFECT_API_URL": "http://127.0.0.1:9/api"})
    done = dead.run("train", *FLAGS)
    assert done.returncode == 1
    assert "http://127.0.0.1:9/api" in done.stderr
    assert "PREFECT_API_URL" in done.stderr
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_says_how_to_go_on(
    command: Command, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    process = command.start("train", "--epochs", "2000", *FLAGS)
    # Not the first checkpoint: the command hears of it a moment later, from the process that trains.
    while not any("epoch 1/2000" in log.read_text() for log in (tmp_path / "artifacts").glob("logs/*.log")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert re.search(
        r"Kept: ingest train, validate train, ingest test, validate test, prepare; training up to epoch \d+ of 2000\.",
        err,
    )
    assert "the same command goes on from there" in err
    assert "Traceback" not in err


def test_on_a_terminal_the_stages_are_shown_live_and_nothing_else_is_said(command: Command, tmp_path: Path) -> None:
    """With a home that Prefect has not seen: it says most then."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "train", "--epochs", "3", *FLAGS],
        env={**command.environment, "PREFECT_HOME": str(tmp_path / "home"), "TERM": "xterm", "COLUMNS": "120"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=theirs,
        stdin=theirs,
        text=True,
    )
    os.close(theirs)
    seen = b""
    with suppress(OSError):  # the other end is closed
        while more := os.read(ours, 65536):
            seen += more
    os.close(ours)
    answer, _ = process.communicate()
    assert process.returncode == 0, seen.decode()
    assert answer.startswith("version 1 made, champion")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert "✓  start" in text, text[-3000:]
    last = text[text.rindex("✓  start") :]
    for stage in ("ingest train", "validate test", "prepare", "train", "evaluate", "version"):
        assert re.search(rf"✓  {stage} ", last), stage
    assert "1,000 rows" in last
    assert "rows/s" in last
    assert "test accuracy" in last
    (log,) = (tmp_path / "artifacts" / "logs").iterdir()
    assert log.name in last
    assert "Beginning flow run" in log.read_text(encoding="utf-8")
    for noise in ("Beginning flow run", "anonymous", "oneDNN", "INFO", "WARNING"):
        assert noise not in text


def test_a_prefect_home_that_cannot_be_written_is_told(without_api: Command, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    done = without_api.run("train", *FLAGS)
    assert done.returncode == 1
    assert "PREFECT_HOME" in done.stderr
    assert "Traceback" not in done.stderr
