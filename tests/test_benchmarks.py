"""`make bench` takes half an hour, so no test runs it. These tests import its modules and run its small programs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.make_profile import make_profile
from schemas.config import PROJECT_ROOT
from schemas.contract import DIGITS
from schemas.errors import WrongUsage


def test_every_module_can_be_imported() -> None:
    names = sorted(path.stem for path in (PROJECT_ROOT / "benchmarks").glob("[!_]*.py"))
    assert {"rows", "plain_script"} < set(names)
    # In another process, because the import of a peer configures its backend.
    program = f"import importlib\nfor name in {[*names, '__main__']}: importlib.import_module('benchmarks.' + name)"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_makes_the_stored_profile_of_the_digits(tmp_path: Path) -> None:
    make_profile("digits", tmp_path, tmp_path / "digits.json")
    assert DIGITS.reference is not None
    assert json.loads((tmp_path / "digits.json").read_bytes()) == json.loads(DIGITS.reference.read_bytes())


def test_makes_no_profile_of_other_data(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"digits_{split}.csv").write_text("label\n")
    with pytest.raises(WrongUsage, match="not the published train split"):
        make_profile("digits", tmp_path, tmp_path / "digits.json")
