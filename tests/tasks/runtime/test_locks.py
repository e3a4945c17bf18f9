import errno
import fcntl
import logging
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from schemas.errors import LocksUnavailable
from tasks.runtime.locks import artifacts_lock, lock
from tests.faulty_files import refuse
from tests.field_faults import field_fault


def test_logs_only_if_another_holder_makes_it_wait(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tasks.runtime.locks")
    path = tmp_path / "lock"
    with lock(path, waiting="waiting"), lock(path) as held:
        assert not held
    assert caplog.messages == []

    def hold_until_logged() -> None:
        deadline = time.monotonic() + 10
        with lock(path):
            acquired.append(True)
            while not caplog.messages and time.monotonic() < deadline:
                time.sleep(0.01)

    acquired: list[bool] = []
    with ThreadPoolExecutor(1) as other:
        holder = other.submit(hold_until_logged)
        while not acquired:
            time.sleep(0.01)
        with lock(path, waiting="waiting"):
            assert caplog.messages == ["waiting"]
        holder.result()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
@field_fault(
    "environment of the machine",
    "`flock` fails (ENOLCK, ENOSYS, EOPNOTSUPP)",
    "One sentence names the lock file and the error; nothing is written without a lock",
)
def test_a_file_system_without_locks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(code))
    cause = rf"lock cannot be locked \({os.strerror(code)}\)"
    with pytest.raises(LocksUnavailable, match=cause), lock(tmp_path / "lock"):
        pass
    with pytest.raises(LocksUnavailable, match=r"\.in-use cannot be locked"), artifacts_lock(tmp_path):
        pass


@field_fault(
    "environment of the machine",
    "Another user of the group created the lock file, and only its owner may write to it",
    "The lock works, since reading the file is enough",
)
def test_a_lock_file_that_is_read_only_can_be_locked() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "lock"
        path.touch(mode=0o444)
        root = os.geteuid() == 0
        if root:  # root may write to every file
            os.seteuid(65534)
        try:
            with lock(path) as held, lock(path) as second:
                assert (held, second) == (True, False)
        finally:
            if root:
                os.seteuid(0)
