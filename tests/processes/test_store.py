import multiprocessing
import time
from pathlib import Path
from typing import Any

from tasks.registry.store import add_version, list_versions, recover, store_lock, version_numbers
from tests.processes.kill import killed_when
from tests.stored import add_stored


def _add_many(root: Path) -> None:
    for _ in range(5):
        add_stored(root)


def test_two_writers_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_add_many, args=(tmp_path,)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert version_numbers(tmp_path) == list(range(1, 16))
    assert [row["version"] for row in list_versions(tmp_path)] == list(range(1, 16))


def _add_slowly(root: Path) -> None:
    def write(folder: Path, number: int) -> dict[str, Any]:
        (folder / "metrics.json").write_text("{}")
        time.sleep(60)
        return {}

    with store_lock(root):
        add_version(root, write)


def test_a_killed_writer_leaves_no_version_and_the_next_one_says_what_it_cleaned(tmp_path: Path) -> None:
    add_stored(tmp_path)
    killed_when(lambda: list(tmp_path.glob("versions/.*.tmp/metrics.json")), _add_slowly, tmp_path)
    assert version_numbers(tmp_path) == [1]
    with store_lock(tmp_path):
        done = recover(tmp_path)
    assert len(done) == 1
    assert ".0002." in done[0]
    assert add_stored(tmp_path)["version"] == 2
