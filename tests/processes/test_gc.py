"""gc during a run, and after a kill."""

import multiprocessing
import shutil
import time
from pathlib import Path

import pytest

from tasks.registry.gc import collect
from tasks.registry.store import ModelStore
from tasks.runtime.locks import artifacts_lock
from tasks.runtime.stage_cache import run_stage
from tasks.runtime.stages import Stage
from tests.processes.kill import killed_when
from tests.tasks.registry.test_gc import DATASET, KINDS, add_run, stage_folders


def _run_a_stage(artifacts: Path) -> None:
    with artifacts_lock(artifacts):
        run_stage(artifacts / "trained", Stage("train", core=()), {}, lambda folder: {})


def test_a_run_waits_for_gc(tmp_path: Path) -> None:
    run = multiprocessing.get_context("spawn").Process(target=_run_a_stage, args=(tmp_path,))
    with artifacts_lock(tmp_path, exclusive=True) as held:
        assert held
        with artifacts_lock(tmp_path, exclusive=True) as second:
            assert not second
        run.start()
        run.join(timeout=2)
        assert run.is_alive()
        assert not (tmp_path / "trained").exists()
    run.join()
    assert run.exitcode == 0
    assert (tmp_path / "trained").exists()


def _collect_and_hang(artifacts: Path, at: str, number: int) -> None:
    """Run gc, and hang before the ``number``-th rename or in the middle of the ``number``-th deletion."""
    real_rename, real_rmtree = Path.rename, shutil.rmtree
    count = 0

    def reached() -> bool:
        nonlocal count
        count += 1
        return count == number

    def hang() -> None:
        (artifacts / "hangs").touch()
        time.sleep(600)

    def rename(self: Path, target: Path) -> Path:
        if at == "rename" and reached():
            hang()
        return real_rename(self, target)

    def rmtree(path: Path) -> None:
        if at == "rmtree" and reached():
            next(file for file in path.rglob("*") if file.is_file()).unlink()
            hang()
        real_rmtree(path)

    Path.rename = rename  # type: ignore[assignment, method-assign]
    shutil.rmtree = rmtree  # type: ignore[assignment, attr-defined]
    collect(artifacts, DATASET, keep=1)


@pytest.mark.parametrize(("at", "number"), [("rename", 1), ("rmtree", 1), ("rename", 2), ("rmtree", 2), ("rmtree", 4)])
def test_a_killed_gc_leaves_an_intact_store(tmp_path: Path, at: str, number: int) -> None:
    store = ModelStore.of(tmp_path, DATASET)
    for name in ("a", "b", "c"):
        add_run(tmp_path, stages=name, promoted=name == "c")
    killed_when((tmp_path / "hangs").exists, _collect_and_hang, tmp_path, at, number)

    # Before any cleaning, readers see complete versions and stage outputs only.
    for version in store.numbers():
        store.version(version).check()
    assert store.numbers()[-1] == 3
    for path in (path for path in tmp_path.glob("*/*") if not path.name.startswith(".") and path.parent.name in KINDS):
        assert (path / "stage.json").exists()
    with store.lock():
        cleaned = store.recover()
    assert len(cleaned) == (1 if at == "rmtree" and number <= 2 else 0)
    assert store.leftovers() == []

    collect(tmp_path, DATASET, keep=1)
    assert store.numbers() == [3]
    assert not list(tmp_path.rglob(".*.tmp"))
    assert not any(folder.exists() for name in "ab" for folder in stage_folders(tmp_path, name))
    assert all(folder.exists() for folder in stage_folders(tmp_path, "c"))
    assert add_run(tmp_path) == 4
