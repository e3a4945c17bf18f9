"""The house's rules, as checks: who may import whom, and how long the flow may grow."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.config import TrainingConfig

ROOT = Path(__file__).resolve().parents[1]
# What each package may import of the project; itself is always allowed.
ALLOWED = {
    "schemas": set(),
    "tasks": {"schemas"},
    "flows": {"tasks", "schemas"},
    "cli": {"flows", "tasks", "schemas"},
}
FORBIDDEN = {
    "schemas": {"prefect", "tensorflow", "keras", "great_expectations", "numpy", "pandas", "pyarrow"},
    "flows": {"numpy", "pandas", "pyarrow", "tensorflow", "keras", "great_expectations"},
}
# These cost half a second or more to import: only inside the function that needs them.
HEAVY = {"tensorflow", "keras", "great_expectations", "matplotlib", "pandas"}
MODULES = [path for package in ALLOWED for path in sorted((ROOT / package).glob("*.py"))]


def _imports(nodes: list[ast.stmt] | ast.AST) -> set[str]:
    walked = (
        [node for statement in nodes for node in ast.walk(statement)] if isinstance(nodes, list) else ast.walk(nodes)
    )
    names: set[str] = set()
    for node in walked:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_run_one_way(path: Path) -> None:
    package = path.parent.name
    found = _imports(ast.parse(path.read_text(encoding="utf-8")))
    assert found & set(ALLOWED) <= ALLOWED[package] | {package}
    assert not found & FORBIDDEN.get(package, set())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_slow_libraries_are_imported_where_they_are_used(path: Path) -> None:
    top_level = [
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not _imports(top_level) & HEAVY


def test_one_module_knows_a_backend() -> None:
    knowing = [
        path for path in MODULES if _imports(ast.parse(path.read_text(encoding="utf-8"))) & {"tensorflow", "jax"}
    ]
    assert knowing == [ROOT / "tasks" / "device.py"]


def test_the_main_flow_fits_one_page() -> None:
    assert len((ROOT / "flows" / "train_fashion_mnist.py").read_text(encoding="utf-8").splitlines()) < 80


def test_no_registry_address_and_no_missing_hash_in_the_locks() -> None:
    locks = sorted((ROOT / "requirements").glob("*.lock"))
    assert {lock.stem for lock in locks} == {"cpu", "gpu", "dev", "uv"}
    for lock in locks:
        text = lock.read_text(encoding="utf-8")
        assert "://" not in text
        assert "--index" not in text
        for requirement in text.replace("\\\n", " ").splitlines():
            if requirement and not requirement.lstrip().startswith("#"):
                assert "--hash=sha256:" in requirement, requirement


def test_the_readme_states_the_defaults_and_is_filled_in() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "@@" not in text
    for key, value in TrainingConfig().model_dump().items():
        if value is not None:
            assert re.search(
                rf"\| `training\.{key}` \| `--{key.replace('_', '-')}` \| {re.escape(str(value))}\b", text
            ), key


@pytest.mark.parametrize("module", ["flows.train_fashion_mnist", "tasks.fit", "cli.embedded_server", "benchmarks"])
def test_numpy_is_set_up_before_it_is_imported(module: str) -> None:
    # The variable is read at the import alone; a module that imports numpy first would leave it without effect.
    program = f"""
import builtins, os
os.environ.pop("OPENBLAS_NUM_THREADS", None)
real = builtins.__import__
def spy(name, *arguments, **named):
    assert name != "numpy" or os.environ.get("OPENBLAS_NUM_THREADS") == "1", "numpy came first"
    return real(name, *arguments, **named)
builtins.__import__ = spy
import {module}
import numpy
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
