"""A training in windows that is killed at any moment resumes to the same weights."""

import time
from pathlib import Path

from schemas.config import TrainingConfig
from schemas.references import PreparedData
from tasks.runtime.events import Event, TrainingProgress, subscribe
from tasks.runtime.worker_process import keep_workers
from tasks.train import train
from tests.processes.kill import killed_when

# 900 images of 784 bytes are three windows. A window takes a tenth of a second, so that a kill hits the one it is for.
CONFIG = TrainingConfig(epochs=8, hidden_units=[2_048, 2_048], seed=7, memory_budget="500kB")


def _train(prepared: PreparedData, artifacts: Path, marker: Path, within_epoch: bool) -> None:
    """Train, and stop reading events after the first one within an epoch or at the end of one."""

    def on_event(event: Event) -> None:
        if not isinstance(event, TrainingProgress) or event.done < 1:
            return
        if event.done % 1 > 0 if within_epoch else "val_loss" in event.figures:
            marker.write_text(str(event.done))
            time.sleep(60)

    with subscribe(on_event):
        train.fn(prepared, CONFIG, artifacts)


def test_killed_trainings_resume_to_the_same_weights(sample_prepared: PreparedData, tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    done = []
    for within_epoch in (True, False):
        marker = tmp_path / f"within-epoch-{within_epoch}"
        killed_when(marker.exists, _train, sample_prepared, artifacts, marker, within_epoch)
        done.append(float(marker.read_text()))
    assert done[0] % 1 > 0
    assert 1 < done[0] < done[1] < CONFIG.epochs
    epochs: list[float] = []
    with keep_workers():
        with subscribe(lambda event: epochs.append(event.done) if isinstance(event, TrainingProgress) else None):
            resumed = train.fn(sample_prepared, CONFIG, artifacts)
        assert min(epochs) > done[1]
        uninterrupted = train.fn(sample_prepared, CONFIG, tmp_path / "others")
    assert resumed.weights_sha256 == uninterrupted.weights_sha256
    whole = uninterrupted.record.path
    assert [path.name for path in sorted(resumed.record.path.iterdir())] == sorted(
        path.name for path in whole.iterdir()
    )
