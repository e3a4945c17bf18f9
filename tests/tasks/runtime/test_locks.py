import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from tasks.runtime.locks import wait_for_lock


def test_logs_only_if_another_holder_makes_it_wait(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tasks.runtime.locks")
    path = tmp_path / "lock"
    with wait_for_lock(path, "waiting"), pytest.raises(TimeoutError), FileLock(path, timeout=0):
        pass
    assert caplog.messages == []

    def hold_until_logged() -> None:
        deadline = time.monotonic() + 10
        with FileLock(path):
            acquired.append(True)
            while not caplog.messages and time.monotonic() < deadline:
                time.sleep(0.01)

    acquired: list[bool] = []
    with ThreadPoolExecutor(1) as other:
        holder = other.submit(hold_until_logged)
        while not acquired:
            time.sleep(0.01)
        with wait_for_lock(path, "waiting"):
            assert caplog.messages == ["waiting"]
        holder.result()
