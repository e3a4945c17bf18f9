"""MLflow has every version, metric and alias of the store: after moves, kills and while it was away."""

import json
import logging
import socket
import subprocess
from collections.abc import Callable

import pytest
from mlflow import MlflowClient

from cli.server_process import HOST, free_port
from schemas.config import MLFLOW_VARIABLE, python_command
from schemas.errors import MlflowUnavailable
from schemas.layout import METRICS_NAME
from schemas.references import ModelVersion
from tasks.promote_version import promote
from tasks.registry.alias_log import alias_values
from tasks.registry.champion import set_alias
from tasks.registry.store import ModelStore
from tasks.reports.mlflow_sync import DIGEST_TAG, VERSION_TAG, synchronize, update_mlflow
from tasks.rollback_champion import rollback
from tests.processes.kill import killed_when
from tests.stored import add_promoted

NAME = "fashion-mnist"
Add = Callable[..., ModelVersion]


def require_equal(client: MlflowClient, store: ModelStore) -> None:
    """Compare all versions, parameters, metrics, files, data digests and aliases of MLflow with the store."""
    registered = {int(found.tags[VERSION_TAG]): found for found in client.search_model_versions(f"name='{NAME}'")}
    assert sorted(registered) == store.numbers()
    for number, found in registered.items():
        version = store.version(number)
        assert found.tags[DIGEST_TAG] == version.manifest.manifest_sha256
        run = client.get_run(found.run_id)
        assert run.info.status == "FINISHED"
        metrics = json.loads(version.read(METRICS_NAME))
        for key in ("test_accuracy", "test_loss", "expected_calibration_error"):
            assert run.data.metrics[key] == pytest.approx(metrics[key], abs=1e-12)
        coat = next(row for row in metrics["per_class"] if row["name"] == "Coat")
        assert run.data.metrics["per_class/Coat/recall"] == pytest.approx(coat["recall"], abs=1e-12)
        for key in ("loss", "accuracy", "val_loss", "val_accuracy"):
            logged = sorted((entry.step, entry.value) for entry in client.get_metric_history(found.run_id, key))
            assert [step for step, _ in logged] == list(range(1, len(metrics["history"]) + 1))
            assert [value for _, value in logged] == pytest.approx([epoch[key] for epoch in metrics["history"]])
        assert run.data.params["learning_rate"] == str(version.manifest.configuration["learning_rate"])
        assert run.data.params["promotion.significance"] == str(version.manifest.promotion["significance"])
        digests = {entry.dataset.name: entry.dataset.digest for entry in run.inputs.dataset_inputs}
        data = version.manifest.data
        for split, stored in (("train", data.train), ("test", data.test)):
            assert (stored.content_sha256 or "").startswith(digests[f"{NAME} {split}"])
        files = {file.path for file in client.list_artifacts(found.run_id)}
        assert {"manifest.json", "report.html", "metrics.json", "verdict.json"} <= files
        plots = {file.path for file in client.list_artifacts(found.run_id, "plots")}
        assert plots == {"plots/learning_curves.svg", "plots/confusion_matrix.svg"}
    runs = client.search_runs([client.get_experiment_by_name(NAME).experiment_id])
    assert sorted(run.info.run_id for run in runs) == sorted(found.run_id for found in registered.values())
    aliases = client.get_registered_model(NAME).aliases
    expected = alias_values(store.aliases.read())
    assert {alias: int(number) for alias, number in aliases.items()} == {
        alias: int(registered[number].version) for alias, number in expected.items()
    }


def test_versions_metrics_and_aliases_follow_the_store(
    client: MlflowClient, configured: str, store: ModelStore, add: Add
) -> None:
    assert add(0.01).champion
    require_equal(client, store)
    assert not add(0.02, "never").champion
    artifacts_dir = store.root.parent.parent
    promote.fn(NAME, "2", "a test", artifacts_dir)
    require_equal(client, store)
    assert client.get_model_version_by_alias(NAME, "champion").tags[VERSION_TAG] == "2"
    rollback.fn(NAME, "a test", artifacts_dir)
    require_equal(client, store)
    assert client.get_model_version_by_alias(NAME, "champion").tags[VERSION_TAG] == "1"
    set_alias(store, 2, "staging", "a test")
    update_mlflow(store)
    require_equal(client, store)


def test_run_continues_without_mlflow_and_sync_adds_what_is_missing(
    client: MlflowClient,
    server: str,
    store: ModelStore,
    add: Add,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(MLFLOW_VARIABLE, f"http://{HOST}:{free_port()}")
    with caplog.at_level(logging.WARNING):
        assert add(0.01).champion
    assert "MLflow is not up to date" in caplog.text
    monkeypatch.delenv(MLFLOW_VARIABLE)
    add(0.02, "never")
    artifacts_dir = str(store.root.parent.parent)
    sync = [
        *python_command("cli.main", "mlflow", "sync"),
        "--artifacts-dir",
        artifacts_dir,
        "--mlflow",
        server,
        "--json",
    ]
    for added in ([1, 2], []):
        done = subprocess.run(sync, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["added"] == added
        require_equal(client, store)


def test_killed_update_is_completed_by_the_next(
    client: MlflowClient, configured: str, store: ModelStore, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(MLFLOW_VARIABLE)
    add(0.01)
    monkeypatch.setenv(MLFLOW_VARIABLE, configured)

    def is_half_logged() -> bool:
        experiment = client.get_experiment_by_name(NAME)
        runs = [] if experiment is None else client.search_runs([experiment.experiment_id])
        return any(run.data.metrics for run in runs)

    killed_when(is_half_logged, synchronize, store)
    assert list(client.search_model_versions(f"name='{NAME}'")) == []
    assert synchronize(store).added == [1]
    require_equal(client, store)


def test_a_reserved_alias_prevents_no_other(
    client: MlflowClient, configured: str, store: ModelStore, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(MLFLOW_VARIABLE)
    add(0.01)
    for alias in ("Latest", "staging"):
        set_alias(store, 1, alias, "a test")
    monkeypatch.setenv(MLFLOW_VARIABLE, configured)
    state = synchronize(store)
    assert state.faults == ["The alias Latest is not in MLflow, which reserves this name."]
    assert state.aliases == {"champion": 1, "staging": 1}


def test_alias_of_a_damaged_version_names_no_other(
    client: MlflowClient, configured: str, store: ModelStore, add: Add
) -> None:
    add(0.01)
    add(0.02, "never")
    client.delete_model_version(NAME, "1")
    for alias in ("champion", "theirs"):
        client.set_registered_model_alias(NAME, alias, "2")
    (store.folder(1) / METRICS_NAME).write_text("{}")
    state = synchronize(store)
    assert (state.versions, state.aliases) == ({2: 2}, {})
    assert "metrics.json" in state.faults[0]
    assert client.get_registered_model(NAME).aliases == {"theirs": "2"}


def test_server_that_never_answers_is_left(configured: str, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    add_promoted(store.root)
    with socket.create_server((HOST, 0)) as silent:
        monkeypatch.setenv(MLFLOW_VARIABLE, f"http://user:secret@{HOST}:{silent.getsockname()[1]}")
        with pytest.raises(MlflowUnavailable, match=r"http://127\.0\.0\.1:\d+: it did not finish in 6 s\.") as raised:
            synchronize(store, seconds=6)
    assert "secret" not in str(raised.value)
