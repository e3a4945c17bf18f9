"""Which TensorFlow extra is installed, read from real distribution metadata in a folder on sys.path."""

import sys
from pathlib import Path

import pytest

from tasks.runtime.fingerprint import installed_extra

CUDA = ["nvidia-cublas-cu12", "nvidia-cudnn-cu12"]


@pytest.mark.parametrize(
    ("distributions", "extra"),
    [
        pytest.param(["tensorflow-cpu"], "cpu", id="cpu on x86-64 Linux"),
        pytest.param(["tensorflow"], "cpu", id="cpu on ARM Linux and on macOS"),
        pytest.param(["tensorflow", *CUDA], "gpu", id="gpu on x86-64 and ARM Linux"),
        pytest.param(["tensorflow"], "cpu", id="gpu on macOS, which has no CUDA"),
        pytest.param(["tensorflow-cpu", "jax", *CUDA], "cpu", id="cpu beside a JAX for CUDA"),
        pytest.param(["jax"], "cpu", id="no TensorFlow"),
    ],
)
def test_reads_the_installed_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, distributions: list[str], extra: str
) -> None:
    for name in distributions:
        folder = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert installed_extra() == extra
