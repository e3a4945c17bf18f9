"""Each check of doctor, broken once; what it says and which cure. Pools on a real server are in tests/flows/."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from cli import doctor
from cli.doctor import Check, Pool, examine
from cli.main import main
from schemas.config import PROJECT_ROOT
from tasks.registry.store import ModelStore
from tests.sample import SAMPLE
from tests.stored import add_stored, event

NAMES = ["python", "lock", "gpu", "prefect", "pools", "disk", "data", "store"]
DEAD = "http://127.0.0.1:9/api"


@pytest.fixture(autouse=True)
def no_api() -> Iterator[None]:
    """Also while `make up` runs, whose prefect.toml names one."""
    with temporary_settings({PREFECT_API_URL: None}):
        yield


def _demand_broken(check: Check, *said: str) -> None:
    assert check.ok is False
    assert check.cure
    for text in said:
        assert text in check.says
    assert "\n" not in check.says + check.cure


# --- the environment ---


def test_this_python_will_do_and_an_older_one_is_told_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_python().ok
    monkeypatch.setattr("platform.python_version", lambda: "3.10.9")
    _demand_broken(doctor.check_python(), "3.10.9", ">=3.11,<3.14")


def _lock(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "some.lock"
    path.write_text(
        "# a comment\n" + "".join(f"{line} \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n" for line in lines)
    )
    return path


def test_packages_that_are_not_those_of_the_lock_are_named_three_at_most(tmp_path: Path) -> None:
    good = _lock(tmp_path, f"pytest=={pytest.__version__}", "none==1 ; sys_platform == 'win32'")
    assert doctor.check_lock(good) == Check("lock", True, "1 packages as some.lock names them")
    wrong = _lock(
        tmp_path, "pytest==0.1", "no-such-a==1", "no-such-b==2", "no-such-c==3", "no-such-d==4 ; python_version<'3'"
    )
    check = doctor.check_lock(wrong)
    _demand_broken(
        check, "4 of 4", f"pytest {pytest.__version__} (expected 0.1)", "no-such-b is missing (expected 2), .."
    )
    assert "no-such-c" not in check.says


def test_the_committed_lock_can_be_read() -> None:
    pinned = doctor.locked_versions((PROJECT_ROOT / "requirements" / "cpu.lock").read_text())
    assert pinned["prefect"] == "3.8.8"
    assert len(pinned) > 100
    assert "pywin32" not in pinned or sys.platform == "win32"


ANSWER = "print('a greeting'); import json; print(json.dumps({'version': '2.21.0', 'gpus': %s}))"


@pytest.mark.parametrize(
    ("extra", "gpus", "ok", "said"),
    [
        ("cpu", [], True, "on the CPU"),
        ("gpu", ["NVIDIA H200"], True, "NVIDIA H200"),
        ("gpu", [], False, "sees no GPU"),
    ],
)
def test_a_missing_gpu_is_broken_with_the_gpu_extra_alone(
    monkeypatch: pytest.MonkeyPatch, extra: str, gpus: list[str], ok: bool, said: str
) -> None:
    monkeypatch.setattr(doctor, "installed_extra", lambda: extra)
    check = doctor.check_gpu(ANSWER % repr(gpus))
    assert check.ok is ok
    assert said in check.says


def test_a_tensorflow_that_dies_or_hangs_is_told() -> None:
    _demand_broken(doctor.check_gpu("raise ImportError('libcudart is not there')"), "libcudart is not there")
    _demand_broken(doctor.check_gpu("import os; os.kill(os.getpid(), 11)"), "status -11")
    _demand_broken(doctor.check_gpu("import time; time.sleep(60)", seconds=0.2), "within 0.2 s")


# --- Prefect ---


@pytest.mark.parametrize(("server", "ok"), [("3.8.8", True), ("3.0.0", False), (None, True)])
def test_a_server_of_another_version_is_broken(monkeypatch: pytest.MonkeyPatch, server: str | None, ok: bool) -> None:
    monkeypatch.setattr(doctor, "refusal", lambda: None)
    monkeypatch.setattr(doctor, "_server_version", lambda: server)
    with temporary_settings({PREFECT_API_URL: DEAD}):
        check = doctor.check_prefect()
    assert check.ok is ok
    assert DEAD in check.says
    if not ok:
        _demand_broken(check, "3.0.0", "3.8.8")


def test_a_configured_api_that_is_dead_is_broken_and_its_pools_are_not_asked() -> None:
    with temporary_settings({PREFECT_API_URL: DEAD}):
        _demand_broken(doctor.check_prefect(), DEAD)
        pools = doctor.check_pools()
    assert (pools.ok, pools.name) == (None, "pools")


def test_without_a_configured_api_the_home_must_be_writable(tmp_path: Path) -> None:
    with temporary_settings({PREFECT_HOME: tmp_path / "home"}):
        assert doctor.check_prefect().ok
        assert doctor.check_pools().ok is None
    assert not (tmp_path / "home").exists()
    (tmp_path / "file").write_text("")
    with temporary_settings({PREFECT_HOME: tmp_path / "file"}):
        _demand_broken(doctor.check_prefect(), "is not a folder")


@pytest.mark.parametrize(
    ("pools", "ok", "said"),
    [
        ([], True, "no work pools"),
        ([Pool("cpu", 1, 1), Pool("gpu", 0, 0)], True, "cpu: 1 deployment, 1 worker online"),
        ([Pool("cpu", 2, 3), Pool("gpu", 1, 0)], False, "gpu: 1 deployment, 0 workers online"),
        ([Pool("another", 1, 0)], True, "another"),
    ],
)
def test_a_pool_of_ours_with_deployments_and_no_worker_is_broken(
    monkeypatch: pytest.MonkeyPatch, pools: list[Pool], ok: bool, said: str
) -> None:
    monkeypatch.setattr(doctor, "refusal", lambda: None)
    monkeypatch.setattr(doctor, "_pools", lambda: pools)
    with temporary_settings({PREFECT_API_URL: DEAD}):
        check = doctor.check_pools()
    assert check.ok is ok
    assert said in check.says
    assert ("--pool gpu" in check.cure) is not ok
    assert "--pool cpu" not in check.cure


# --- files ---


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_disk_with_less_than_a_gigabyte_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free = 1_000_000_000
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Usage(10 * free, 9 * free, free))
    assert doctor.check_disk(tmp_path / "not" / "there").ok
    free -= 1
    check = doctor.check_disk(tmp_path)
    _demand_broken(check, str(tmp_path))
    assert "fashion-ann gc" in check.cure


def test_a_folder_that_cannot_be_written_to_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The tests may run as root, who may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    _demand_broken(doctor.check_disk(tmp_path), "cannot be written to")
    _demand_broken(doctor.check_data(tmp_path), "cannot be written to")


def test_data_is_whole_absent_or_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "a run checks every cell" in doctor.check_data(SAMPLE).says
    absent = doctor.check_data(tmp_path / "none")
    assert (absent.ok, "will be fetched" in absent.says) == (True, True)
    train, test = tmp_path / "fashion-mnist_train.csv", tmp_path / "fashion-mnist_test.csv"
    train.write_text("label")
    _demand_broken(doctor.check_data(tmp_path), "fashion-mnist_train.csv", "not fashion-mnist_test.csv")
    test.write_text("")
    _demand_broken(doctor.check_data(tmp_path), f"{test} is empty")

    def refuse(self: Path, *arguments: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    _demand_broken(doctor.check_data(tmp_path), "Permission denied")


def test_a_whole_store_is_told_with_its_champion(tmp_path: Path) -> None:
    assert "no version" in doctor.check_store(tmp_path).says
    root = ModelStore.of(tmp_path, "fashion-mnist").root
    add_stored(root)
    assert doctor.check_store(tmp_path) == Check("store", True, "1 version, all whole, no champion")
    ModelStore(root).aliases.append(event(1))
    assert doctor.check_store(tmp_path) == Check("store", True, "1 version, all whole, champion 1")


def test_leftovers_are_told_and_are_not_broken(tmp_path: Path) -> None:
    root = ModelStore.of(tmp_path, "fashion-mnist").root
    add_stored(root)
    (root / "versions" / ".0002.77.tmp").mkdir()
    (root / "aliases.jsonl").write_text('{"cut off')
    check = doctor.check_store(tmp_path)
    assert check.ok
    assert "2 leftovers" in check.says


def test_damaged_versions_are_broken_and_the_champion_is_told_first(tmp_path: Path) -> None:
    root = ModelStore.of(tmp_path, "fashion-mnist").root
    for _ in range(3):
        add_stored(root)
    ModelStore(root).aliases.append(event(3))
    (ModelStore(root).folder(1) / "metrics.json").write_text("{}")
    _demand_broken(doctor.check_store(tmp_path), "version 1 is damaged:", "expected sha256")
    (ModelStore(root).folder(3) / "manifest.json").write_text("{}")
    check = doctor.check_store(tmp_path)
    _demand_broken(check, "the champion, version 3 is damaged, and 1 more")
    assert str(ModelStore(root).folder(3)) in check.cure


def test_a_champion_that_is_not_there_and_a_log_that_cannot_be_read_are_broken(tmp_path: Path) -> None:
    root = ModelStore.of(tmp_path, "fashion-mnist").root
    add_stored(root)
    ModelStore(root).aliases.append(event(7))
    _demand_broken(doctor.check_store(tmp_path), "version 7, is not there")
    (root / "aliases.jsonl").write_text("nobody knows\n")
    _demand_broken(doctor._survived("store", lambda: doctor.check_store(tmp_path)), "line 1")


# --- all of them ---


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Everything well, without TensorFlow and without the lock; returns the artifacts folder."""
    monkeypatch.setattr(doctor, "check_gpu", lambda: Check("gpu", True, "none"))
    monkeypatch.setattr(doctor, "check_lock", lambda: Check("lock", True, "all"))
    monkeypatch.setenv("FASHION_ANN_DATA_DIR", str(SAMPLE))
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts"


