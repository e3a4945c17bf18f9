"""A server that is away changes nothing but the log: real client, no server."""

import logging
from pathlib import Path

import pytest

from cli.server_process import HOST, free_port
from schemas.config import MLFLOW_VARIABLE
from tasks.registry.store import ModelStore
from tasks.reports.mlflow_sync import update_mlflow
from tests.stored import add_promoted


def test_move_without_a_server_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "fashion-mnist"
    add_promoted(root)
    monkeypatch.setenv(MLFLOW_VARIABLE, f"http://user:secret@{HOST}:{free_port()}")
    with caplog.at_level(logging.WARNING):
        update_mlflow(ModelStore(root))
    assert "MLflow is not up to date: http://127.0.0.1:" in caplog.text
    assert "secret" not in caplog.text
    assert "`fashion-ann mlflow sync` adds what is missing" in caplog.text
    assert ModelStore(root).aliases.champion() == 1
