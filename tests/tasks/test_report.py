import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from schemas.config import PromotionConfig, TrainingConfig
from schemas.contract import FASHION_MNIST, DatasetContract, Split
from schemas.references import PreparedData, TrainedModel, ValidatedSplit
from tasks.evaluate import evaluate
from tasks.judged import Judged, read_predictions, write_predictions
from tasks.report import most_confident_mistakes, pictures, write_report
from tasks.store import read_manifest, store_folder
from tasks.version import version


class Page(HTMLParser):
    """Every element as (tag, attributes), and the text without markup."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for found, attributes in self.elements if found == tag]


@pytest.fixture(scope="module")
def made(
    sample_data: dict[Split, ValidatedSplit],
    sample_prepared: PreparedData,
    sample_trained: TrainedModel,
    small_config: TrainingConfig,
    sample_artifacts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of a version that the stages made of the sample."""
    artifacts = tmp_path_factory.mktemp("report")
    judged = evaluate.fn(sample_prepared, sample_trained, sample_artifacts)
    floor = PromotionConfig(minimum_accuracy=0, minimum_recall=0)
    return version.fn(sample_data, sample_prepared, sample_trained, judged, small_config, floor, artifacts).path


@pytest.fixture(scope="module")
def page(made: Path) -> Page:
    return Page((made / "report.html").read_text(encoding="utf-8"))


def test_the_figures_are_those_of_the_metrics(made: Path, page: Page) -> None:
    metrics = json.loads((made / "metrics.json").read_bytes())
    for name in ("test_accuracy", "test_loss", "expected_calibration_error"):
        assert f"{metrics[name]:.4f}" in page.text
    for row in metrics["per_class"]:
        told = (row["name"], row["rows"], f"{row['precision']:.3f}", f"{row['recall']:.3f}", r"[\d.]+ to [\d.]+")
        assert re.search(" ?".join(map(str, (*told, f"{row['f1']:.3f}"))), page.text), told
    cells = [attributes for attributes in page.all("td") if "--share" in attributes.get("style", "")]
    assert len(cells) == 100
    assert [cell["class"] for cell in cells[::11]] == ["right"] * 10
    for bin_ in metrics["calibration"]:
        assert f"{bin_['confidence']:.4f}" in page.text


def test_the_manifest_and_the_verdict_are_told(made: Path, page: Page) -> None:
    manifest = read_manifest(store_folder(made.parents[3], "fashion-mnist"), 1)
    assert manifest["verdict"]["reason"] in page.text
    told = [
        *(
            manifest["data"][split][digest]
            for split in ("train", "test")
            for digest in ("csv_sha256", "parquet_sha256")
        ),
        *(manifest["code"]["revision"], manifest["lock_sha256"], manifest["topology_id"], manifest["device"]["name"]),
        *(entry["key"][:16] for entry in manifest["lineage"]),
        *(f"{entry['seconds']:.2f}" for entry in manifest["lineage"]),
        *(f"{name} {release}" for name, release in manifest["packages"].items()),
        *(FASHION_MNIST.licence, "1906.08255", "1912.05283", "fashion-ann reproduce 1", "--epochs 3", "--seed 7"),
    ]
    for text in told:
        assert text in page.text
    for key in (*manifest["configuration"], *manifest["promotion"]):
        assert key in page.text


def test_the_page_stands_alone_and_its_links_lead_to_files_beside_it(made: Path, page: Page) -> None:
    html = (made / "report.html").read_text(encoding="utf-8")
    assert len(html.encode()) < 3_000_000
    assert "://" not in html
    assert not page.all("script")
    assert not page.all("link")
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert all(image["alt"] for image in page.all("img"))
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    files = set()
    for link in page.all("a"):
        if link["href"].startswith("#"):
            assert link["href"][1:] in ids
        else:
            files.add(link["href"])
    assert files == {path.name for path in made.iterdir()} - {"report.html"}


def test_the_surest_mistakes_are_shown_with_their_probabilities(made: Path, page: Page) -> None:
    judged = read_predictions(made / "test_predictions.parquet", FASHION_MNIST)
    wrong = [row for row in range(200) if judged.probabilities[row].argmax() != judged.labels[row]]
    surest = sorted(wrong, key=lambda row: -judged.probabilities[row].max())[:25]
    assert most_confident_mistakes(judged).tolist() == surest
    shown = re.findall(r"row (\d+): said (.+?), is (.+?) [A-Z]", page.text)
    assert [int(row) for row, _, _ in shown] == surest
    first = judged.probabilities[surest[0]]
    assert f"{first.max() * 100:.1f} %" in page.text


def test_a_picture_tells_how_likely_the_true_class_was_even_when_it_was_last(tiny_contract: DatasetContract) -> None:
    contract = replace(tiny_contract, class_names=("a", "b", "c", "d"), pixel_max=16)
    judged = Judged([b""], np.array([3], np.int32), np.array([[0.1, 0.6, 0.27, 0.03]], dtype=np.float32))
    (shown,) = pictures([0], judged, np.array([[0, 1, 0.5, 0.25]], np.float32), contract)
    assert (shown.true, shown.said) == ("d", "b")
    assert [(chance.name, chance.true) for chance in shown.chances] == [("b", False), ("c", False), ("d", True)]


def test_a_report_of_another_dataset_whose_model_makes_no_mistake(
    made: Path, tmp_path: Path, sample_prepared: PreparedData
) -> None:
    """Nothing in the page is particular to one dataset, and no section needs a mistake."""
    root = store_folder(made.parents[3], "fashion-mnist")
    stated = read_manifest(root, 1)
    for split, warnings in (("train", []), ("test", ["the pixels drifted"])):
        stated["data"][split] |= {"quarantined": 3, "warnings": warnings}
    folder = tmp_path / "models" / "shapes" / "versions" / "0007"
    folder.mkdir(parents=True)
    for name in ("metrics.json", "verdict.json", "model.weights.h5"):
        (folder / name).write_bytes((made / name).read_bytes())
    judged = read_predictions(made / "test_predictions.parquet", FASHION_MNIST)
    right = replace(judged, probabilities=np.eye(10, dtype=np.float32)[judged.labels])
    contract = replace(FASHION_MNIST, name="shapes", class_names=tuple(f"<shape {n}>" for n in range(10)), licence="")
    write_predictions(folder / "test_predictions.parquet", right, contract)
    images = np.load(sample_prepared.record.path / "test_images.npy")
    write_report(folder, 7, stated, images, contract)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "It made none on this test split." in html
    assert "<shape" not in html  # names are people's input
    assert "Licence of the data" not in html
    text = Page(html).text
    assert "set aside" in text
    assert "✓ train: no warning." in text
    assert "⚠ test: the pixels drifted" in text
