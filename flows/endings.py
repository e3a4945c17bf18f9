"""Completed, but not as usual: final states whose names say so in the UI, in `--watch` and to automations."""

from pathlib import Path

from prefect import State
from prefect.states import Completed

from schemas.references import ModelVersion, WatchedData

NOTHING_NEW = "Nothing new"
SUPERSEDED = "Superseded"


def nothing_new(made: ModelVersion) -> State[ModelVersion]:
    """The same data, configuration and code made this version before."""
    return Completed(
        name=NOTHING_NEW,
        message=f"Nothing new: version {made.version} was made from the same data, configuration and code.",
        data=made,
    )


def superseded(data_dir: Path, expected: str, found: str) -> State[ModelVersion]:
    """The data that this run was to train on is gone, and what took its place has an event of its own."""
    return Completed(
        name=SUPERSEDED,
        message=f"Superseded: {data_dir} was expected to hold the data with digest {expected}, and holds {found}. "
        "Nothing was trained; the newer data is announced on its own.",
    )


def no_news(seen: WatchedData) -> State[WatchedData]:
    """The folder holds what was announced before, or nothing that could be."""
    what = "no complete data" if seen.digest is None else f"the data announced before, {seen.digest}"
    return Completed(name=NOTHING_NEW, message=f"Nothing new: {seen.data_dir} holds {what}.", data=seen)
