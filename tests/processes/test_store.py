import multiprocessing
import time
from pathlib import Path

from tasks.registry.store import ModelStore
from tests.processes.kill import killed_when
from tests.stored import add_stored


def _add_many(root: Path) -> None:
    for _ in range(5):
        add_stored(root)


def test_concurrent_writers_get_different_numbers(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_add_many, args=(tmp_path,)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    rows = ModelStore(tmp_path).summaries()
    assert [row.version for row in rows] == list(range(1, 16))
    assert not any(row.damaged for row in rows)


def _add_slowly(root: Path) -> None:
    add_stored(root, write=lambda folder: time.sleep(60))


def test_a_killed_writer_leaves_no_version(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    add_stored(tmp_path)
    killed_when(lambda: list(tmp_path.glob("versions/.*.tmp/metrics.json")), _add_slowly, tmp_path)
    assert store.numbers() == [1]
    with store.lock():
        (cleaned,) = store.recover()
    assert ".0002." in cleaned
    assert add_stored(tmp_path).number == 2
