"""A second dataset is a second contract and nothing else: the digits go through every stage by the default recipe."""

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from schemas.config import PromotionConfig, TrainingConfig
from schemas.contract import DIGITS, SPLITS
from schemas.references import ParquetSplit
from tasks.evaluate import evaluate
from tasks.fetch import fetch
from tasks.ingest import ingest
from tasks.predict import predict
from tasks.prepare import prepare
from tasks.registry.store import ModelStore
from tasks.train import train
from tasks.validate import validate
from tasks.version import version


@pytest.mark.usefixtures("in_this_process")
def test_the_digits_train_version_and_predict_with_the_same_code(tmp_path: Path) -> None:
    data, artifacts, recipe = tmp_path / "data", tmp_path / "artifacts", TrainingConfig()
    csvs = fetch.fn(DIGITS.name, data)
    parquet: dict[str, ParquetSplit] = {split: ingest.fn(csvs[split], DIGITS.name, artifacts) for split in SPLITS}
    assert {split: parquet[split].rows for split in SPLITS} == {"train": 1_438, "test": 359}
    of_train = validate.fn(parquet["train"], DIGITS.name, artifacts)
    of_test = validate.fn(parquet["test"], DIGITS.name, artifacts, of_train)
    assert (of_train.warnings, of_test.warnings) == ((), ())
    prepared = prepare.fn(of_train, of_test, DIGITS.name, recipe.validation_size, recipe.seed, artifacts)
    trained = train.fn(prepared, recipe, artifacts)
    judged = evaluate.fn(prepared, trained, artifacts)
    made = version.fn(
        {"train": of_train, "test": of_test}, prepared, trained, judged, recipe, PromotionConfig(), artifacts
    )
    assert made.path == ModelStore.of(artifacts, DIGITS.name).folder(1)
    assert made.path.parts[-4:-2] == ("models", "digits")
    # Plain logistic regression has 0.95 on such a split.
    assert made.test_accuracy > 0.95

    images = csvs["test"].files[0].path
    predictions = predict.fn(images, tmp_path / "predictions.parquet", "champion", DIGITS.name, artifacts)
    predicted = pq.read_table(predictions.output).to_pandas()
    right = predicted["label"].to_numpy() == pd.read_csv(images)["label"].to_numpy()
    assert float(right.mean()) == pytest.approx(made.test_accuracy)
