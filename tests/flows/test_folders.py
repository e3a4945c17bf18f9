"""The flows that write require separate folders. No server is needed: they raise an error before their first task."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.collect_garbage import collect_garbage
from flows.export_model import export_model
from flows.predict_fashion_mnist import predict_fashion_mnist
from flows.promote_version import promote_version
from flows.rollback_champion import rollback_champion
from flows.train_fashion_mnist import train_fashion_mnist
from flows.watch_data import watch_data
from schemas.errors import WrongUsage


@pytest.mark.parametrize(
    ("flow", "parameters"),
    [
        (train_fashion_mnist.fn, {}),
        (collect_garbage.fn, {}),
        (predict_fashion_mnist.fn, {"images": Path("images.csv"), "output": Path("out.csv")}),
        (export_model.fn, {"output": Path("exported")}),
        (watch_data.fn, {}),
        (promote_version.fn, {"version": 1, "reason": "a test"}),
        (rollback_champion.fn, {"reason": "a test"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_writing_flows_require_separate_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flow: Callable[..., object], parameters: dict[str, Any]
) -> None:
    monkeypatch.setenv("FASHION_ANN_DATA_DIR", str(tmp_path / "data"))
    with pytest.raises(WrongUsage, match=r"The data folder .* is inside the artifacts folder"):
        flow(**parameters, artifacts_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_training_checks_the_folder_of_its_parameter(tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match=r"The artifacts folder .* is inside the data folder"):
        train_fashion_mnist.fn(data_dir=tmp_path, artifacts_dir=tmp_path / "artifacts")
