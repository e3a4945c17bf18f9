"""Fixtures for all tests: the committed sample of the published data, and the outputs of the stages on it."""

import gzip
import importlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from schemas.config import PromotionConfig, TrainingConfig
from schemas.contract import FASHION_MNIST, SPLITS, DatasetContract, Split
from schemas.layout import METRICS_NAME, PROFILE_NAME
from schemas.references import CsvFile, CsvSplit, PreparedData, TrainedModel, ValidatedSplit
from schemas.store import VersionFacts
from tasks.checks.image_profile import read_profile, write_profile
from tasks.data.data_folder import csv_split
from tasks.evaluate import evaluate
from tasks.fetch import fetch
from tasks.ingest import ingest
from tasks.model.backend import set_up_backend
from tasks.prepare import prepare
from tasks.registry.store import ModelStore
from tasks.runtime.files import write_json
from tasks.train import train
from tasks.validate import validate
from tasks.version import version
from tests.stored import event, facts, fill

SAMPLE = Path(__file__).parent / "data"


def shards_of(folder: Path, split: Split, count: int) -> CsvSplit:
    """Write the sample's split as ``count`` CSVs."""
    name = f"{FASHION_MNIST.name}_{split}"
    header, *rows = gzip.decompress((SAMPLE / f"{name}.csv.gz").read_bytes()).splitlines(keepends=True)
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name}-{place:03}.csv" for place in range(count)]
    for path, part in zip(paths, np.array_split(np.arange(len(rows)), count), strict=True):
        path.write_bytes(header + b"".join(rows[at] for at in part))
    return csv_split(split, paths)


@pytest.fixture
def tiny_contract() -> DatasetContract:
    """Images of 2 x 2 pixels in 3 classes, at least 6 rows."""
    return replace(
        FASHION_MNIST,
        height=2,
        width=2,
        labels=MappingProxyType({0: "a", 1: "b", 2: "c"}),
        minimum_rows=MappingProxyType({"train": 6, "test": 6}),
        reference=None,
    )


@pytest.fixture(scope="session")
def small_config() -> TrainingConfig:
    """A quick training with a validation split of 100 rows."""
    return TrainingConfig(epochs=3, batch_size=64, validation_size=100, seed=7)


@pytest.fixture(scope="session")
def sample_artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts folder of the session's stage outputs; tests must not remove anything from it.

    All workers of pytest-xdist share it: the first one builds an output, and the others reuse it.
    """
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "sample-artifacts"


@pytest.fixture(scope="session")
def sample_csvs() -> dict[Split, CsvFile]:
    return fetch.fn("fashion-mnist", SAMPLE)


@pytest.fixture(scope="session")
def sample_data(sample_csvs: dict[Split, CsvFile], sample_artifacts: Path) -> dict[Split, ValidatedSplit]:
    parquet = {split: ingest.fn(sample_csvs[split], "fashion-mnist", sample_artifacts) for split in SPLITS}
    train = validate.fn(parquet["train"], "fashion-mnist", sample_artifacts)
    return {"train": train, "test": validate.fn(parquet["test"], "fashion-mnist", sample_artifacts, train)}


@pytest.fixture(scope="session")
def sample_prepared(
    sample_data: dict[Split, ValidatedSplit], sample_artifacts: Path, small_config: TrainingConfig
) -> PreparedData:
    return prepare.fn(
        sample_data["train"],
        sample_data["test"],
        "fashion-mnist",
        small_config.validation_size,
        small_config.seed,
        sample_artifacts,
    )


@pytest.fixture(scope="session")
def backend() -> None:
    """Import the backend as the train stage does. Keras alone would import every installed backend, for seconds."""
    set_up_backend(0)


@pytest.fixture(scope="session")
def sample_trained(
    backend: None,
    sample_prepared: PreparedData,
    sample_artifacts: Path,
    small_config: TrainingConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> TrainedModel:
    with _here(tmp_path_factory):
        return train.fn(sample_prepared, small_config, sample_artifacts)


@pytest.fixture(scope="session")
def sample_version(
    sample_data: dict[Split, ValidatedSplit],
    sample_prepared: PreparedData,
    sample_trained: TrainedModel,
    small_config: TrainingConfig,
    sample_artifacts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of a version that the stages made from the sample; read-only."""
    artifacts = tmp_path_factory.mktemp("version")
    floor = PromotionConfig(minimum_accuracy=0, minimum_recall=0)
    with _here(tmp_path_factory):
        evaluation = evaluate.fn(sample_prepared, sample_trained, sample_artifacts)
        return version.fn(sample_data, sample_prepared, sample_trained, evaluation, small_config, floor, artifacts).path


@pytest.fixture(scope="module")
def in_this_process(backend: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run worker processes' code in this process: each process would import the backend, which takes seconds."""
    with _here(tmp_path_factory):
        yield


@contextmanager
def _here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Apply `in_this_process` during the block."""

    @contextmanager
    def here(module: str, job: dict[str, Any], host: str | None = None) -> Iterator[SimpleNamespace]:
        main = importlib.import_module(module).main
        yield SimpleNamespace(result=lambda on_event=lambda event: None: main(job, on_event))

    with pytest.MonkeyPatch.context() as patch:
        for starter in ("tasks.train", "tasks.model.inference", "tasks.model.run_export", "tasks.registry.export"):
            patch.setattr(f"{starter}.run_worker", here)
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("scratch")))  # a process would remove it
        patch.setattr("tasks.model.warm_up.prestart", lambda module: None)
        yield


@pytest.fixture(scope="session")
def two_versions(
    backend: None, sample_data: dict[Split, ValidatedSplit], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An artifacts folder with two untrained versions that predict differently; 1 is the champion. Read-only.

    Their profile has the same histogram in every class, because the classes that they predict mean nothing.
    """
    from tasks.model.network import build_network, topology_bytes

    artifacts = tmp_path_factory.mktemp("two-versions")
    store = ModelStore.of(artifacts, FASHION_MNIST.name)

    def write(folder: Path, number: int) -> VersionFacts:
        set_up_backend(number)
        model = build_network(FASHION_MNIST, TrainingConfig())
        (folder / "topology.json").write_bytes(topology_bytes(model))
        model.save_weights(folder / "model.weights.h5")
        profile = read_profile((sample_data["train"].record.path / PROFILE_NAME).read_bytes())
        every = dict.fromkeys(profile.mean_images, profile.histogram)
        fits = dict.fromkeys(profile.mean_images, sum(profile.class_fits.values()) / 10)
        write_profile(folder / PROFILE_NAME, replace(profile, class_histograms=every, class_fits=fits))
        write_json(folder / METRICS_NAME, {"per_class": [{"recall": 0.0, "rows": 20}] * 10})
        fill(folder)
        return facts()

    with store.lock():
        for _ in range(2):
            store.add(write)
        store.aliases.append(event(1))
    return artifacts
