"""Which edits of the code change a stage's cache key, and which do not."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from schemas.config import PROJECT_ROOT
from tasks.runtime import stages
from tasks.runtime.fingerprint import code_digest
from tasks.runtime.stages import Stage

STAGES = {stage.name: stage for stage in stages.STAGES if stage.core}
# An edit that changes an output: the stage, the file, the code before and after it.
CHANGES = [
    ("ingest", "tasks/data/csv_to_parquet.py", 'compression="lz4"', 'compression="zstd"'),
    ("validate", "schemas/contract.py", "SAMPLE_ROWS = 2_048", "SAMPLE_ROWS = 1_024"),
    (
        "prepare",
        "tasks/data/splits.py",
        "scaled /= np.float32(scale.maximum - scale.minimum)",
        "scaled /= 256",
    ),
    ("prepare", "tasks/data/splits.py", "default_rng(seed)", "default_rng(seed + 1)"),
    ("train", "tasks/model/network.py", "activation=self.activation", 'activation="tanh"'),
    ("train", "tasks/model/network.py", "Dense(units", "Dense(2 * units"),
    ("train", "tasks/model/fit.py", '"AdamW"', '"Adam"'),
    ("train", "tasks/model/epoch.py", "else 2", "else 1"),
    ("train", "tasks/model/fit.py", "warmup_steps=warm_up", "warmup_steps=0"),
    ("evaluate", "tasks/model/metrics.py", "_CALIBRATION_BINS = 15", "_CALIBRATION_BINS = 10"),
    ("version", "tasks/data/statistics.py", "return", "return 0 and"),
    ("version", "tasks/model/metrics.py", '"test_rows": len(labels),', '"rows": len(labels),'),
]


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """Copy the code that cache keys are made from."""
    for package in ("schemas", "tasks"):
        shutil.copytree(PROJECT_ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def edit(path: Path, change: Callable[[str], str]) -> None:
    before = path.read_text()
    after = change(before)
    assert after != before, f"the edit does not apply to {path}"
    path.write_text(after)


def digest(stage: Stage, root: Path = PROJECT_ROOT) -> str:
    return code_digest(stage.core, root)


def digests(root: Path = PROJECT_ROOT) -> dict[str, str]:
    return {name: digest(stage, root) for name, stage in STAGES.items()}


@pytest.mark.parametrize(("name", "file", "before", "after"), CHANGES, ids=[change[3] for change in CHANGES])
def test_a_change_of_the_output_changes_the_key(checkout: Path, name: str, file: str, before: str, after: str) -> None:
    edit(checkout / file, lambda code: code.replace(before, after))
    assert digest(STAGES[name], checkout) != digest(STAGES[name])


def test_code_outside_the_core_is_not_part_of_a_key(checkout: Path) -> None:
    core = {checkout / f"{module.replace('.', '/')}.py" for stage in stages.STAGES for module in stage.core}
    for folder in ("tasks", "tasks/reports", "tasks/runtime"):
        for path in {*checkout.glob(f"{folder}/*.py")} - core:
            edit(path, lambda code: code + "\nADDED = 1\n")
    assert digests(checkout) == digests()


def test_wording_is_not_part_of_a_key(checkout: Path) -> None:
    for path in checkout.rglob("*.py"):
        code = path.read_text()
        code = re.sub(r'^( *)"""\w+', r'\1"""Reworded', code, flags=re.MULTILINE)
        code = re.sub(r'(logger\.\w+\(\s*")', r"\1reworded: ", code)
        code = re.sub(r"^( +)(return .*)", r'\1"""Added."""\n\1logger.info("added")\n\n\1\2', code, flags=re.MULTILINE)
        path.write_text(f"# Reworded.\n{code}")
    assert digests(checkout) == digests()


@pytest.mark.parametrize(("name", "module"), [(name, module) for name in STAGES for module in STAGES[name].core])
def test_code_of_a_core_module_is_part_of_the_key(checkout: Path, name: str, module: str) -> None:
    edit(checkout / f"{module.replace('.', '/')}.py", lambda code: code + "\nADDED = 1\n")
    assert digest(STAGES[name], checkout) != digest(STAGES[name])
