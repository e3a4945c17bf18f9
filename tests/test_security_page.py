"""Every row of the table in docs/security.md names tests that exist."""

import ast
import re

import pytest

from schemas.config import PROJECT_ROOT

_TABLE = (PROJECT_ROOT / "docs" / "security.md").read_text(encoding="utf-8").partition("## Who can do what")[2]
ROWS = [row for row in _TABLE.partition("\n## ")[0].splitlines() if row.startswith("|")][2:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_row_of_the_security_page_names_its_tests(row: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row)
    assert named
    for file, test in named:
        functions = ast.walk(ast.parse((PROJECT_ROOT / file).read_text(encoding="utf-8")))
        assert test in {function.name for function in functions if isinstance(function, ast.FunctionDef)}


def test_security_page_has_rows_for_every_party() -> None:
    for party in ("web page", "another user", "client with the password", "worker", "writer of the artifacts folder"):
        assert any(party in row.split("|")[1] for row in ROWS), party
