"""Save the state of a training after each epoch, so that an interrupted training resumes."""

import json
import logging
import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import StoredArtifactError
from schemas.store import EPOCHS
from tasks.runtime.files import atomic_write
from tasks.runtime.stored_file import open_stored, parse_json

logger = logging.getLogger(__name__)

# Names, and the metrics of 10,000 epochs.
_LARGEST_OVERHEAD = 10_000_000

# Metrics of one epoch: loss, accuracy, val_loss, val_accuracy, seconds.
EpochMetrics = dict[str, float]


class TrainingState:
    """Variables, history and best weights of a training, in one file that is replaced after each epoch.

    network, optimizer: their `keras.Variable` objects. path: the file, or None to save nothing.
    """

    def __init__(self, network: Sequence[Any], optimizer: Sequence[Any], path: Path | None) -> None:
        # Named by position: Keras numbers variables per process, and another process may resume.
        self._variables = {f"{position:02d}": variable for position, variable in enumerate([*network, *optimizer])}
        self._network_names = list(self._variables)[: len(network)]
        self._path = path
        self._best: dict[str, npt.NDArray[Any]] = {}
        self.history: list[EpochMetrics] = []

    def save_epoch(self, metrics: EpochMetrics) -> None:
        """Add the metrics of a finished epoch to the history and save the state."""
        self.history.append(metrics)
        values = {name: np.asarray(variable) for name, variable in self._variables.items()}
        if self._best_epoch() == len(self.history) - 1:
            self._best = {name: values[name].copy() for name in self._network_names}
        if self._path is None:
            return
        history = np.frombuffer(json.dumps(self.history).encode(), dtype=np.uint8)
        best = {f"best.{name}": value for name, value in self._best.items()}
        with atomic_write(self._path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, history=history, **values, **best)

    def discard(self) -> None:
        """Remove the file, so that no training resumes from it."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def restore(self) -> None:
        """Load the state from the file, if it exists. A damaged file is logged and changes nothing."""
        if self._path is None or not os.path.lexists(self._path):
            return
        sizes = {name: math.prod(variable.shape) * 8 for name, variable in self._variables.items()}
        largest = sum(sizes.values()) + sum(sizes[name] for name in self._network_names) + _LARGEST_OVERHEAD
        try:
            with (
                open_stored(self._path, largest=largest) as file,
                np.load(file, allow_pickle=False) as saved,
            ):
                if any(member.compress_type != zipfile.ZIP_STORED for member in saved.zip.infolist()):
                    raise ValueError("expected arrays without compression")  # they could fill the memory
                history = [epoch.as_json() for epoch in EPOCHS.validate_python(parse_json(saved["history"].tobytes()))]
                values = {name: saved[name] for name in self._variables}
                best = {name: saved[f"best.{name}"] for name in self._network_names}
            for name, variable in self._variables.items():
                for saved_value in (values[name], best.get(name, values[name])):
                    received, expected = (saved_value.shape, saved_value.dtype), (tuple(variable.shape), variable.dtype)
                    if received != expected:
                        raise ValueError(f"{variable.path}: expected {expected}, received {received}")
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, StoredArtifactError) as error:
            logger.warning("the checkpoint %s is damaged; training starts from the first epoch (%s)", self._path, error)
            return
        for name, variable in self._variables.items():
            variable.assign(values[name])
        self.history, self._best = history, best
        logger.info("resuming after epoch %d from %s", len(history), self._path)

    def restore_best(self) -> None:
        """Assign the weights of the epoch with the lowest validation loss to the network."""
        for name, value in self._best.items():
            self._variables[name].assign(value)

    def should_stop(self, patience: int | None) -> bool:
        """Return True if the validation loss has not improved for ``patience`` epochs; None never stops."""
        return patience is not None and bool(self.history) and len(self.history) - 1 - self._best_epoch() >= patience

    def _best_epoch(self) -> int:
        return min(range(len(self.history)), key=lambda epoch: self.history[epoch]["val_loss"])
