import json
import logging
import os
import signal
import stat
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from schemas.contract import SPLITS, Split
from schemas.errors import DataContractError, DataUnavailable
from tasks.data.data_folder import record_path
from tasks.data.download import Limits
from tasks.data.published_data import fetch_data, find_data
from tasks.data.sources import Source, idx_folder, idx_mirror
from tests.faulty_files import unstable_inodes
from tests.field_faults import field_fault
from tests.tasks.data.conftest import WebServer, respond
from tests.tasks.data.published import (
    CONTRACT,
    GOOD,
    KAGGLE_ROWS,
    TEST,
    TEST_LABELS,
    TRAIN,
    Rows,
    as_csv,
    as_zip,
    kaggle_members,
    sha256,
    supply,
    write_idx,
)

LOCK, WORKING = ".fashion-mnist.lock", ".fashion-mnist.fetching"


def stub(action: Callable[[Path], Mapping[Split, Path]]) -> Source:
    """Return a source that calls a function with its folder."""
    return Source("stub", lambda contract, folder, limits: action(folder))


def unexpected(folder: Path) -> Mapping[Split, Path]:
    pytest.fail("no source was expected to be tried")


UNUSED = stub(unexpected)


@pytest.fixture
def good(tmp_path: Path) -> Source:
    return write_idx(tmp_path / "idx")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def assert_published(data_dir: Path, rows: Mapping[Split, Rows] = GOOD.rows) -> None:
    """Check that the folder contains both published CSVs, their record and the lock, and no other file."""
    record = record_path(CONTRACT, data_dir)
    assert {path.name for path in data_dir.iterdir()} == {TRAIN, TEST, record.name, LOCK}
    files = json.loads(record.read_bytes())["files"]
    for split in SPLITS:
        content = (data_dir / CONTRACT.csv_name(split)).read_bytes()
        assert content == as_csv(rows[split])
        assert files[split] == {"rows": len(rows[split]), "sha256": sha256(content)}


# --- supplied files ---


@pytest.mark.parametrize("names", [(TRAIN, TEST), (f"{TRAIN}.gz", f"{TEST}.gz"), (TRAIN, f"{TEST}.gz")])
def test_uses_supplied_files_and_writes_nothing(
    data_dir: Path, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    supply(data_dir, *names)
    monkeypatch.chdir(data_dir.parent)
    csvs = fetch_data(CONTRACT, Path(data_dir.name), [UNUSED])
    assert csvs == find_data(CONTRACT, data_dir)  # with absolute paths
    for split, name in zip(SPLITS, names, strict=True):
        assert [(file.path, file.sha256) for file in csvs[split].files] == [(data_dir / name, sha256(name.encode()))]
        assert csvs[split].origin == "supplied"
    assert {path.name for path in data_dir.iterdir()} == set(names)


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ([TRAIN], TEST),
        ([TEST], TRAIN),
        ([f"{TRAIN}.gz"], TEST),
        (["fashion-mnist_train-1.csv", "fashion-mnist_train-2.csv"], TEST),
    ],
)
def test_rejects_a_single_supplied_split(data_dir: Path, present: list[str], missing: str) -> None:
    supply(data_dir, *present)
    assert find_data(CONTRACT, data_dir) is None
    with pytest.raises(DataContractError, match=f"contains {present[0]} but not {missing}"):
        fetch_data(CONTRACT, data_dir, [UNUSED])
    assert (data_dir / present[0]).read_bytes() == present[0].encode()


def full_disk(folder: Path) -> Mapping[Split, Path]:
    raise OSError(28, "No space left on device", str(folder / "x"))


@pytest.mark.parametrize(
    ("name", "source"), [("file", UNUSED), ("file/data", UNUSED), ("/proc/data", UNUSED), ("data", stub(full_disk))]
)
def test_reports_an_unusable_folder(tmp_path: Path, name: str, source: Source) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataUnavailable, match=f"data folder {tmp_path / name} cannot be used .* --data-dir"):
        fetch_data(CONTRACT, tmp_path / name, [source])


# --- sources ---


def test_tries_sources_in_order_and_publishes_the_first(
    data_dir: Path, web: WebServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "tasks.data")
    synced: list[Path] = []
    monkeypatch.setattr("tasks.data.published_data.sync_to_disk", synced.append)
    sources = [idx_folder(data_dir / "none"), web.mirror(GOOD.files), UNUSED]
    csvs = fetch_data(CONTRACT, data_dir, sources)
    assert_published(data_dir)
    assert [path.name for path in synced] == [TRAIN, TEST]
    assert json.loads(record_path(CONTRACT, data_dir).read_bytes())["source"] == web.address
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((data_dir / TRAIN).stat().st_mode) == 0o666 & ~umask
    assert {csv.origin for csv in csvs.values()} == {"fetched"}
    assert find_data(CONTRACT, data_dir) == fetch_data(CONTRACT, data_dir, [UNUSED]) == csvs
    assert caplog.messages[:2] == [
        f"trying IDX files in {data_dir}/none",
        "not available: the folder does not exist; trying the next source",
    ]


