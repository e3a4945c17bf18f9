"""The bound on logs that running services append to."""

import subprocess
import sys
from pathlib import Path

from tasks.runtime.log_rotation import KEPT, LARGEST_BYTES, rotate_logs
from tests.field_faults import field_fault


def _write(log: Path, last_line: str) -> None:
    with log.open("ab") as file:
        file.truncate(LARGEST_BYTES)
        file.write(f"{last_line}\n".encode())


@field_fault(
    "growth without bound",
    "A service logs for months, without a restart",
    "A log above 10 MB is emptied, three copies of its last 10 MB stay, and its process goes on appending",
)
def test_large_logs_are_rotated_while_they_are_written(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    program = [sys.executable, "-c", "while True: print(input(), flush=True)"]
    with (
        log.open("ab") as output,
        subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.DEVNULL, text=True
        ) as service,
    ):
        assert service.stdin is not None
        for number in range(KEPT + 2):
            _write(log, f"last line {number}")
            assert rotate_logs(tmp_path) == [log]
        service.communicate("still alive\n")
    assert log.read_text() == "still alive\n"
    copies = sorted(tmp_path.glob("server.log.*"))
    assert [copy.read_bytes()[-2:] for copy in copies] == [b"4\n", b"3\n", b"2\n"]
    assert all(copy.stat().st_size == LARGEST_BYTES for copy in copies)


def test_small_logs_and_other_files_are_kept(tmp_path: Path) -> None:
    (tmp_path / "deploy.log").write_text("done\n")
    _write(tmp_path / "notes.txt", "the user's")
    assert rotate_logs(tmp_path) == []
    assert rotate_logs(tmp_path / "missing") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deploy.log", "notes.txt"]
