"""Run a flow in this process, on the configured Prefect API or on an embedded server of our own."""

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from schemas.config import PROJECT_ROOT, TrainingConfig
from schemas.references import ModelVersion


def run_flow(data_dir: Path, artifacts_dir: Path, training: TrainingConfig) -> ModelVersion:
    """Run train-fashion-mnist here and return what it returns."""
    apply_project_settings()
    from flows.train_fashion_mnist import train_fashion_mnist

    made = train_fashion_mnist(data_dir=data_dir, artifacts_dir=artifacts_dir, training=training)
    if not isinstance(made, ModelVersion):
        raise TypeError(f"The flow was expected to return a ModelVersion, it returned {made!r}.")
    return made


def apply_project_settings() -> None:
    """Make [tool.prefect] of pyproject.toml hold wherever the command is called from.

    Prefect reads that table from the working directory alone. A variable that is set already wins.
    """
    table = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["prefect"]
    for name, value in _variables(table, "PREFECT"):
        os.environ.setdefault(name, value)


def _variables(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        name = f"{prefix}_{key.upper()}"
        if isinstance(value, dict):
            yield from _variables(value, name)
        else:
            yield name, str(value)
