"""Write report.html: one file that a browser opens offline, from the files of a version and its test images."""

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.config import PROGRAM, PromotionConfig, TrainingConfig
from schemas.contract import DEFAULT_DATASET, SPLITS, DatasetContract
from schemas.layout import (
    INDEX_NAME,
    MANIFEST_NAME,
    METRICS_NAME,
    PREDICTIONS_NAME,
    REPORT_NAME,
    VERDICT_NAME,
    WEIGHTS_NAME,
    Artifacts,
)
from schemas.store import Cost, Verdict
from tasks.data.splits import Images
from tasks.model.backend import DEFAULT_ENVIRONMENT
from tasks.model.disturbances import DISTURBED_IMAGES
from tasks.model.metrics import precision_recall
from tasks.model.network import Network, read_weights
from tasks.model.test_predictions import StoredPredictions, read_predictions
from tasks.reports.charts import RELIABILITY_CHART, Chart, curve_chart, learning_charts
from tasks.reports.images import image_uri, weights_picture
from tasks.reports.rendering import render
from tasks.runtime.fingerprint import extra_of
from tasks.runtime.stages import STAGES


@dataclass(frozen=True)
class ClassProbability:
    """A class and its predicted probability, 0 to 1. ``correct``: it is the true class."""

    name: str
    probability: float
    correct: bool


@dataclass(frozen=True)
class PredictedImage:
    """A test image with its row, its true and predicted class, and the most probable classes."""

    uri: str
    row: int
    true_class: str
    predicted_class: str
    probabilities: tuple[ClassProbability, ...]


def write_report(
    folder: Path, version: int, manifest: Mapping[str, Any], images: Images, contract: DatasetContract
) -> None:
    """Write report.html into ``folder``, which contains the other files of the version.

    ``manifest`` has no digests of files yet. ``images`` are the test images, uint8 (N, pixels), in the
    order of the stored predictions.
    """
    metrics = json.loads((folder / METRICS_NAME).read_bytes())
    predictions = read_predictions(folder / PREDICTIONS_NAME, contract)
    history, lineage = metrics["history"], manifest["lineage"]
    network = Network.of(contract, TrainingConfig.model_validate(manifest["configuration"]))
    html = render(
        "version.html",
        contract=contract,
        layers=_layers(network, metrics["inactive_units"]),
        version=version,
        manifest=manifest,
        metrics=metrics,
        verdict=Verdict.parse(json.loads((folder / VERDICT_NAME).read_bytes()), VERDICT_NAME),
        error_count=int((~predictions.right).sum()),
        classes=[row for row in metrics["per_class"] if row["rows"]],
        confusions=_most_frequent_confusions(metrics["confusion_matrix"], contract),
        errors=predicted_images(most_confident_errors(predictions), predictions, images, contract),
        samples=_samples(predictions, images, contract),
        learning=learning_charts(history),
        best_epoch=min(range(len(history)), key=lambda epoch: float(history[epoch]["val_loss"])) + 1,
        reliability=RELIABILITY_CHART,
        curves=_precision_recall_curves(predictions, metrics["per_class"]),
        cost=Cost.parse(metrics["cost"], METRICS_NAME).figures(),
        weights=weights_picture(read_weights(folder / WEIGHTS_NAME, network)[0], contract.height, contract.width),
        meanings={
            key: field.description
            for model in (TrainingConfig, PromotionConfig)
            for key, field in model.model_fields.items()
        },
        disturbances=DISTURBED_IMAGES,
        flag_value=_flag_value,
        commands=commands({**manifest, "version": version}),
        checks={split: _checks(manifest["data"][split]["checks"]) for split in SPLITS},
        computed_seconds=sum(stage["seconds"] for stage in lineage if not stage["reused"]),
        total_seconds=sum(stage["seconds"] for stage in lineage),
        purposes={stage.name: stage.purpose for stage in STAGES},
        files=[*sorted(path.name for path in folder.iterdir()), MANIFEST_NAME],
        data_docs=_data_docs(folder),
    )
    (folder / REPORT_NAME).write_text(html, encoding="utf-8")


def most_confident_errors(predictions: StoredPredictions) -> npt.NDArray[np.int64]:
    """Return the rows of up to 25 wrong predictions, the most confident first."""
    wrong = np.flatnonzero(~predictions.right)
    return wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][:25]


def predicted_images(
    rows: Iterable[int], predictions: StoredPredictions, images: Images, contract: DatasetContract
) -> list[PredictedImage]:
    """Return these rows of ``images``, uint8 (N, pixels), with their three most probable classes."""
    numbers = list(map(int, rows))
    shown = []
    for row, image in zip(numbers, images[numbers], strict=True):
        label = int(predictions.labels[row])
        top = np.argsort(-predictions.probabilities[row], kind="stable")[:3].tolist()
        classes = [class_probability(predictions, row, one, contract) for one in top]
        if label not in top:  # always show the probability of the true class
            classes[-1] = class_probability(predictions, row, label, contract)
        shown.append(
            PredictedImage(
                image_uri(image, contract), row, contract.class_names[label], classes[0].name, tuple(classes)
            )
        )
    return shown


