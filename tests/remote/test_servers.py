"""Stages and stores on real servers of object storage."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from schemas.config import PROJECT_ROOT
from schemas.errors import RemoteUnavailable
from schemas.store import AliasEvent, VersionFacts
from tasks.registry.champion import set_alias
from tasks.registry.store import ModelStore
from tasks.runtime.remote import PIECE, configured_remote, file_name, remote_at
from tasks.runtime.stage_cache import run_stage
from tasks.runtime.stages import PREPARE
from tests.remote.outputs import names, never
from tests.remote.servers import SWIFT_KEYS
from tests.stored import facts, fill

DATASET = "fashion-mnist"
_SECONDS_TO_PUSH = 120


def built(output: Path) -> dict[str, Any]:
    (output / "output.bin").write_bytes(b"made")
    return {}


def test_sixteen_writers_move_aliases_one_after_another(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.registry.champion.verify", lambda version: version.check())  # it has no model
    first = ModelStore.of(tmp_path / "first", DATASET)

    def build(folder: Path, number: int) -> VersionFacts:
        fill(folder)
        return facts()

    with first.lock():
        first.recover()
        first.add(build)

    def move(racer: int) -> AliasEvent:
        store = ModelStore.of(tmp_path / f"writer {racer}", DATASET).refresh()
        return set_alias(store, 1, f"racer-{racer}", "a race").event

    with ThreadPoolExecutor(16) as pool:
        moves = list(pool.map(move, range(16)))
    history = ModelStore.of(tmp_path / "another", DATASET).refresh().history()
    assert sorted(history, key=lambda event: int(event.alias.removeprefix("racer-"))) == moves
    assert len([name for name in names() if "/aliases/" in name]) == 16


def test_another_machine_fetches_an_output(bucket: str, tmp_path: Path) -> None:
    content = os.urandom(2 * PIECE + 1)

    def build(output: Path) -> dict[str, Any]:
        (output / "large.bin").write_bytes(content)  # in several requests each way
        (output / "empty.bin").touch()
        return {"a": 1}

    first, _ = run_stage(tmp_path / "a", PREPARE, {}, build)
    second, given = run_stage(tmp_path / "b", PREPARE, {}, never)
    assert (second.digest, given) == (first.digest, {"a": 1})
    assert (second.path / "large.bin").read_bytes() == content


def test_two_machines_that_build_at_once_both_succeed(bucket: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(lambda n: run_stage(tmp_path / str(n), PREPARE, {}, built)[0], range(8)))
    assert len({record.digest for record in records}) == 1
    assert len([name for name in names() if name.startswith("stages/")]) == 1
    run_stage(tmp_path / "late", PREPARE, {}, never)


def test_a_truncated_object_is_replaced(bucket: str, tmp_path: Path) -> None:
    run_stage(tmp_path / "a", PREPARE, {}, built)
    remote = configured_remote()
    assert remote is not None
    remote.write(file_name(hashlib.sha256(b"made").hexdigest()), b"ma")
    assert not run_stage(tmp_path / "b", PREPARE, {}, built)[0].reused
    run_stage(tmp_path / "c", PREPARE, {}, never)


def test_a_push_that_is_killed_leaves_nothing_visible(bucket: str, tmp_path: Path) -> None:
    program = f"""
import os, sys
from pathlib import Path
from tasks.runtime.stage_cache import run_stage
from tasks.runtime.stages import PREPARE
def build(folder):
    for number in range(40):
        (folder / f"{{number}}.bin").write_bytes(os.urandom(3_000_000))
    return {{}}
run_stage(Path({str(tmp_path)!r}) / "a", PREPARE, {{}}, build)
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT_ROOT)
    deadline = time.monotonic() + _SECONDS_TO_PUSH
    while not names():  # until the first file is there
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert {name.partition("/")[0] for name in names()} == {"files"}
    assert run_stage(tmp_path / "a", PREPARE, {}, never)[0].reused  # and stores the rest
    run_stage(tmp_path / "b", PREPARE, {}, never)


def test_wrong_credentials_and_a_missing_bucket_are_clear_errors(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASHION_ANN_REMOTE", "s3://no-such-bucket/project")
    with pytest.raises(RemoteUnavailable, match=r"404.*bucket.*Create it"):
        run_stage(tmp_path / "a", PREPARE, {}, built)
    if os.environ["AWS_ACCESS_KEY_ID"] == SWIFT_KEYS["AWS_ACCESS_KEY_ID"]:  # moto checks none
        monkeypatch.setenv("FASHION_ANN_REMOTE", f"s3://{bucket}/project")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
        remote_at.cache_clear()
        with pytest.raises(RemoteUnavailable, match=r"403 Forbidden.*Expected credentials") as raised:
            run_stage(tmp_path / "a", PREPARE, {}, built)
        assert "a-wrong-secret" not in str(raised.value)
