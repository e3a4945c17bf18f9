"""Announcing new data, and training runs for an announced digest, on a real Prefect server."""

import gzip
import hashlib
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client

from flows.train_fashion_mnist import train_fashion_mnist
from flows.watch_data import watch_data
from schemas.config import PROJECT_ROOT, PromotionConfig, TrainingConfig
from schemas.contract import SPLITS
from tasks.watch_data import EVENT
from tests.sample import SAMPLE


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in SPLITS:
        name = f"fashion-mnist_{split}.csv"
        (folder / name).write_bytes(gzip.decompress((SAMPLE / f"{name}.gz").read_bytes()))
    return folder


def announced(data_dir: Path) -> list[str]:
    """Return the digests of the stored events of this folder, in order. The server stores an event with a delay."""
    with get_client(sync_client=True) as client:
        body = {"filter": {"event": {"name": [EVENT]}, "order": "ASC"}, "limit": 50}
        events = client.request("POST", "/events/filter", json=body).json()["events"]
    return [event["payload"]["digest"] for event in events if event["payload"]["data_dir"] == str(data_dir)]


def wait_for_events(data_dir: Path, expected: list[str]) -> None:
    deadline = time.monotonic() + 30
    while announced(data_dir) != expected:
        assert time.monotonic() < deadline, (announced(data_dir), expected)
        time.sleep(0.2)


def watch(data: Path, artifacts: Path) -> Any:
    return watch_data(data_dir=data, artifacts_dir=artifacts, return_state=True)


def documented_digest(data: Path) -> str:
    """Return the digest that the command in docs/events.md prints."""
    page = (PROJECT_ROOT / "docs" / "events.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^digest=\$\(cd data; .+\)$", page, re.MULTILINE)
    done = subprocess.run(
        ["sh", "-c", f'{line}; echo "$digest"'], cwd=data.parent, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def append_row(data: Path) -> None:
    with (data / "fashion-mnist_train.csv").open("ab") as file:
        file.write((data / "fashion-mnist_train.csv").read_bytes().splitlines(keepends=True)[-1])


def test_change_is_announced_once(server: str, data: Path, tmp_path: Path) -> None:
    first = documented_digest(data)
    state = watch(data, tmp_path / "artifacts")
    assert (state.name, state.result().digest, state.result().announced) == ("Completed", first, True)
    state = watch(data, tmp_path / "artifacts")
    assert (state.name, state.result().announced) == ("Nothing new", False)
    append_row(data)
    assert watch(data, tmp_path / "artifacts").result().announced
    wait_for_events(data, [first, documented_digest(data)])


def test_added_shard_is_announced(server: str, data: Path, tmp_path: Path) -> None:
    (data / "fashion-mnist_train.csv").rename(data / "fashion-mnist_train-1.csv")
    first = documented_digest(data)
    assert watch(data, tmp_path / "artifacts").result().digest == first
    (data / "fashion-mnist_train-2.csv").write_bytes((data / "fashion-mnist_train-1.csv").read_bytes())
    watched = watch(data, tmp_path / "artifacts").result()
    assert (watched.digest, watched.announced) == (documented_digest(data), True)
    assert watched.digest != first


def test_missing_split_is_not_announced(server: str, data: Path, tmp_path: Path) -> None:
    (data / "fashion-mnist_test.csv").rename(data / "fashion-mnist_test.CSV")
    state = watch(data, tmp_path / "artifacts")
    assert (state.name, state.result().digest) == ("Nothing new", None)
    assert "no complete data" in state.message
    assert "'fashion-mnist_test.CSV' (did you mean fashion-mnist_test.csv?)" in state.message


def test_failed_announcement_is_repeated(
    server: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tasks.watch_data

    monkeypatch.setattr(tasks.watch_data, "EVENT", None)  # an event without a name cannot be sent
    assert watch(data, tmp_path / "artifacts").is_failed()
    monkeypatch.undo()
    assert watch(data, tmp_path / "artifacts").result().announced


def train(data: Path, artifacts: Path, **parameters: Any) -> Any:
    return train_fashion_mnist(
        data_dir=data,
        artifacts_dir=artifacts,
        training=TrainingConfig(epochs=1, validation_size=100),
        promotion=PromotionConfig(minimum_accuracy=0, minimum_recall=0),
        return_state=True,
        **parameters,
    )


@pytest.mark.usefixtures("in_this_process")
def test_run_trains_once_and_only_on_the_announced_data(server: str, data: Path, tmp_path: Path) -> None:
    artifacts, digest = tmp_path / "artifacts", documented_digest(data)
    state = train(data, artifacts, data_digest=digest)
    assert (state.name, state.result().version) == ("Completed", 1)
    state = train(data, artifacts)
    assert (state.name, state.result().version, state.result().created) == ("Nothing new", 1, False)
    assert "version 1" in state.message

    other = hashlib.sha256(b"other data").hexdigest()
    state = train(data, artifacts, data_digest=other)
    assert (state.name, state.is_completed()) == ("Superseded", True)
    assert other in state.message
    assert digest in state.message
    assert [path.name for path in (artifacts / "models/fashion-mnist/versions").iterdir()] == ["0001"]
