"""`fashion-ann train` in a process: exit status, output, and recovery after kills."""

import contextlib
import gzip
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from schemas.layout import MANIFEST_NAME, SIGNATURE_NAME
from tasks.registry.store import ModelStore
from tasks.runtime.files import digest_of, sha256_file, write_json
from tasks.runtime.locks import lock
from tests.field_faults import field_fault
from tests.flows.conftest import Command
from tests.keys import write_keys
from tests.sample import SAMPLE
from tests.traps import set_traps

# The default floor is for 60,000 images. A model of 1,000 images is below it.
NO_FLOOR = ("--minimum-accuracy", "0", "--minimum-recall", "0")
FLAGS = ("--batch-size", "64", "--validation-size", "100", *NO_FLOOR)


def supply(folder: Path, change: Callable[[list[bytes]], None] = lambda lines: None) -> Path:
    """Write the sample as plain CSVs; ``change`` edits the lines of train."""
    folder.mkdir()
    for split in ("train", "test"):
        lines = gzip.decompress((SAMPLE / f"fashion-mnist_{split}.csv.gz").read_bytes()).splitlines(keepends=True)
        if split == "train":
            change(lines)
        (folder / f"fashion-mnist_{split}.csv").write_bytes(b"".join(lines))
    return folder


def damage(lines: list[bytes]) -> None:
    cells = lines[411].rstrip(b"\n").split(b",")
    cells[17] = b"300"
    lines[411] = b",".join(cells) + b"\n"


def test_bad_cell_exits_with_3(command: Command, tmp_path: Path) -> None:
    done = command.run("train", "--data-dir", str(supply(tmp_path / "data", damage)), *FLAGS)
    assert (done.returncode, done.stdout) == (3, "")
    for word in ("fashion-mnist_train.csv", "line 412", "pixel17", "300"):
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 10
    assert ModelStore.of(tmp_path / "artifacts", "fashion-mnist").summaries() == []
    (quarantine,) = (tmp_path / "artifacts" / "quarantine").iterdir()
    assert str(quarantine) in done.stderr


def test_downloads_into_a_named_folder_with_fetch_only(command: Command, tmp_path: Path) -> None:
    flags = ("train", "--dataset", "digits", "--data-dir", str(tmp_path / "data"), "--epochs", "1", *FLAGS)
    done = command.run(*flags)
    assert (done.returncode, done.stdout) == (3, "")
    # Each sentence of a long refusal has a line.
    assert f"{tmp_path / 'data'} does not exist.\nExpected a folder with digits_train.csv and digits_test.csv.\n" in (
        done.stderr
    )
    assert not (tmp_path / "data").exists()
    assert command.run(*flags, "--fetch").returncode == 0
    assert ModelStore.of(tmp_path / "artifacts", "digits").version(1).manifest.data.train.origin == "fetched"


def test_trains_within_the_budget_of_bad_rows(command: Command, tmp_path: Path) -> None:
    def change(lines: list[bytes]) -> None:
        damage(lines)
        lines.append(lines[-1])  # train needs 1,000 good rows

    data = str(supply(tmp_path / "data", change))
    done = command.run("train", "--data-dir", data, "--epochs", "1", "--bad-rows", "0.1%", *FLAGS)
    assert done.returncode == 0, done.stderr
    assert "1 of 1001 rows is bad" in done.stderr
    assert "line 412, column pixel17" in done.stderr
    (quarantine,) = (tmp_path / "artifacts" / "quarantine").iterdir()
    data = ModelStore.of(tmp_path / "artifacts", "fashion-mnist").version(1).manifest.data
    assert (data.train.rows, data.train.quarantined, data.test.quarantined) == (1_000, 1, 0)
    assert quarantine.name == f"train-{data.train.csv_sha256}.parquet"


