"""What `make bench` runs is there: measuring takes half an hour, and is nothing for a test."""

import importlib
from pathlib import Path

import pytest

from schemas.config import PROJECT_ROOT


@pytest.mark.parametrize("path", sorted((PROJECT_ROOT / "benchmarks").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_each_module_can_be_imported(path: Path) -> None:
    importlib.import_module(f"benchmarks.{path.stem}")


def test_the_command_knows_its_rows() -> None:
    from benchmarks.__main__ import _parser
    from benchmarks.rows import ROWS

    assert _parser().parse_args(["--only", *ROWS]).only == list(ROWS)
