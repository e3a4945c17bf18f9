"""Register a contract of a test as a dataset, in a folder of dataset files."""

from pathlib import Path

import pytest

from schemas.contract import DatasetContract
from tasks.checks.new_dataset import dataset_toml


def register(monkeypatch: pytest.MonkeyPatch, folder: Path, contract: DatasetContract) -> None:
    """Write the dataset file of ``contract`` to ``folder``, and use this folder."""
    folder.mkdir(exist_ok=True)
    (folder / f"{contract.name}.toml").write_text(dataset_toml(contract), encoding="utf-8")
    monkeypatch.setenv("FASHION_ANN_DATASETS_DIR", str(folder))
