"""Mark tests as cases of docs/field-faults.md, and write that page: ``python -m tests.field_faults``."""

import contextlib
import os
import sys
from typing import Literal, get_args

import pytest

from schemas.config import PROJECT_ROOT

PAGE = PROJECT_ROOT / "docs" / "field-faults.md"

# In the order of the page.
Kind = Literal[
    "input replaced silently",
    "predictions unchecked",
    "hidden input of a cached result",
    "identity by something that changes",
    "state lost by a restart",
    "operator's decision overwritten",
    "environment of the machine",
    "cause named but not observed",
    "stray files and bad values",
    "growth without bound",
    "failure without a message",
]

_TEXT = """# Field faults

Written by `python -m tests.field_faults`; do not edit. Each case occurred on a real machine, in this project or in a
similar one. The behaviour in the last column is the assertion of a test: the row exists because the test does, and CI
runs them all. [faults.md](faults.md) has the faults that hit a run while it trains.

| kind | case | behaviour | test |
|---|---|---|---|
"""


def field_fault(kind: Kind, case: str, behaviour: str) -> pytest.MarkDecorator:
    """Return a mark for a test, or for a `pytest.param`, that adds a row to the page.

    case: what the machine or a person does. behaviour: what the test asserts. Both are plain text without "|".
    """
    return pytest.mark.field_fault(kind, case, behaviour)


class _Collector:
    """Collect the rows of all tests, without running them."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, str], str] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            for mark in item.iter_markers("field_fault"):
                kind, case, behaviour = mark.args
                self.rows[kind, case, behaviour] = item.path.relative_to(PROJECT_ROOT).as_posix()


def page() -> str:
    """Return the page of all marked tests of this checkout. Raises RuntimeError if a test file cannot be collected."""
    collector = _Collector()
    # pytest prints the names of the tests.
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        status = pytest.main(
            [
                "--collect-only",
                "-q",
                "--numprocesses",
                "0",
                "--rootdir",
                str(PROJECT_ROOT),
                str(PROJECT_ROOT / "tests"),
            ],
            plugins=[collector],
        )
    if status != pytest.ExitCode.OK:
        raise RuntimeError(f"The tests cannot be collected: pytest ended with status {status}. Run pytest --co tests.")
    order = {kind: place for place, kind in enumerate(get_args(Kind))}
    rows = sorted(collector.rows.items(), key=lambda row: (order[row[0][0]], row[1]))  # else in the order of the tests
    return _TEXT + "".join(f"| {' | '.join(row)} | [{test}](../{test}) |\n" for row, test in rows)


if __name__ == "__main__":
    sys.stdout.write(page())
