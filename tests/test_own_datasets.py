"""Own datasets in the forms that people have, from `dataset init` to predictions."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from schemas.config import PromotionConfig, TrainingConfig
from schemas.contract import SPLITS, contract_of
from schemas.errors import CandidateRejected, DataContractError
from schemas.layout import MANIFEST_NAME, METRICS_NAME, WEIGHTS_NAME
from schemas.references import ModelVersion, ParquetSplit
from tasks.checks.new_dataset import init_dataset
from tasks.evaluate import evaluate
from tasks.fetch import fetch
from tasks.ingest import ingest
from tasks.predict import predict
from tasks.prepare import prepare
from tasks.train import train
from tasks.validate import validate
from tasks.version import version
from tests import own_data
from tests.own_data import Images, Labels


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the dataset files."""
    monkeypatch.setenv("FASHION_ANN_DATASETS_DIR", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def init_own(data: Path, write: Callable[[Path], None], **options: Any) -> None:
    """Write CSVs to the new folder ``data``, and the dataset file "mine"."""
    data.mkdir()
    write(data)
    init_dataset("mine", data, **options)


DEFAULT_PROMOTION = PromotionConfig()
NO_FLOOR = PromotionConfig(minimum_accuracy=0, minimum_recall=0)


def run(
    name: str, data: Path, artifacts: Path, recipe: TrainingConfig, promotion: PromotionConfig = DEFAULT_PROMOTION
) -> ModelVersion:
    """Run every stage."""
    csvs = fetch.fn(name, data)
    parquet: dict[str, ParquetSplit] = {part: ingest.fn(csvs[part], name, artifacts) for part in SPLITS}
    train_split = validate.fn(parquet["train"], name, artifacts)
    test_split = validate.fn(parquet["test"], name, artifacts, train_split)
    prepared = prepare.fn(train_split, test_split, name, recipe.validation_size, recipe.seed, artifacts)
    trained = train.fn(prepared, recipe, artifacts)
    evaluation = evaluate.fn(prepared, trained, artifacts)
    splits = {"train": train_split, "test": test_split}
    result: ModelVersion = version.fn(splits, prepared, trained, evaluation, recipe, promotion, artifacts)
    return result


FORMS: list[tuple[Callable[[Path], None], dict[str, Any], str, str]] = [
    (own_data.sign_language, {}, "sign_mnist_test.csv", "0..8, 10..24"),
    (own_data.emnist_letters, {"transpose": True}, "emnist-letters-test.csv", "1..26"),
    (own_data.kmnist, {}, "kmnist_test.csv", "0..9"),
    (own_data.digit_recognizer, {"holdout": 0.1}, "test.csv", "0..9"),
    (own_data.three_classes, {"like": "fashion-mnist"}, "shapes_test.csv", "0..2"),
]


def _shift(labels: Labels) -> Labels:
    known, at = np.unique(labels, return_inverse=True)
    return np.asarray(np.roll(known, 1)[at])


def _permute(images: Images) -> Images:
    order = np.random.default_rng(0).permutation(784)
    return images.reshape(-1, 784)[:, order].reshape(images.shape)


# Faults of a split of photographs: the check that rejects it, and the edit of images (N, 28, 28) or labels.
IMAGE_FAULTS: dict[str, tuple[str, Callable[[Images], Images]]] = {
    "inverted": ("polarity", lambda images: 255 - images),
    "transposed": ("orientation", lambda images: images.transpose(0, 2, 1)),
    "mirrored": ("orientation", lambda images: images[:, :, ::-1]),
    "moved": ("position", lambda images: np.roll(images, 2, axis=2)),
    "permuted": ("similarity", _permute),
    "blank": ("blank_images", lambda images: images * (np.arange(len(images)) % 9 > 0)[:, None, None]),
    "a faulty part": ("faulty_chunks", lambda images: np.concatenate([images[:330, ::-1], images[330:]])),
}
LABEL_FAULTS: dict[str, tuple[str, Callable[[Labels], Labels]]] = {
    "shuffled": ("label_relation", lambda labels: np.random.default_rng(0).permutation(labels)),
    "shifted": ("label_permutation: the labels look permuted: 0 (0) looks like 1 (1), 1 (1)", _shift),
}


def test_checks_work_with_a_profile_of_own_photographs(tmp_path: Path) -> None:
    data, artifacts = tmp_path / "csvs", tmp_path / "artifacts"
    init_own(data, own_data.sign_language)
    csvs = fetch.fn("mine", data)
    train_split = validate.fn(ingest.fn(csvs["train"], "mine", artifacts), "mine", artifacts)
    rows = np.loadtxt(data / "sign_mnist_test.csv", delimiter=",", skiprows=1, dtype=np.int64)
    images, labels = rows[:, 1:].reshape(-1, 28, 28).astype(np.uint8), rows[:, 0]
    splits = {name: (change(images), labels) for name, (_, change) in IMAGE_FAULTS.items()}
    splits |= {name: (images, change(labels)) for name, (_, change) in LABEL_FAULTS.items()}
    rejected = {}
    for name, rows_of_split in splits.items():
        own_data.write_csv(data / "sign_mnist_test.csv", *rows_of_split, ["label", *own_data.numbered(784, 1)])
        with pytest.raises(DataContractError) as caught:
            validate.fn(ingest.fn(fetch.fn("mine", data)["test"], "mine", artifacts), "mine", artifacts, train_split)
        rejected[name] = str(caught.value)
    for name, (check, _) in {**IMAGE_FAULTS, **LABEL_FAULTS}.items():
        assert re.search(rf"(: |^ +){re.escape(check)}", rejected[name], re.MULTILINE), name


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(("write", "options", "images", "labels"), FORMS, ids=[form[0].__name__ for form in FORMS])
def test_a_form_trains_and_predicts(
    write: Callable[[Path], None], options: dict[str, Any], images: str, labels: str, tmp_path: Path
) -> None:
    data, artifacts = tmp_path / "csvs", tmp_path / "artifacts"
    init_own(data, write, **options)
    contract = contract_of("mine")
    assert contract.label_ranges == labels
    stored = run("mine", data, artifacts, TrainingConfig())
    assert stored.champion
    out = predict.fn(data / images, tmp_path / "predicted.csv", "champion", "mine", artifacts)
    predicted = pd.read_csv(out.output)
    assert [name for name in predicted if name[1:].isdigit()] == [f"p{label}" for label in contract.class_labels]
    assert set(predicted["predicted_label"]) <= set(contract.class_labels)


@pytest.mark.usefixtures("in_this_process")
def test_the_dataset_file_decides_what_is_rejected(tmp_path: Path, datasets: Path) -> None:
    data, artifacts = tmp_path / "csvs", tmp_path / "artifacts"
    init_own(data, own_data.three_classes)
    file = datasets / "mine.toml"
    minimum = contract_of("mine").promotion.minimum_accuracy
    with pytest.raises(CandidateRejected, match=rf"expected >= {minimum}"):
        # Nearly no step: the initial weights.
        run("mine", data, artifacts, TrainingConfig(epochs=1, learning_rate=1e-9))
    file.write_text(file.read_text().replace(f"minimum_accuracy = {minimum}", "minimum_accuracy = 0.01"))
    file.write_text(re.sub("minimum_recall = .*", "minimum_recall = 0", file.read_text()))
    second = run("mine", data, artifacts, TrainingConfig(epochs=1, learning_rate=1e-9))
    assert second.champion
    manifest = json.loads((second.path / MANIFEST_NAME).read_bytes())
    assert (manifest["promotion"]["minimum_accuracy"], manifest["promotion"]["minimum_recall"]) == (0.01, 0)


@pytest.mark.usefixtures("in_this_process")
def test_another_class_name_adds_a_version_of_the_same_model(tmp_path: Path, datasets: Path) -> None:
    data, artifacts = tmp_path / "csvs", tmp_path / "artifacts"
    init_own(data, own_data.three_classes)
    recipe = TrainingConfig(epochs=1)
    first = run("mine", data, artifacts, recipe, NO_FLOOR)
    file = datasets / "mine.toml"
    file.write_text(file.read_text().replace('0 = "0"', '0 = "circle"'))
    second = run("mine", data, artifacts, recipe, NO_FLOOR)
    assert second.created
    weights = [(stored.path / WEIGHTS_NAME).read_bytes() for stored in (first, second)]
    assert weights[0] == weights[1]
    metrics = [json.loads((stored.path / METRICS_NAME).read_bytes()) for stored in (first, second)]
    assert [stored["per_class"][0]["name"] for stored in metrics] == ["0", "circle"]