def class_probability(
    predictions: StoredPredictions, row: int, label: int, contract: DatasetContract
) -> ClassProbability:
    """Return the predicted probability of class ``label`` for a row."""
    probability = float(predictions.probabilities[row, label])
    return ClassProbability(contract.class_names[label], probability, label == predictions.labels[row])


def _samples(
    predictions: StoredPredictions, images: Images, contract: DatasetContract
) -> list[tuple[str, list[PredictedImage]]]:
    """Return the first eight test images of each class, with the class name."""
    return [
        (name, predicted_images(np.flatnonzero(predictions.labels == label)[:8], predictions, images, contract))
        for label, name in enumerate(contract.class_names)
    ]


def _precision_recall_curves(
    predictions: StoredPredictions, per_class: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], Chart]]:
    """Return up to 24 classes with their curve, those with the lowest average precision first."""
    shown = sorted((row for row in per_class if row["rows"]), key=lambda row: float(row["average_precision"]))[:24]
    places = {row["label"]: place for place, row in enumerate(per_class)}
    return [
        (row, curve_chart(*precision_recall(predictions.probabilities[:, place], predictions.labels == place)))
        for row in shown
        for place in [places[row["label"]]]
    ]


def _most_frequent_confusions(matrix: list[list[int]], contract: DatasetContract) -> list[dict[str, Any]]:
    """Return up to five off-diagonal cells of the confusion matrix, with their share of the true class."""
    cells: list[dict[str, Any]] = [
        {
            "true_class": contract.class_names[label],
            "predicted_class": contract.class_names[predicted],
            "count": count,
            "share": count / sum(row),
        }
        for label, row in enumerate(matrix)
        for predicted, count in enumerate(row)
        if predicted != label and count
    ]
    return sorted(cells, key=lambda cell: -cell["count"])[:5]


def _checks(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge the results of each check, one per bound, into one row with all its bounds."""
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        row = rows.setdefault(result["check"], {**result, "bounds": [], "warned": False})
        severity = "warning" if result["severity"] == "warning" else "failure"
        row["bounds"].append(f"{severity} unless {result['bound']}")
        row["warned"] = row["warned"] or result["result"] == "warned"
    return list(rows.values())


def _data_docs(folder: Path) -> str | None:
    """Return the relative link from a version's folder to Great Expectations' pages, None without pages."""
    index = Artifacts(folder.parents[3]).data_docs / INDEX_NAME
    return f"../../../../{index.parent.name}/{index.name}" if index.is_file() else None


def _layers(network: Network, inactive_units: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the row of each layer with weights: its name, kind, outputs, parameters and inactive units."""
    shapes = list(network.weights().values())
    names = [layer["name"] for layer in network.topology()["config"]["layers"] if layer["class_name"] == "Dense"]
    return [
        {
            "name": name,
            "kind": f"Dense, {network.activation if name in inactive_units else 'softmax'}",
            "outputs": bias[0],
            "parameters": math.prod(kernel) + bias[0],
            "inactive": inactive_units.get(name),
        }
        for name, kernel, bias in zip(names, shapes[::2], shapes[1::2], strict=True)
    ]


def _flag_value(value: Any) -> str:
    parts = [f"{name}={part}" for name, part in value.items()] if isinstance(value, Mapping) else value
    return ",".join(map(str, parts)) if isinstance(parts, list) else str(parts)


def commands(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the shell commands of a version by name, as typed in a checkout.

    ``install`` creates the .venv from the version's lock. ``train`` states every setting, so it does not depend on
    defaults. ``compare`` exists only for a version that was compared with a champion.
    """
    dataset, version, champion = manifest["dataset"], manifest["version"], manifest["parent"]
    about = [] if dataset == DEFAULT_DATASET else ["--dataset", dataset]
    flags = {key: manifest["configuration"].get(key) for key in TrainingConfig.model_fields}
    if bad_rows := max(manifest["data"][split]["quarantined"] for split in SPLITS):
        flags["bad_rows"] = bad_rows
    # A GPU adds in a different order, so only a CPU repeats the weights of a CPU.
    if manifest["device"]["kind"] == "cpu":
        flags["device"] = "cpu"
    flags |= {
        "promotion_policy" if key == "policy" else key: value
        for key, default in PromotionConfig().model_dump().items()
        if (value := manifest["promotion"].get(key, default)) != default
    }
    options = [
        word
        for key, value in flags.items()
        if value is not None
        for word in (f"--{key.replace('_', '-')}", _flag_value(value))
    ]
    words = {
        "install": ["make", f".venv/{extra_of(manifest['packages'])}.stamp"],
        "train": [PROGRAM, "train", *about, *options],
        "reproduce": [PROGRAM, "reproduce", str(version), *about],
        "verify": [PROGRAM, "verify", str(version), *about],
        "versions": [PROGRAM, "versions", *about],
        "report": [PROGRAM, "report", str(version), "--open", *about],
    }
    if champion is not None:
        words["compare"] = [PROGRAM, "compare", str(champion), str(version), *about]
    lines = {name: shlex.join(command) for name, command in words.items()}
    for variable, value in manifest.get("environment", {}).items():
        if value != DEFAULT_ENVIRONMENT.get(variable):
            for name in ("train", "reproduce"):
                lines[name] = f"{variable}={shlex.quote(value)} {lines[name]}"
    return lines
