"""A version that is loaded from MLflow, or served by it, gives the stored predictions."""

import hashlib
import json
import os
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

from schemas.contract import FASHION_MNIST
from schemas.layout import GOLDEN_NAME, PREDICTIONS_NAME, TOPOLOGY_NAME, WEIGHTS_NAME
from schemas.references import ModelVersion
from tasks.model.fashion_ann_pyfunc import CONTENT_NAME
from tasks.model.test_predictions import StoredPredictions, read_predictions
from tests.mlflow_server.servers import model_server
from tests.sample import SAMPLE

NAME = "fashion-mnist"
Add = Callable[..., ModelVersion]

pytestmark = [
    pytest.mark.parametrize("server", ["sqlite"], indirect=True),  # models are files, not rows of the database
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),  # of mlflow's own classes
]


@pytest.fixture
def stored(configured: str, client: MlflowClient, add: Add) -> StoredPredictions:
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