@field_fault(
    "identity by something that changes",
    "Published data is fetched into a folder whose file system has unstable inodes",
    "The files of a killed fetch and of a failed source are removed, and the next source is used",
)
def test_fetches_with_unstable_inodes(data_dir: Path, good: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    (data_dir / WORKING / "1").mkdir(parents=True)
    with unstable_inodes(monkeypatch):
        fetch_data(CONTRACT, data_dir, [idx_folder(data_dir / "none"), good])
    assert_published(data_dir)


def test_lists_the_failure_of_every_source(data_dir: Path, web: WebServer) -> None:
    sources = [idx_folder(data_dir / "none"), web.kaggle(b"no zip"), idx_mirror(web.address)]
    with pytest.raises(DataUnavailable) as caught:
        fetch_data(CONTRACT, data_dir, sources)
    message = str(caught.value)
    for part in (
        f"(1) IDX files in {data_dir}/none: the folder does not exist; ",
        f"(2) {web.address}/download: not a readable zip",
        f"(3) {web.address}: train-labels-idx1-ubyte.gz: HTTP status 404, expected 200. ",
        f"put {TRAIN} and {TEST} (or both as .csv.gz) into {data_dir}, ",
        "--data-dir or FASHION_ANN_DATA_DIR",
    ):
        assert part in message
    assert "\n" not in message
    assert [path.name for path in data_dir.iterdir()] == [LOCK]


def test_keeps_files_that_appear_during_the_fetch(data_dir: Path, good: Source) -> None:
    def supply_meanwhile(folder: Path) -> Mapping[Split, Path]:
        assert [*folder.parent.iterdir()] == [folder]  # the folder of the first source is gone
        supply(data_dir, TRAIN, TEST)
        return good.fetch(CONTRACT, folder, Limits())

    with pytest.raises(DataUnavailable, match="Run again"):
        fetch_data(CONTRACT, data_dir, [idx_folder(data_dir / "none"), stub(supply_meanwhile)])
    assert fetch_data(CONTRACT, data_dir, [UNUSED])["train"].sha256 == sha256(TRAIN.encode())


@pytest.mark.parametrize("change", ["edited", "replaced half"])
def test_changed_downloads_count_as_supplied(data_dir: Path, good: Source, change: str) -> None:
    fetch_data(CONTRACT, data_dir, [good])
    supply(data_dir, TRAIN)
    if change == "edited":
        csvs = fetch_data(CONTRACT, data_dir, [UNUSED])
        assert (csvs["train"].origin, csvs["test"].origin) == ("supplied", "fetched")
    else:
        (data_dir / TEST).unlink()
        with pytest.raises(DataContractError, match=f"contains {TRAIN} but not {TEST}"):
            fetch_data(CONTRACT, data_dir, [UNUSED])
    assert (data_dir / TRAIN).read_bytes() == TRAIN.encode()


# --- kills and parallel runs ---


def fetch_killed_at(step: int, data_dir: Path, source: Source) -> None:
    """Fetch in a child that kills itself instead of the ``step``-th rename or removal of a file, counted from 0."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert status == signal.SIGKILL
        return
    signal.alarm(30)
    left = step
    for name in ("replace", "unlink"):
        original = getattr(Path, name)

        def counted(self: Path, *rest: object, original: Callable[..., object] = original, **named: object) -> object:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return original(self, *rest, **named)

        setattr(Path, name, counted)
    try:
        fetch_data(CONTRACT, data_dir, [source])
    finally:
        os._exit(1)


@pytest.mark.parametrize("step", [0, 1, 2])  # the record, train, test
@pytest.mark.parametrize("from_kaggle", [False, True])
def test_fetch_after_a_kill_completes(
    data_dir: Path, good: Source, web: WebServer, step: int, from_kaggle: bool
) -> None:
    fetch_killed_at(step, data_dir, good)
    published = [record_path(CONTRACT, data_dir).name, TRAIN][:step]
    assert {path.name for path in data_dir.iterdir()} == {LOCK, WORKING, *published}
    csvs = fetch_data(CONTRACT, data_dir, [web.kaggle(as_zip(kaggle_members())) if from_kaggle else good])
    assert_published(data_dir, KAGGLE_ROWS if from_kaggle else GOOD.rows)
    assert {csv.origin for csv in csvs.values()} == {"fetched"}


@pytest.mark.parametrize("step", range(5))  # the zip, the train CSV that was left, the record, train, test
def test_fetch_after_two_kills_completes(data_dir: Path, good: Source, web: WebServer, step: int) -> None:
    fetch_killed_at(2, data_dir, good)
    fetch_killed_at(step, data_dir, web.kaggle(as_zip(kaggle_members())))
    csvs = fetch_data(CONTRACT, data_dir, [good])
    assert_published(data_dir)
    assert {csv.origin for csv in csvs.values()} == {"fetched"}


def test_removes_the_working_folder_of_a_killed_fetch(data_dir: Path, good: Source) -> None:
    fetch_data(CONTRACT, data_dir, [good])
    (data_dir / WORKING / "4").mkdir(parents=True)
    (data_dir / WORKING / "4" / "archive.zip").write_bytes(b"large")
    assert find_data(CONTRACT, data_dir) is not None
    assert_published(data_dir)


def test_parallel_runs_fetch_once(data_dir: Path, web: WebServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tasks")

    def respond_when_the_other_waits(handler: BaseHTTPRequestHandler) -> None:
        deadline = time.monotonic() + 10
        while "another run is fetching" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        respond(handler, GOOD.files[TEST_LABELS])

    source = web.mirror({**GOOD.files, TEST_LABELS: respond_when_the_other_waits})
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: fetch_data(CONTRACT, data_dir, [source]), range(2))
    assert len(web.requests) == 4
    assert first == second
    assert f"{data_dir}: another run is fetching; waiting for it" in caplog.messages
    assert_published(data_dir)
