"""The task of collect-garbage without a server. tests/flows/ runs its flow."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from schemas.layout import Artifacts
from schemas.references import Garbage
from tasks.collect_garbage import collect
from tasks.registry.store import ModelStore
from tests.field_faults import field_fault
from tests.stored import add_stored


def collect_in_a_thread(artifacts: Path) -> Garbage:
    """Collect as another process would: a lock of this thread could be taken again."""
    with ThreadPoolExecutor(1) as other:
        return other.submit(collect.fn, "fashion-mnist", 1, artifacts, seconds=0.1).result()


@field_fault(
    "growth without bound",
    "A process that holds the lock of the store hangs during the weekly garbage collection",
    "The collection ends after a time limit, deletes nothing and names the lock; the next one deletes everything",
)
def test_a_hanging_writer_does_not_block_the_collection(tmp_path: Path) -> None:
    store = ModelStore.of(tmp_path, "fashion-mnist")
    for _ in range(3):
        add_stored(store.root)
    with store.lock():
        blocked = collect_in_a_thread(tmp_path)
    assert (blocked.run_active, blocked.removed, store.numbers()) == (True, 0, [1, 2, 3])
    assert str(store.root) in blocked.notes[0]
    done = collect_in_a_thread(tmp_path)
    assert (done.run_active, done.removed, done.kept_versions, store.numbers()) == (False, 2, (3,), [3])


@field_fault(
    "growth without bound",
    "Scheduled runs fail for months, and Prefect stores two files per failure",
    "Garbage collection deletes the files that are 91 days old, and keeps those of 89 days",
)
def test_old_results_of_flow_runs_are_deleted(tmp_path: Path) -> None:
    results = Artifacts(tmp_path).flow_results
    results.mkdir(parents=True)
    for days in (89, 91):
        (results / str(days)).touch()
        os.utime(results / str(days), (time.time() - days * 86_400,) * 2)
    collect_in_a_thread(tmp_path)
    assert [path.name for path in results.iterdir()] == ["89"]
