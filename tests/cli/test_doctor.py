"""Each check of doctor, broken once: the line it reports and the fix. tests/flows/ checks pools on a real server."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prefect.settings import (
    PREFECT_API_DATABASE_CONNECTION_URL,
    PREFECT_API_URL,
    PREFECT_HOME,
    temporary_settings,
)

from cli import doctor
from cli.doctor import Check, NothingToCheck, Pool, examine, run_check
from schemas.config import PROJECT_ROOT
from tasks.registry.store import ModelStore
from tasks.runtime.fingerprint import locked_packages
from tests.cli.conftest import Run
from tests.field_faults import field_fault
from tests.sample import SAMPLE
from tests.stored import add_stored, event, make_older

NAMES = [
    *("python", "lock", "gpu", "prefect", "pools", "database", "schedules"),
    *("disk", "data", "store", "champion"),
]
DEAD = "http://127.0.0.1:9/api"


@pytest.fixture(autouse=True)
def no_api() -> Iterator[None]:
    """Configure no API, even while `make up` runs and its prefect.toml names one."""
    with temporary_settings({PREFECT_API_URL: None}):
        yield


def assert_broken(check: Callable[[], str], *parts: str) -> Check:
    result = run_check("any", check)
    assert result.ok is False
    assert result.cure
    for part in parts:
        assert part in result.says
    assert "\n" not in result.says + result.cure
    return result


# --- the environment ---


def test_python_outside_the_bounds_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ">=3.11,<3.14" in doctor.check_python()
    monkeypatch.setattr("platform.python_version", lambda: "3.10.9")
    assert_broken(doctor.check_python, "3.10.9", ">=3.11,<3.14")


def write_lock(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "some.lock"
    path.write_text(
        "# a comment\n" + "".join(f"{line} \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n" for line in lines)
    )
    return path


def test_lock_check_names_at_most_three_packages(tmp_path: Path) -> None:
    good = write_lock(tmp_path, f"pytest=={pytest.__version__}", "none==1 ; sys_platform == 'win32'")
    assert doctor.check_lock(good) == "1 packages match some.lock"
    wrong = write_lock(
        tmp_path, "pytest==0.1", "no-such-a==1", "no-such-b==2", "no-such-c==3", "no-such-d==4 ; python_version<'3'"
    )
    observed = (f"pytest {pytest.__version__} (expected 0.1)", "no-such-b is missing (expected 2), ..")
    check = assert_broken(partial(doctor.check_lock, wrong), "4 of 4", *observed)
    assert "no-such-c" not in check.says


def test_reads_the_committed_lock() -> None:
    pinned = locked_packages((PROJECT_ROOT / "requirements" / "cpu.lock").read_text())
    version, digests = pinned["prefect"]
    assert (version, {len(digest) for digest in digests}) == ("3.8.8", {64})
    assert len(pinned) > 100
    assert "pywin32" not in pinned or sys.platform == "win32"


TENSORFLOW = "print('a greeting'); import json; print(json.dumps({'version': '2.21.0', 'gpus': %s}))"


@pytest.mark.parametrize(
    ("extra", "gpus", "ok", "part"),
    [
        ("cpu", [], True, "on the CPU"),
        ("gpu", ["NVIDIA H200"], True, "NVIDIA H200"),
        ("gpu", [], False, "detects no GPU"),
    ],
)
def test_gpu_extra_needs_a_gpu(
    monkeypatch: pytest.MonkeyPatch, extra: str, gpus: list[str], ok: bool, part: str
) -> None:
    monkeypatch.setattr(doctor, "installed_extra", lambda: extra)
    check = run_check("gpu", partial(doctor.check_gpu, TENSORFLOW % repr(gpus)))
    assert check.ok is ok
    assert part in check.says


@field_fault(
    "cause named but not observed",
    "`keras.json` has an invalid epsilon, or `tensorflow.py` is in the working directory",
    "`doctor` imports the TensorFlow that training imports, without either",
)
def test_gpu_check_imports_what_training_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", "/of/a/user")
    program = (
        "import json, os, sys; assert '' not in sys.path\n"
        "print(json.dumps({'version': os.environ['KERAS_HOME'], 'gpus': ['a']}))"
    )
    assert "TensorFlow /dev/null" in doctor.check_gpu(program, 60)


@pytest.mark.parametrize(
    ("program", "seconds", "part"),
    [
        ("raise ImportError('libcudart is missing')", 60, "libcudart is missing"),
        ("import os; os.kill(os.getpid(), 11)", 60, "status -11"),
        ("import time; time.sleep(60)", 0.2, "within 0.2 s"),
    ],
)
def test_tensorflow_that_fails_or_hangs_is_broken(program: str, seconds: float, part: str) -> None:
    assert_broken(partial(doctor.check_gpu, program, seconds), part)


# --- Prefect ---


@pytest.mark.parametrize(("server", "ok"), [("3.8.8", True), ("3.0.0", False), (None, True)])
def test_server_of_another_version_is_broken(monkeypatch: pytest.MonkeyPatch, server: str | None, ok: bool) -> None:
    monkeypatch.setattr(doctor, "api_problem", lambda: None)
    monkeypatch.setattr(doctor, "server_version", lambda: server)
    with temporary_settings({PREFECT_API_URL: DEAD}):
        if ok:
            assert DEAD in doctor.check_prefect()
        else:
            assert_broken(doctor.check_prefect, DEAD, "3.0.0", "3.8.8")


def test_unreachable_api_is_broken_and_its_pools_unchecked() -> None:
    with temporary_settings({PREFECT_API_URL: DEAD}):
        assert_broken(doctor.check_prefect, DEAD)
        with pytest.raises(NothingToCheck, match=DEAD):
            doctor.check_pools()


@pytest.mark.parametrize(
    "url",
    [
        None,
        pytest.param(
            "",
            marks=field_fault(
                "environment of the machine",
                "PREFECT_API_URL is empty, as compose passes an unset variable",
                "It counts as unset: `doctor` checks the embedded server",
            ),
        ),
    ],
)
def test_embedded_server_needs_a_writable_home(url: str | None, tmp_path: Path) -> None:
    with temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: tmp_path / "home"}):
        assert str(tmp_path / "home") in doctor.check_prefect()
        assert run_check("pools", doctor.check_pools) == Check("pools", None, "the embedded server needs none")
    assert not (tmp_path / "home").exists()
    (tmp_path / "file").write_text("")
    with temporary_settings({PREFECT_HOME: tmp_path / "file"}):
        assert_broken(doctor.check_prefect, "is not a folder")


@field_fault(
    "environment of the machine",
    "A newer Prefect has migrated the sqlite database of PREFECT_HOME",
    "`doctor` reports the unknown revision",
)
@pytest.mark.parametrize(("revision", "known"), [("a3b9c7d2e5f1", True), ("abcdefabcdef", False)])
def test_database_of_another_prefect_is_broken(revision: str, known: bool, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "prefect.db")) as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
        database.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
        database.commit()
    with temporary_settings({PREFECT_HOME: tmp_path}):
        if known:
            assert str(tmp_path) in doctor.check_prefect()
        else:
            assert_broken(doctor.check_prefect, str(tmp_path), revision)
    assert [path.name for path in tmp_path.iterdir()] == ["prefect.db"]


@pytest.mark.parametrize(
    ("pools", "ok", "part"),
    [
        ([], True, "no work pools"),
        (
            [Pool("fashion-ann-cpu", 1, 1), Pool("fashion-ann-gpu", 0, 0)],
            True,
            "fashion-ann-cpu: 1 deployment, 1 worker online",
        ),
        (
            [Pool("fashion-ann-cpu", 2, 3), Pool("fashion-ann-gpu", 1, 0, needed=True)],
            False,
            "fashion-ann-gpu: 1 deployment, 0 workers online",
        ),
        ([Pool("another", 1, 0)], True, "another"),
    ],
)
def test_our_pool_with_deployments_needs_a_worker(
    monkeypatch: pytest.MonkeyPatch, pools: list[Pool], ok: bool, part: str
) -> None:
    monkeypatch.setattr(doctor, "api_problem", lambda: None)
    monkeypatch.setattr(doctor, "read_pools", lambda: pools)
    with temporary_settings({PREFECT_API_URL: DEAD}):
        check = run_check("pools", doctor.check_pools)
    assert check.ok is ok
    assert part in check.says
    assert ("--pool fashion-ann-gpu" in check.cure) is not ok
    assert "--pool fashion-ann-cpu" not in check.cure


@field_fault(
    "growth without bound",
    "Years of flow runs fill the database of Prefect's server",
    "`doctor` warns of its size, and its exit status stays 0",
)
def test_large_database_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "prefect.db"
    monkeypatch.setattr(doctor, "MAX_DATABASE_BYTES", 10_000_000)
    monkeypatch.setattr(doctor, "database_file", lambda: file)
    assert run_check("database", doctor.check_database) == Check("database", True, f"0.00 GB in {file}")
    file.write_bytes(b"0" * 6_000_000)
    file.with_name("prefect.db-wal").write_bytes(b"0" * 6_000_000)
    check = run_check("database", doctor.check_database)
    assert (check.ok, check.says) == (True, f"0.01 GB in {file}, expected at most 0.01 GB")
    assert "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD" in check.cure
    monkeypatch.setattr(doctor, "database_file", lambda: None)
    assert run_check("database", doctor.check_database).ok is None


def test_embedded_server_has_a_database_file(tmp_path: Path) -> None:
    address = f"sqlite+aiosqlite:///{tmp_path}/other.db"
    with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: address}):
        assert doctor.database_file() == tmp_path / "other.db"
    with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: "postgresql+asyncpg://user:word@host/db"}):
        assert doctor.database_file() is None


# --- files ---


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_disk_with_less_than_a_gigabyte_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free = 1_000_000_000
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Usage(10 * free, 9 * free, free))
    assert "1.0 GB free" in doctor.check_disk(tmp_path / "not" / "there")
    free -= 1
    assert "fashion-ann gc" in assert_broken(partial(doctor.check_disk, tmp_path), str(tmp_path)).cure


def test_read_only_folder_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The tests may run as root, who can write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr("schemas.config.PROJECT_ROOT", tmp_path)
    for check, folder in ((doctor.check_disk, tmp_path), (doctor.check_data, tmp_path / "data")):
        assert_broken(partial(check, folder), "cannot be written to")


def test_data_check_needs_both_splits_or_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "a run checks every cell" in doctor.check_data(SAMPLE)
    train, test = tmp_path / "fashion-mnist_train.csv", tmp_path / "fashion-mnist_test.csv"
    check = partial(doctor.check_data, tmp_path)
    train.write_text("label")
    assert_broken(check, "fashion-mnist_train.csv", "not fashion-mnist_test.csv")
    test.write_text("")
    assert_broken(check, f"{test} is empty")

    def refuse(self: Path, *arguments: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    assert_broken(check, "Permission denied")


@field_fault(
    "input replaced silently",
    "`doctor` checks a named data folder that is missing, empty or has near names",
    "It reports a failed check with the content, the likely names and the fix",
)
def test_named_folder_without_data_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = tmp_path / "data"
    check = partial(doctor.check_data, data)
    assert "--data-dir" in assert_broken(check, f"{data} does not exist").cure
    data.mkdir()
    assert "fashion-ann train --fetch" in assert_broken(check, "The folder is empty").cure
    monkeypatch.setattr("schemas.config.PROJECT_ROOT", tmp_path)
    assert "will be downloaded" in check()
    (data / "train.csv").touch()
    assert_broken(check, "'train.csv' (did you mean fashion-mnist_train.csv?)")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore.of(tmp_path, "fashion-mnist")


def test_intact_store_is_reported_with_its_champion(store: ModelStore, tmp_path: Path) -> None:
    assert "no version" in doctor.check_store(tmp_path)
    add_stored(store.root)
    assert doctor.check_store(tmp_path) == "1 version, all intact, no champion"
    store.aliases.append(event(1))
    assert doctor.check_store(tmp_path) == "1 version, all intact, champion 1"


def test_leftovers_are_reported_and_not_broken(store: ModelStore, tmp_path: Path) -> None:
    add_stored(store.root)
    store.folder(2).with_name(".0002.77.tmp").mkdir()
    store.aliases.path.write_text('{"cut off')
    assert "2 leftovers" in doctor.check_store(tmp_path)


def test_damaged_champion_is_reported_first(store: ModelStore, tmp_path: Path) -> None:
    for _ in range(3):
        add_stored(store.root)
    store.aliases.append(event(3))
    check = partial(doctor.check_store, tmp_path)
    (store.folder(1) / "metrics.json").write_text("{}")
    assert_broken(check, "version 1 is damaged:", "expected sha256")
    (store.folder(3) / "manifest.json").write_text("{}")
    assert str(store.folder(3)) in assert_broken(check, "the champion, version 3 is damaged, and 1 more").cure


def test_missing_champion_is_broken(store: ModelStore, tmp_path: Path) -> None:
    add_stored(store.root)
    store.aliases.append(event(7))
    assert_broken(partial(doctor.check_store, tmp_path), "version 7, is missing")


@pytest.mark.parametrize(("days", "warned"), [(0, False), (30, False), (31, True)])
@field_fault(
    "failure without a message",
    "The champion is older than 30 days",
    "`doctor` warns, and its exit status stays 0",
)
def test_old_champion_is_a_warning(store: ModelStore, tmp_path: Path, days: int, warned: bool) -> None:
    created = datetime.now(UTC) - timedelta(days=days, minutes=1)
    add_stored(store.root, created=created.isoformat())
    store.aliases.append(event(1))
    check = run_check("champion", partial(doctor.check_champion, tmp_path))
    assert (check.ok, bool(check.cure)) == (True, warned)
    assert f"version 1, created {days} day" in check.says


# --- all of them ---


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let every check pass, without TensorFlow and the lock, and return the artifacts folder."""
    monkeypatch.setattr(doctor, "check_gpu", lambda: "none")
    monkeypatch.setattr(doctor, "check_lock", lambda: "all")
    monkeypatch.setenv("FASHION_ANN_DATA_DIR", str(SAMPLE))
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts"