def _doctor(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *flags])
    captured = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, captured.out, captured.err


def test_a_check_that_fails_itself_is_broken_and_the_others_go_on(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fall() -> Check:
        raise ZeroDivisionError("of all things\non two lines")

    monkeypatch.setattr(doctor, "check_python", fall)
    monkeypatch.setattr(doctor, "check_pools", fall)
    checks = examine(quick, SAMPLE)
    assert [check.name for check in checks] == NAMES
    assert [check.name for check in checks if check.ok is False] == ["python", "pools"]
    _demand_broken(checks[0], "ZeroDivisionError", "of all things on two lines")


def test_all_well_ends_with_0_a_line_each(quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = _doctor(capsys)
    assert (status, err) == (0, "")
    assert [line.split()[1] for line in out.splitlines()] == NAMES


def test_one_broken_ends_with_1_and_what_to_do(quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ModelStore.of(quick, "fashion-mnist").root
    add_stored(root)
    (ModelStore(root).folder(1) / "metrics.json").write_text("{}")
    status, out, err = _doctor(capsys)
    assert status == 1
    line, cure = out.splitlines()[-2:]
    assert line.startswith("BROKEN  store")
    assert "Restore" in cure
    assert "store" in err
    assert "Traceback" not in err
    status, out, _ = _doctor(capsys, "--json")
    told = json.loads(out)
    assert status == 1
    assert [set(check) for check in told] == [{"name", "ok", "says", "cure"}] * len(NAMES)
    assert [check["ok"] for check in told] == [True, True, True, True, None, True, True, False]


def test_doctor_changes_nothing_on_disk(tmp_path: Path) -> None:
    program = (
        "import cli.doctor as d, pathlib, sys; d.check_gpu = d.check_lock = lambda: d.Check('x', True, '')\n"
        "print([c.name for c in d.examine(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])) if c.ok is False])"
    )
    store = ModelStore.of(tmp_path / "artifacts", "fashion-mnist").root
    (store / "versions" / ".0002.77.tmp").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "artifacts"), str(tmp_path / "data")],
        env={**os.environ, "PREFECT_HOME": str(tmp_path / "home")},
        cwd=tmp_path,  # of no prefect.toml
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert sorted(tmp_path.rglob("*")) == before
