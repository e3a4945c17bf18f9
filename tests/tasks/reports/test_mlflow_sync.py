"""Checks of a run before it needs a server. tests/mlflow_server has the tests with one."""

import sys
from pathlib import Path

import pytest

from flows.train_fashion_mnist import train_fashion_mnist
from schemas.config import MLFLOW_VARIABLE, mlflow_address
from schemas.errors import ExtraNotInstalled, WrongUsage
from tasks.registry.store import ModelStore
from tasks.reports.mlflow_sync import metric_name, require_mlflow, update_mlflow


def test_run_without_the_extra_ends_before_its_first_stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(MLFLOW_VARIABLE, "http://127.0.0.1:5000")
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as if it were not installed
    with pytest.raises(ExtraNotInstalled, match=r"requirements/mlflow\.lock`, or unset MLFLOW_TRACKING_URI"):
        train_fashion_mnist.fn(artifacts_dir=tmp_path / "artifacts", data_dir=tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [None, "", " "])
def test_without_an_address_nothing_is_needed(
    value: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if value is not None:
        monkeypatch.setenv(MLFLOW_VARIABLE, value)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    require_mlflow()
    update_mlflow(ModelStore(tmp_path / "fashion-mnist"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value",
    [
        "mlruns",
        "sqlite:///mlflow.db",
        "http:///path",
        "databricks",
        "ftp://u:secret@host",
        "http://[::1",
        "http://host:port",
        "http://u:1/secret@host",
        "http://host?token=secret",
    ],
)
def test_address_must_be_that_of_a_server(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MLFLOW_VARIABLE, value)
    with pytest.raises(WrongUsage, match="expected the address of an MLflow server") as raised:
        mlflow_address()
    assert "secret" not in str(raised.value)


def test_address_is_without_user_and_password() -> None:
    assert mlflow_address("https://user:p%40ss@host:5000/path") == "https://host:5000/path"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("T-shirt/top", "T-shirt/top"), ("C#", "C_"), ("/a//b/", "_a__b_"), ("..", "_"), ("x" * 300, "x" * 100)],
)
def test_class_names_are_parts_of_a_path(name: str, expected: str) -> None:
    assert metric_name(name) == expected
