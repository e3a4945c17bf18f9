import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.arguments import read_bad_rows, read_config
from cli.main import command_parser
from schemas.config import PromotionConfig, TrainingConfig
from schemas.contract import FASHION_MNIST, SPLIT_CHECKS, DatasetContract, contract_of
from schemas.references import PreparedData
from tasks.data.splits import open_split
from tasks.model.inference import StoredModelOutput
from tasks.model.metrics import compute_metrics
from tasks.model.test_predictions import StoredPredictions, read_predictions, write_predictions
from tasks.registry.store import ModelStore
from tasks.reports.version_report import commands, most_confident_errors, predicted_images, write_report
from tasks.runtime.files import write_json
from tests.tasks.reports.pages import Page

DIGITS = contract_of("digits")


@pytest.fixture(scope="module")
def page(sample_version: Path) -> Page:
    return Page(sample_version / "report.html")


@pytest.fixture
def manifest(sample_version: Path) -> dict[str, Any]:
    return ModelStore.of(sample_version.parents[3], "fashion-mnist").version(1).manifest.as_json()


def test_page_shows_the_metrics(sample_version: Path, page: Page) -> None:
    metrics = json.loads((sample_version / "metrics.json").read_bytes())
    for name in ("test_accuracy", "test_loss", "expected_calibration_error"):
        assert f"{metrics[name]:.4f}" in page.text
    for row in metrics["per_class"]:
        shares = [f"{row[name]:.3f}" for name in ("precision", "recall", "f1")]
        shares.insert(2, "{:.3f} to {:.3f}".format(*row["recall_interval"]))
        assert " ".join(map(str, (row["name"], row["rows"], *shares))) in page.text
    cells = [attributes for attributes in page.all("td") if "--share" in attributes.get("style", "")]
    assert len(cells) == 100
    assert [cell["class"] for cell in cells[::11]] == ["right"] * 10
    counts = re.findall(r'style="--share: [\d.]+">([^<]*)</td>', page.html)
    assert counts == [str(count) if count else "·" for row in metrics["confusion_matrix"] for count in row]
    low, high = metrics["test_accuracy_interval"]
    assert low < metrics["test_accuracy"] < high
    assert f"95 % interval {low:.4f} to {high:.4f}" in page.text
    for bin_ in metrics["calibration"]:
        assert f"{bin_['confidence']:.4f}" in page.text


def test_page_shows_robustness_brightness_and_cost(sample_version: Path, page: Page) -> None:
    metrics = json.loads((sample_version / "metrics.json").read_bytes())
    assert len(metrics["robustness"]) == 8
    for name, disturbed in metrics["robustness"].items():
        assert name.replace("_", " ") in page.text
        assert f"{disturbed['accuracy']:.4f}" in page.text
        assert "{:.4f} to {:.4f}".format(*disturbed["accuracy_interval"]) in page.text
    for part in metrics["brightness"]:
        assert f"{part['from']:.1f} to {part['to']:.1f} {part['rows']} {part['accuracy']:.4f}" in page.text
    for quantity in ("p95 latency of 1,000 rows, s", "peak memory, bytes", "load time, s"):
        assert quantity in page.text
    assert f"stored model, bytes {metrics['cost']['bytes']:,}" in page.text


def test_page_draws_a_curve_per_class(sample_version: Path, page: Page) -> None:
    metrics = json.loads((sample_version / "metrics.json").read_bytes())
    labels = [svg["aria-label"] for svg in page.all("svg") if "precision by recall" in svg.get("aria-label", "")]
    rows = sorted(metrics["per_class"], key=lambda row: row["average_precision"])
    assert labels == [
        f"{row['name']}: precision by recall, average precision {row['average_precision']:.3f}" for row in rows
    ]


def test_calibration_bars_are_as_high_as_the_accuracy(sample_version: Path, page: Page) -> None:
    bins = json.loads((sample_version / "metrics.json").read_bytes())["calibration"]
    hits, marks, rows = (
        [entry for entry in page.all(tag) if entry.get("class") == name][-len(bins) :]
        for tag, name in (("rect", "hit"), ("line", "sure"), ("rect", "rows"))
    )
    for bin_, hit, mark, row in zip(bins, hits, marks, rows, strict=True):
        # The axis goes from 208 up to 12.
        assert float(hit["height"]) == pytest.approx(196 * bin_["accuracy"], abs=0.06)
        assert float(hit["y"]) == pytest.approx(208 - 196 * bin_["accuracy"], abs=0.06)
        assert float(mark["y1"]) == pytest.approx(208 - 196 * bin_["confidence"], abs=0.06)
        assert float(row["height"]) == pytest.approx(40 * bin_["rows"] / max(b["rows"] for b in bins), abs=0.06)


