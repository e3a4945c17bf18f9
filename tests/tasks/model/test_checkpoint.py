import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.config import TrainingConfig
from schemas.contract import FASHION_MNIST
from tasks.model.checkpoint import TrainingState
from tasks.model.network import build_network

pytestmark = pytest.mark.usefixtures("backend")


def _write_for_another_network(path: Path, variables: list[Any]) -> None:
    """Write a complete checkpoint in which only the last variable has another shape."""
    values = {f"{position:02d}": np.ones(variable.shape, np.float32) for position, variable in enumerate(variables)}
    best = {f"best.{name}": value for name, value in values.items()}
    history = np.frombuffer(json.dumps([EPOCH]).encode(), np.uint8)
    np.savez(path, **{**values, list(values)[-1]: np.ones(3, np.float32)}, **best, history=history)


def _write_metrics(metrics: Any, save: Callable[..., None]) -> Callable[[Path, list[Any]], None]:
    """Return a function that writes a complete checkpoint with other metrics."""

    def write(path: Path, variables: list[Any]) -> None:
        values = {f"{position:02d}": np.array(variable) for position, variable in enumerate(variables)}
        best = {f"best.{name}": value for name, value in values.items()}
        save(path, **values, **best, history=np.frombuffer(json.dumps(metrics).encode(), np.uint8))

    return write


EPOCH = dict.fromkeys(("loss", "accuracy", "val_loss", "val_accuracy", "seconds"), 0.5)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path, variables: path.touch(), id="empty"),
        pytest.param(lambda path, variables: path.write_bytes(b"PK\x03\x04 cut off"), id="truncated"),
        pytest.param(_write_for_another_network, id="another network"),
        pytest.param(_write_metrics([{}], np.savez), id="an epoch without metrics"),
        pytest.param(_write_metrics([EPOCH], np.savez_compressed), id="compressed"),
        pytest.param(lambda path, variables: os.mkfifo(path), id="a pipe"),
        pytest.param(lambda path, variables: path.symlink_to("/dev/zero"), id="a link"),
    ],
)
def test_a_damaged_checkpoint_changes_nothing(
    damage: Callable[[Path, list[Any]], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "checkpoint.npz"
    network, optimizer = (build_network(FASHION_MNIST, TrainingConfig(dropout=0)).variables for _ in range(2))
    damage(path, [*network, *optimizer])
    before = [np.array(variable) for variable in [*network, *optimizer]]
    state = TrainingState(network, optimizer, path)
    state.restore()
    assert f"{path} is damaged" in caplog.text
    assert state.history == []
    for variable, value in zip([*network, *optimizer], before, strict=True):
        np.testing.assert_array_equal(variable, value)
