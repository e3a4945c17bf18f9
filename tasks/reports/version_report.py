"""report.html: one file that a browser opens offline, made from the files of one version and its test images."""

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from schemas.config import PromotionConfig, TrainingConfig
from schemas.contract import FASHION_MNIST, SPLITS, DatasetContract
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
from tasks.data.splits import unscale_pixels
from tasks.model.network import HIDDEN_UNITS
from tasks.model.test_predictions import StoredPredictions, read_predictions
from tasks.reports.charts import epochs_chart, png_uri, reliability_chart, weights_picture
from tasks.runtime.fingerprint import extra_of

if TYPE_CHECKING:
    from jinja2 import Environment

_MISTAKES = 25
_SAMPLES_A_CLASS = 8
_CONFUSIONS = 5
_PROBABILITIES = 3
# As README has it: `make run` puts it there.
_PROGRAM = ".venv/bin/fashion-ann"


@dataclass(frozen=True)
class Chance:
    """A class with the probability that the model gave it, 0 to 1."""

    name: str
    probability: float
    true: bool


@dataclass(frozen=True)
class Picture:
    """A test image: its row, the class it is, the one that was said, and the likeliest classes."""

    uri: str
    row: int
    true: str
    said: str
    chances: tuple[Chance, ...]


def write_report(
    folder: Path, version: int, stated: Mapping[str, Any], images: npt.NDArray[np.float32], contract: DatasetContract
) -> None:
    """Write report.html into ``folder``, which holds the other files of the version.

    ``stated`` is its manifest so far; ``images`` are the test images, float32 (N, pixels) in [0, 1], in the order of
    the stored predictions.
    """
    metrics = json.loads((folder / METRICS_NAME).read_bytes())
    predictions = read_predictions(folder / PREDICTIONS_NAME, contract)
    rows = metrics["test_rows"]
    right = int(predictions.right.sum())
    history = metrics["history"]
    html = render(
        "report.html",
        contract=contract,
        hidden_units=HIDDEN_UNITS,
        version=version,
        stated=stated,
        metrics=metrics,
        verdict=json.loads((folder / VERDICT_NAME).read_bytes()),
        mistakes_in_all=rows - right,
        classes=[row for row in metrics["per_class"] if row["rows"]],
        confusions=_confusions(metrics["confusion_matrix"], contract),
        mistakes=pictures(most_confident_mistakes(predictions), predictions, images, contract),
        samples=_samples(predictions, images, contract),
        charts={
            name: epochs_chart(
                {
                    "train": [entry[name] for entry in history],
                    "validation": [entry[f"val_{name}"] for entry in history],
                },
                name,
            )
            for name in ("loss", "accuracy")
        },
        lowest=min(range(len(history)), key=lambda epoch: float(history[epoch]["val_loss"])) + 1,
        reliability=reliability_chart(metrics["calibration"]),
        weights=weights_picture(_first_layer(folder / WEIGHTS_NAME), contract.height, contract.width),
        meanings={
            key: field.description
            for model in (TrainingConfig, PromotionConfig)
            for key, field in model.model_fields.items()
        },
        commands=commands({**stated, "version": version}),
        surest=_surest(min(_MISTAKES, rows - right), rows - right),
        error_rate=_error_rate(rows - right, rows),
        checks={split: _checks(stated["data"][split]["checks"]) for split in SPLITS},
        seconds_done=sum(stage["seconds"] for stage in stated["lineage"] if not stage["reused"]),
        seconds_in_all=sum(stage["seconds"] for stage in stated["lineage"]),
        files=[*sorted(path.name for path in folder.iterdir()), MANIFEST_NAME],
        data_docs=_data_docs(folder),
    )
    (folder / REPORT_NAME).write_text(html, encoding="utf-8")


def render(template: str, **values: Any) -> str:
    """An HTML page of ``tasks/templates``."""
    return _templates().get_template(template).render(**values)


