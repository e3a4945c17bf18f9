"""What a run does, told while it does it to whoever watches in the same process: the terminal."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Begun:
    """A stage looks for its output, and makes it where there is none. ``split``: where it has one of its own."""

    stage: str
    split: str | None


@dataclass(frozen=True)
class Ended:
    """A stage's output is there. ``facts`` are those of `tasks.stage.run_stage`; ``seconds`` is what making it took."""

    stage: str
    split: str | None
    reused: bool
    seconds: float
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """How far training is: ``done`` of ``epochs``, in epochs and parts of one, with the latest figures of train.

    ``figures``: loss and accuracy, and from the end of an epoch on val_loss and val_accuracy of that epoch.
    """

    done: float
    epochs: int
    figures: Mapping[str, float]


Event = Begun | Ended | Trained

_watchers: list[Callable[[Event], None]] = []


@contextmanager
def watched_by(watcher: Callable[[Event], None]) -> Iterator[None]:
    """While the block runs, ``watcher`` is told of each event, by the thread that it happens in."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def tell(event: Event) -> None:
    for watcher in _watchers:
        watcher(event)
