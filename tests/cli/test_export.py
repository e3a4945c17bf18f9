"""`export` in this process: output and exit status."""

import json
from pathlib import Path

import numpy as np
import pytest

from tasks.model import run_export
from tests.cli.conftest import Run


@pytest.fixture
def artifacts(sample_version: Path, sample_artifacts: Path, tmp_path: Path, in_this_process: None) -> Path:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    (folder / "models").symlink_to(sample_version.parents[2])
    (folder / "prepared").symlink_to(sample_artifacts / "prepared")
    return folder


def test_prints_the_record_and_its_path(run: Run, artifacts: Path, tmp_path: Path) -> None:
    flags = ("export", "champion", "--format", "onnx", "--output", tmp_path / "exports", "--artifacts-dir", artifacts)
    folder = tmp_path / "exports" / "fashion-mnist-onnx" / "1"
    status, out, _ = run(*flags, "--json")
    result = json.loads(out)
    assert (status, result["created"]) == (0, True)
    assert (result["path"], result["record_path"]) == (str(folder / "model.onnx"), str(folder / "export.json"))
    assert result.items() >= json.loads((folder / "export.json").read_bytes()).items()
    status, out, _ = run(*flags)
    assert status == 0
    assert out.startswith("version 1 was exported before, and is proven again as onnx\n")
    assert f"{result['largest_difference']:.2g}, 0 classes changed, on all 200 test rows" in out


@pytest.mark.parametrize(("quantize", "status"), [([], 5), (["--quantize", "int8"], 4)])
def test_a_worse_export_ends_with_its_status(
    run: Run, artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantize: list[str], status: int
) -> None:
    """The runtime returns other classes, for an int8 export only of that model."""
    main = run_export.main

    def other_classes(job: dict[str, str], emit: object) -> dict[str, object]:
        result = main(job, print)
        if Path(job["model"]).parent.name == "model":
            with np.load(result["arrays"]) as arrays:
                probabilities, *matrices = arrays.values()
            np.savez(result["arrays"], np.roll(probabilities, 1, axis=1), *matrices)
        return result

    monkeypatch.setattr(run_export, "main", other_classes)
    flags = ("--format", "onnx", "--output", tmp_path / "exports", "--artifacts-dir", artifacts)
    received, out, err = run("export", "1", *flags, *quantize)
    assert (received, out) == (status, "")
    assert "The export is rejected." in err
    assert not (tmp_path / "exports").exists()