def test_page_shows_the_manifest(manifest: dict[str, Any], page: Page) -> None:
    expected = [
        manifest["verdict"]["reason"],
        *(manifest["data"][split][f"{kind}_sha256"] for split in ("train", "test") for kind in ("csv", "parquet")),
        *(manifest["code"]["revision"], manifest["lock_sha256"], manifest["topology_id"], manifest["device"]["name"]),
        *(entry["key"][:16] for entry in manifest["lineage"]),
        *(f"{entry['seconds']:.2f}" for entry in manifest["lineage"]),
        *(f"{name} {release}" for name, release in manifest["packages"].items()),
        *(*manifest["configuration"], *manifest["promotion"]),
        f"from 784 pixels to 10 classes: 101,770 parameters. Dropout {manifest['configuration']['dropout']} follows",
        *("hidden Dense, relu 128 100,480 ", "probabilities Dense, softmax 10 1,290", "36 (64 configured)"),
        f"All stages: {sum(entry['seconds'] for entry in manifest['lineage']):.1f} s",
        *(FASHION_MNIST.licence, "1906.08255", "1912.05283"),
        *(command for name, command in commands(manifest).items() if name != "report"),
    ]
    assert [text for text in expected if text not in page.text] == []


def test_page_is_self_contained(sample_version: Path, page: Page) -> None:
    assert len(page.html.encode()) < 3_000_000
    assert "://" not in page.html
    assert not page.all("script")
    assert not page.all("link")
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert all(image["alt"] for image in page.all("img"))
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = {link["href"] for link in page.all("a")}
    assert {link[1:] for link in links if link.startswith("#")} < ids
    files = {link for link in links if not link.startswith("#")}
    assert files == {path.name for path in sample_version.iterdir()} - {"report.html"}


def test_shows_the_most_confident_errors(sample_version: Path, page: Page) -> None:
    predictions = read_predictions(sample_version / "test_predictions.parquet", FASHION_MNIST)
    wrong = [row for row in range(200) if predictions.probabilities[row].argmax() != predictions.labels[row]]
    expected = sorted(wrong, key=lambda row: -predictions.probabilities[row].max())[:25]
    assert most_confident_errors(predictions).tolist() == expected
    assert list(map(int, re.findall(r"row (\d+): predicted .+?, true ", page.text))) == expected
    assert f"{predictions.probabilities[expected[0]].max() * 100:.1f} %" in page.text


def test_image_always_has_the_probability_of_its_class(tiny_contract: DatasetContract) -> None:
    contract = replace(tiny_contract, labels=dict(enumerate("abcd")), pixel_max=16)
    predictions = StoredPredictions([b""], np.array([3], np.int32), np.array([[0.1, 0.6, 0.27, 0.03]], np.float32))
    (shown,) = predicted_images([0], predictions, np.array([[0, 1, 0.5, 0.25]], np.float32), contract)
    assert (shown.true_class, shown.predicted_class) == ("d", "b")
    assert [(entry.name, entry.correct) for entry in shown.probabilities] == [("b", False), ("c", False), ("d", True)]


