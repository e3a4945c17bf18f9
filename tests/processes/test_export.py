"""Exports by real processes. The programs of docs/export.md run them, and need nothing of this project."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from schemas.config import PROJECT_ROOT
from schemas.contract import FASHION_MNIST
from schemas.export import ExportFormat
from tasks.data.splits import open_split
from tasks.model.run_export import run_export
from tasks.registry.export import expected_of, export_version
from tasks.registry.store import ModelStore
from tests.processes.kill import killed_when

FORMATS = get_args(ExportFormat)
PAGE = PROJECT_ROOT / "docs" / "export.md"


@pytest.mark.parametrize("name", FORMATS)
def test_the_program_of_the_page_gives_the_stored_predictions(
    sample_version: Path, sample_artifacts: Path, tmp_path: Path, name: ExportFormat
) -> None:
    version = ModelStore(sample_version.parent.parent).version(1)
    export_version(version, name, tmp_path / "DIR", sample_artifacts)
    expected = expected_of(version, sample_artifacts)
    np.save(tmp_path / "pixels.npy", open_split(expected.prepared, "test").images[:])
    programs = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    head = "import sys, numpy\npixels = numpy.load('pixels.npy')\n"
    alone = "assert 'tasks' not in sys.modules\nnumpy.save('probabilities.npy', probabilities)\nprint(*class_names)"
    program = head + programs[FORMATS.index(name)] + alone
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.splitlines()[-1] == " ".join(FASHION_MNIST.class_names)
    probabilities = np.load(tmp_path / "probabilities.npy")
    np.testing.assert_allclose(probabilities, expected.stored.probabilities, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), expected.stored.predicted)
    if name == "savedmodel":
        (tmp_path / "path").mkdir()
        (tmp_path / "path" / "keras.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(tmp_path / "path"))
            run_export(tmp_path / "DIR" / "fashion-mnist" / "1", name, expected.prepared)
        assert not (tmp_path / "imported").exists()


def test_a_killed_export_leaves_nothing_after_the_next(
    sample_version: Path, sample_artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, output = tmp_path / "scratch", tmp_path / "exports"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)
    version = ModelStore(sample_version.parent.parent).version(1)
    killed_when(lambda: any(scratch.glob("*/model")), export_version, version, "keras", output, sample_artifacts)
    assert any(scratch.iterdir())
    assert not output.exists()
    export_version(version, "keras", output, sample_artifacts)
    assert list(scratch.iterdir()) == []
