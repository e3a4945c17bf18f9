"""Time one fit: `python -m benchmarks.fit ours|plain PREPARED_FOLDER FIT`, with FIT as the JSON of a `Fit`.

Runs as a separate process, so that our backend settings do not affect the peer. Prints JSON: per epoch the
seconds since the start of the fit, and the test accuracy if there is a target.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.data.splits import open_split

Split = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]
Weights = list[npt.NDArray[np.float32]]  # hidden kernel and bias, output kernel and bias


@dataclass(frozen=True)
class Fit:
    """Parameters of one fit.

    ``validate``: evaluate the validation split after every epoch, as the train stage always does.
    ``target``: stop after the first epoch with this test accuracy. With None the test split is not read.
    """

    epochs: int
    batch_size: int
    dropout: float
    validate: bool
    target: float | None
    seed: int


class EpochClock:
    """Record the seconds since creation at the end of each epoch, without the time to evaluate the test split."""

    def __init__(self, test: Split | None, target: float | None) -> None:
        self.test, self.target = test, target
        self.epochs: list[dict[str, float | None]] = []
        self.started = time.perf_counter()

    def end_epoch(self, weights: Callable[[], Weights]) -> bool:
        """Record an epoch. Return True if the weights reach the target."""
        now = time.perf_counter()
        accuracy = None if self.test is None else accuracy_of(weights(), *self.test)
        self.epochs.append({"seconds": now - self.started, "test_accuracy": accuracy})
        self.started += time.perf_counter() - now
        return accuracy is not None and self.target is not None and accuracy >= self.target


def accuracy_of(weights: Weights, images: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]) -> float:
    hidden_kernel, hidden_bias, output_kernel, output_bias = weights
    hidden = np.maximum(images @ hidden_kernel + hidden_bias, 0)  # (N, 128)
    return float(((hidden @ output_kernel + output_bias).argmax(axis=1) == labels).mean())


class _TargetReached(Exception):
    pass


def fit_ours(how: Fit, folder: Path) -> EpochClock:
    """Run `fit_network` as the train stage does, with a checkpoint per epoch."""
    from schemas.config import TrainingConfig
    from schemas.contract import FASHION_MNIST
    from tasks.model import fit
    from tasks.model.backend import set_up_backend

    config = TrainingConfig(epochs=how.epochs, batch_size=how.batch_size, dropout=how.dropout, seed=how.seed)
    set_up_backend(config.seed)
    module = vars(fit)
    build, models = module["build_network"], []

    def build_and_keep(*arguments: Any) -> Any:
        models.append(build(*arguments))
        return models[-1]

    module["build_network"] = build_and_keep  # fit_network returns its model only at the end
    clock = EpochClock(None if how.target is None else _floats(folder, "test"), how.target)

    def on_epoch(epoch: int, logs: dict[str, float]) -> None:
        if clock.end_epoch(models[0].get_weights):
            raise _TargetReached

    train, validation = open_split(folder, "train"), open_split(folder, "validation")
    with tempfile.TemporaryDirectory() as scratch, suppress(_TargetReached):
        checkpoint = Path(scratch) / "checkpoint.npz"
        fit.fit_network(FASHION_MNIST, config, train, validation, checkpoint=checkpoint, on_epoch=on_epoch)
    return clock


def fit_plain(how: Fit, folder: Path) -> EpochClock:
    """Run `model.fit` on arrays with Keras's defaults. Without validation it trains on all train rows."""
    import keras

    from benchmarks.plain_script import plain_network

    keras.utils.set_random_seed(how.seed)
    train, validation = _floats(folder, "train"), _floats(folder, "validation")
    if not how.validate:
        train = (np.concatenate([train[0], validation[0]]), np.concatenate([train[1], validation[1]]))
    clock = EpochClock(None if how.target is None else _floats(folder, "test"), how.target)

    class Watch(keras.callbacks.Callback):  # type: ignore[misc]  # Keras ships no types
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if clock.end_epoch(self.model.get_weights):
                self.model.stop_training = True

    plain_network(how.dropout).fit(
        *train,
        batch_size=how.batch_size,
        epochs=how.epochs,
        validation_data=validation if how.validate else None,
        callbacks=[Watch()],
        verbose=0,
    )
    return clock


def main(who: str, folder: str, text: str) -> None:
    fit = {"ours": fit_ours, "plain": fit_plain}[who]
    print(json.dumps(fit(Fit(**json.loads(text)), Path(folder)).epochs))


def _floats(folder: Path, name: str) -> Split:
    """Return the normalized images of a split, float32 (N, pixels), and its labels."""
    split = open_split(folder, name)
    return split.scaled(slice(None)), split.labels


if __name__ == "__main__":
    main(*sys.argv[1:])
