"""What `make bench` runs is there: measuring takes half an hour, and is nothing for a test."""

import subprocess
import sys

from schemas.config import PROJECT_ROOT


def test_every_module_can_be_imported() -> None:
    names = sorted(path.stem for path in (PROJECT_ROOT / "benchmarks").glob("[!_]*.py"))
    assert {"rows", "plain_script"} < set(names)
    # In a process of its own: the peers set theirs up as they are imported.
    program = f"import importlib\nfor name in {[*names, '__main__']}: importlib.import_module('benchmarks.' + name)"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