def wait_for(process: subprocess.Popen[str], artifacts: Path, sign: str) -> None:
    """Wait until a file that matches ``sign`` exists."""
    deadline = time.monotonic() + 120
    while not list(artifacts.glob(sign)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{sign} never appeared"
        time.sleep(0.002)


def kill_when(process: subprocess.Popen[str], artifacts: Path, sign: str) -> str:
    """Kill the process as soon as ``sign`` exists. Returns its stderr."""
    wait_for(process, artifacts, sign)
    os.kill(process.pid, signal.SIGKILL)
    return process.communicate()[1]


def test_resumes_after_a_kill_in_every_stage(command: Command, tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    store = ModelStore.of(artifacts, "fashion-mnist")
    flags = ("train", "--epochs", "60", "--seed", "7", "--dropout", "0.1", *FLAGS)
    errors = {}
    for sign in (
        *("data/.*.tmp", "data/*/validation/.*.tmp", "prepared/.*.tmp", "checkpoints/*.npz"),
        *("evaluated/.*.tmp", "models/fashion-mnist/versions/.*.tmp"),
    ):
        errors[sign] = kill_when(command.start(*flags), artifacts, sign)
        assert store.summaries() == []
    assert re.search(r"train: .*epoch \d+", errors["evaluated/.*.tmp"])
    done = command.run(*flags, "--json")
    assert done.returncode == 0, done.stderr
    version = json.loads(done.stdout)  # stdout has the JSON only
    assert (version["version"], version["created"], version["champion"]) == (1, True, True)
    stored = store.version(1)
    assert all(entry.reused for entry in stored.manifest.lineage)
    # Two runs trained 60 epochs, none of them twice.
    assert len(json.loads(stored.read("metrics.json"))["history"]) == 60
    assert not list(artifacts.rglob(".*.tmp"))

    # The weights equal those of an uninterrupted training.
    again = command.run("reproduce", "1", "--json")
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout)
    assert result["identical"]
    assert result["test_accuracy"]["found"] == result["test_accuracy"]["expected"] == version["test_accuracy"]
    assert (result["paired"]["fixed"], result["paired"]["broken"], result["differs"]) == (0, 0, [])


@pytest.fixture
def without_api(command: Command, tmp_path: Path) -> Command:
    """Return a command that starts its own server on a new database."""
    # Empty, not missing: `make up` may have written a prefect.toml into the checkout.
    return Command({**command.environment, "PREFECT_HOME": str(tmp_path / "home"), "PREFECT_API_URL": ""})


def servers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    assert process.poll() is None, process.communicate()
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "cli.server_main" in child.cmdline()]


def test_the_embedded_server_ends_with_a_killed_command(without_api: Command) -> None:
    process = without_api.start("train", "--epochs", "1", *FLAGS)
    while not (servers := servers_of(process)):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(servers, timeout=30)
    assert alive == []


def test_reports_a_killed_embedded_server(without_api: Command, tmp_path: Path) -> None:
    process = without_api.start("train", "--epochs", "10000", *FLAGS)
    wait_for(process, tmp_path / "artifacts", "checkpoints/*.npz")
    children = psutil.Process(process.pid).children(recursive=True)
    for server in servers_of(process):
        server.kill()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert re.search(r"fashion-ann: The embedded Prefect server .*-9.*SIGKILL", err.splitlines()[-1])
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


def test_embedded_servers_start_one_after_the_other(without_api: Command, tmp_path: Path) -> None:
    """Two servers that create the tables of one database at the same time fail."""
    (tmp_path / "home").mkdir()
    with lock(tmp_path / "home" / ".fashion-ann-starts.lock"):
        process = without_api.start("train", "--epochs", "1", *FLAGS)
        wait_for(process, tmp_path / "artifacts", "logs/*")
        time.sleep(3)  # the server has imported its modules, and waits
        assert not (tmp_path / "home" / "prefect.db").exists()
        assert len(servers_of(process)) == 1
    other = without_api.start("train", "--epochs", "1", "--seed", "1", *FLAGS)
    for both in (process, other):
        _, err = both.communicate(timeout=240)
        assert both.returncode == 0, err
    assert len(ModelStore.of(tmp_path / "artifacts", "fashion-mnist").summaries()) == 2