def test_check_that_raises_is_broken_and_others_run(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise ZeroDivisionError("a message\non two lines")

    monkeypatch.setattr(doctor, "check_python", fail)
    monkeypatch.setattr(doctor, "check_pools", fail)
    log = ModelStore.of(quick, "fashion-mnist").aliases.path
    log.parent.mkdir(parents=True)
    log.write_text("no JSON\n")
    checks = examine(quick, SAMPLE)
    assert [check.name for check in checks] == NAMES
    assert [check.name for check in checks if check.ok is False] == ["python", "pools", "store"]
    assert "ZeroDivisionError: a message on two lines" in checks[0].says
    assert "line 1" in checks[NAMES.index("store")].says


def test_all_checks_pass_with_status_0(quick: Path, run: Run) -> None:
    status, out, err = run("doctor")
    assert (status, err) == (0, "")
    assert [line.split()[1] for line in out.splitlines()] == NAMES


def test_warning_gives_status_0_and_a_fix(quick: Path, run: Run) -> None:
    store = ModelStore.of(quick, "fashion-mnist")
    add_stored(store.root)
    store.aliases.append(event(1))
    status, out, err = run("doctor")
    assert (status, err) == (0, "")
    line, cure = out.splitlines()[-2:]
    assert line.startswith("warn    champion")
    assert "fashion-ann versions" in cure
    champion = json.loads(run("doctor", "--json")[1])[-1]
    assert (champion["name"], champion["ok"], bool(champion["cure"])) == ("champion", True, True)


def test_failed_check_gives_status_1_and_a_fix(quick: Path, run: Run) -> None:
    store = ModelStore.of(quick, "fashion-mnist")
    add_stored(store.root)
    (store.folder(1) / "metrics.json").write_text("{}")
    status, out, err = run("doctor")
    assert status == 1
    line, cure = out.splitlines()[-3:-1]
    assert line.startswith("BROKEN  store")
    assert "Restore" in cure
    assert "store" in err
    assert "Traceback" not in err
    status, out, _ = run("doctor", "--json")
    checks = json.loads(out)
    assert status == 1
    assert [set(check) for check in checks] == [{"name", "ok", "says", "cure"}] * len(NAMES)
    assert [check["ok"] for check in checks] == [*[True] * 4, None, True, None, True, True, False, None]


def test_doctor_changes_nothing_on_disk(tmp_path: Path) -> None:
    program = (
        "import cli.doctor as d, pathlib, sys; d.check_gpu = d.check_lock = str\n"
        "print([c.name for c in d.examine(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])) if c.ok is False])"
    )
    store = ModelStore.of(tmp_path / "artifacts", "fashion-mnist")
    store.folder(2).with_name(".0002.77.tmp").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "artifacts"), str(SAMPLE)],
        env={**os.environ, "PREFECT_HOME": str(tmp_path / "home")},
        cwd=tmp_path,  # contains no prefect.toml
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_older_layout_is_reported_as_such(store: ModelStore, tmp_path: Path) -> None:
    for _ in range(2):
        make_older(add_stored(store.root))
    add_stored(store.root)
    store.aliases.append(event(3))
    assert doctor.check_store(tmp_path) == "3 versions, 2 of another layout, the others intact, champion 3"
    store.aliases.append(event(2, 3))
    check = assert_broken(partial(doctor.check_store, tmp_path), "the champion: Version 2 has an older layout")
    assert "damaged" not in check.says
