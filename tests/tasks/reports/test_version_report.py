import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.main import _bad_rows, _config, _parser
from schemas.config import PromotionConfig, TrainingConfig
from schemas.contract import DIGITS, FASHION_MNIST, DatasetContract
from schemas.references import PreparedData
from tasks.model.metrics import compute_metrics
from tasks.model.test_predictions import StoredPredictions, read_predictions, write_predictions
from tasks.registry.store import read_manifest, store_folder
from tasks.reports.version_report import commands, most_confident_mistakes, pictures, write_report
from tasks.runtime.files import write_json


class Page(HTMLParser):
    """Every element as (tag, attributes), and the text without markup."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.size = len(html.encode())
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.text += " "

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for found, attributes in self.elements if found == tag]


@pytest.fixture(scope="module")
def page(sample_version: Path) -> Page:
    return Page((sample_version / "report.html").read_text(encoding="utf-8"))


def test_the_figures_are_those_of_the_metrics(sample_version: Path, page: Page) -> None:
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
    counts = re.findall(r'style="--share: [\d.]+">([^<]*)</td>', (sample_version / "report.html").read_text("utf-8"))
    assert counts == [str(count) if count else "·" for row in metrics["confusion_matrix"] for count in row]
    low, high = metrics["test_accuracy_interval"]
    assert low < metrics["test_accuracy"] < high
    assert f"95 % interval {low:.4f} to {high:.4f}" in page.text
    for bin_ in metrics["calibration"]:
        assert f"{bin_['confidence']:.4f}" in page.text


def test_the_manifest_and_the_verdict_are_told(sample_version: Path, page: Page) -> None:
    manifest = read_manifest(store_folder(sample_version.parents[3], "fashion-mnist"), 1)
    typed = [command for name, command in commands(manifest).items() if name != "report"]  # whoever reads has it open
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
        f"784 pixels, Dense 128 with ReLU, Dropout {manifest['configuration']['dropout']}, Dense 10 with softmax",
        *(FASHION_MNIST.licence, "1906.08255", "1912.05283", *typed),
    ]
    for text in told:
        assert text in page.text
    for key in (*manifest["configuration"], *manifest["promotion"]):
        assert key in page.text
    together = sum(entry["seconds"] for entry in manifest["lineage"])
    assert f"Together {together:.1f} s" in page.text


def test_the_page_stands_alone_and_its_links_lead_to_files_beside_it(sample_version: Path, page: Page) -> None:
    html = (sample_version / "report.html").read_text(encoding="utf-8")
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
    assert files == {path.name for path in sample_version.iterdir()} - {"report.html"}


def test_the_surest_mistakes_are_shown_with_their_probabilities(sample_version: Path, page: Page) -> None:
    judged = read_predictions(sample_version / "test_predictions.parquet", FASHION_MNIST)
    wrong = [row for row in range(200) if judged.probabilities[row].argmax() != judged.labels[row]]
    surest = sorted(wrong, key=lambda row: -judged.probabilities[row].max())[:25]
    assert most_confident_mistakes(judged).tolist() == surest
    shown = re.findall(r"row (\d+): said (.+?), is (.+?) [A-Z]", page.text)
    assert [int(row) for row, _, _ in shown] == surest
    first = judged.probabilities[surest[0]]
    assert f"{first.max() * 100:.1f} %" in page.text


def test_a_picture_tells_how_likely_the_true_class_was_even_when_it_was_last(tiny_contract: DatasetContract) -> None:
    contract = replace(tiny_contract, class_names=("a", "b", "c", "d"), pixel_max=16)
    judged = StoredPredictions([b""], np.array([3], np.int32), np.array([[0.1, 0.6, 0.27, 0.03]], dtype=np.float32))
    (shown,) = pictures([0], judged, np.array([[0, 1, 0.5, 0.25]], np.float32), contract)
    assert (shown.true, shown.said) == ("d", "b")
    assert [(chance.name, chance.true) for chance in shown.chances] == [("b", False), ("c", False), ("d", True)]


@pytest.fixture
def written(sample_version: Path, tmp_path: Path, sample_prepared: PreparedData) -> Callable[..., Page]:
    """Writes the report of the version once more, with what a manifest, verdict or metrics would say otherwise."""

    def write(
        stated: dict[str, Any],
        *,
        verdict: dict[str, Any] | None = None,
        mistakes: int | None = None,
        contract: DatasetContract = FASHION_MNIST,
    ) -> Page:
        folder = tmp_path / "models" / contract.name / "versions" / "0007"
        folder.mkdir(parents=True)
        metrics = json.loads((sample_version / "metrics.json").read_bytes())
        judged = read_predictions(sample_version / "test_predictions.parquet", FASHION_MNIST)
        if mistakes is not None:
            said = judged.labels.copy()
            said[:mistakes] = (said[:mistakes] + 1) % 10
            judged = replace(judged, probabilities=np.eye(10, dtype=np.float32)[said])
            metrics |= compute_metrics(judged.probabilities, judged.labels, contract)
        write_predictions(folder / "test_predictions.parquet", judged, contract)
        write_json(folder / "metrics.json", metrics)
        write_json(
            folder / "verdict.json", json.loads((sample_version / "verdict.json").read_bytes()) | (verdict or {})
        )
        (folder / "model.weights.h5").write_bytes((sample_version / "model.weights.h5").read_bytes())
        images = np.load(sample_prepared.record.path / "test_images.npy")
        write_report(folder, 7, stated, images, contract)
        return Page((folder / "report.html").read_text(encoding="utf-8"))

    return write


@pytest.fixture
def stated(sample_version: Path) -> dict[str, Any]:
    return read_manifest(store_folder(sample_version.parents[3], "fashion-mnist"), 1)


def test_a_report_of_another_dataset_whose_model_makes_no_mistake(
    written: Callable[..., Page], stated: dict[str, Any]
) -> None:
    """Nothing in the page is particular to one dataset, and no section needs a mistake."""
    for split, warnings in (("train", []), ("test", ["the pixels drifted"])):
        stated["data"][split] |= {"quarantined": 3, "warnings": warnings}
    contract = replace(FASHION_MNIST, name="shapes", class_names=tuple(f"<shape {n}>" for n in range(10)), licence="")
    page = written(stated, mistakes=0, contract=contract)
    assert "It made none on this test split." in page.text
    assert "made no mistake on the 200 test images" in page.text
    assert "<shape 3>" in page.text
    assert not page.all("shape")  # names are people's input
    assert "Licence of the data" not in page.text
    assert "set aside" in page.text
    assert "✓ train: no warning." in page.text
    assert "⚠ test: the pixels drifted" in page.text


@pytest.mark.parametrize(
    ("mistakes", "heading", "card"),
    [
        (1, "Its one mistake", "is wrong about one time in 200 on images"),
        (3, "Its 3 mistakes, the surest first", "is wrong about one time in 67 on images"),
        (150, "The 25 mistakes that it was surest of", "is wrong more often than right (75.0 %) on images"),
    ],
)
def test_few_and_many_mistakes_are_told_as_people_say_it(
    written: Callable[..., Page], stated: dict[str, Any], mistakes: int, heading: str, card: str
) -> None:
    page = written(stated, mistakes=mistakes)
    assert heading in page.text
    assert card in page.text
    assert (f"Out of {mistakes}." in page.text) == (mistakes > 25)
    assert "(once, 5.0 % of them)" in page.text if mistakes == 1 else "(once," not in page.text or mistakes == 3
    assert "(1 times" not in page.text


def test_a_refused_version_tells_how_it_stands_against_the_champion(
    written: Callable[..., Page], stated: dict[str, Any]
) -> None:
    stated |= {"parent": 3, "verdict": {"outcome": "refused", "reason": "Refused: too little.", "event": None}}
    paired = {"rows": 200, "fixed": 5, "broken": 25, "p_value": 0.000325}
    page = written(stated, verdict={"outcome": "refused", "champion": 3, "paired": paired})
    assert "-0.1000accuracy against version 3, p = 0.000325" in page.text
    assert "right on 5 that version 3 has wrong, and wrong on 25 that it has right" in page.text
    assert ".venv/bin/fashion-ann compare 3 7" in page.text
    assert "not measured" not in page.text


def test_a_champion_that_was_not_measured_is_told_with_the_reason(
    written: Callable[..., Page], stated: dict[str, Any]
) -> None:
    fault = "model.weights.h5 is gone."
    page = written(stated, verdict={"champion": 3, "paired": None, "champion_fault": fault})
    assert f"not measuredversion 3: {fault}" in page.text


@pytest.mark.parametrize("within_a_flow_run", [True, False])
@pytest.mark.parametrize("reused", [True, False])
def test_the_time_from_start_to_end_is_told_where_it_is_known(
    written: Callable[..., Page], stated: dict[str, Any], reused: bool, within_a_flow_run: bool
) -> None:
    for entry in stated["lineage"]:
        entry["reused"] = reused and entry["stage"] == "prepare"
    stated["seconds_since_start"] = 12.34 if within_a_flow_run else None
    done = sum(entry["seconds"] for entry in stated["lineage"] if not entry["reused"])
    text = written(stated).text
    assert (f"of which this run did {done:.1f} s and reused the rest" in text) == reused
    ended = "With them it was 12.3 s from the start of the flow run until this page was written."
    assert (ended in text) == within_a_flow_run


def test_shards_and_rows_set_aside_are_told_where_rows_are_counted(
    written: Callable[..., Page], stated: dict[str, Any], sample_version: Path, page: Page
) -> None:
    assert "from 0: fashion-mnist_test.csv.gz." in page.text
    assert "The 2 files" not in page.text
    shards = [{"file": f"fashion-mnist_test-{n}.csv", "sha256": str(n) * 64} for n in (1, 2)]
    stated["data"]["test"] |= {"quarantined": 3, "csv_files": shards}
    text = written(stated).text
    assert "from 0: 2 files, in the order in which they are listed below, without the 3 that were set aside." in text
    assert "The 2 files of the test split" in text
    for shard in shards:
        assert f"{shard['file']} {shard['sha256']}" in text


def test_every_check_of_the_data_is_told_with_figure_bounds_and_result(stated: dict[str, Any], page: Page) -> None:
    # There is no other split to compare train with; the 200 rows of test are one part.
    not_asked = {"train": {"test_images_in_train", "near_duplicates_in_train"}, "test": {"faulty_chunks"}}
    for split, but in not_asked.items():
        checks = stated["data"][split]["checks"]
        assert {check["check"] for check in checks} == {check.name for check in FASHION_MNIST.checks} - but
        for check in checks:
            past = "else a warning" if check["severity"] == "warning" else "else refused"
            figure, bound = f"{check['figure']:.3g}", re.escape(f"{check['bound']}, {past}")
            name = check["check"].replace("_", " ")
            assert re.search(rf"{name}[^✓⚠]* {figure} [^✓⚠]*{bound}[^✓⚠]*✓ met", page.text), check
    assert "of the distribution of pixel values from that of the baseline" in page.text
    assert "look like other images" not in page.text  # they do not


def test_a_check_that_was_past_a_bound_is_told_as_such(written: Callable[..., Page], stated: dict[str, Any]) -> None:
    drift = next(check for check in stated["data"]["test"]["checks"] if check["check"] == "drift")
    drift |= {"figure": 0.1234, "result": "warned"}
    assert "0.123 <= 0.1, else a warning ⚠ warned" in written(stated).text


def test_commands_make_the_version_again_word_for_word(stated: dict[str, Any]) -> None:
    training = TrainingConfig(epochs=7, early_stopping=2, seed=3, learning_rate=1e-3)
    promotion = PromotionConfig(policy="not_worse", minimum_accuracy=0.5, minimum_recall=0.1, significance=0.01)
    changed = {"dataset": "digits", "version": 4, "parent": 2, "configuration": training.model_dump()}
    stated |= {**changed, "promotion": promotion.model_dump()}
    stated["data"]["train"]["quarantined"], stated["data"]["test"]["quarantined"] = 1, 12
    told = commands(stated)
    assert told.pop("install") in ("make .venv/cpu.stamp", "make .venv/gpu.stamp")
    options = {}
    for name, command in told.items():
        program, *words = shlex.split(command)
        assert program == ".venv/bin/fashion-ann"
        options[name] = _parser().parse_args(words)
        assert (options[name].command, options[name].dataset) == (name, "digits")
    train = options["train"]
    assert _config(TrainingConfig, train) == training
    assert _config(PromotionConfig, train) == promotion
    assert (_bad_rows(train.bad_rows), train.device) == ("12", "cpu")
    assert (options["compare"].before, options["compare"].after) == ("2", "4")
    assert {options[name].version for name in ("reproduce", "verify", "report")} == {"4"}


def test_commands_leave_out_what_is_usual(stated: dict[str, Any]) -> None:
    stated |= {"promotion": PromotionConfig().model_dump(), "device": {**stated["device"], "kind": "gpu"}}
    told = commands(stated)
    assert not {"--dataset", "--bad-rows", "--device", "--minimum-accuracy"} & set(shlex.split(told["train"]))
    assert told["verify"] == ".venv/bin/fashion-ann verify 1"
    assert "compare" not in told
    jax = commands({**stated, "device": {**stated["device"], "backend": "jax"}})
    assert jax["train"].startswith("KERAS_BACKEND=jax .venv/bin/fashion-ann train ")


def test_the_digits_have_a_licence_and_limits() -> None:
    assert "CC BY 4.0" in DIGITS.licence
    assert "5,620" in " ".join(DIGITS.known_limits)


def test_ten_thousand_epochs_stay_below_three_megabytes(
    written: Callable[..., Page], stated: dict[str, Any], sample_version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = json.loads((sample_version / "metrics.json").read_bytes())
    load = json.loads

    def long(text: Any) -> Any:
        found = load(text)
        return {**found, "history": metrics["history"][:1] * 10_000} if "history" in found else found

    monkeypatch.setattr("tasks.reports.version_report.json.loads", long)
    assert written(stated).size < 3_000_000
