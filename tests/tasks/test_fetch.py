import os
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.contract import FASHION_MNIST, SPLITS, contract_of
from schemas.errors import DataContractError
from tasks.data.published_data import find_data
from tasks.fetch import fetch
from tasks.runtime.events import Event, StageFinished, StageStarted, subscribe
from tests.field_faults import field_fault
from tests.sample import SAMPLE
from tests.tasks.data.published import TEST, TRAIN, supply

DIGITS = contract_of("digits")


def test_returns_the_csvs_and_emits_the_events_of_a_stage(tmp_path: Path) -> None:
    assert (fetch.name, fetch.retries) == ("fetch", 0)
    events: list[Event] = []
    with subscribe(events.append):
        fetched = fetch.fn(DIGITS.name, tmp_path, opted_in=True)
        assert fetch.fn(DIGITS.name, tmp_path) == fetched == find_data(DIGITS, tmp_path)
    started, first, _, second = events
    assert started == StageStarted("fetch", None)
    for event, reused in ((first, False), (second, True)):
        assert isinstance(event, StageFinished)
        assert (event.stage, event.split, event.reused) == ("fetch", None, reused)
        assert event.facts == dict.fromkeys(SPLITS, "fetched")


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(
            Path.mkdir,
            marks=field_fault(
                "input replaced silently",
                "The share of the data folder is not mounted, so the folder is empty",
                "`train` exits with 3, and downloads nothing into the folder",
            ),
        ),
        pytest.param(
            lambda folder: None,
            marks=field_fault(
                "input replaced silently",
                "`--data-dir` names a folder that does not exist",
                "`train` exits with 3, and creates no folder",
            ),
        ),
        lambda folder: folder.symlink_to("gone"),
        lambda folder: supply(folder, "train.csv"),
        lambda folder: supply(folder, DIGITS.csv_name("train")),
    ],
    ids=["empty", "missing", "link to nothing", "near name", "one split"],
)
def test_nothing_is_downloaded_into_a_named_folder(tmp_path: Path, prepare: Callable[[Path], None]) -> None:
    data = tmp_path / "named"
    prepare(data)
    before = [*tmp_path.rglob("*")]
    with pytest.raises(DataContractError, match=f"{data} .*Nothing was downloaded.*--data-dir.*--fetch") as caught:
        fetch.fn(DIGITS.name, data)
    assert caught.value.exit_status == 3
    assert [*tmp_path.rglob("*")] == before


@pytest.fixture
def default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the default data folder of a checkout in a temporary folder. It does not exist."""
    monkeypatch.setattr("schemas.config.PROJECT_ROOT", tmp_path)
    return tmp_path / "data"


@pytest.mark.parametrize("others", [(), ("README.md", "notes.txt", "._digits_train.csv", TRAIN, "Fashion-MNIST.zip")])
def test_published_data_is_downloaded_into_the_default_folder(default: Path, others: tuple[str, ...]) -> None:
    if others:
        supply(default, *others)
    csvs = fetch.fn(DIGITS.name, default.parent / "x" / ".." / "data")
    assert {csv.origin for csv in csvs.values()} == {"fetched"}


@field_fault(
    "input replaced silently",
    "`data/` of the checkout has train.csv instead of the name in the contract",
    "`train` exits with 3 and names the intended file; only `--fetch` downloads the published data",
)
def test_a_near_name_prevents_the_download(default: Path) -> None:
    supply(default, "train.csv")
    with pytest.raises(DataContractError, match=r"'train.csv' \(did you mean digits_train.csv\?\)"):
        fetch.fn(DIGITS.name, default)
    assert [path.name for path in default.iterdir()] == ["train.csv"]
    assert fetch.fn(DIGITS.name, default, opted_in=True)["train"].origin == "fetched"


def test_a_linked_default_folder_counts_as_named(default: Path, tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    default.symlink_to("share")
    with pytest.raises(DataContractError, match="The folder is empty"):
        fetch.fn(DIGITS.name, default)


def test_announced_data_is_never_downloaded(default: Path) -> None:
    with pytest.raises(DataContractError, match=f"{default} does not exist"):
        fetch.fn(FASHION_MNIST.name, default, opted_in=True, announced=True)


@field_fault(
    "input replaced silently",
    "A shard has an underscore where the contract has a dash",
    "`train` uses the other files, and a warning gives the intended name",
)
def test_a_csv_that_is_not_read_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in (TRAIN, TEST):
        (tmp_path / f"{name}.gz").symlink_to(SAMPLE / f"{name}.gz")
    (tmp_path / "fashion-mnist_train_2025.csv").touch()
    (tmp_path / "train-images-idx3-ubyte").touch()
    fetch.fn(FASHION_MNIST.name, tmp_path)
    (warning,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert warning.endswith("fashion-mnist_train_2025.csv is not read: did you mean fashion-mnist_train-2025.csv?")


def test_files_of_other_splits_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "fashion-mnist_train.csv.gz").symlink_to(SAMPLE / "fashion-mnist_train.csv.gz")
    os.mkfifo(tmp_path / "fashion-mnist_test.csv")  # opening it would block
    assert set(fetch.fn("fashion-mnist", tmp_path, splits=("train",))) == {"train"}
