"""Events of a run, for subscribers in the same process such as the terminal."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StageStarted:
    """A stage looks up its output and builds it if it is missing. ``split``: set for a stage that runs per split."""

    stage: str
    split: str | None


@dataclass(frozen=True)
class StageMissed:
    """A started stage found no output that it can reuse, and builds one."""

    stage: str
    split: str | None


@dataclass(frozen=True)
class StageFinished:
    """A stage's output exists. ``facts``: see `run_stage`. ``seconds``: time to build it, now or in an earlier run."""

    stage: str
    split: str | None
    reused: bool
    seconds: float
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class ShardsFinished:
    """Progress of a stage that runs per shard: ``done`` of ``total``."""

    stage: str
    split: str | None
    done: int
    total: int


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of training: ``done`` of ``epochs``, which may be a fraction.

    figures: latest loss and accuracy; at the end of an epoch also val_loss and val_accuracy.
    """

    done: float
    epochs: int
    figures: Mapping[str, float]


Event = StageStarted | StageMissed | ShardsFinished | StageFinished | TrainingProgress

_subscribers: list[Callable[[Event], None]] = []


@contextmanager
def subscribe(subscriber: Callable[[Event], None]) -> Iterator[None]:
    """Call ``subscriber`` with each event while the block runs, on the thread that emits it."""
    _subscribers.append(subscriber)
    try:
        yield
    finally:
        _subscribers.remove(subscriber)


def emit(event: Event) -> None:
    """Pass an event to every subscriber."""
    for subscriber in tuple(_subscribers):  # another thread may subscribe meanwhile
        subscriber(event)
