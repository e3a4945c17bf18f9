"""Find out how much memory this process may use."""

import os
from pathlib import Path

from pydantic import ByteSize, TypeAdapter

# Least bytes of a share, so that the published data is one window on every machine.
_LEAST = 256 * 2**20


def budget_bytes(budget: str) -> int:
    """Return the bytes of a budget: a size such as ``2GB``, or a share of `memory_limit` such as ``6%``.

    A share is at least 256 MiB.
    """
    if budget.endswith("%"):
        return max(_LEAST, memory_limit() * int(budget[:-1]) // 100)
    return int(TypeAdapter(ByteSize).validate_python(budget))


def memory_limit(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the bytes of memory that this process may use: the machine's, or less in a container or control group.

    cgroups, own: where Linux mounts control groups, and the file with those of this process.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        root, name = cgroups, "memory.max"
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):  # each limits those below it; in a container the first may not exist
            if folder.is_relative_to(root) and (file := folder / name).is_file():
                text = file.read_text().strip()
                limits += [int(text)] if text.isdecimal() else []
    return min(limits)
