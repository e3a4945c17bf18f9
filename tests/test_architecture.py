"""The house's rules, as checks: who may import whom, and how long the flow may grow."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from schemas import layout
from schemas.config import TrainingConfig
from tasks.runtime.stages import STAGES, Stage

ROOT = Path(__file__).resolve().parents[1]
# Each package, lowest first. A module imports its own package and lower ranks; packages of one rank do not meet.
RANKS = {
    "schemas": 0,
    "tasks.runtime": 1,
    "tasks.data": 2,
    "tasks.checks": 3,
    "tasks.model": 3,
    "tasks.registry": 4,
    "tasks.reports": 5,
    "tasks": 6,  # the stages
    "flows": 7,
    "cli": 8,
}
FORBIDDEN = {
    "schemas": {"prefect", "tensorflow", "keras", "great_expectations", "numpy", "pandas", "pyarrow"},
    "flows": {"numpy", "pandas", "pyarrow", "tensorflow", "keras", "great_expectations"},
    **{f"tasks.{name}": {"prefect"} for name in ("data", "checks", "model", "registry", "reports")},
}
# These cost half a second or more to import: only inside the function that needs them.
HEAVY = {
    "tensorflow",
    "keras",
    "great_expectations",
    "pandas",
    "optuna",
    "onnx",
    "onnxruntime",
    "ai_edge_litert",
    "mlflow",
}
MODULES = sorted(path for package in ("schemas", "tasks", "flows", "cli") for path in (ROOT / package).rglob("*.py"))


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _package(module: str) -> str:
    """Return the longest name in `RANKS` that ``module`` is in."""
    parts = module.split(".")
    return next(name for end in (2, 1) if (name := ".".join(parts[:end])) in RANKS)


def _imports(path: Path, *, top_level: bool = False) -> set[str]:
    """Return the names of all modules that a file imports, or of those that it imports at its top level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name for name in submodules if (ROOT / name.replace(".", "/")).with_suffix(".py").exists()} or {
                node.module
            }
    return names


def _of_project(names: set[str]) -> set[str]:
    return {name for name in names if name.partition(".")[0] in RANKS}


