"""The digits, a second dataset, pass through every stage with the default recipe: only the contract differs."""

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from schemas.config import PromotionConfig, TrainingConfig
from schemas.contract import SPLITS, contract_of
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

DIGITS = contract_of("digits")


@pytest.mark.usefixtures("in_this_process")
def test_digits_train_version_and_predict(tmp_path: Path) -> None:
    data, artifacts, recipe = tmp_path / "data", tmp_path / "artifacts", TrainingConfig()
    csvs = fetch.fn(DIGITS.name, data, opted_in=True)
    parquet: dict[str, ParquetSplit] = {split: ingest.fn(csvs[split], DIGITS.name, artifacts) for split in SPLITS}
    assert {split: parquet[split].rows for split in SPLITS} == {"train": 1_438, "test": 359}
    train_split = validate.fn(parquet["train"], DIGITS.name, artifacts)
    test_split = validate.fn(parquet["test"], DIGITS.name, artifacts, train_split)
    assert (train_split.warnings, test_split.warnings) == ((), ())
    prepared = prepare.fn(train_split, test_split, DIGITS.name, recipe.validation_size, recipe.seed, artifacts)
    trained = train.fn(prepared, recipe, artifacts)
    evaluation = evaluate.fn(prepared, trained, artifacts)
    splits = {"train": train_split, "test": test_split}
    stored = version.fn(splits, prepared, trained, evaluation, recipe, PromotionConfig(), artifacts)
    assert stored.path == ModelStore.of(artifacts, DIGITS.name).folder(1)
    assert stored.path.parts[-4:-2] == ("models", "digits")
    # Plain logistic regression reaches 0.95 on such a split.
    assert stored.test_accuracy > 0.95

    images = csvs["test"].files[0].path
    predictions = predict.fn(images, tmp_path / "predictions.parquet", "champion", DIGITS.name, artifacts)
    predicted = pq.read_table(predictions.output).to_pandas()
    correct = predicted["predicted_label"].to_numpy() == pd.read_csv(images)["label"].to_numpy()
    assert float(correct.mean()) == pytest.approx(stored.test_accuracy)