def test_quiet_prints_only_result_and_warnings(without_api: Command, tmp_path: Path) -> None:
    done = without_api.run("train", "--epochs", "1", "--quiet", *FLAGS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("created version 1 (now champion)")
    (warning,) = done.stderr.splitlines()  # of the process that trains
    assert warning.startswith("warning: batch_size 64")
    assert (tmp_path / "home" / "prefect.db").exists()

    # Again, with nothing to do: the log file receives the names of imported modules.
    measured = Command({**without_api.environment, "PYTHONPROFILEIMPORTTIME": "1"})
    unchanged = measured.run("train", "--epochs", "1", "--quiet", *FLAGS)
    assert unchanged.stdout.startswith("nothing to do")
    (log,) = (path for path in (tmp_path / "artifacts" / "logs").iterdir() if "import time:" in path.read_text())
    imported = set(re.findall(r"\| +(\w+)$", unchanged.stderr + log.read_text(), re.MULTILINE))
    assert {"prefect", "fastapi", "pyarrow"} <= imported
    assert imported & {"great_expectations", "pandas", "scipy", "keras", "tensorflow"} == set()


def test_a_version_below_the_floor_exits_with_4(command: Command, tmp_path: Path) -> None:
    done = command.run("train", "--epochs", "1", "--learning-rate", "1e-6", "--data-dir", str(SAMPLE))
    assert done.returncode == 4
    assert "test accuracy is" in done.stderr
    (row,) = ModelStore.of(tmp_path / "artifacts", "fashion-mnist").summaries()
    assert (row.outcome, row.aliases) == ("refused", [])
    verdict = json.loads(command.run("why", "1", "--json").stdout)["verdict"]
    assert verdict["rules"][0]["bound"] == ">= 0.8"
    assert command.run("why", "1").stdout.startswith("version 1: rejected\n")
    assert command.run("versions").stdout.endswith("  rejected\n")


def test_names_an_unreachable_api_before_it_starts(command: Command, tmp_path: Path) -> None:
    dead = Command({**command.environment, "PREFECT_API_URL": "http://127.0.0.1:9/api"})
    done = dead.run("train", *FLAGS)
    assert done.returncode == 1
    assert "http://127.0.0.1:9/api" in done.stderr
    assert "PREFECT_API_URL" in done.stderr
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_reports_what_is_kept(
    command: Command, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    process = command.start("train", "--epochs", "2000", *FLAGS)
    # Not the first checkpoint: the command receives its event later, from the process that trains.
    while not any("epoch 1/2000" in log.read_text() for log in (tmp_path / "artifacts").glob("logs/*.log")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "ingest train, validate train, ingest test, validate test, prepare; " in err
    assert re.search(r"epoch \d+ of 2000", err)
    assert "the same command" in err
    assert "Traceback" not in err


def test_shows_stages_live_on_a_terminal(command: Command, tmp_path: Path) -> None:
    """Prefect prints most with a new home."""
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
    out, _ = process.communicate()
    assert process.returncode == 0, seen.decode()
    assert out.startswith("created version 1 (now champion)")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert "✓  start" in text, text[-3000:]
    last = text[text.rindex("✓  start") :]
    for stage in ("ingest train", "validate test", "prepare", "train", "evaluate", "version"):
        assert re.search(rf"✓  {stage} ", last), stage
    assert "1,000 rows" in last
    assert "rows/s" in last
    assert "test accuracy" in last
    (log,) = (tmp_path / "artifacts" / "logs").iterdir()
    assert log.name in last.replace("\r\n", "")  # the terminal breaks long lines
    assert "Beginning flow run" in log.read_text(encoding="utf-8")
    for noise in ("Beginning flow run", "anonymous", "oneDNN", "INFO", "WARNING"):
        assert noise not in text


def database_of_a_newer_prefect(home: Path) -> None:
    home.mkdir()
    with contextlib.closing(sqlite3.connect(home / "prefect.db")) as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
        database.execute("INSERT INTO alembic_version VALUES ('abcdefabcdef')")
        database.commit()


@pytest.mark.parametrize(
    ("prepare", "variables", "observed", "not_observed"),
    [
        pytest.param(
            lambda home: home.write_text("a file"),
            {},
            ["PREFECT_HOME", "cannot be written to (File exists)"],
            ["output", "newer"],
            marks=field_fault(
                "environment of the machine",
                "PREFECT_HOME or HOME is read-only, missing or a file",
                "One sentence names the folder and the error of the operating system",
            ),
            id="home is a file",
        ),
        pytest.param(
            database_of_a_newer_prefect,
            {},
            ["PREFECT_HOME", "abcdefabcdef", "another version of Prefect"],
            ["written to (", "Traceback"],
            marks=field_fault(
                "environment of the machine",
                "A newer Prefect has migrated the sqlite database of PREFECT_HOME",
                "One sentence names the database and its unknown revision",
            ),
            id="newer database",
        ),
        pytest.param(
            lambda home: None,
            {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "0"},
            ["did not answer in 0 s", "STARTUP_TIMEOUT_SECONDS"],
            ["PREFECT_HOME"],
            marks=field_fault(
                "cause named but not observed",
                "The machine is so busy that the embedded server does not answer in time",
                "The message names the time limit, and no folder",
            ),
            id="busy machine",
        ),
        pytest.param(
            lambda home: None,
            {"PREFECT_API_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:////nowhere/prefect.db"},
            ["ended with status", "unable to open database file"],
            ["PREFECT_HOME"],
            id="other cause",
        ),
    ],
)
def test_failed_start_names_the_observed_cause(
    without_api: Command,
    tmp_path: Path,
    prepare: Callable[[Path], object],
    variables: dict[str, str],
    observed: list[str],
    not_observed: list[str],
) -> None:
    prepare(tmp_path / "home")
    done = Command({**without_api.environment, **variables}).run("train", "--quiet", *FLAGS)
    assert done.returncode == 1
    _, _, message = done.stderr.rpartition("fashion-ann train: ")
    assert all(part in message for part in observed), message
    assert not any(part in message for part in not_observed), message


@field_fault(
    "environment of the machine",
    "PREFECT_SERVER_API_AUTH_STRING is in a Prefect profile, proxies are set, and no server runs",
    "`train` starts its own server with another, random password, and reaches it without the proxies",
)
def test_trains_with_a_password_in_a_profile_and_proxies(without_api: Command, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "profiles.toml").write_text(
        'active = "mine"\n[profiles.mine]\nPREFECT_SERVER_API_AUTH_STRING = "user:secret"\n'
    )
    nowhere = {"HTTP_PROXY": "http://127.0.0.1:9", "https_proxy": "127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"}
    other = {"PREFECT_API_AUTH_STRING": "another:server"}
    done = Command({**without_api.environment, **nowhere, **other}).run("train", "--epochs", "1", "--quiet", *FLAGS)
    assert done.returncode == 0, done.stderr
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("warning: batch_size 64")


def test_trains_where_the_working_directory_has_traps(without_api: Command, tmp_path: Path) -> None:
    folder = tmp_path / "trapped"
    folder.mkdir()
    marks = set_traps(folder)
    command = [Path(sys.executable).with_name("fashion-ann"), "train", "--epochs", "1", "--quiet", *FLAGS]
    variables = {**without_api.environment, "FASHION_ANN_ARTIFACTS_DIR": "../artifacts"}
    done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True)
    assert [mark.name for mark in marks.iterdir()] == []
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("created version 1")
    assert ModelStore.of(tmp_path / "artifacts", "fashion-mnist").numbers() == [1]


def test_only_signed_versions_are_used(command: Command, tmp_path: Path) -> None:
    """Train with a key, then change the weights and write every digest again: only the signature reveals it."""
    (private, public), (strange, _) = write_keys(tmp_path), write_keys(tmp_path, "other")
    trusting = Command({**command.environment, "FASHION_ANN_VERIFY_KEY": str(public)})
    signing = Command({**trusting.environment, "FASHION_ANN_SIGNING_KEY": str(private)})
    other = Command({**trusting.environment, "FASHION_ANN_SIGNING_KEY": str(strange)})
    refused = other.run("train", "--epochs", "1", "--quiet", *FLAGS)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "expected one key pair" in refused.stderr
    assert not list((tmp_path / "artifacts").glob("prepared/*"))

    assert signing.run("train", "--epochs", "1", "--quiet", *FLAGS).returncode == 0
    verified = trusting.run("verify", "--json")
    assert verified.returncode == 0, verified.stderr
    (result,) = json.loads(verified.stdout)
    assert (result["signed"], len(result["signed_by"])) == (True, 64)
    predict = ("predict", str(SAMPLE / "fashion-mnist_test.csv.gz"), "--output", str(tmp_path / "out.csv"))
    assert trusting.run(*predict).returncode == 0

    stored = ModelStore.of(tmp_path / "artifacts", "fashion-mnist").version(1)
    content, weights = stored.manifest.as_json(), stored.folder / "model.weights.h5"
    weights.write_bytes(weights.read_bytes() + b"0")
    content["files"][weights.name] = {"sha256": sha256_file(weights), "bytes": weights.stat().st_size}
    del content["manifest_sha256"]
    write_json(stored.folder / MANIFEST_NAME, {**content, "manifest_sha256": digest_of(content)})
    ModelStore.of(tmp_path / "artifacts", "fashion-mnist").version(1).check()
    done = trusting.run(*predict)
    assert (done.returncode, done.stdout) == (5, "")
    assert "Version 1 is not accepted" in done.stderr
    assert str(stored.folder / SIGNATURE_NAME) in done.stderr
    assert result["signed_by"] in done.stderr