@pytest.fixture
def write(sample_version: Path, tmp_path: Path, sample_prepared: PreparedData) -> Callable[..., Page]:
    """Return a function that writes the sample's report with another manifest, verdict, history or error count."""

    def write(
        manifest: dict[str, Any],
        *,
        verdict: dict[str, Any] | None = None,
        errors: int | None = None,
        epochs: int | None = None,
        contract: DatasetContract = FASHION_MNIST,
    ) -> Page:
        folder = tmp_path / "models" / contract.name / "versions" / "0007"
        folder.mkdir(parents=True)
        metrics = json.loads((sample_version / "metrics.json").read_bytes())
        predictions = read_predictions(sample_version / "test_predictions.parquet", FASHION_MNIST)
        if errors is not None:
            predicted = predictions.labels.copy()
            predicted[:errors] = (predicted[:errors] + 1) % 10
            predictions = replace(predictions, probabilities=np.eye(10, dtype=np.float32)[predicted])
            output = StoredModelOutput(0.0, metrics["test_loss"], predictions.probabilities, predictions.labels)
            in_train = np.zeros(len(predicted), np.uint8)
            metrics |= compute_metrics(output, in_train, metrics["history"], contract)
        if epochs is not None:
            metrics["history"] = metrics["history"][:1] * epochs
        write_predictions(folder / "test_predictions.parquet", predictions, contract)
        write_json(folder / "metrics.json", metrics)
        stored_verdict = json.loads((sample_version / "verdict.json").read_bytes())
        write_json(folder / "verdict.json", stored_verdict | (verdict or {}))
        (folder / "model.weights.h5").write_bytes((sample_version / "model.weights.h5").read_bytes())
        images = open_split(sample_prepared.record.path, "test").images
        write_report(folder, 7, manifest, images, contract)
        return Page(folder / "report.html")

    return write


def test_another_dataset_without_errors(write: Callable[..., Page], manifest: dict[str, Any]) -> None:
    for split, warnings in (("train", []), ("test", ["the pixels drifted"])):
        manifest["data"][split] |= {"warnings": warnings}
    contract = replace(FASHION_MNIST, name="shapes", labels={n: f"<shape {n}>" for n in range(10)}, licence="")
    page = write(manifest, errors=0, contract=contract)
    for text in ("There are no errors", "misclassified 0 of 200 test images (0.0 %)", "<shape 3>"):
        assert text in page.text
    assert not page.all("shape")  # names are escaped
    assert "Licence of the data" not in page.text
    assert "✓ train: no warnings." in page.text
    assert "⚠ test: the pixels drifted" in page.text


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        (1, ("Errors shown: 1 of 1,", "misclassified 1 of 200 test images (0.5 %)", ": 1 (5.0 %)")),
        (150, ("Errors shown: 25 of 150,", "misclassified 150 of 200 test images (75.0 %)")),
    ],
)
def test_counts_errors(
    write: Callable[..., Page], manifest: dict[str, Any], errors: int, expected: tuple[str, ...]
) -> None:
    page = write(manifest, errors=errors)
    assert [text for text in expected if text not in page.text] == []


def test_compares_with_the_champion(write: Callable[..., Page], manifest: dict[str, Any]) -> None:
    manifest |= {"parent": 3, "verdict": {"outcome": "refused", "reason": "Rejected: too low.", "event": None}}
    paired = {"rows": 200, "fixed": 5, "broken": 25, "p_value": 0.000325}
    page = write(manifest, verdict={"outcome": "refused", "champion": 3, "paired": paired})
    for text in (
        "-0.1000accuracy difference from version 3, p = 0.000325",
        "5 images are correct only with version 7.",
        "25 images are correct only with version 3.",
        ".venv/bin/fashion-ann compare 3 7",
    ):
        assert text in page.text
    assert "not measured" not in page.text


def test_explains_a_champion_without_measurement(write: Callable[..., Page], manifest: dict[str, Any]) -> None:
    verdict = {"champion": 3, "paired": None, "champion_fault": "model.weights.h5 is missing."}
    assert "not measuredversion 3: model.weights.h5 is missing." in write(manifest, verdict=verdict).text


@pytest.mark.parametrize("seconds_since_start", [12.34, None])
def test_shows_times(write: Callable[..., Page], manifest: dict[str, Any], seconds_since_start: float | None) -> None:
    for entry in manifest["lineage"]:
        entry["reused"] = entry["stage"] == "prepare"
    manifest["seconds_since_start"] = seconds_since_start
    computed = sum(entry["seconds"] for entry in manifest["lineage"] if not entry["reused"])
    text = write(manifest).text
    assert f"Computed in this run: {computed:.1f} s." in text
    assert ("From the start of the flow run to this page: 12.3 s." in text) == (seconds_since_start is not None)


