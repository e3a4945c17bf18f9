"""Bound the size of log files that running processes append to."""

import os
import shutil
from pathlib import Path

from tasks.runtime.files import PRIVATE_FILE

LARGEST_BYTES = 10_000_000
KEPT = 3


def rotate_logs(folder: Path) -> list[Path]:
    """Empty each ``*.log`` above `LARGEST_BYTES`, and return them. `KEPT` copies stay; NAME.log.1 is the newest.

    A copy has the last `LARGEST_BYTES`. The log is truncated, not renamed, because a process that has it open would
    write to the renamed file. Every writer must append to it. A line that is written during the copy may be lost.
    """
    large = [log for log in sorted(folder.glob("*.log")) if log.stat().st_size > LARGEST_BYTES]
    for log in large:
        copies = [log.with_name(f"{log.name}.{number}") for number in range(1, KEPT + 1)]
        for newer, older in zip(copies[-2::-1], copies[:0:-1], strict=True):
            if newer.exists():
                newer.replace(older)
        copies[0].touch(PRIVATE_FILE)
        with log.open("rb") as source, copies[0].open("wb") as copy:
            source.seek(-LARGEST_BYTES, os.SEEK_END)
            shutil.copyfileobj(source, copy)
        os.truncate(log, 0)
    return large
