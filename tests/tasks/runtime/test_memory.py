"""The limit of a process's memory, and the bytes of a budget that is a share of it."""

import os
from pathlib import Path

import pytest

from tasks.runtime import memory
from tasks.runtime.memory import budget_bytes, memory_limit

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        pytest.param("0::/a/b\n", {"a/memory.max": "3000", "a/b/memory.max": "max"}, 3_000, id="v2, an outer group"),
        pytest.param("0::/\n", {"memory.max": "4000"}, 4_000, id="v2, a container"),
        pytest.param("0::/x\n", {"memory.max": "max"}, MACHINE, id="v2, no limit"),
        pytest.param(
            "4:memory:/docker/1\n0::/\n",
            {"memory/memory.limit_in_bytes": "5000"},
            5_000,
            id="v1, a container",
        ),
        pytest.param(
            "4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "9223372036854771712"}, MACHINE, id="v1, no limit"
        ),
        pytest.param(None, {}, MACHINE, id="no control groups"),
    ],
)
def test_limit_is_the_smallest_of_machine_and_groups(
    own: str | None, limits: dict[str, str], expected: int, tmp_path: Path
) -> None:
    for name, text in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    if own is not None:
        (tmp_path / "own").write_text(own)
    assert memory_limit(tmp_path, tmp_path / "own") == expected


def test_a_budget_is_a_size_or_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda: 100 * 10**9)
    budgets = {"2GB": 2 * 10**9, "1.5MiB": 3 * 2**19, "700B": 700, "6%": 6 * 10**9}
    assert {budget: budget_bytes(budget) for budget in budgets} == budgets
    monkeypatch.setattr(memory, "memory_limit", lambda: 10**9)
    assert budget_bytes("6%") == 256 * 2**20
