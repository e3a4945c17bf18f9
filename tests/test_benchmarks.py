"""`make bench` takes half an hour, so no test runs it. These tests import its modules and run its small programs."""

import subprocess
import sys

from schemas.config import PROJECT_ROOT


def test_every_module_can_be_imported() -> None:
    names = sorted(path.stem for path in (PROJECT_ROOT / "benchmarks").glob("[!_]*.py"))
    assert {"rows", "plain_script"} < set(names)
    # In another process, because the import of a peer configures its backend.
    program = f"import importlib\nfor name in {[*names, '__main__']}: importlib.import_module('benchmarks.' + name)"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
