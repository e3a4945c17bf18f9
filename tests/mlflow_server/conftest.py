"""Start MLflow servers on sqlite and Postgres once per session, and give each test a server's address and a store."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from schemas.config import MLFLOW_VARIABLE, PromotionConfig, TrainingConfig
from schemas.contract import Split
from schemas.references import Evaluation, ModelVersion, PreparedData, TrainedModel, ValidatedSplit
from tasks.evaluate import evaluate
from tasks.registry.store import ModelStore
from tasks.reports import mlflow_sync
from tasks.version import version
from tests.deployed.postgres import MISSING, binaries, postgres_cluster
from tests.mlflow_server.servers import tracking_server


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server, without experiments and models."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        with tracking_server(folder, f"sqlite:///{folder}/mlflow.db") as address:
            yield address
        return
    programs = binaries()
    assert programs is not None, MISSING
    with postgres_cluster(programs) as cluster:
        database = cluster.new_database("mlflow").replace("postgresql+asyncpg", "postgresql+psycopg2")
        with tracking_server(folder, database) as address:
            yield address


@pytest.fixture
def client(server: str) -> Iterator[MlflowClient]:
    """A client of the server. Its models and runs are deleted at the end."""
    client = MlflowClient(server)
    yield client
    for model in client.search_registered_models():
        client.delete_registered_model(model.name)
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            client.delete_run(run.info.run_id)
        for model in client.search_logged_models([experiment.experiment_id]):
            client.delete_logged_model(model.model_id)


@pytest.fixture
def configured(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set MLFLOW_TRACKING_URI to the server, and return its address. A busy machine does not exceed the time limit."""
    monkeypatch.setenv(MLFLOW_VARIABLE, server)
    monkeypatch.setattr(mlflow_sync, "SECONDS_TO_UPDATE", 600)
    return server


@pytest.fixture(scope="session")
def sample_evaluation(
    sample_prepared: PreparedData, sample_trained: TrainedModel, sample_artifacts: Path
) -> Evaluation:
    return evaluate.fn(sample_prepared, sample_trained, sample_artifacts)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore.of(tmp_path / "artifacts", "fashion-mnist")


@pytest.fixture
def add(
    sample_data: dict[Split, ValidatedSplit],
    sample_prepared: PreparedData,
    sample_trained: TrainedModel,
    sample_evaluation: Evaluation,
    small_config: TrainingConfig,
    tmp_path: Path,
) -> Callable[..., ModelVersion]:
    """Return the stage that adds a version of the sample. Another ``significance`` makes another version."""

    def add_version(significance: float, policy: str = "not_worse") -> ModelVersion:
        rules = {"minimum_accuracy": 0, "minimum_recall": 0, "policy": policy, "significance": significance}
        return version.fn(
            sample_data,
            sample_prepared,
            sample_trained,
            sample_evaluation,
            small_config,
            PromotionConfig.model_validate(rules),
            tmp_path / "artifacts",
        )

    return add_version