@cache
def _templates() -> "Environment":
    """Kept, since it keeps what it has compiled: most of what a page costs."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Autoescape: file names and messages are people's input.
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def most_confident_mistakes(predictions: StoredPredictions) -> npt.NDArray[np.int64]:
    """Rows that the model has wrong, the surest first."""
    wrong = np.flatnonzero(~predictions.right)
    return wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][:_MISTAKES]


def pictures(
    rows: Iterable[int], predictions: StoredPredictions, images: npt.NDArray[np.float32], contract: DatasetContract
) -> list[Picture]:
    """These rows with what was said of them; ``images`` float32 (N, pixels) in [0, 1] are those that were judged."""
    numbers = list(map(int, rows))
    shown = unscale_pixels(np.asarray(images[numbers]), contract)
    return [
        _picture(png_uri(grey(image, contract)), row, predictions, contract)
        for row, image in zip(numbers, shown, strict=True)
    ]


def _picture(uri: str, row: int, predictions: StoredPredictions, contract: DatasetContract) -> Picture:
    probabilities, label = predictions.probabilities[row], int(predictions.labels[row])
    likeliest = np.argsort(-probabilities, kind="stable")[:_PROBABILITIES].tolist()
    if label not in likeliest:  # how far off it was belongs to it
        likeliest[-1] = label
    return Picture(
        uri=uri,
        row=row,
        true=contract.class_names[label],
        said=contract.class_names[likeliest[0]],
        chances=tuple(
            Chance(contract.class_names[place], float(probabilities[place]), place == label) for place in likeliest
        ),
    )


def grey(image: npt.NDArray[np.uint8], contract: DatasetContract) -> npt.NDArray[np.uint8]:
    """An image, uint8 (pixels,) in pixel_min .. pixel_max, as grey levels 0 .. 255, uint8 (height, width)."""
    span = contract.pixel_max - contract.pixel_min
    levels = (image.astype(np.float64) - contract.pixel_min) * (255 / span)
    return np.rint(levels).astype(np.uint8).reshape(contract.height, contract.width)


def _samples(
    predictions: StoredPredictions, images: npt.NDArray[np.float32], contract: DatasetContract
) -> list[tuple[str, list[Picture]]]:
    """The first test images of each class, whatever the model made of them."""
    return [
        (name, pictures(np.flatnonzero(predictions.labels == label)[:_SAMPLES_A_CLASS], predictions, images, contract))
        for label, name in enumerate(contract.class_names)
    ]


def _confusions(matrix: list[list[int]], contract: DatasetContract) -> list[dict[str, Any]]:
    """The mistakes that are made most often: true class, the one said, how many, and their share of the true class."""
    found: list[dict[str, Any]] = [
        {
            "true": contract.class_names[true],
            "said": contract.class_names[said],
            "count": count,
            "share": count / sum(row),
        }
        for true, row in enumerate(matrix)
        for said, count in enumerate(row)
        if true != said and count
    ]
    return sorted(found, key=lambda entry: -entry["count"])[:_CONFUSIONS]


def _checks(predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each check once: its figure, its bounds with what is past each, and whether one was passed."""
    found: dict[str, dict[str, Any]] = {}
    for entry in predictions:
        row = found.setdefault(entry["check"], {**entry, "bounds": [], "warned": False})
        past = "else a warning" if entry["severity"] == "warning" else "else refused"
        row["bounds"].append(f"{entry['bound']}, {past}")
        row["warned"] = row["warned"] or entry["result"] == "warned"
    return list(found.values())


def _data_docs(folder: Path) -> str | None:
    """Where Great Expectations' pages lie, seen from the folder of a version; None where there are none."""
    artifacts_dir = folder.parents[3]
    index = Artifacts(artifacts_dir).data_docs / INDEX_NAME
    return f"../../../../{index.relative_to(artifacts_dir).as_posix()}" if index.is_file() else None


def _first_layer(weights: Path) -> npt.NDArray[np.float32]:
    """float32 (pixels, units): the kernel of the first of the dense layers, as Keras numbers them in the file."""
    import h5py

    with h5py.File(weights, "r") as file:
        return np.asarray(file["layers/dense/vars/0"])


def commands(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What is typed in a checkout, word for word, about the version of this manifest, by what it does.

    ``train`` makes it again, whatever the defaults are by then; ``install`` makes the .venv that all are in, from the
    same lock. ``compare`` is there for a version that was compared with a champion.
    """
    dataset, version, champion = manifest["dataset"], manifest["version"], manifest["parent"]
    about = [] if dataset == FASHION_MNIST.name else ["--dataset", dataset]
    # In one order, whoever wrote the JSON.
    flags = {key: manifest["configuration"][key] for key in TrainingConfig.model_fields}
    if bad := max(manifest["data"][split]["quarantined"] for split in SPLITS):
        flags["bad_rows"] = bad
    # A GPU adds up in another order: what a CPU has trained is the same again on a CPU alone.
    if manifest["device"]["kind"] == "cpu":
        flags["device"] = "cpu"
    usual = PromotionConfig().model_dump()
    flags |= {
        "promotion_policy" if key == "policy" else key: manifest["promotion"][key]
        for key in usual
        if manifest["promotion"][key] != usual[key]
    }
    given = [
        word for key, value in flags.items() if value is not None for word in (f"--{key.replace('_', '-')}", str(value))
    ]
    found = {
        "install": ["make", f".venv/{extra_of(manifest['packages'])}.stamp"],
        "train": [_PROGRAM, "train", *about, *given],
        "reproduce": [_PROGRAM, "reproduce", str(version), *about],
        "verify": [_PROGRAM, "verify", str(version), *about],
        "versions": [_PROGRAM, "versions", *about],
        "report": [_PROGRAM, "report", str(version), "--open", *about],
    }
    if champion is not None:
        found["compare"] = [_PROGRAM, "compare", str(champion), str(version), *about]
    typed = {name: shlex.join(words) for name, words in found.items()}
    backend = manifest["device"]["backend"]
    if backend != "tensorflow":
        for name in ("train", "reproduce"):
            typed[name] = f"KERAS_BACKEND={backend} {typed[name]}"
    return typed


def _surest(shown: int, of: int) -> str:
    """The heading over the mistakes that are shown."""
    if not of:
        return "Mistakes"
    if of == 1:
        return "Its one mistake"
    return f"Its {of} mistakes, the surest first" if shown == of else f"The {shown} mistakes that it was surest of"


def _error_rate(wrong: int, rows: int) -> str:
    """How often it is wrong, as the model card has it."""
    if not wrong:
        return f"made no mistake on the {rows:,} test images, which does not mean that it makes none"
    if 2 * wrong > rows:
        return f"is wrong more often than right ({wrong / rows * 100:.1f} %) on images like those it was tested on"
    return f"is wrong about one time in {rows / wrong:.0f} on images like those it was tested on"
