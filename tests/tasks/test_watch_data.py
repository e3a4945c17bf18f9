"""The warnings of `watch` for a folder without data. tests/flows/ tests its events on a real server."""

import logging
from pathlib import Path

import pytest

from tasks.watch_data import watch
from tests.field_faults import field_fault
from tests.tasks.data.published import TEST, TRAIN, supply


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        pytest.param(
            (),
            "The folder is empty",
            marks=field_fault(
                "failure without a message",
                "The folder that `watch-data` checks is empty, or has CSVs under other names",
                "It logs a warning with the content and the likely names, and emits no event",
            ),
        ),
        (("train.csv", TEST), f"'train.csv' (did you mean {TRAIN}?)"),
        (("fashion-mnist_train.CSV",), f"'fashion-mnist_train.CSV' (did you mean {TRAIN}?)"),
        (None, "does not exist"),
    ],
)
def test_named_folder_without_data_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: tuple[str, ...] | None, reason: str
) -> None:
    data = tmp_path / "data"
    if names is not None:
        supply(data, *names)
    watched = watch.fn("fashion-mnist", data, tmp_path / "artifacts")
    assert (watched.digest, watched.announced) == (None, False)
    (warning,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert reason in warning == watched.missing
    assert not (tmp_path / "artifacts").exists()


def test_default_folder_without_data_is_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "tasks")
    monkeypatch.setattr("schemas.config.PROJECT_ROOT", tmp_path)
    assert watch.fn("fashion-mnist", tmp_path / "data", tmp_path / "artifacts").digest is None
    assert [record.levelname for record in caplog.records] == ["INFO"]