def _libraries(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_run_one_way(path: Path) -> None:
    package = _package(_name(path))
    for imported in _of_project(_imports(path)):
        other = _package(imported)
        assert other == package or RANKS[other] < RANKS[package], f"{_name(path)} imports {imported}"
    assert not _libraries(_imports(path)) & FORBIDDEN.get(package, set())


@pytest.mark.parametrize("path", sorted((ROOT / "tasks").glob("*.py")), ids=_name)
def test_a_stage_imports_no_stage(path: Path) -> None:
    assert [name for name in _of_project(_imports(path)) if _package(name) == "tasks"] == []


def test_no_task_reads_a_stored_result() -> None:
    # By default a task reads a record in PREFECT_HOME before it runs, and the record names its serializer: pickle, say.
    tasks = [
        line for path in MODULES for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("@task")
    ]
    assert len(tasks) >= 7
    assert [line for line in tasks if "cache_policy=NO_CACHE" not in line] == []


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_slow_libraries_are_imported_where_used(path: Path) -> None:
    assert not _libraries(_imports(path, top_level=True)) & HEAVY


def test_only_the_model_package_imports_keras() -> None:
    importing = {_package(_name(path)) for path in MODULES if "keras" in _libraries(_imports(path))}
    assert importing == {"tasks.model"}


def test_four_modules_import_a_backend() -> None:
    importing = [_name(path) for path in MODULES if _libraries(_imports(path)) & {"tensorflow", "jax"}]
    assert importing == [f"tasks.model.{name}" for name in ("backend", "epoch", "export", "run_export")]


def test_one_module_imports_mlflow() -> None:
    importing = [_name(path) for path in MODULES if "mlflow" in _libraries(_imports(path))]
    assert importing == ["tasks.reports.mlflow_sync"]


def test_the_loader_in_an_mlflow_model_needs_no_checkout() -> None:
    path = ROOT / "tasks" / "model" / "fashion_ann_pyfunc.py"
    assert _of_project(_imports(path)) == set()


def test_errors_are_defined_in_one_module() -> None:
    """A worker's error is raised again by its name in that module."""
    defining = {_name(path) for path in MODULES if re.search(r"^class .*\(FashionAnnError\)", path.read_text(), re.M)}
    assert defining == {"schemas.errors"}


def _artifact_names() -> set[str]:
    """Return every folder and file name that schemas/layout.py and tasks/runtime/stages.py define."""
    root = Path("root")
    folders = {str(path.relative_to(root)) for path in vars(layout.Artifacts(root)).values()}
    folders |= {stage.folder for stage in STAGES if stage.folder is not None}
    constants = {value for name, value in vars(layout).items() if name.isupper() and isinstance(value, str)}
    return {*folders, *constants, layout.images_name(0), layout.labels_name(0)}


def _paths_spelled_in(path: Path) -> set[str]:
    """Return the texts of a module that are joined to a path by ``/``, or that look like a file name."""
    spelled: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
            spelled |= set(str(node.right.value).split("/"))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            spelled.add(node.value)
    return spelled


@pytest.mark.parametrize("path", [path for path in MODULES if path.name not in ("layout.py", "stages.py")], ids=_name)
def test_artifact_names_are_spelled_once(path: Path) -> None:
    assert not _paths_spelled_in(path) & _artifact_names()


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_has_a_task_and_texts_for_people(stage: Stage) -> None:
    tasks = [path for path in (ROOT / "tasks").glob("*.py") if f'@task(name="{stage.name}",' in path.read_text()]
    assert len(tasks) == 1
    assert stage.purpose
    assert stage.failure


def test_stages_are_defined_in_one_module() -> None:
    """The terminal, gc, lineage, report and docs ignore any other stage, or show only its name."""
    defining = [_name(path) for path in MODULES if re.search(r"\bStage\(", path.read_text())]
    assert defining == ["tasks.runtime.stages"]


def test_the_main_flow_fits_one_page() -> None:
    """Without imports: a stage of a user adds one, and two lines of the function."""
    tree = ast.parse((ROOT / "flows" / "train_fashion_mnist.py").read_text(encoding="utf-8"))
    (flow,) = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    assert flow.end_lineno is not None
    assert flow.end_lineno - flow.lineno < 60


def test_no_registry_address_and_no_missing_hash_in_the_locks() -> None:
    locks = sorted((ROOT / "requirements").glob("*.lock"))
    assert {lock.stem for lock in locks} == {
        "cpu",
        "gpu",
        "dev",
        "docker",
        "datasets",
        "tune",
        "dask",
        "remote",
        "mlflow",
        "mlflow-server",
        "export",
        "jax",
        "uv",
        "audit",
        "storage",
    }
    for lock in locks:
        text = lock.read_text(encoding="utf-8")
        assert "://" not in text
        assert "--index" not in text
        for requirement in text.replace("\\\n", " ").splitlines():
            if requirement and not requirement.lstrip().startswith("#"):
                assert "--hash=sha256:" in requirement, requirement


def test_configuration_page_states_the_defaults() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for key, value in TrainingConfig().model_dump().items():
        if value is not None:
            assert re.search(
                rf"\| `training\.{key}` \| `--{key.replace('_', '-')}` \| {re.escape(str(value))}(?!\w)", text
            ), key


@pytest.mark.parametrize(
    "module", ["flows.train_fashion_mnist", "tasks.model.fit", "cli.embedded_server", "benchmarks"]
)
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


def test_the_design_page_lists_every_module() -> None:
    tree = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").split("```")[1]
    listed = set(re.findall(r"[\w.]+\.py", tree))
    modules = {path.name for path in MODULES if path.name != "__init__.py"}
    stages = {path.name for path in (ROOT / "tasks").glob("*.py")}  # a stage of a user needs no line there
    assert modules - stages - listed == set()
    assert listed - modules == set()
