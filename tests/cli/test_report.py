"""`report` and `compare`: text, JSON and pages."""

import json
import webbrowser
from pathlib import Path

import pytest

from tasks.registry.store import ModelStore
from tests.cli.conftest import Run
from tests.tasks.reports.predicted_versions import add_predicted, write_prepared


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a store of two versions. Each classifies one image correctly that the other one does not."""
    folder = tmp_path / "artifacts"
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(folder))
    monkeypatch.setenv("FASHION_ANN_DATA_DIR", str(tmp_path / "no data"))
    add_predicted(folder, [0, 1, 2, 3], [0, 9, 2, 3], seed=0)
    add_predicted(folder, [0, 1, 2, 3], [0, 1, 9, 3], seed=1)
    return folder


def test_report_prints_the_path(run: Run, artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda address: pytest.fail("opened"))
    path = ModelStore.of(artifacts, "fashion-mnist").folder(2) / "report.html"
    assert run("report", "2") == (0, f"{path}\n", "")
    assert json.loads(run("report", "2", "--json")[1]) == {"version": 2, "report": str(path)}
    path.write_text("99.9 %")
    status, out, err = run("report", "2", "--open")
    assert (status, out) == (5, "")
    assert "report.html: expected sha256" in err


def test_report_opens_the_page(run: Run, artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or len(opened) == 1)
    assert run("report", "1", "--open")[0] == 0
    assert opened[0].startswith("file://")
    assert opened[0].endswith("/versions/0001/report.html")
    status, out, err = run("report", "1", "--open")
    assert (status, out.strip().endswith("report.html")) == (1, True)
    assert "No browser" in err


def test_compare_prints_counts_and_writes_the_page(run: Run, artifacts: Path) -> None:
    write_prepared(artifacts)
    status, out, err = run("compare", "1", "2")
    assert (status, err) == (0, "")
    assert "on the same 4 test images" in out
    assert "accuracy 0.7500 -> 0.7500 (+0.0000): 1 fixed, 1 broken, p = 1" in out
    assert "seed: 0 -> 1" in out
    page = artifacts / "comparisons" / "0001-0002.html"
    assert str(page) in out
    assert page.read_text(encoding="utf-8").count("<img") == 2


def test_compare_prints_json(run: Run, artifacts: Path, tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    status, out, _ = run("compare", "2", "1", "--output", output, "--json")
    result = json.loads(out)
    assert status == 0
    assert [result[key] for key in ("before", "after", "fixed", "broken", "rows")] == [2, 1, 1, 1, 4]
    assert result["output"] == str(output)
    assert "2 of 2 images" in result["without_pictures"]
    assert output.exists()
    assert not (artifacts / "comparisons").exists()


def test_compare_counts_images_of_one_version_only(run: Run, artifacts: Path) -> None:
    add_predicted(artifacts, [0, 1, 2], [0, 1, 2], seed=2)
    assert "excluded: 1 rows tested with version 1 only" in run("compare", "1", "3")[1]
    assert "excluded: 1 rows tested with version 1 only" in run("compare", "3", "1")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["2", "v2"], "Both are version 2"),
        *((["1", "2", "--output", output], "--output") for output in ("page.txt", "no folder/page.html", ".")),
    ],
)
def test_compare_rejects(
    run: Run, artifacts: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(artifacts.parent)
    status, out, err = run("compare", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert not (artifacts / "comparisons").exists()
