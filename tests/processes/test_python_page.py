"""The Python code of README and docs/python.md runs as it is, in a folder with a version and the data."""

import gzip
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from schemas.config import PROJECT_ROOT
from tasks.registry.batch_prediction import predict_csv
from tests.sample import SAMPLE


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_code_of_a_page_runs(two_versions: Path, tmp_path: Path, page: str) -> None:
    first, *others = re.findall(r"^```python\n(.*?)^```", (PROJECT_ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "models").symlink_to(two_versions / "models")
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        packed = (SAMPLE / f"fashion-mnist_{split}.csv.gz").read_bytes()
        (tmp_path / "data" / f"fashion-mnist_{split}.csv").write_bytes(gzip.decompress(packed))
    images, output = tmp_path / "data" / "fashion-mnist_test.csv", tmp_path / "OUT.parquet"
    predict_csv(images, output, "1", "fashion-mnist", two_versions)
    # The first block needs nothing of this project.
    alone = "import sys, numpy\nassert 'tasks' not in sys.modules\nnumpy.save('probabilities.npy', probabilities)\n"
    last = "numpy.save('errors.npy', errors['row'])\nassert test.rows == 200\n" if others else ""
    program = "\n".join([first, alone, *others, last])
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True)
    table = pd.read_parquet(output)
    expected = table.filter(regex="^p[0-9]$").to_numpy()
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy"), expected, rtol=0, atol=1e-6)
    if others:
        wrong = pd.read_csv(images)["label"] != expected.argmax(axis=1)
        np.testing.assert_array_equal(np.load(tmp_path / "errors.npy"), np.flatnonzero(wrong))
