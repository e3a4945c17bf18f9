"""What a run does, told while it does it to whoever watches in the same process: the terminal."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StageStarted:
    """A stage looks for its output, and makes it where there is none. ``split``: where it has one of its own."""

    stage: str
    split: str | None


@dataclass(frozen=True)
class StageFinished:
    """A stage's output is there. ``facts`` are those of `tasks.runtime.stage_cache.run_stage`; ``seconds`` is what making it took."""

    stage: str
    split: str | None
    reused: bool
    seconds: float
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class TrainingProgress:
    """How far training is: ``done`` of ``epochs``, in epochs and parts of one, with the latest figures of train.

    ``figures``: loss and accuracy, and from the end of an epoch on val_loss and val_accuracy of that epoch.
    """

    done: float
    epochs: int
    figures: Mapping[str, float]


Event = StageStarted | StageFinished | TrainingProgress

_watchers: list[Callable[[Event], None]] = []


@contextmanager
def subscribe(watcher: Callable[[Event], None]) -> Iterator[None]:
    """While the block runs, ``watcher`` is told of each event, by the thread that it happens in."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def emit(event: Event) -> None:
    for watcher in _watchers:
        watcher(event)