def test_lists_shards_and_quarantined_rows(write: Callable[..., Page], manifest: dict[str, Any], page: Page) -> None:
    assert "from 0 in fashion-mnist_test.csv.gz." in page.text
    assert "The 2 files" not in page.text
    shards = [{"file": f"fashion-mnist_test-{n}.csv", "sha256": str(n) * 64} for n in (1, 2)]
    manifest["data"]["test"] |= {"quarantined": 3, "csv_files": shards}
    text = write(manifest).text
    assert "from 0 in the 2 files under Data quality, in that order, without the 3 quarantined rows." in text
    assert "The 2 files of the test split" in text
    for shard in shards:
        assert f"{shard['file']} {shard['sha256']}" in text


def test_lists_every_check_with_its_bounds(manifest: dict[str, Any], page: Page) -> None:
    # Train has no other split to compare with; the 200 rows of test are one chunk.
    inapplicable = {"train": {"test_images_in_train", "near_duplicates_in_train"}, "test": {"faulty_chunks"}}
    for split, names in inapplicable.items():
        checks = manifest["data"][split]["checks"]
        assert {check["check"] for check in checks} == {check.name for check in SPLIT_CHECKS} - names
        for check in checks:
            severity = "warning" if check["severity"] == "warning" else "failure"
            value, bound = f"{check['figure']:.3g}", re.escape(f"{severity} unless {check['bound']}")
            name = check["check"].replace("_", " ")
            assert re.search(rf"{name}[^✓⚠]* {value} [^✓⚠]*{bound}[^✓⚠]*✓ passed", page.text), check
            assert check["says"] in page.text


def test_marks_a_check_beyond_its_warning_bound(write: Callable[..., Page], manifest: dict[str, Any]) -> None:
    drift = next(check for check in manifest["data"]["test"]["checks"] if check["check"] == "drift")
    drift |= {"figure": 0.1234, "result": "warned"}
    assert "0.123 warning unless <= 0.1 ⚠ warning" in write(manifest).text


def test_many_epochs_keep_the_page_small(write: Callable[..., Page], manifest: dict[str, Any]) -> None:
    assert len(write(manifest, epochs=10_000).html.encode()) < 3_000_000


def test_commands_state_the_configuration(manifest: dict[str, Any]) -> None:
    training = TrainingConfig(epochs=7, early_stopping=2, seed=3, learning_rate=1e-3, hidden_units=[512, 256])
    promotion = PromotionConfig(policy="not_worse", minimum_accuracy=0.5, minimum_recall=0.1, significance=0.01)
    manifest |= {"dataset": "digits", "version": 4, "parent": 2, "configuration": training.model_dump()}
    manifest |= {"promotion": promotion.model_dump()}
    manifest["data"]["train"]["quarantined"], manifest["data"]["test"]["quarantined"] = 1, 12
    lines = commands(manifest)
    assert lines.pop("install") in ("make .venv/cpu.stamp", "make .venv/gpu.stamp")
    options = {}
    for name, line in lines.items():
        program, *words = shlex.split(line)
        assert program == ".venv/bin/fashion-ann"
        options[name] = command_parser().parse_args(words)
        assert (options[name].command, options[name].dataset) == (name, "digits")
    train = options["train"]
    assert read_config(TrainingConfig, train) == training
    assert read_config(PromotionConfig, train) == promotion
    assert (read_bad_rows(train.bad_rows), train.device) == ("12", "cpu")
    assert (options["compare"].before, options["compare"].after) == ("2", "4")
    assert {options[name].version for name in ("reproduce", "verify", "report")} == {"4"}


def test_commands_omit_defaults(manifest: dict[str, Any]) -> None:
    manifest |= {"promotion": PromotionConfig().model_dump(), "device": {**manifest["device"], "kind": "gpu"}}
    lines = commands(manifest)
    assert not {"--dataset", "--bad-rows", "--device", "--minimum-accuracy"} & set(shlex.split(lines["train"]))
    assert lines["verify"] == ".venv/bin/fashion-ann verify 1"
    assert "compare" not in lines
    flags = {"TF_NUM_INTRAOP_THREADS": "1", "XLA_FLAGS": "--a --b"}
    jax = commands({**manifest, "environment": {"KERAS_BACKEND": "jax", **flags}})
    assert jax["train"].startswith("XLA_FLAGS='--a --b' KERAS_BACKEND=jax .venv/bin/fashion-ann train ")


def test_digits_have_a_licence_and_limits() -> None:
    assert "CC BY 4.0" in DIGITS.licence
    assert "5,620" in " ".join(DIGITS.known_limits)
