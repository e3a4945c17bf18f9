"""Resealed outputs of stages: the next run builds them again."""

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.config import TrainingConfig
from schemas.contract import Split
from schemas.references import CsvFile, PreparedData, TrainedModel, ValidatedSplit
from tasks.evaluate import evaluate
from tasks.ingest import ingest
from tasks.prepare import prepare
from tasks.runtime.files import describe_files, digest_of, write_json
from tasks.train import train
from tasks.validate import validate


def _array(values: Any) -> bytes:
    with io.BytesIO() as file:
        np.save(file, values)
        return file.getvalue()


def _seal(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    record = json.loads((folder / "stage.json").read_bytes())
    del record["record_sha256"]
    record["files"] = {file: described for file, described in describe_files(folder).items() if file != "stage.json"}
    write_json(folder / "stage.json", {**record, "record_sha256": digest_of(record)})


@pytest.fixture
def run(
    sample_csvs: dict[Split, CsvFile],
    sample_data: dict[Split, ValidatedSplit],
    sample_prepared: PreparedData,
    sample_trained: TrainedModel,
    small_config: TrainingConfig,
    sample_artifacts: Path,
    tmp_path: Path,
) -> Callable[[str], Path]:
    """Run a stage in a copy of the sample's artifacts, and return the folder of its output."""
    shutil.copytree(sample_artifacts, tmp_path, dirs_exist_ok=True, copy_function=os.link)
    size, seed = small_config.validation_size, small_config.seed
    data = sample_data["train"].data.model_copy(
        update={"path": tmp_path / sample_data["train"].data.path.relative_to(sample_artifacts)}
    )
    stages: dict[str, Callable[[], Any]] = {
        "ingest": lambda: ingest.fn(sample_csvs["train"], "fashion-mnist", tmp_path),
        "validate": lambda: validate.fn(data, "fashion-mnist", tmp_path),
        "prepare": lambda: prepare.fn(sample_data["train"], sample_data["test"], "fashion-mnist", size, seed, tmp_path),
        "train": lambda: train.fn(sample_prepared, small_config, tmp_path),
        "evaluate": lambda: evaluate.fn(sample_prepared, sample_trained, tmp_path),
    }
    return lambda stage: Path(stages[stage]().record.path)


CASES = {
    "ingest": {"train/part-00000.parquet": b"PAR1"},
    "validate": {"great_expectations.json": b"[1]", "profile.json": b"{}", "sketches.npz": b"PK"},
    "prepare": {
        "train/images-00000.npy": b"\x93NUMPY",
        "test/labels-00000.npy": _array(np.full(200, 10, np.int32)),
        "validation_rows.npy": _array(np.arange(99, -1, -1)),
        "test_in_train.npy": _array(np.zeros(3, np.uint8)),
        "scale.json": b'{"minimum": 0, "maximum": 510}',
    },
    "train": {"history.json": b"[1, 2]", "golden.json": b"{}"},
    "evaluate": {"metrics.json": b"{}", "test_predictions.parquet": b"PAR1"},
}


@pytest.mark.parametrize(
    ("stage", "name", "content"),
    [pytest.param(stage, *file, id=f"{stage} {file[0]}") for stage, files in CASES.items() for file in files.items()],
)
def test_another_content_is_built_again(
    run: Callable[[str], Path], stage: str, name: str, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run(stage)
    for path in (folder / name, folder / "stage.json"):  # hard links to the outputs of the session
        copy = path.read_bytes()
        path.unlink()
        path.write_bytes(copy)
    _seal(folder, name, content)
    assert run(stage) == folder
    assert "an earlier output is damaged and is rebuilt" in caplog.text
    assert (folder / name).read_bytes() != content
