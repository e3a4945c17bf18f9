import multiprocessing
import time
from pathlib import Path
from typing import Any

from tasks.runtime.stage_cache import run_stage
from tasks.runtime.stages import PREPARE
from tests.processes.kill import killed_when
from tests.tasks.runtime.test_stage_cache import write


def build_slowly(folder: Path) -> dict[str, Any]:
    (folder / "half").write_text("half")
    time.sleep(60)
    return {}


def test_a_killed_stage_is_swept_and_rebuilt(tmp_path: Path) -> None:
    killed_when(lambda: list(tmp_path.glob(".*.tmp/half")), run_stage, tmp_path, PREPARE, {}, build_slowly)
    record, _ = run_stage(tmp_path, PREPARE, {}, write())
    assert not record.reused
    assert list(tmp_path.glob(".*.tmp")) == []


def build_and_count(folder: Path) -> dict[str, Any]:
    with (folder.parent / "builds.txt").open("a") as log:
        log.write("built\n")
    time.sleep(0.3)
    return {}


def test_two_runs_at_once_build_an_output_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=run_stage, args=(tmp_path, PREPARE, {}, build_and_count)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert (tmp_path / "builds.txt").read_text() == "built\n"
