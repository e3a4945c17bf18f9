"""`report` and `compare` as people and programs call them."""

import json
import webbrowser
from pathlib import Path

import pytest

from tasks.registry.store import ModelStore
from tests.cli.test_main import _run
from tests.tasks.reports.test_comparison import _add, _prepared


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of two versions that have one image each right that the other has wrong."""
    folder = tmp_path / "artifacts"
    monkeypatch.setenv("FASHION_ANN_ARTIFACTS_DIR", str(folder))
    monkeypatch.setenv("FASHION_ANN_DATA_DIR", str(tmp_path / "no data"))
    _add(folder, [0, 1, 2, 3], [0, 9, 2, 3], seed=0)
    _add(folder, [0, 1, 2, 3], [0, 1, 9, 3], seed=1)
    return folder


def test_report_prints_the_path_and_opens_nothing(
    capsys: pytest.CaptureFixture[str], artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda address: pytest.fail("opened"))
    path = ModelStore.of(artifacts, "fashion-mnist").root / "versions" / "0002" / "report.html"
    assert _run(capsys, "report", "2") == (0, f"{path}\n", "")
    assert json.loads(_run(capsys, "report", "2", "--json")[1]) == {"version": 2, "report": str(path)}


def test_report_opens_the_page_on_demand_and_says_when_it_cannot(
    capsys: pytest.CaptureFixture[str], artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or len(opened) == 1)
    assert _run(capsys, "report", "1", "--open")[0] == 0
    assert opened[0].startswith("file://")
    assert opened[0].endswith("/versions/0001/report.html")
    status, out, err = _run(capsys, "report", "1", "--open")
    assert (status, out.strip().endswith("report.html")) == (1, True)
    assert "No browser" in err


def test_a_report_that_was_edited_is_not_shown(
    capsys: pytest.CaptureFixture[str], artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda address: pytest.fail("opened"))
    path = ModelStore.of(artifacts, "fashion-mnist").root / "versions" / "0001" / "report.html"
    path.write_text("99.9 %")
    status, out, err = _run(capsys, "report", "1", "--open")
    assert (status, out) == (5, "")
    assert "report.html: expected sha256" in err


def test_compare_tells_figures_and_writes_the_page(capsys: pytest.CaptureFixture[str], artifacts: Path) -> None:
    _prepared(artifacts)
    status, out, err = _run(capsys, "compare", "1", "2")
    assert (status, err) == (0, "")
    assert "on the same 4 test images" in out
    assert "accuracy 0.7500 -> 0.7500 (+0.0000): 1 fixed, 1 broken, p = 1" in out
    assert "seed: 0 -> 1" in out
    page = artifacts / "comparisons" / "0001-0002.html"
    assert str(page) in out
    assert page.read_text(encoding="utf-8").count("<img") == 2


def test_compare_speaks_json_and_writes_where_it_is_told(
    capsys: pytest.CaptureFixture[str], artifacts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "page.html"
    status, out, _ = _run(capsys, "compare", "2", "1", "--output", str(output), "--json")
    told = json.loads(out)
    assert status == 0
    assert (told["before"], told["after"], told["fixed"], told["broken"], told["rows"]) == (2, 1, 1, 1, 4)
    assert told["output"] == str(output)
    assert "cannot be had" in told["without_pictures"]
    assert output.exists()
    assert not (artifacts / "comparisons").exists()


def test_a_version_compared_with_itself_under_another_name_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], artifacts: Path
) -> None:
    status, out, err = _run(capsys, "compare", "2", "v2")
    assert (status, out) == (2, "")
    assert "Both are version 2" in err
    assert not (artifacts / "comparisons").exists()


@pytest.mark.parametrize("output", ["page.txt", "no folder/page.html", "."])
def test_an_output_that_cannot_be_a_page_is_refused(
    capsys: pytest.CaptureFixture[str], artifacts: Path, tmp_path: Path, output: str
) -> None:
    status, out, err = _run(capsys, "compare", "1", "2", "--output", str(tmp_path / output))
    assert (status, out) == (2, "")
    assert "--output" in err
