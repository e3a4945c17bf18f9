from pathlib import Path

import numpy as np
import pytest

from schemas.config import TrainingConfig
from schemas.errors import WrongUsage
from tasks.model.backend import backend_name, feed, gpu_driver_present, nvidia_driver, on_every_gpu, set_up_backend
from tasks.model.fit import row_batches
from tasks.runtime.fingerprint import installed_extra

pytestmark = pytest.mark.usefixtures("backend")


def test_a_backend_that_is_not_known_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "abacus")
    with pytest.raises(WrongUsage, match="tensorflow, jax, received 'abacus'"):
        backend_name()


def test_a_gpu_is_in_sight_where_a_driver_is_and_a_backend_that_could_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, none = [tmp_path], [tmp_path / "nvidiactl"]
    assert gpu_driver_present(driver) == (installed_extra() == "gpu")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert gpu_driver_present(driver)
    assert not gpu_driver_present(none)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param("echo 570.86.15; echo 570.86.15", "570.86.15", id="a line for each GPU"),
        pytest.param("echo 'NVIDIA-SMI has failed'; exit 9", None, id="no driver behind it"),
        pytest.param("true", None, id="no GPU"),
        pytest.param(None, None, id="not installed"),
    ],
)
def test_the_driver_is_what_nvidia_smi_says(
    script: str | None, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is not None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_driver() == expected


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4, 4, 2]), (5, [5, 5]), (9, [9, 1]), (10, [10]), (12, [10])])
def test_the_feed_gives_the_batches_of_the_epoch_that_was_chosen_last(
    batch_size: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up_backend(0)
    monkeypatch.setattr("tasks.model.fit.batch_size_for", lambda rows, config: batch_size)
    batches = row_batches(np.arange(10, dtype=np.int32) % 3, TrainingConfig())
    fed = feed(batches)
    seen = []
    for epoch in (0, 5):
        batches.shuffle(epoch)
        expected = [batches[place] for place in range(len(batches))]
        received = [(np.asarray(rows), np.asarray(labels)) for rows, labels in fed]
        assert [len(rows) for rows, _ in received] == sizes
        for (rows, labels), (our_rows, our_labels) in zip(received, expected, strict=True):
            assert rows.tolist() == our_rows.tolist()
            assert labels.tolist() == our_labels.tolist() == (our_rows % 3).tolist()
        seen.append(np.concatenate([rows for rows, _ in received]).tolist())
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(10))
    assert seen[0] != seen[1]


def test_devices_get_equal_shares_in_which_every_row_weighs_the_same() -> None:
    set_up_backend(0)
    batches = row_batches(np.arange(9, dtype=np.int32) % 3, TrainingConfig(batch_size=4))
    received = [tuple(map(np.asarray, batch)) for batch in feed(batches, devices=3)]
    assert [len(rows) for rows, _, _ in received] == [6, 6, 3]
    for (rows, labels, weights), size in zip(received, (4, 4, 1), strict=True):
        assert labels.tolist() == (rows % 3).tolist()
        assert weights.tolist() == [len(rows) / size] * size + [0] * (len(rows) - size)
    assert sorted(np.concatenate([rows[weights > 0] for rows, _, weights in received]).tolist()) == list(range(9))


def test_one_device_is_trained_on_without_a_strategy() -> None:
    import tensorflow as tf

    set_up_backend(0)
    for devices in ([], ["CPU:0"]):
        with on_every_gpu(devices) as shared_by:
            assert shared_by == 1
            assert not tf.distribute.has_strategy()
