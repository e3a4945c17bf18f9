import shutil
from pathlib import Path

import pytest

from schemas.contract import FASHION_MNIST
from schemas.errors import StoredArtifactError, WrongUsage
from tasks.registry.store import ModelStore
from tasks.reports.comparison import compare, comparisons_folder, write_comparison
from tests.stored import event
from tests.tasks.reports.pages import Page
from tests.tasks.reports.predicted_versions import IMAGES, add_predicted, compare_versions, write_prepared


def test_matches_rows_by_image(tmp_path: Path) -> None:
    add_predicted(tmp_path, [0, 1, 2, 3, 4], [0, 1, 2, 9, 9], seed=0)
    add_predicted(tmp_path, [5, 4, 3, 2, 1], [5, 9, 3, 9, 1], seed=1)
    write_prepared(tmp_path)
    comparison = compare_versions(tmp_path)
    figures = comparison.figures
    assert (figures["rows"], figures["fixed"], figures["broken"]) == (4, 1, 1)
    assert figures["rows_of_one_alone"] == {"before": 1, "after": 1}
    assert figures["test_accuracy"] == {"before": 0.5, "after": 0.5}
    assert figures["p_value"] == 1
    assert figures["differs"] == [{"what": "seed", "before": 0, "after": 1}]
    (fixed,), (broken,) = comparison.fixed, comparison.broken
    assert (fixed.row, fixed.true_class, fixed.before.name, fixed.after.correct) == (2, "Dress", "Ankle boot", True)
    assert (broken.row, broken.true_class, broken.after.name, broken.before.correct) == (
        *(3, "Pullover", "Ankle boot", True),
    )
    assert fixed.uri is not None
    assert fixed.uri != broken.uri
    assert comparison.without_pictures is None
    per_class = {row["name"]: (row["fixed"], row["broken"]) for row in figures["per_class"]}
    assert per_class == {"Trouser": (0, 0), "Pullover": (0, 1), "Dress": (1, 0), "Coat": (0, 0)}


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """Return a store of two versions. Each misclassifies one image of three."""
    folder = tmp_path / "artifacts"
    add_predicted(folder, [0, 1, 2], [0, 9, 2])
    add_predicted(folder, [0, 1, 2], [0, 1, 9])
    return folder


def test_csv_and_arrays_give_the_same_images(artifacts: Path, tmp_path: Path) -> None:
    lines = [",".join(FASHION_MNIST.columns)]
    lines += [",".join(map(str, [label, *image])) for label, image in enumerate(IMAGES.tolist())]
    (tmp_path / "fashion-mnist_test.csv").write_text("\n".join(lines) + "\n")
    from_csv = compare_versions(artifacts, tmp_path)
    write_prepared(artifacts)
    assert compare_versions(artifacts) == from_csv
    assert from_csv.without_pictures is None


def test_the_page_never_calls_unrecorded_code_the_same(artifacts: Path, tmp_path: Path) -> None:
    write_prepared(artifacts)
    comparison = compare_versions(artifacts)
    write_comparison(comparison, tmp_path / "page.html")
    text = Page(tmp_path / "page.html").text
    assert comparison.figures["differs"] == []
    assert "The code of the train stage is not recorded for both versions." in text
    assert "are the same" not in text


def test_the_settings_of_a_third_champion_are_shown(artifacts: Path, tmp_path: Path) -> None:
    champion = add_predicted(artifacts, [0, 1, 2], [0, 1, 2], epochs=7)
    ModelStore.of(artifacts, FASHION_MNIST.name).aliases.append(event(champion))
    write_prepared(artifacts)
    comparison = compare_versions(artifacts)
    write_comparison(comparison, tmp_path / "page.html")
    assert comparison.figures["differs"] == [{"what": "epochs", "before": None, "after": None, "champion": 7}]
    assert "champion, version 3" in Page(tmp_path / "page.html").text


def test_page_is_self_contained(artifacts: Path, tmp_path: Path) -> None:
    write_prepared(artifacts)
    write_comparison(compare_versions(artifacts), tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert "://" not in page.html
    assert len(page.all("img")) == 2
    assert "fixed 1 and broke 1" in page.text
    assert "Rows are the test rows of version 2" in page.text


def test_page_without_images_names_the_missing_csv(artifacts: Path, tmp_path: Path) -> None:
    write_prepared(artifacts, 255 - IMAGES)  # other images must not be shown instead
    write_comparison(compare_versions(artifacts), tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert not page.all("img")
    for text in ("Images are missing. 2 of 2 images", "Put fashion-mnist_test.csv there", "--data-dir"):
        assert text in page.text


def test_rejects_versions_without_a_shared_image(tmp_path: Path) -> None:
    add_predicted(tmp_path, [0, 1], [0, 1])
    add_predicted(tmp_path, [2, 3], [2, 3])
    with pytest.raises(WrongUsage, match="none of them shared"):
        compare_versions(tmp_path)


def test_rejects_the_same_version_twice(artifacts: Path) -> None:
    with pytest.raises(WrongUsage, match="Both are version 1; expected two different versions"):
        compare(ModelStore.of(artifacts, FASHION_MNIST.name), artifacts, artifacts, 1, 1)


def test_rejects_a_damaged_version(artifacts: Path) -> None:
    folder = ModelStore.of(artifacts, FASHION_MNIST.name).root / "versions"
    shutil.copyfile(folder / "0001" / "verdict.json", folder / "0002" / "test_predictions.parquet")
    with pytest.raises(StoredArtifactError, match=r"test_predictions\.parquet"):
        compare_versions(artifacts)


def test_compares_robustness_and_cost_with_a_version_that_lacks_them(tmp_path: Path) -> None:
    measured = {
        "robustness": {"blur": {"accuracy": 0.5, "accuracy_interval": [0.2, 0.8]}},
        "cost": {"latency": {}, "load_seconds": 0.25, "bytes": 1000, "peak_memory_bytes": 2000},
    }
    add_predicted(tmp_path, [0, 1], [0, 9])
    add_predicted(tmp_path, [0, 1], [0, 1], measured)
    comparison = compare_versions(tmp_path)
    assert comparison.figures["robustness"] == [{"disturbance": "blur", "before": None, "after": 0.5}]
    assert comparison.figures["cost"] == [
        {"quantity": "load time, s", "before": None, "after": 0.25},
        {"quantity": "stored model, bytes", "before": None, "after": 1000},
        {"quantity": "peak memory, bytes", "before": None, "after": 2000},
    ]
    write_comparison(comparison, tmp_path / "page.html")
    text = Page(tmp_path / "page.html").text
    assert "blur not measured 0.5000" in text
    assert "stored model, bytes not measured 1,000" in text


def test_pages_of_two_datasets_have_different_paths(tmp_path: Path) -> None:
    folders = {comparisons_folder(tmp_path, dataset) for dataset in ("fashion-mnist", "digits")}
    assert folders == {tmp_path / "comparisons", tmp_path / "comparisons" / "digits"}
