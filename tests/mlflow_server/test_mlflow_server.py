"""MLflow has every version, metric and alias of the store: after moves, kills and while it was away."""

import hashlib
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from cli.server_process import HOST, free_port
from schemas.config import MLFLOW_VARIABLE, python_command
from schemas.contract import FASHION_MNIST
from schemas.errors import MlflowUnavailable
from schemas.layout import GOLDEN_NAME, METRICS_NAME, PREDICTIONS_NAME, TOPOLOGY_NAME, WEIGHTS_NAME
from schemas.references import ModelVersion
from tasks.model.fashion_ann_pyfunc import CONTENT_NAME
from tasks.model.test_predictions import StoredPredictions, read_predictions
from tasks.promote_version import promote
from tasks.registry.alias_log import alias_values
from tasks.registry.champion import set_alias
from tasks.registry.store import ModelStore
from tasks.reports.mlflow_sync import DIGEST_TAG, VERSION_TAG, synchronize, update_mlflow
from tasks.rollback_champion import rollback
from tests.mlflow_server.servers import model_server
from tests.processes.kill import killed_when
from tests.sample import SAMPLE

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
    store.root.mkdir(parents=True)
    with socket.create_server((HOST, 0)) as silent:
        monkeypatch.setenv(MLFLOW_VARIABLE, f"http://user:secret@{HOST}:{silent.getsockname()[1]}")
        with pytest.raises(MlflowUnavailable, match=r"http://127\.0\.0\.1:\d+: it did not finish in 6 s\.") as raised:
            synchronize(store, seconds=6)
    assert "secret" not in str(raised.value)


@pytest.fixture
def stored(configured: str, client: MlflowClient, store: ModelStore, add: Add) -> StoredPredictions:
    """The stored predictions of a version that is champion in MLflow."""
    folder = add(0.01).path
    return read_predictions(folder / PREDICTIONS_NAME, FASHION_MNIST)


def _images() -> pd.DataFrame:
    return pd.read_csv(SAMPLE / "fashion-mnist_test.csv.gz").drop(columns="label").astype("uint8")


def _require_equal_predictions(received: pd.DataFrame, stored: StoredPredictions) -> None:
    probabilities = received[[f"p{label}" for label in FASHION_MNIST.class_labels]].to_numpy()
    assert np.abs(probabilities - stored.probabilities).max() <= 1e-6
    assert received["predicted_label"].tolist() == stored.predicted.tolist()
    assert received["name"].tolist() == [FASHION_MNIST.class_names[label] for label in stored.predicted]


def test_loaded_champion_gives_the_stored_predictions(stored: StoredPredictions, tmp_path: Path) -> None:
    # A fresh process without our code on its path.
    program = (
        "import sys, mlflow, pandas as pd\n"
        f"model = mlflow.pyfunc.load_model('models:/{NAME}@champion')\n"
        f"images = pd.read_csv({str(SAMPLE / 'fashion-mnist_test.csv.gz')!r}).drop(columns='label').astype('uint8')\n"
        "frame, array = model.predict(images), model.predict(images.to_numpy())\n"
        "assert frame.equals(array)\n"
        "assert not any(name.split('.')[0] in ('tasks', 'schemas') for name in sys.modules)\n"
        "frame.to_parquet(sys.argv[1])\n"
    )
    output = tmp_path / "predictions.parquet"
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-P", "-c", program, output], check=True, cwd=tmp_path, env=variables)
    _require_equal_predictions(pd.read_parquet(output), stored)


def test_model_has_signature_and_input_example(stored: StoredPredictions, configured: str) -> None:
    mlflow.set_tracking_uri(configured)
    info = mlflow.models.get_model_info(f"models:/{NAME}@champion")
    assert str(info.signature.inputs) == "[Tensor('uint8', (-1, 784))]"
    assert info.signature.outputs.input_names()[:3] == ["predicted_label", "name", "p0"]
    example = mlflow.pyfunc.load_model(f"models:/{NAME}@champion").input_example
    assert (example.dtype, example.shape) == (np.uint8, (2, 784))


def test_changed_model_is_not_loaded(stored: StoredPredictions, configured: str, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(configured)
    model = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}@champion", dst_path=str(tmp_path)))
    folder = model / "data" / NAME
    for name in (TOPOLOGY_NAME, WEIGHTS_NAME, GOLDEN_NAME):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=rf"{name}: expected sha256 [0-9a-f]{{64}}, received"):
            mlflow.pyfunc.load_model(str(model))
        (folder / name).write_bytes(content)
    description = json.loads((folder / CONTENT_NAME).read_bytes())

    def rewrite(name: str, content: str) -> None:
        """Replace a file and its digest, as somebody who can write both would."""
        (folder / name).write_text(content)
        description["sha256"][name] = hashlib.sha256(content.encode()).hexdigest()
        (folder / CONTENT_NAME).write_text(json.dumps(description))

    golden = json.loads((folder / GOLDEN_NAME).read_bytes())
    golden["probabilities"][0][0] += 0.001
    rewrite(GOLDEN_NAME, json.dumps(golden))
    with pytest.raises(ValueError, match="expected the golden predictions of version 1 within 1e-05"):
        mlflow.pyfunc.load_model(str(model))
    rewrite(TOPOLOGY_NAME, (folder / TOPOLOGY_NAME).read_text().replace('"Dropout"', '"Lambda"'))
    with pytest.raises(ValueError, match=r"expected layers .*, received \['Lambda'\]"):
        mlflow.pyfunc.load_model(str(model))


def test_served_champion_gives_the_stored_predictions(
    stored: StoredPredictions, configured: str, tmp_path: Path
) -> None:
    images = _images()
    with model_server(tmp_path, f"models:/{NAME}@champion", configured) as address:
        url = f"{address}/invocations"
        for body in ({"inputs": images.to_numpy().tolist()}, {"dataframe_split": images.to_dict(orient="split")}):
            response = httpx.post(url, json=body, timeout=60)
            assert response.status_code == 200, response.text
            _require_equal_predictions(pd.DataFrame(response.json()["predictions"]), stored)
        response = httpx.post(url, json={"inputs": (images / 255).to_numpy().tolist()}, timeout=60)
        assert response.is_error
        assert "without normalizing" in response.text
        response = httpx.post(url, json={"inputs": images.iloc[:, :700].to_numpy().tolist()}, timeout=60)
        assert response.status_code == 400
